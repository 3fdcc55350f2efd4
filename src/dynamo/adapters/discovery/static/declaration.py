"""What is declared: reading it from the variable or the file, and refusing what cannot work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from dynamo.core.errors import ConfigError, MissingExtraError
from dynamo.core.files import check_file
from dynamo.core.model import MAX_INSTANCE_ID, EndpointId, Instance

EXAMPLE = "demo.backend.generate=tcp://10.0.0.1:7000,tcp://10.0.0.2:7000"
FILE_EXAMPLE = "demo.backend.generate: [tcp://10.0.0.1:7000, tcp://10.0.0.2:7000]"
WAY_OUT = f"; give a file that holds {FILE_EXAMPLE}, or set DYN_STATIC_INSTANCES instead"
WITH_PORT = {"tcp", "tcps", "http", "https", "http2"}  # schemes that are nothing without host and port
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s#?,;\x00-\x1f\x7f]+")
INSTANCE_ID = re.compile(r"[0-9]{1,16}")
NOBODY = {"0.0.0.0", "::", "*"}  # hosts that can be bound, not dialled


def instance_id_of(address: str) -> int:
    """The id of an address declared without one: the first 53 bits of the SHA-256 of its text, or 1 for 0."""
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:8], "big") >> 11 or 1


@frozen
class Declaration:
    """All instances, in the order in which they were declared. ``source`` names where, for messages."""

    source: str
    instances: tuple[Instance, ...]

    def of(self, endpoint_id: EndpointId) -> dict[str, int]:
        """The addresses that are declared for an endpoint, with their instance ids.

        Raises ConfigError where none is.
        """
        found = self._of(endpoint_id)
        if not found:
            raise ConfigError(f"{endpoint_id} is not declared in {self.source}; it declares {self}")
        return found

    def _of(self, endpoint_id: EndpointId) -> dict[str, int]:
        return {i.addresses[0]: i.instance_id for i in self.instances if i.endpoint_id == endpoint_id}

    def __str__(self) -> str:
        endpoints = dict.fromkeys(instance.endpoint_id for instance in self.instances)
        return "; ".join(f"{endpoint_id}={','.join(self._of(endpoint_id))}" for endpoint_id in endpoints)


def from_text(text: str, source: str) -> Declaration:
    """Read ``ns.component.endpoint=address,address;...``. Raises ConfigError."""

    def entries() -> Iterator[tuple[str, str, Iterable[Any]]]:
        for number, entry in enumerate(text.split(";"), 1):
            if entry.strip():
                path, equals, addresses = entry.partition("=")
                where = f"entry {number} ({_short(entry)})"
                if not equals:
                    raise ConfigError(f"{source}: {where}: no '='; expected {EXAMPLE}")
                yield where, path.strip(), addresses.split(",")

    return _declare(source, EXAMPLE, entries())


def from_file(path: Path, source: str) -> Declaration:
    """Read a mapping from ``ns.component.endpoint`` to an address or a list: YAML, or JSON in ``.json``.

    Raises ConfigError, MissingExtraError.
    """
    source = f"{source}={path}"
    check_file(path, source, WAY_OUT)  # each process reads it, and again after each start
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror or error}{WAY_OUT}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text: {error}") from error
    content = (_json if path.suffix == ".json" else _yaml)(text, source)
    if not isinstance(content, dict):
        shape = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{source}: holds {shape}; expected a mapping, such as {FILE_EXAMPLE}")

    def entries() -> Iterator[tuple[str, str, Iterable[Any]]]:
        for name, addresses in content.items():
            where = f"under {_short(name)}"
            if not isinstance(addresses, str | list):
                raise ConfigError(
                    f"{source}: {where}: expected an address or a list of them, such as {FILE_EXAMPLE}, "
                    f"not {_short(addresses)}"
                )
            yield where, name, [addresses] if isinstance(addresses, str) else addresses

    return _declare(source, FILE_EXAMPLE, entries())


def _json(text: str, source: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for number, (name, _) in enumerate(pairs):
            if any(name == earlier for earlier, _ in pairs[:number]):
                raise ConfigError(
                    f"{source}: {_short(name)} appears twice; give all of its addresses in one list"
                )
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not JSON: {error}") from error


def _yaml(text: str, source: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{source}: YAML needs pyyaml: pip install 'dynamo-runtime-py[static]', or write it as .json"
        ) from error

    class Loader(yaml.SafeLoader):
        """Refuses a key that appears twice, where YAML would let the last one win."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen:
                    raise ConfigError(
                        f"{source}, line {key.start_mark.line + 1}: {_short(key.value)} appears twice; "
                        "give all of its addresses in one list"
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except ConfigError:
        raise
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    except Exception as error:  # what a tag says of a value that does not fit it is any class
        raise ConfigError(f"{source}: not YAML: {type(error).__name__}: {error}") from error


def _declare(source: str, example: str, entries: Iterable[tuple[str, str, Iterable[Any]]]) -> Declaration:
    given: dict[str, tuple[int | None, str]] = {}  # by address: the id that was written beside it, and where
    wanted: list[tuple[EndpointId, str]] = []
    for where, path, addresses in entries:
        try:
            endpoint_id = EndpointId.parse(path)
        except ConfigError as error:
            raise ConfigError(f"{source}: {where}: {error}") from error
        for position, text in enumerate(addresses, 1):
            here = f"{where}, address {position}"
            address, instance_id = _address(text, _ErrorAt(f"{source}: {here}"))
            if (endpoint_id, address) in wanted:
                raise ConfigError(f"{source}: {here}: {address} is declared twice for {endpoint_id}")
            wanted.append((endpoint_id, address))
            earlier, at = given.get(address, (None, here))
            if None not in (earlier, instance_id) and earlier != instance_id:
                raise ConfigError(
                    f"{source}: {here}: {address} is instance {instance_id} here and {earlier} in {at}; "
                    "one process has one id"
                )
            given[address] = (instance_id if earlier is None else earlier, at)
    if not wanted:
        raise ConfigError(f"{source}: declares nothing; expected {example}")
    ids = {address: given_id or instance_id_of(address) for address, (given_id, _) in given.items()}
    holders: dict[int, str] = {}
    for address, instance_id in ids.items():
        if (other := holders.setdefault(instance_id, address)) != address:
            raise ConfigError(
                f"{source}: {given[address][1]}: {address} and {other} are both instance {instance_id}; "
                "give one of them another id, such as tcp://host:7000#7"
            )
    return Declaration(
        source,
        tuple(
            Instance(endpoint_id=endpoint_id, instance_id=ids[address], incarnation=0, addresses=(address,))
            for endpoint_id, address in wanted
        ),
    )


@frozen
class _ErrorAt:
    """Makes the error for a reason, at this place."""

    place: str

    def __call__(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.place}: {reason}")


def _address(text: Any, error: Callable[[str], ConfigError]) -> tuple[str, int | None]:
    """The address in one spelling, and the id behind its '#'."""
    if not isinstance(text, str) or not text.strip():
        raise error(f"{_short(text)} is no address; expected tcp://host:port")
    address, mark, number = text.strip().partition("#")
    instance_id: int | None = None
    if mark:
        if not INSTANCE_ID.fullmatch(number) or not 0 < int(number) <= MAX_INSTANCE_ID:
            raise error(f"{_short(text)}: behind '#' stands the instance id, 1 to {MAX_INSTANCE_ID}")
        instance_id = int(number)
    return normal(address, error), instance_id


def normal(address: str, error: Callable[[str], ConfigError] = ConfigError) -> str:
    """One spelling for one address: scheme and host in lower case. Raises what ``error`` makes of why."""
    scheme, separator, rest = address.partition("://")
    address = f"{scheme.lower()}{separator}{rest}"
    if not ADDRESS.fullmatch(address):
        raise error(f"{_short(address)} is no address; expected tcp://host:port")
    if scheme.lower() not in WITH_PORT:
        return address
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as reason:
        raise error(f"{_short(address)}: {reason}; expected tcp://host:port") from reason
    if not host or not port or parts.path.strip("/") or parts.username is not None:
        raise error(f"{_short(address)}: expected {parts.scheme}://host:port, with a port from 1 to 65535")
    try:
        host.encode("idna")  # as a look-up does
    except UnicodeError as reason:
        raise error(
            f"{_short(address)}: {_short(host)} is no name of a host; expected tcp://host:port"
        ) from reason
    if host in NOBODY:
        raise error(f"{_short(address)}: nobody can call {host}; declare the address that others call")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _short(value: Any) -> str:
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
