"""The part that touches nothing outside: values, ports, the wire, routing, and the runtime made of them."""
