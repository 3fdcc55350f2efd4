"""The Discovery port over one namespace of a Kubernetes cluster: what a runtime sees."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.adapters.discovery.clients import OpenClient, check_owner
from dynamo.adapters.discovery.kubernetes import configuration
from dynamo.adapters.discovery.kubernetes.access import Access
from dynamo.adapters.discovery.kubernetes.errors import RECORDS, SLICES
from dynamo.adapters.discovery.kubernetes.join import Join
from dynamo.adapters.discovery.kubernetes.leasing import OwnLease
from dynamo.adapters.discovery.kubernetes.naming import Seats, instance_id_of, object_name
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Capability, Identity, Lease, Liveness, Watch
from dynamo.core.watching import ConflatingWatch

CAPABILITY = Capability(
    scheme="kubernetes",
    liveness=Liveness.EXTERNAL,
    ttl_s=math.inf,
    dynamic=True,
    cross_process=True,
    cross_host=True,
)
SCHEMES = {"tcp": ("tcp", "tcps"), "http2": ("http", "https")}  # of addresses with a port, by request plane
CLOSE_S = 2.0


class KubernetesLease(Lease):
    """The port's side of the worker's object."""

    def __init__(self, own: OwnLease) -> None:
        self._own = own

    async def put(self, instance: Instance) -> None:
        check_owner(instance, self._own.instance_id, self._own.incarnation)
        await self._own.put(instance)

    async def remove(self, endpoint_id: EndpointId) -> None:
        await self._own.remove(endpoint_id)

    async def lost(self) -> str:
        await self._own.until_lost()
        return self._own.reason


class KubernetesDiscovery(OpenClient):
    """One runtime's client."""

    def __init__(self, access: Access, settings: Settings) -> None:
        super().__init__(CAPABILITY, access.where)
        self._access, self._settings = access, settings
        self._join = Join(access)
        self._seats: Seats | None = None
        self._identity: Identity | None = None
        self._names: dict[int, str] = {}  # of the objects of our ids

    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        """The first free name of our pod, or that of ``DYN_WORKER_INDEX``. Raises ConfigError.

        A fixed port adds the index where that is of our choosing; who is asked again because that port was
        taken has the next one.
        """
        self.check_open()
        settings = self._settings
        if self._identity is None or self._identity.address is not None:
            if self._seats is None:
                self._seats = Seats(configuration.pod(settings))
            index, name = self._seats.take(settings.worker_index)
            self._identity = Identity(instance_id=instance_id_of(name), address=self._address(index))
            self._names[self._identity.instance_id] = name
        return self._identity

    def _address(self, index: int) -> str | None:
        settings = self._settings
        host, port = settings.tcp_host or settings.pod_ip, settings.tcp_port
        schemes = SCHEMES.get(settings.request_plane.partition("://")[0])
        if not (index and port and host and schemes) or settings.worker_index is not None:
            return None
        scheme = schemes[settings.tls_cert_path is not None]
        return f"{scheme}://[{host}]:{port + index}" if ":" in host else f"{scheme}://{host}:{port + index}"

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self.check_open()
        watch = ConflatingWatch()
        follower = self._join.follow(scope, watch)
        try:
            yield watch
        finally:
            self._join.unfollow(follower)

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        self.check_open()
        configuration.check_home(self._settings, self._access.namespace)
        pod = configuration.pod(self._settings)
        name = self._names.get(instance_id) or f"{object_name(pod, 0)}-{instance_id:x}"
        own = OwnLease(self._access, pod, name, instance_id, incarnation)
        try:
            await own.take()
            yield KubernetesLease(own)
        finally:
            await own.end()  # noqa: ASYNC102 - shielded and bounded inside

    async def check(self) -> Health:
        try:
            for resource in (RECORDS, SLICES):
                await self._access.probe(resource)
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))
        if (reason := self._join.away) is not None:
            return Health(status=Status.STALE, detail=reason)
        where = f"namespace {self._access.namespace} of {self._access.where}"
        return Health(status=Status.UP, detail=f"Kubernetes, {where}")

    async def aclose(self) -> None:
        """End what still runs."""
        self.close()
        await self._join.ended(CLOSE_S)
        if self._seats is not None:
            self._seats.release()
