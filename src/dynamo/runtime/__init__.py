"""The public face: everything that a user of the library needs, re-exported from where it is defined."""

from dynamo.core.client import Client
from dynamo.core.config import Settings
from dynamo.core.context import Context
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.duplex import DuplexStream
from dynamo.core.endpoint import Component, Endpoint, Namespace
from dynamo.core.errors import (
    AuthError,
    BadPayloadError,
    CallCancelledError,
    CardinalityError,
    ClosedError,
    ConfigError,
    ConflictError,
    DeadlineError,
    DrainingError,
    DynamoError,
    EncodeError,
    LeaseLostError,
    MissingExtraError,
    NoInstancesError,
    OverloadedError,
    RemoteError,
    Retry,
    StreamBrokenError,
    TooLargeError,
    UnavailableError,
    UnknownEndpointError,
    UnsupportedError,
    WireError,
    WrongInstanceError,
)
from dynamo.core.handlers import RequestStream, ResponseSender
from dynamo.core.handlers import RequestStream as PyAsyncRequestStream
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Phase
from dynamo.core.neighbour import warn_of_nvidias_wheel
from dynamo.core.peers import Peer, Peers
from dynamo.core.routing import Direct, LeastLoaded, PowerOfTwo, Random, RoundRobin, Strategy
from dynamo.core.streams import Annotated, ResponseStream
from dynamo.core.unary import UnaryClient, serve_unary_endpoint
from dynamo.core.worker import dynamo_endpoint, dynamo_worker
from dynamo.sdk import (
    RawConfig,
    ServedServices,
    ServiceGraph,
    api,
    configured,
    current_context,
    depends,
    endpoint,
    on_shutdown,
    on_start,
    read_config,
    serve_services,
    service,
    service_client,
    using,
)

__all__ = [
    "Annotated",
    "AuthError",
    "BadPayloadError",
    "CallCancelledError",
    "CardinalityError",
    "Client",
    "ClosedError",
    "Component",
    "ConfigError",
    "ConflictError",
    "Context",
    "DeadlineError",
    "Direct",
    "DistributedRuntime",
    "DrainingError",
    "DuplexStream",
    "DynamoError",
    "EncodeError",
    "Endpoint",
    "EndpointId",
    "Health",
    "Instance",
    "LeaseLostError",
    "LeastLoaded",
    "MissingExtraError",
    "Namespace",
    "NoInstancesError",
    "OverloadedError",
    "Peer",
    "Peers",
    "Phase",
    "PowerOfTwo",
    "PyAsyncRequestStream",
    "Random",
    "RawConfig",
    "RemoteError",
    "RequestStream",
    "ResponseSender",
    "ResponseStream",
    "Retry",
    "RoundRobin",
    "ServedServices",
    "ServiceGraph",
    "Settings",
    "Status",
    "Strategy",
    "StreamBrokenError",
    "TooLargeError",
    "UnaryClient",
    "UnavailableError",
    "UnknownEndpointError",
    "UnsupportedError",
    "WireError",
    "WrongInstanceError",
    "api",
    "configured",
    "current_context",
    "depends",
    "dynamo_endpoint",
    "dynamo_worker",
    "endpoint",
    "on_shutdown",
    "on_start",
    "read_config",
    "serve_services",
    "serve_unary_endpoint",
    "service",
    "service_client",
    "using",
]

warn_of_nvidias_wheel()
