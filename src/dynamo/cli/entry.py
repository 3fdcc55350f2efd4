"""Where the command starts: imports nothing outside the standard library before it knows that it is there."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("click", "rich")  # the extra `cli`


def main() -> int:
    """Run the command line of this process; return its exit code."""
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        print(  # noqa: T201
            f"dynamo: the command needs {' and '.join(missing)}: pip install 'dynamo-runtime-py[cli]'",
            file=sys.stderr,
        )
        return 2
    from dynamo.cli.app import run

    return run(sys.argv[1:])
