"""The members of an etcd cluster: one channel each, failover, authentication. For one loop, the thread's.

Of etcd3aio only the messages and stubs are used: its connection manager takes no DNS names, its services
have no deadline and repeat what is not idempotent, its watch and lease helpers lose events and leases.
Every request of ours may be sent twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from dynamo.adapters.discovery.etcd.configuration import Endpoint, EtcdConfig, TlsFiles
from dynamo.adapters.discovery.etcd.diagnosis import diagnose
from dynamo.adapters.discovery.etcd.errors import RefusedError, is_outage, token_is_gone, translated
from dynamo.adapters.discovery.etcd.keys import ROOT, KeyRange
from dynamo.adapters.discovery.etcd.messages import EOF, pb, stubs
from dynamo.core.errors import DynamoError, UnavailableError

T = TypeVar("T")

HAS_LEADER = ("hasleader", "true")  # a member without a quorum says so, instead of waiting for one
PAUSE_S = 0.1  # between rounds over all members
SHORTEST_TRY_S = 0.25
DIAGNOSIS_S = 2.0
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # connections of our own, closed with us
    ("grpc.enable_http_proxy", 0),  # http_proxy is not meant for a cluster's own traffic
    ("grpc.max_receive_message_length", -1),  # a snapshot of ten thousand instances passes 4 MiB
    ("grpc.keepalive_time_ms", 10_000),  # etcd hangs up on who pings more often than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # is in truth how long one attempt to connect may take
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a restarted pod has another address
)


class Member:
    """One endpoint and its channel."""

    def __init__(self, endpoint: Endpoint, tls: TlsFiles | None) -> None:
        self.endpoint = endpoint
        if endpoint.tls and tls is not None:
            credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
            self.channel = grpc.aio.secure_channel(endpoint.target, credentials, options=OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(endpoint.target, options=OPTIONS)
        self.kv: Any = stubs.KVStub(self.channel)
        self.lease: Any = stubs.LeaseStub(self.channel)
        self.watch: Any = stubs.WatchStub(self.channel)
        self.auth: Any = stubs.AuthStub(self.channel)
        self.maintenance: Any = stubs.MaintenanceStub(self.channel)


Ask = Callable[[Member, dict[str, Any]], Awaitable[T]]


class Cluster:
    """Asks the current member; one that fails is left for the next."""

    def __init__(self, config: EtcdConfig, tls: TlsFiles | None) -> None:
        self.config, self._tls = config, tls
        self._members: list[Member] = []  # the first one is asked
        self._token: str | None = None
        self._login = asyncio.Lock()

    @property
    def current(self) -> Member:
        return self._members[0]

    def leave(self, member: Member) -> None:
        """The next member is asked from now on, if this one was."""
        if member is self._members[0]:
            self._members.append(self._members.pop(0))

    async def connect(self) -> None:
        """Open the channels, and have one answer of any member as proof that all is set right.

        Raises UnavailableError, AuthError, ConfigError.
        """
        self._members = [Member(endpoint, self._tls) for endpoint in self.config.endpoints]
        random.shuffle(self._members)  # processes spread over the members
        if self._tls is not None:  # what is wrong with a certificate is told better, and at once
            await self._diagnose(None)
        request = pb.RangeRequest(key=ROOT.encode(), range_end=KeyRange.below(ROOT).end, count_only=True)
        try:
            await self.range(request)
        except UnavailableError as error:
            await self._diagnose(error)
            raise

    async def _diagnose(self, error: DynamoError | None) -> None:
        """Raise what keeps every member from being reached, as far as it can be found out."""
        found: list[DynamoError] = []
        for member in self._members:
            reason = await diagnose(member.endpoint, self.config, min(self.config.answer_s, DIAGNOSIS_S))
            if reason is None:
                return
            found.append(reason)
        raise next((one for one in found if not isinstance(one, UnavailableError)), found[0]) from error

    async def version(self, bound_s: float) -> str:
        """Of the member that answers a question which needs the quorum."""
        await self.range(pb.RangeRequest(key=ROOT.encode(), count_only=True), bound_s=bound_s)
        answer = await self.call(
            lambda m, how: m.maintenance.Status(pb.StatusRequest(), **how), bound_s=bound_s
        )
        return str(answer.version)

    async def close(self) -> None:
        members, self._members = self._members, []  # a connection is closed once nothing refers to it
        for member in members:
            await member.channel.close()

    async def call(self, ask: Ask[T], *, bound_s: float, patient: bool = False) -> T:
        """Ask one member after the other, once each; ``patient`` goes round until ``bound_s`` has passed.

        Raises UnavailableError, AuthError, RefusedError.
        """
        deadline = time.monotonic() + bound_s
        try_s = max(SHORTEST_TRY_S, bound_s / len(self._members))
        tried, logins = 0, 0
        while True:
            member = self.current
            timeout_s = max(min(try_s, deadline - time.monotonic()), 0.001)
            try:
                return await ask(member, {"timeout": timeout_s, "metadata": await self.metadata(timeout_s)})
            except grpc.aio.AioRpcError as error:
                if token_is_gone(error) and self.config.username is not None and logins < 2:
                    self._token, logins = None, logins + 1
                    continue
                tried += 1
                if self._gives_up(error, member, tried, deadline, patient):
                    raise translated(error, member.endpoint, self.config) from error
            except UnavailableError:
                tried += 1
                if self._gives_up(None, member, tried, deadline, patient):
                    raise
            if tried % len(self._members) == 0:
                await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.0))

    def _gives_up(
        self, error: grpc.aio.AioRpcError | None, member: Member, tried: int, deadline: float, patient: bool
    ) -> bool:
        """Whether another try is of no use; else, the next member is asked."""
        if error is not None and not is_outage(error):
            return True
        self.leave(member)
        late = time.monotonic() + PAUSE_S >= deadline
        return late or (not patient and tried >= len(self._members))

    async def metadata(self, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """What goes with each request; logs in where there is a user and no token."""
        if self.config.username is None:
            return (HAS_LEADER,)
        async with self._login:
            if self._token is None:
                self._token = await self._authenticate(timeout_s)
        return (HAS_LEADER, ("token", self._token)) if self._token else (HAS_LEADER,)

    def forget_token(self) -> None:
        """Log in again before the next request."""
        self._token = None

    async def _authenticate(self, timeout_s: float) -> str:
        member, config = self.current, self.config
        request = pb.AuthenticateRequest(name=config.username, password=config.password or "")
        try:
            answer = await member.auth.Authenticate(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise translated(error, member.endpoint, config) from error
        return str(answer.token)

    # What is asked.

    async def range(self, request: Any, *, bound_s: float | None = None) -> Any:
        return await self.call(
            lambda m, how: m.kv.Range(request, **how), bound_s=bound_s or self.config.answer_s
        )

    async def txn(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]) -> Any:
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        return await self.call(lambda m, how: m.kv.Txn(request, **how), bound_s=self.config.answer_s)

    async def grant(self, lease_id: int) -> tuple[int, float]:
        """A lease under this id or, if that is taken, under one that the server chooses; and when the request
        was sent that was granted.
        """
        try:
            return await self._grant(lease_id)
        except RefusedError as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
        return await self._grant(0)

    async def _grant(self, lease_id: int) -> tuple[int, float]:
        request = pb.LeaseGrantRequest(ID=lease_id, TTL=self.config.ttl_s)

        async def ask(member: Member, how: dict[str, Any]) -> tuple[int, float]:
            sent = time.monotonic()
            return int((await member.lease.LeaseGrant(request, **how)).ID), sent

        return await self.call(ask, bound_s=self.config.answer_s, patient=True)

    async def revoke(self, lease_id: int, *, bound_s: float) -> None:
        """End a lease and everything under it; one that is gone is fine."""
        request = pb.LeaseRevokeRequest(ID=lease_id)
        try:
            await self.call(lambda m, how: m.lease.LeaseRevoke(request, **how), bound_s=bound_s, patient=True)
        except RefusedError:
            pass

    async def renew(self, lease_id: int, *, bound_s: float) -> int:
        """The seconds that the lease has again; 0 if there is none any more."""
        request = pb.LeaseKeepAliveRequest(ID=lease_id)

        async def ask(member: Member, how: dict[str, Any]) -> int:
            call = member.lease.LeaseKeepAlive(**how)  # a stream a renewal: none is trusted to stay alive
            try:
                await call.write(request)
                answer = await call.read()
                if answer is EOF:
                    raise UnavailableError(f"etcd at {member.endpoint} ended the renewal")
                return int(answer.TTL)
            finally:
                call.cancel()

        return await self.call(ask, bound_s=bound_s)
