"""The native wire protocol without I/O: bytes in, streams out. docs/wire-protocol.md is its page."""
