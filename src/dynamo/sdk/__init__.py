"""Services: classes whose methods are endpoints, and what runs them. ``dynamo.runtime`` re-exports what their
authors write.
"""

from dynamo.sdk.calling import ItemStream, ServiceClient, using
from dynamo.sdk.configuring import RawConfig, read_config
from dynamo.sdk.current import current_context
from dynamo.sdk.depending import configured, depends
from dynamo.sdk.graph import PlannedService, ServiceGraph
from dynamo.sdk.marks import api, endpoint, on_shutdown, on_start, service
from dynamo.sdk.routes import Route, RouteSchemas, encode_json, route_schemas, routes_of
from dynamo.sdk.serving import ServedServices, serve_services, service_client
from dynamo.sdk.signature import Parameter
from dynamo.sdk.spec import ServiceMethod, ServiceSpec

__all__ = [
    "ItemStream",
    "Parameter",
    "PlannedService",
    "RawConfig",
    "Route",
    "RouteSchemas",
    "ServedServices",
    "ServiceClient",
    "ServiceGraph",
    "ServiceMethod",
    "ServiceSpec",
    "api",
    "configured",
    "current_context",
    "depends",
    "encode_json",
    "endpoint",
    "on_shutdown",
    "on_start",
    "read_config",
    "route_schemas",
    "routes_of",
    "serve_services",
    "service",
    "service_client",
    "using",
]
