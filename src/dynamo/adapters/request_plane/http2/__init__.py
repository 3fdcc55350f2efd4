"""The request plane over HTTP/2: a call is a stream on a connection that all calls to a worker share.

==========  ===============================================================================================
addresses   ``http://host:port`` (prior knowledge), ``https://host:port`` (TLS, ALPN ``h2``)
reach       other hosts, through proxies that speak HTTP/2 on both sides
windows     HTTP/2's own, ``DYN_WINDOW_BYTES`` per stream and direction, fed by who takes the items; larger
            items from ``DYN_RECEIVE_BUDGET_BYTES``. The connection's window is the largest that there is
identity    each request names the instance that it expects; another one there refuses it, SAFE
security    ``DYN_TCP_TLS_*`` for TLS and mutual TLS; ``DYN_AUTH_TOKEN`` as bearer, with TLS or on loopback
errors      as those of tcp; a peer that breaks HTTP/2 loses its connection (WireError)
==========  ===============================================================================================

Of ``hpack`` it trusts the table and its bounds; frames, streams and windows are its own: see record 30.
"""

from dynamo.adapters.request_plane.http2.plane import Http2RequestPlane, open_http2

__all__ = ["Http2RequestPlane", "open_http2"]
