"""Run a program as if some modules were not installed.

python without.py uvloop,msgspec PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is a ModuleNotFoundError
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
