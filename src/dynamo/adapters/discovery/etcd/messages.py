"""etcd's messages and stubs, as etcd3aio brings them: generated, without types."""

from __future__ import annotations

from typing import Any

import etcd3aio._protobuf
import grpc.aio

_generated: Any = etcd3aio._protobuf
_grpc: Any = grpc.aio

pb: Any = _generated.rpc_pb2
stubs: Any = _generated.rpc_pb2_grpc
DELETE: Any = _generated.kv_pb2.Event.DELETE
EOF: Any = _grpc.EOF
