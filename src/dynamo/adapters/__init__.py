"""Answers to the core's ports, one file or one small folder each, found by entry point."""
