"""The opening of one connection: who says what when, and what is checked before anything else may happen."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from dynamo.core.errors import AuthError
from dynamo.core.wire import opening
from dynamo.core.wire.frames import AUTH, HELLO, MAGIC, map_frame
from dynamo.core.wire.opening import Hello

if TYPE_CHECKING:
    from dynamo.core.wire.connection import Connection


class Handshake:
    """HELLO both ways and, with a token, AUTH. It raises what refuses the peer."""

    __slots__ = ("_connection", "_nonce", "hello_read", "hello_sent")

    def __init__(self, connection: Connection) -> None:
        options = connection.options
        self._connection = connection
        self._nonce = b""  # none without a token
        if options.token:
            self._nonce = options.nonce or secrets.token_bytes(opening.NONCE_BYTES)
        self.hello_read = self.hello_sent = False

    def say_hello(self, proof: bytes | None = None) -> None:
        """A dialer's first words, or a listener's answer."""
        self.hello_sent = True
        body = opening.encode_hello(self._connection.options, self._nonce or None, proof)
        self._connection._out.opening += [MAGIC, map_frame(HELLO, 0, body)]

    def greet(self, hello: Hello) -> None:
        """The peer's HELLO arrived."""
        self.hello_read = True
        opening.check_version(hello)
        self._connection._limit_sending(hello)
        if self._connection._dialer:
            self._greet_listener(hello)
        else:
            self._greet_dialer(hello)

    def _greet_dialer(self, hello: Hello) -> None:
        connection, options = self._connection, self._connection.options
        if options.token and hello.nonce is None:
            raise AuthError(
                "a token is asked for here, and none was offered; set DYN_AUTH_TOKEN to the same on both"
            )
        opening.check_instance(
            (hello.expected_instance_id, hello.expected_incarnation),
            (options.instance_id, options.incarnation),
        )
        if options.token and hello.nonce is not None:
            self.say_hello(opening.prove(options.token, "listener", hello.nonce, self._nonce))
            connection._out.wake()
        else:
            self.say_hello()
            connection._become_ready()

    def _greet_listener(self, hello: Hello) -> None:
        connection, options = self._connection, self._connection.options
        if options.token:
            nonces = (self._nonce, hello.nonce)
            opening.check_proof(options.peer, options.token, "listener", hello.proof, nonces)
        opening.check_instance(
            (options.expected_instance_id, options.expected_incarnation),
            (hello.instance_id, hello.incarnation),
        )
        if options.token and hello.nonce is not None:
            proof = opening.prove(options.token, "dialer", self._nonce, hello.nonce)
            connection._out.opening.append(map_frame(AUTH, 0, opening.encode_auth(proof)))
        connection._become_ready()

    def authenticate(self, proof: bytes) -> None:
        """The dialer's AUTH arrived."""
        connection, options = self._connection, self._connection.options
        dialer_nonce = connection._hello.nonce
        assert options.token is not None
        assert dialer_nonce is not None
        opening.check_proof(options.peer, options.token, "dialer", proof, (dialer_nonce, self._nonce))
        connection._become_ready()
