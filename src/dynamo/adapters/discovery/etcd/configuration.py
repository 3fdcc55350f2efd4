"""What is to be reached and how, by the URL and the settings; a bad value is one line that names it."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from dynamo.adapters.discovery.options import flag_option
from dynamo.core import converters
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.files import check_file
from dynamo.core.registry import url_options

DEFAULT_PORT = 2379
SYSTEM_CA = (  # Debian, Fedora, Alpine and macOS, where OpenSSL does not say
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
EXPECTED = "expected http://host:port or https://host:port, several separated by commas"


@frozen(kw_only=True)
class Endpoint:
    """One member of the cluster."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """As gRPC's resolvers want it: names go to DNS, addresses do not."""
        try:
            version = ipaddress.ip_address(self.host.partition("%")[0]).version
        except ValueError:
            return f"dns:///{self.host}:{self.port}"
        return f"ipv6:[{self.host}]:{self.port}" if version == 6 else f"ipv4:{self.host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


@frozen(kw_only=True)
class EtcdConfig:
    """One etcd cluster. Durations in seconds; ``*_source`` is what a message names."""

    endpoints: tuple[Endpoint, ...]
    source: str
    ttl_s: int
    answer_s: float
    stall_s: float
    username: str | None
    password: str | None = field(repr=False)
    user_source: str
    password_source: str
    ca: str | None
    ca_source: str
    client_cert: str | None
    client_key: str | None
    cert_source: str

    @property
    def where(self) -> str:
        """The endpoints and what set them, for a message."""
        return f"{', '.join(map(str, self.endpoints))} ({self.source})"


@frozen(kw_only=True)
class TlsFiles:
    """What the files hold, as gRPC takes it."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


def read(url: str, settings: Settings) -> EtcdConfig:
    """``etcd://`` takes the members from the settings, ``etcd://user:password@h1:2379,h2:2379`` names them.

    Raises ConfigError.
    """
    options = url_options(url, ("ttl_s", "tls"))
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.fragment:
        raise ConfigError(f"{_without_password(url)}: expected etcd://host:port,host:port")
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, password = settings.etcd_auth_username, settings.etcd_auth_password
    user_source = settings.source("etcd_auth_username")
    password_source = settings.source("etcd_auth_password")
    if credentials:
        name, _, secret = credentials.partition(":")
        username, password = unquote(name), unquote(secret)
        user_source = password_source = "the URL"
    if password is not None and username is None:
        raise ConfigError(f"{password_source} is set without {user_source}")
    secure = bool(settings.etcd_auth_ca or settings.etcd_auth_client_cert)
    if hosts:
        source = "the URL"
        secure = flag_option(_without_password(url), options, "tls", secure)
        endpoints = tuple(_endpoint(text, source, hosts, secure) for text in hosts.split(",") if text.strip())
    else:
        source, listed = settings.source("etcd_endpoints"), settings.etcd_endpoints
        endpoints = tuple(
            _endpoint(text, source, listed, secure) for text in listed.split(",") if text.strip()
        )
        if not endpoints:
            raise ConfigError(f"{source}={listed!r}: {EXPECTED}")
    if (settings.etcd_auth_client_cert is None) != (settings.etcd_auth_client_key is None):
        raise ConfigError(
            f"{settings.source('etcd_auth_client_cert')} and {settings.source('etcd_auth_client_key')} "
            "belong together: set both, or neither"
        )
    plain = next((endpoint for endpoint in endpoints if not endpoint.tls), None)
    if secure and plain is not None:
        named = "etcd_auth_ca" if settings.etcd_auth_ca else "etcd_auth_client_cert"
        raise ConfigError(
            f"{settings.source(named)} is set, but {plain} ({source}) is without TLS: write https://"
        )
    return EtcdConfig(
        endpoints=endpoints,
        source=source,
        ttl_s=_ttl(url, options.get("ttl_s"), settings),
        answer_s=settings.connect_timeout_s,
        stall_s=settings.loop_stall_s,
        username=username,
        password=password,
        user_source=user_source,
        password_source=password_source,
        ca=settings.etcd_auth_ca,
        ca_source=settings.source("etcd_auth_ca"),
        client_cert=settings.etcd_auth_client_cert,
        client_key=settings.etcd_auth_client_key,
        cert_source=f"{settings.source('etcd_auth_client_cert')}, {settings.source('etcd_auth_client_key')}",
    )


def _ttl(url: str, text: str | None, settings: Settings) -> int:
    if text is None:
        return settings.etcd_lease_ttl
    try:
        return converters.whole_seconds(text)
    except ValueError as error:
        raise ConfigError(f"{_without_password(url)}: ttl_s={text}: {error}") from error


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{'***@' + rest.rpartition('@')[2] if '@' in rest else rest}"


def _endpoint(text: str, source: str, listed: str, secure: bool) -> Endpoint:
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "https" if secure else "http", text
    if "@" in listed:
        raise ConfigError(
            f"{source}: user and password belong into ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD; {EXPECTED}"
        )
    wrong = ConfigError(f"{source}={listed!r}: {text!r}: {EXPECTED}")
    if scheme.lower() not in ("http", "https"):
        raise wrong
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as a look-up does
    except ValueError:
        raise wrong from None
    if not host or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong
    return Endpoint(host=host, port=port or DEFAULT_PORT, tls=scheme.lower() == "https")


def tls_context(config: EtcdConfig) -> ssl.SSLContext:
    """Load the files as a check of them, and for diagnosis. Raises ConfigError."""
    if config.ca is not None:
        check_file(config.ca, f"{config.ca_source}={config.ca!r}")
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=config.ca)
    except FileNotFoundError as error:
        raise ConfigError(f"{config.ca_source}={config.ca!r}: no such file") from error
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{config.ca_source}={config.ca!r}: not a PEM file of certificates: {error}"
        ) from error
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)  # gRPC is not as strict
    if config.client_cert is None:
        return context
    shown = f"{config.client_cert!r}, {config.client_key!r} ({config.cert_source})"
    for path in (config.client_cert, config.client_key):
        check_file(str(path), f"{path!r} ({config.cert_source})")

    def passphrase() -> str:  # OpenSSL would ask at the terminal, and wait
        raise ConfigError(f"{shown}: the key is encrypted; give one without a passphrase")

    try:
        context.load_cert_chain(config.client_cert, config.client_key, passphrase)
    except FileNotFoundError as error:
        raise ConfigError(f"{shown}: no such file") from error
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{shown}: not a PEM certificate with its key: {error}") from error
    return context


def tls_files(config: EtcdConfig) -> TlsFiles | None:
    """None where no member wants TLS. Raises ConfigError."""
    if not any(endpoint.tls for endpoint in config.endpoints):
        return None
    tls_context(config)
    return TlsFiles(
        ca=_bytes(config.ca or _system_ca()), cert=_bytes(config.client_cert), key=_bytes(config.client_key)
    )


def _system_ca() -> str | None:
    """The system's list of authorities; None: gRPC has one of its own."""
    listed = (ssl.get_default_verify_paths().cafile, *SYSTEM_CA)
    return next((path for path in listed if path and Path(path).is_file()), None)


def _bytes(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
