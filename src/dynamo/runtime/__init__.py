"""The public face: everything that a user of the library needs, re-exported from where it is defined."""

from dynamo.core.client import Client
from dynamo.core.context import Context
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.endpoint import Component, Endpoint, Namespace
from dynamo.core.handlers import RequestStream, ResponseSender
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Phase
from dynamo.core.worker import dynamo_endpoint, dynamo_worker

PyAsyncRequestStream = RequestStream  # Dynamo's name for it

__all__ = [
    "Client",
    "Component",
    "Context",
    "DistributedRuntime",
    "Endpoint",
    "EndpointId",
    "Health",
    "Instance",
    "Namespace",
    "Phase",
    "PyAsyncRequestStream",
    "RequestStream",
    "ResponseSender",
    "Status",
    "dynamo_endpoint",
    "dynamo_worker",
]
