"""The other distribution that installs a ``dynamo/runtime``."""

from __future__ import annotations

import importlib.util
import warnings


def warn_of_nvidias_wheel() -> None:
    """Warn if NVIDIA's ``ai-dynamo-runtime`` lies in the same environment: each overwrites files of the
    other.
    """
    found = importlib.util.find_spec("dynamo._core")
    if found is not None:
        warnings.warn(
            f"NVIDIA's ai-dynamo-runtime is installed in this environment too ({found.origin}). Both ship a "
            "dynamo/runtime, so one overwrites the other: keep each in a virtual environment of its own, or "
            "`pip uninstall ai-dynamo-runtime` and reinstall dynamo-runtime-py",
            RuntimeWarning,
            stacklevel=3,
        )
