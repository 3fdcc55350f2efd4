"""What is seen of a runtime from outside: metrics for Prometheus, and the system status server."""
