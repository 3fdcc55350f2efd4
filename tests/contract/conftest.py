"""The suite also runs from the bare wheel, where adapters that need packages cannot be bound to it."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("etcd3aio") else ["test_etcd*.py"]
