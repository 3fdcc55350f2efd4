"""The request plane inside one process: two ends that share no state and talk by messages, as over a wire.

addresses  ``mem://<counter>``, or ``mem://<name>-<counter>`` for a plane opened as ``mem://<name>``
reach      this process; runtimes on other event loops (threads) too
windows    ``window_bytes`` per direction, an item costs its length + 64; above that ``receive_budget_bytes``
errors     UnavailableError: no server there; ConflictError: address taken; ClosedError: closed, or other loop

What one end sends reaches the other in a later tick of the loop, all of a tick together; nothing of the peer
runs inside ``send``. A server's ``break_links`` and ``abort`` do what a cut cable and a killed process do.
"""

from dynamo.adapters.request_plane.mem.plane import MemRequestPlane, MemServer, open_mem

__all__ = ["MemRequestPlane", "MemServer", "open_mem"]
