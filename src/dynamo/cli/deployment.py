"""What ``dynamo serve`` was told to run, in a form that its workers get too."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from dynamo.core.errors import ConfigError, DynamoError
from dynamo.core.files import check_file
from dynamo.core.typed import did_you_mean
from dynamo.sdk import ServiceGraph, ServiceSpec, read_config


@frozen(kw_only=True)
class Deployment:
    """The command line, as far as services are concerned."""

    target: str
    file: str | None = None
    overrides: tuple[str, ...] = ()
    discovery: str | None = None
    request_plane: str | None = None
    service_name: str | None = None
    http_port: int = 8000
    http_host: str | None = None
    http_ports: Mapping[str, int] = attrs.Factory(dict)
    """By the service's name, once it is planned; those without ``@api`` routes have none."""

    def to_text(self) -> str:
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Deployment:
        values: dict[str, Any] = json.loads(text)
        values["overrides"] = tuple(values["overrides"])
        return cls(**values)

    def graph(self) -> ServiceGraph:
        """Import the services and read their configuration. Raises ConfigError."""
        if self.file is not None:
            check_file(self.file, f"-f {self.file}", ", and each worker reads it again")
        return ServiceGraph.of(load(self.target), config=read_config(self.file, self.overrides))


def load(target: str) -> type[Any]:
    """The service class at ``module:Class``, seen from the current directory. Raises ConfigError."""
    module_name, separator, name = target.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"{target!r}: expected module:Service, such as hello:Frontend")
    if module_name.endswith(".py"):
        raise ConfigError(
            f"{target}: a module is named without .py: {module_name.removesuffix('.py')}:{name}"
        )
    if sys.path[:1] != [""]:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except DynamoError as error:
        raise ConfigError(f"{module_name}: {error}") from error
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            close = difflib.get_close_matches(missing, [file.stem for file in Path().glob("*.py")], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"run it where {missing}.py is"
            raise ConfigError(f"no module {missing!r} in {os.getcwd()}; {hint}") from error
        raise ConfigError(
            f"{module_name} imports {missing!r}, which is not installed here: pip install what brings it"
        ) from error
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        raise ConfigError(
            f"importing {module_name}: {type(error).__name__}: {error.msg} ({place})"
        ) from error
    except Exception as error:  # whatever a user's module raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
        raise ConfigError(f"importing {module_name}: {type(error).__name__}: {error} ({place})") from error
    found = getattr(module, name, None)
    if not _is_service(found):
        known = [key for key, value in vars(module).items() if _is_service(value)]
        what = "is no service" if found is not None else "is not there"
        raise ConfigError(f"{target}: {name} {what}; {did_you_mean(name, known)}")
    assert isinstance(found, type)
    return found


def _is_service(value: object) -> bool:
    if not isinstance(value, type):
        return False
    try:
        ServiceSpec.of(value)
    except DynamoError:
        return False
    return True
