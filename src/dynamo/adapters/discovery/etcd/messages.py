"""etcd's messages and stubs, as etcd3aio brings them: generated, without types."""

from __future__ import annotations

import importlib.util
from typing import Any

import grpc.aio

from dynamo.core.errors import ConfigError

try:
    import etcd3aio._protobuf
except ModuleNotFoundError as error:  # they are imported as ``etcd.api``
    if error.name is None or not error.name.startswith("etcd."):
        raise
    hiding = importlib.util.find_spec("etcd")
    raise ConfigError(
        f"another module named 'etcd' ({hiding and hiding.origin}) hides the one that etcd3aio brings; "
        "rename yours, or uninstall python-etcd"
    ) from error

_generated: Any = etcd3aio._protobuf
_grpc: Any = grpc.aio

pb: Any = _generated.rpc_pb2
stubs: Any = _generated.rpc_pb2_grpc
DELETE: Any = _generated.kv_pb2.Event.DELETE
EOF: Any = _grpc.EOF
