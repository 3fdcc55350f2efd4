"""The request plane over TCP, TLS and Unix sockets: the native wire protocol on persistent connections.

==========  ===============================================================================================
addresses   ``tcp://host:port``, ``tcps://host:port`` (TLS), ``unix://{boot id}/path`` (on the same boot)
reach       other hosts; the Unix socket stands beside tcp, but not where client certificates are demanded
windows     ``DYN_WINDOW_BYTES`` per stream and direction; larger items from ``DYN_RECEIVE_BUDGET_BYTES``
identity    each connection names the instance that it expects; another one there refuses it, SAFE
security    ``DYN_AUTH_TOKEN`` proved both ways, never sent; ``DYN_TCP_TLS_*`` for TLS and mutual TLS
errors      UnavailableError: nobody there, no answer; AuthError: token or certificate; WireError: not this
            protocol; ConflictError: port in use; ConfigError: not an address of this host, bad certificate
==========  ===============================================================================================

Nothing of asyncio's streams is used: a ``BufferedProtocol`` feeds the sans-IO connection, and one write per
loop tick takes what it has to say.
"""

from dynamo.adapters.request_plane.tcp.plane import TcpRequestPlane, open_tcp

__all__ = ["TcpRequestPlane", "open_tcp"]
