"""Engines that serve without anything else: an echo for demos, tests and benchmarks."""
