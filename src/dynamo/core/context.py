"""What a request carries besides its payload: identity, cancellation, deadline, metadata, and the link to
nested calls.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Protocol

# W3C Trace Context, level 1: version 00; ids of zeros only are invalid
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")


def text_map(values: Mapping[str, str]) -> dict[str, str]:
    """A copy. Raises TypeError for what is not text to text."""
    if type(values) is not dict and not isinstance(values, Mapping):
        raise TypeError(f"metadata is a mapping of text to text, not {values!r}")
    copied = dict(values)
    for key, value in copied.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata is text to text, not {key!r}: {value!r}")
    return copied


class Metadata(MutableMapping[str, str]):
    """A live str-to-str mapping; anything else is a TypeError where it is set, not where it is sent."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values: MutableMapping[str, str] = text_map(values) if values else {}

    @classmethod
    def _around(cls, values: MutableMapping[str, str]) -> Metadata:
        """Of what was checked already, without a copy."""
        metadata = cls.__new__(cls)
        metadata._values = values
        return metadata

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __setitem__(self, key: str, value: str) -> None:
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata is text to text, not {key!r}: {value!r}")
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def pop(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Remove and return; a missing key gives ``default``, as Dynamo's mapping does."""
        return self._values.pop(key, default)


class Owner(Protocol):
    """Whom a context belongs to."""

    def context_cancelled(self, killed: bool) -> None:
        """It was stopped or killed."""


class Context:
    """One request as its handler, or its caller, sees it.

    A caller may make one to watch or cancel its calls; a handler gets one and hands it to nested calls
    (``client.stream(..., context=context)``), which are then cancelled with it.
    """

    __slots__ = (
        "__weakref__",
        "_deadline",
        "_event",
        "_hooks",
        "_id",
        "_killed",
        "_metadata",
        "_owner",
        "_span_id",
        "_stopped",
    )

    def __init__(
        self,
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        if id is not None and not isinstance(id, str):
            raise TypeError(f"id is text, not {id!r}")
        self._id = id
        self._metadata: MutableMapping[str, str] | None = Metadata(metadata) if metadata else None
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._stopped = self._killed = False
        self._event: asyncio.Event | None = None
        self._hooks: dict[int, Callable[[bool], object]] | None = None
        self._owner: Owner | None = None
        self._span_id: str | None = None

    def id(self) -> str:
        """The request id: the same in every process that the request passes, and across attempts."""
        if self._id is None:
            self._id = str(uuid.uuid4())
        return self._id

    @property
    def metadata(self) -> Metadata:
        """Travels with the request and with nested calls. Assigning replaces it."""
        metadata = self._metadata
        if type(metadata) is not Metadata:
            metadata = self._metadata = Metadata._around({} if metadata is None else metadata)
        return metadata

    @metadata.setter
    def metadata(self, values: Mapping[str, str]) -> None:
        self._metadata = Metadata(values)

    @property
    def timeout_s(self) -> float | None:
        """Seconds left until the deadline, not below 0; None where there is no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def is_stopped(self) -> bool:
        """True once somebody asked to finish early; a killed request is stopped too."""
        return self._stopped

    def is_killed(self) -> bool:
        """True once the request was cancelled: nobody reads what is still sent."""
        return self._killed

    def stop_generating(self) -> None:
        """Ask the handler, and the calls nested in it, to finish; what they still send arrives."""
        if not self._stopped:
            self._stopped = True
            self._tell(False)

    def kill(self) -> None:
        """Cancel the request and the calls nested in it."""
        if not self._killed:
            self._stopped = self._killed = True
            self._tell(True)

    async def async_killed_or_stopped(self) -> bool:
        """Wait until stopped or killed; returns True."""
        if not self._stopped:
            if self._event is None:
                self._event = asyncio.Event()
            await self._event.wait()
        return True

    def detached(self, id: str | None = None) -> Context:
        """A context with this one's metadata and trace, which outlives its cancellation and deadline."""
        return Context(id, dict(self.metadata) | self.trace_headers())

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id in ``traceparent``, 32 hex digits, or None."""
        return found[1] if (found := self._traceparent()) else None

    @property
    def parent_span_id(self) -> str | None:
        """The caller's span, 16 hex digits, or None."""
        return found[2] if (found := self._traceparent()) else None

    @property
    def span_id(self) -> str | None:
        """The span of this request in this process, drawn when first asked for; None without a trace."""
        if self._span_id is None and self._traceparent():
            self._span_id = secrets.token_hex(8)
        return self._span_id

    def trace_headers(self) -> dict[str, str]:
        """``traceparent``, and ``tracestate`` where there is one, for a request on behalf of this one."""
        if not (found := self._traceparent()):
            return {}
        headers = {"traceparent": f"00-{found[1]}-{self.span_id}-{found[0][-2:]}"}
        if (state := self.metadata.get("tracestate")) is not None:
            headers["tracestate"] = state
        return headers

    def _traceparent(self) -> re.Match[str] | None:
        if not self._metadata:
            return None
        return _TRACEPARENT.fullmatch(self._metadata.get("traceparent", ""))

    def _link(self, hook: Callable[[bool], object]) -> int:
        """Call ``hook(killed)`` on every stop and kill until ``_unlink``; at once for what has happened."""
        if self._hooks is None:
            self._hooks = {}
        self._hooks[id(hook)] = hook
        if self._stopped:
            hook(self._killed)
        return id(hook)

    def _unlink(self, link: int) -> None:
        if self._hooks is not None:
            self._hooks.pop(link, None)

    def _tell(self, killed: bool) -> None:
        if self._event is not None:
            self._event.set()
        if self._owner is not None:
            self._owner.context_cancelled(killed)
        for hook in list(self._hooks.values()) if self._hooks else ():
            hook(killed)

    def __repr__(self) -> str:
        state = "killed" if self._killed else "stopped" if self._stopped else "running"
        return f"Context(id={self.id()!r}, {state})"


def context_of_call(id: str, metadata: Mapping[str, str], deadline: float | None, owner: Owner) -> Context:
    """A handler's: what arrived was checked already."""
    context = Context.__new__(Context)
    context._id = id
    context._metadata = metadata if type(metadata) is dict else dict(metadata)
    context._deadline = deadline
    context._stopped = context._killed = False
    context._event = context._span_id = context._hooks = None
    context._owner = owner
    return context
