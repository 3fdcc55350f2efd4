"""What the core asks of the outside; each module is one question and the invariants of its answer."""
