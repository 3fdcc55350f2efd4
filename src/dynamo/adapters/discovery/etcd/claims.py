"""Who may write a key: each write is one transaction that first looks who has it, and may be done twice."""

from __future__ import annotations

from typing import Any

import grpc

from dynamo.adapters.discovery.etcd.cluster import Cluster
from dynamo.adapters.discovery.etcd.errors import RefusedError
from dynamo.adapters.discovery.etcd.keys import key_of
from dynamo.adapters.discovery.etcd.messages import pb
from dynamo.core.codec import decode_instance
from dynamo.core.errors import BadPayloadError, LeaseLostError
from dynamo.core.model import EndpointId


def no_lease(lease_id: int) -> str:
    return f"etcd has no lease {lease_id:x} any more"


class Claims:
    """The keys of one incarnation of an instance."""

    def __init__(self, cluster: Cluster, instance_id: int, incarnation: int) -> None:
        self._cluster = cluster
        self._instance_id, self._incarnation = instance_id, incarnation

    async def make(self, endpoint_id: EndpointId, record: bytes, lease_id: int) -> str | None:
        """Make the endpoint's key say ``record``, under the lease; says who else has it, if somebody does.

        Raises LeaseLostError, UnavailableError, AuthError.
        """
        key = key_of(endpoint_id, self._instance_id)
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=record, lease=lease_id))
        look = pb.RequestOp(request_range=pb.RangeRequest(key=key))
        seen = 0  # the key's revision as we know it; 0: there is none
        while True:
            as_seen = pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key, mod_revision=seen)
            try:
                answer = await self._cluster.txn([as_seen], [put], [look])
            except RefusedError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                raise LeaseLostError(no_lease(lease_id)) from error
            if answer.succeeded:
                return None
            found = answer.responses[0].response_range.kvs
            if not found:
                seen = 0
                continue
            kv = found[0]
            if kv.value == record and kv.lease == lease_id:
                return None
            if (holder := self._holder(kv, lease_id)) is not None:
                return holder
            seen = kv.mod_revision

    def _holder(self, kv: Any, lease_id: int) -> str | None:
        """Which other live owner a key has: none if it is ours, of whatever lease, or tied to no life."""
        if kv.lease in (0, lease_id):
            return None
        try:
            instance = decode_instance(kv.value)
        except BadPayloadError:
            return f"the lease {kv.lease:x}, with a record that cannot be read"
        if instance.incarnation == self._incarnation:
            return None
        return f"incarnation {instance.incarnation:x} at {', '.join(instance.addresses) or 'no address'}"

    async def withdraw(self, endpoint_id: EndpointId, lease_id: int) -> None:
        """Delete the endpoint's key if it is under the lease. Raises UnavailableError, AuthError."""
        key = key_of(endpoint_id, self._instance_id)
        ours = pb.Compare(target=pb.Compare.LEASE, result=pb.Compare.EQUAL, key=key, lease=lease_id)
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        await self._cluster.txn([ours], [delete], ())
