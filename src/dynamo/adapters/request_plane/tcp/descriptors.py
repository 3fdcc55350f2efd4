"""What to do where the system gives no more file descriptors."""

from __future__ import annotations

import errno

try:
    import resource
except ImportError:  # Windows, where sockets are not counted with files
    resource = None  # type: ignore[assignment]


def way_out(error: OSError) -> str:
    """What to add to the message of ``error``: nothing unless it is about descriptors."""
    if error.errno == errno.ENFILE:
        return "; this host has no more of them: raise its limit (sysctl fs.file-max)"
    if error.errno != errno.EMFILE or resource is None:
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"; this process may have {limit} at a time: raise the limit (ulimit -n)"
