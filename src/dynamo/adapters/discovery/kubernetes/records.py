"""What a worker's object says, and what the objects and EndpointSlices of others say.

::

    apiVersion: nvidia.com/v1alpha1
    kind: DynamoWorkerMetadata
    metadata:
      name: worker-0
      ownerReferences: [{apiVersion: v1, kind: Pod, name: worker-0, uid: ...}]
    spec:
      data:
        incarnation: c0ffee
        summary: {namespace: demo, component: backend, endpoints: generate, instance: 42, ready: 1/1}
        endpoints:
          demo/backend/generate: {addresses: [tcp://10.0.0.7:5000], phase: ready, ...}

An endpoint's entry is the record of ``core/codec``, the same as in every backend.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, TypeAlias

from attrs import frozen

from dynamo.adapters.discovery.kubernetes.access import Object
from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.core.codec import decode_instance, encode_instance
from dynamo.core.errors import BadPayloadError, ConfigError
from dynamo.core.model import EndpointId, Instance, Phase

READINESS = "nvidia.com/dynamo-discovery-backend=kubernetes,nvidia.com/dynamo-discovery-enabled=true"
CLAIM = "nvidia.com/dynamo-claim-"  # and who asks, as an annotation of the object that it asks for
MANAGER = "dynamo-"  # and the incarnation, as the field manager

LARGEST = 1_000_000  # bytes; etcd takes requests of 1.5 MiB, and the server adds its own to an object

log = logging.getLogger(__name__)

PodKey: TypeAlias = tuple[str, str]
"""Name and uid: a pod that is made again has the name of its predecessor."""


def data_of(incarnation: int, instances: Iterable[Instance]) -> Object:
    """``spec.data`` of the worker that serves these. Raises ConfigError for what would not arrive whole."""
    encoded = {_key(one.endpoint_id): encode_instance(one) for one in instances}
    if (size := sum(map(len, encoded.values()))) > LARGEST:
        raise ConfigError(
            f"the record of this worker has {size} bytes, and Kubernetes keeps {LARGEST}: leave large "
            "metadata out, and serve it instead"
        )
    endpoints = {
        key: json.loads(text, parse_int=_integer, parse_float=_float) for key, text in encoded.items()
    }
    return {"incarnation": f"{incarnation:x}", "summary": _summary(endpoints), "endpoints": endpoints}


def _integer(text: str) -> int:
    """Kubernetes makes floats of larger ones."""
    if not -(2**63) <= (value := int(text)) < 2**63:
        raise ConfigError(
            f"Kubernetes keeps integers of 64 bits, and {text} in the metadata is none: send text"
        )
    return value


def _float(text: str) -> int | float:
    """Kubernetes makes integers of whole ones below 1e21, of the digits that it prints of them."""
    value = float(text)
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < 1e21 else value


def _key(endpoint_id: EndpointId) -> str:
    return f"{endpoint_id.namespace}/{endpoint_id.component}/{endpoint_id.name}"


def _summary(endpoints: Object) -> Object:
    """What ``kubectl get`` shows of it."""
    records = list(endpoints.values())
    ready = sum(record["phase"] == Phase.READY.value for record in records)
    return {
        "namespace": _all(record["namespace"] for record in records),
        "component": _all(record["component"] for record in records),
        "endpoints": _all(record["endpoint"] for record in records),
        "instance": _all(str(record["instance_id"]) for record in records),
        "ready": f"{ready}/{len(records)}",
    }


def _all(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names))


def body_of(name: str, namespace: str, pod: Pod, data: Object, uid: str | None) -> Object:
    """What is applied; ``uid`` is that of the object which it must be."""
    metadata: Object = {
        "name": name,
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "dynamo-runtime"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}],
    }
    if uid is not None:
        metadata["uid"] = uid
    return {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoWorkerMetadata",
        "metadata": metadata,
        "spec": {"data": data},
    }


def claims_of(found: Object) -> list[str]:
    """The annotations by which others ask whether the owner of this object lives."""
    annotations = found["metadata"].get("annotations") or {}
    return [name for name in annotations if name.startswith(CLAIM)]


def data_in(found: Object) -> Object:
    """``spec.data``, empty where it is none."""
    spec = found.get("spec")
    data = spec.get("data") if isinstance(spec, dict) else None
    return data if isinstance(data, dict) else {}


def incarnation_in(found: Object) -> int | None:
    """Whose it is; None where it does not say."""
    try:
        return int(data_in(found)["incarnation"], 16)
    except (KeyError, TypeError, ValueError):
        return None


@frozen(kw_only=True)
class Record:
    """One object, as far as it can be read."""

    pod: PodKey | None
    instances: tuple[Instance, ...]


def read_record(found: Object, warned: set[str]) -> Record:
    """What cannot be read is passed over, and told once: ``warned`` remembers what was."""
    name, endpoints = str(found["metadata"]["name"]), data_in(found).get("endpoints")
    instances: list[Instance] = []
    for key, value in endpoints.items() if isinstance(endpoints, dict) else ():
        where = f"{name}: {key}"
        try:
            instance = decode_instance(json.dumps(value))
            if _key(instance.endpoint_id) != key:
                raise BadPayloadError(f"it is the record of {instance}")
            instances.append(instance)
            warned.discard(where)
        except BadPayloadError as error:
            if where not in warned:
                warned.add(where)
                log.warning("%s in Kubernetes cannot be read and is passed over: %s", where, error)
    return Record(pod=owner_of(found), instances=tuple(instances))


def owner_of(found: Object) -> PodKey | None:
    """The pod whose garbage it will be."""
    for owner in found["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == "Pod" and owner.get("apiVersion") == "v1":
            return str(owner.get("name")), str(owner.get("uid"))
    return None


def ready_pods(found: Object) -> frozenset[PodKey]:
    """The pods that an EndpointSlice calls ready; no word on it means ready, as in its API."""
    return frozenset(
        (str(target.get("name")), str(target.get("uid")))
        for one in found.get("endpoints") or ()
        if (target := one.get("targetRef")) and target.get("kind") == "Pod" and _is_ready(one)
    )


def _is_ready(endpoint: dict[str, Any]) -> bool:
    return (endpoint.get("conditions") or {}).get("ready") is not False
