"""The suite also runs from the bare wheel, where adapters that need packages cannot be bound to it."""

from __future__ import annotations

import importlib.util

ABSENT = {"etcd3aio": "test_etcd*.py", "kubernetes": "test_kubernetes*.py"}
collect_ignore_glob = [glob for package, glob in ABSENT.items() if importlib.util.find_spec(package) is None]
