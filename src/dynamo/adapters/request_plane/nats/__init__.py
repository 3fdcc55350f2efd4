"""The request plane over NATS: the native wire protocol in messages, requests and responses alike.

==========  ===============================================================================================
addresses   ``nats:///name``: no server in it, each side comes by its own ``NATS_SERVER``;
            ``nats:///namespace.component.*``: any worker of a component, as NATS chooses
subjects    ``dyn.{namespace}.{component}.{endpoint}.{name}``; a runtime's name is its instance id in hex
reach       other hosts, wherever the NATS cluster reaches; nobody listens on a port
windows     ``DYN_WINDOW_BYTES`` per stream and direction, end to end: never a slow consumer of NATS
identity    each session names the instance that it expects; another one there refuses it, SAFE
security    ``NATS_AUTH_*`` to the servers; ``DYN_AUTH_TOKEN`` proved end to end
errors      UnavailableError: no server, nobody there; AuthError: NATS or the peer refused us; WireError: not
            this protocol; ConflictError: another process serves the address; ConfigError: bad address
==========  ===============================================================================================

Of nats-py is used what one connection needs: to get in, to ask, to parse what comes. Not trusted: its
reconnecting (it buffers what is better held back in the windows, and hangs where a frozen server leaves its
socket full), its pings, that closing ends. Not used, for what they cost: its queue and task a subscription,
its writing.
"""

from dynamo.adapters.request_plane.nats.plane import NatsRequestPlane, open_nats

__all__ = ["NatsRequestPlane", "open_nats"]
