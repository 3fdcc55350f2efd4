"""What a lease file says: the incarnation that holds it, the beat, and who that is, for people."""

from __future__ import annotations

import json
import os
import socket

UNREADABLE = (ValueError, TypeError, KeyError, RecursionError)  # whatever lies there


def content_of(incarnation: int, beat: int = 0) -> bytes:
    """JSON on one line."""
    host = socket.gethostname()
    content = {"incarnation": f"{incarnation:x}", "beat": beat, "pid": os.getpid(), "host": host}
    return json.dumps(content).encode() + b"\n"


def incarnation_of(content: bytes) -> int | None:
    """None while the file is being written, or where it is none of ours."""
    try:
        return int(json.loads(content)["incarnation"], 16)
    except UNREADABLE:
        return None


def holder_of(content: bytes) -> str:
    """Who holds it, for a message."""
    try:
        said = json.loads(content)
        return f"process {said['pid']} on {said['host']}"
    except UNREADABLE:
        return "another process"
