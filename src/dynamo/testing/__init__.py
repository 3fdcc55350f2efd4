"""What tests of distributed code need: contract suites for adapters, a fault proxy, leak checks."""
