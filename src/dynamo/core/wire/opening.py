"""HELLO, AUTH and the head of OPEN: what the two sides say of themselves, and what a call asks for."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from attrs import frozen

from dynamo.core.errors import AuthError, Retry, UnsupportedError, WrongInstanceError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.frames import (
    DEFAULT_MAX_HEAD,
    DEFAULT_MAX_MESSAGE,
    DEFAULT_MAX_STREAMS,
    DEFAULT_WINDOW,
    MIN_WINDOW,
    VERSION,
    Malformed,
)
from dynamo.core.wire.packing import pack, unpack_map, whole

NONCE_BYTES = PROOF_BYTES = 32
_MAX_INT = 2**31 - 1
_FAR_S = 9e9  # in microseconds below 2 ** 53


@frozen(kw_only=True)
class Options:
    """What one side of a connection is, takes and expects.

    ``expected_*`` are a dialer's: who should be at the address, 0 for anybody. ``token`` None or empty: none.
    ``nonce`` is drawn at random where it is not given. ``early``: a dialer without a token sends calls before
    the listener's HELLO; that saves a round trip, and if HELLO never comes, they may have run. ``opening_s``
    bounds HELLO and AUTH; ``keepalive_s`` is K of the page. ``peer`` names the other side in messages.
    """

    instance_id: int = 0
    incarnation: int = 0
    expected_instance_id: int = 0
    expected_incarnation: int = 0
    window_bytes: int = DEFAULT_WINDOW
    max_message_bytes: int = DEFAULT_MAX_MESSAGE
    max_streams: int = DEFAULT_MAX_STREAMS
    max_head_bytes: int = DEFAULT_MAX_HEAD
    token: str | None = None
    nonce: bytes | None = None
    early: bool = True
    keepalive_s: float = 10.0
    opening_s: float = 10.0
    peer: str = "the peer"


@frozen(kw_only=True)
class Hello:
    """What the peer's HELLO said, defaults filled in. Before it arrived a dialer goes by ``Hello()``."""

    min_version: int = VERSION
    max_version: int = VERSION
    features: int = 0
    instance_id: int = 0
    incarnation: int = 0
    expected_instance_id: int = 0
    expected_incarnation: int = 0
    window: int = DEFAULT_WINDOW
    max_message: int = DEFAULT_MAX_MESSAGE
    max_streams: int = DEFAULT_MAX_STREAMS
    max_head: int = DEFAULT_MAX_HEAD
    nonce: bytes | None = None
    proof: bytes | None = None


def encode_hello(options: Options, nonce: bytes | None, proof: bytes | None) -> bytes:
    """What is a default is left out, but for the limits that bind the peer before it has read anything."""
    body: dict[int, Any] = {0: VERSION, 1: VERSION}
    said = (
        (3, options.instance_id, 0),
        (4, options.incarnation, 0),
        (5, options.expected_instance_id, 0),
        (6, options.expected_incarnation, 0),
        (7, min(options.window_bytes, _MAX_INT), DEFAULT_WINDOW),
        (8, min(options.max_message_bytes, _MAX_INT), DEFAULT_MAX_MESSAGE),
        (9, options.max_streams, DEFAULT_MAX_STREAMS),
        (10, options.max_head_bytes, DEFAULT_MAX_HEAD),
        (11, nonce, None),
        (12, proof, None),
    )
    body |= {key: value for key, value, default in said if value != default}
    return pack(body)


def decode_hello(body: bytes | memoryview) -> Hello:
    """Raises Malformed."""
    fields = unpack_map(body)
    lowest = whole(fields, 0, "min_version", 1, 65535)
    if lowest is None:
        raise Malformed("HELLO without min_version")
    highest = whole(fields, 1, "max_version", lowest, 65535)
    if highest is None:
        raise Malformed("HELLO without max_version")
    return Hello(
        min_version=lowest,
        max_version=highest,
        features=whole(fields, 2, "features", 0, 2**64 - 1, default=0),
        instance_id=whole(fields, 3, "instance_id", 0, 2**53 - 1, default=0),
        incarnation=whole(fields, 4, "incarnation", 0, 2**64 - 1, default=0),
        expected_instance_id=whole(fields, 5, "expected_instance_id", 0, 2**53 - 1, default=0),
        expected_incarnation=whole(fields, 6, "expected_incarnation", 0, 2**64 - 1, default=0),
        window=whole(fields, 7, "window", MIN_WINDOW, _MAX_INT, default=DEFAULT_WINDOW),
        max_message=whole(fields, 8, "max_message", 1, _MAX_INT, default=DEFAULT_MAX_MESSAGE),
        max_streams=whole(fields, 9, "max_streams", 1, _MAX_INT, default=DEFAULT_MAX_STREAMS),
        max_head=whole(fields, 10, "max_head", 1, _MAX_INT, default=DEFAULT_MAX_HEAD),
        nonce=_binary(fields, 11, "nonce", NONCE_BYTES),
        proof=_binary(fields, 12, "proof", PROOF_BYTES),
    )


def encode_auth(proof: bytes) -> bytes:
    return pack({0: proof})


def decode_auth(body: bytes | memoryview) -> bytes:
    """The proof. Raises Malformed."""
    proof = _binary(unpack_map(body), 0, "proof", PROOF_BYTES)
    if proof is None:
        raise Malformed("AUTH without a proof")
    return proof


def _binary(fields: dict[int, Any], key: int, name: str, size: int) -> bytes | None:
    if key not in fields:
        return None
    value = fields[key]
    if type(value) is not bytes or len(value) != size:
        raise Malformed(f"{name}: expected {size} bytes")
    return value


# Checks of the opening. Each raises what the refusal says.


def prove(token: str, side: str, dialer_nonce: bytes, listener_nonce: bytes) -> bytes:
    """``side`` is "dialer" or "listener": neither can send the other's proof back."""
    message = b"dynamo-wire-1 " + side.encode() + dialer_nonce + listener_nonce
    return hmac.new(token.encode(), message, hashlib.sha256).digest()


def check_proof(
    peer: str, token: str, side: str, proof: bytes | None, nonces: tuple[bytes, bytes | None]
) -> None:
    """``side`` is who must have proved it, ``nonces`` the dialer's and the listener's. Raises AuthError."""
    dialer_nonce, listener_nonce = nonces
    if proof is None or listener_nonce is None:
        raise AuthError(
            f"{peer} has no token, and this side asks for one; set DYN_AUTH_TOKEN to the same on both sides"
        )
    if not hmac.compare_digest(proof, prove(token, side, dialer_nonce, listener_nonce)):
        raise AuthError(f"{peer} has another token; set DYN_AUTH_TOKEN to the same on both sides")


def check_version(hello: Hello) -> None:
    if not hello.min_version <= VERSION <= hello.max_version:
        raise UnsupportedError(
            f"no common version of the wire protocol: one side speaks {VERSION} to {VERSION}, "
            f"the other {hello.min_version} to {hello.max_version}; upgrade the older one",
            retry=Retry.SAFE,
        )


def check_instance(expected: tuple[int, int], found: tuple[int, int]) -> None:
    """Compare instance id and incarnation. Raises WrongInstanceError that names both sides' view."""
    if expected[0] not in (0, found[0]) or expected[1] not in (0, found[1]):
        raise WrongInstanceError(
            f"instance {expected[0]} (incarnation {expected[1]:x}) was expected here, and this is "
            f"{found[0]} (incarnation {found[1]:x}): the address was reused"
        )


# The head of OPEN.


def encode_head(request: Request, window: int | None) -> bytes:
    """``window`` None: the default of this side's HELLO."""
    head: dict[int, Any] = {0: request.endpoint, 1: request.request_id}
    if request.attempt != 1:
        head[2] = request.attempt
    if (timeout_s := request.timeout_s) is not None:
        if not 0 <= timeout_s < _FAR_S:
            timeout_s = min(max(0.0, timeout_s), _FAR_S)
        head[3] = round(timeout_s * 1_000_000)
    if window is not None:
        head[4] = window
    if metadata := request.metadata:
        head[5] = metadata if type(metadata) is dict else dict(metadata)
    if request.priority:
        head[6] = request.priority
    return pack(head)


def decode_head(head: memoryview, default_window: int) -> tuple[Request, int]:
    """The request, without its item, and the window of its response. Raises Malformed."""
    fields = unpack_map(head)
    endpoint, request_id = fields.get(0), fields.get(1)
    if type(endpoint) is not str or type(request_id) is not str:
        raise Malformed("OPEN without an endpoint or a request id, as strings")
    if len(fields) == 2:  # the usual call
        return Request(endpoint=endpoint, request_id=request_id), default_window
    timeout_us = whole(fields, 3, "timeout_us", 0, 2**53 - 1)
    metadata = fields.get(5, {})
    if type(metadata) is not dict:
        raise Malformed("metadata: expected a map")
    for key, value in metadata.items():
        if type(key) is not str or type(value) is not str:
            raise Malformed("metadata: expected strings")
    attempt = whole(fields, 2, "attempt", 1, _MAX_INT) if 2 in fields else 1
    timeout_s = None if timeout_us is None else timeout_us / 1_000_000
    priority = whole(fields, 6, "priority", -(2**31), _MAX_INT) if 6 in fields else 0
    request = Request(endpoint, request_id, None, True, attempt, timeout_s, metadata, priority)
    if 4 in fields:
        return request, whole(fields, 4, "window", MIN_WINDOW, _MAX_INT)
    return request, default_window
