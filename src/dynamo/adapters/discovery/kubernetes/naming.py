"""What a worker's object is called, the instance id that follows from that, and who of a pod has it."""

from __future__ import annotations

import errno
import socket
import sys

from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.core.errors import ConflictError
from dynamo.core.model import MAX_INSTANCE_ID

_MASK = 2**64 - 1
MAX_WORKERS = 1024  # of one pod
_taken: set[tuple[str, str]] = set()  # by the clients of this process


def object_name(pod: Pod, index: int) -> str:
    """``pod``, ``pod-container`` in container mode; the second worker of the same adds ``-1``."""
    name = pod.name if pod.container is None else f"{pod.name}-{pod.container}"
    return f"{name}-{index}" if index else name


def instance_id_of(name: str) -> int:
    """The lower 53 bits of the SipHash-1-3 of the object's name, with a key of zeros.

    As Dynamo 1.6 hashes pod names: Rust's ``DefaultHasher`` over a ``str``, which is its UTF-8 and a byte
    0xff, of which the lower 53 bits are kept. 0, which stands for any instance, becomes 1.
    """
    return siphash13(name.encode() + b"\xff") & MAX_INSTANCE_ID or 1


def siphash13(data: bytes) -> int:
    """SipHash with one round a word and three at the end, key 0 (Aumasson and Bernstein, 2012)."""
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573

    def rotated(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & _MASK

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0 = (v0 + v1) & _MASK
            v1 = rotated(v1, 13) ^ v0
            v0 = rotated(v0, 32)
            v2 = (v2 + v3) & _MASK
            v3 = rotated(v3, 16) ^ v2
            v0 = (v0 + v3) & _MASK
            v3 = rotated(v3, 21) ^ v0
            v2 = (v2 + v1) & _MASK
            v1 = rotated(v1, 17) ^ v2
            v2 = rotated(v2, 32)

    whole = len(data) // 8 * 8
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    last = int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56
    for word in (*words, last):
        v3 ^= word
        rounds(1)
        v0 ^= word
    v2 ^= 0xFF
    rounds(3)
    return v0 ^ v1 ^ v2 ^ v3


class Seats:
    """The names that one client has taken on among the workers of its pod.

    Each is held by a socket in the abstract namespace, which the containers of a pod share and the kernel
    frees with the process; nobody can connect to it. Where there is none of that, names are told apart within
    this process only.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._held: dict[str, socket.socket | None] = {}

    def take(self, index: int | None) -> tuple[int, str]:
        """The index and the name of the first seat that is free; with an ``index`` only its own seats.

        A second client of the worker that has an index, as a process with two runtimes, adds ``-r1``.
        """
        for number in range(MAX_WORKERS):
            if index is None:
                name = object_name(self._pod, number)
            else:
                name = object_name(self._pod, index) + (f"-r{number}" if number else "")
            if self._take(name):
                return number if index is None else index, name
        raise ConflictError(f"pod {self._pod.name} has {MAX_WORKERS} workers already")

    def _take(self, name: str) -> bool:
        if (self._pod.uid, name) in _taken:
            return False
        held: socket.socket | None = None
        if sys.platform == "linux":
            held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                held.bind(f"\0dynamo-kubernetes/{self._pod.uid}/{instance_id_of(name):x}")
            except OSError as error:
                held.close()
                if error.errno == errno.EADDRINUSE:
                    return False
                held = None
        _taken.add((self._pod.uid, name))
        self._held[name] = held
        return True

    def release(self) -> None:
        """Leave them to others."""
        for name, held in self._held.items():
            _taken.discard((self._pod.uid, name))
            if held is not None:
                held.close()
        self._held.clear()
