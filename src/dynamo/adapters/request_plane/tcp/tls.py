"""TLS contexts from the settings; a bad file is one line that names the variable and the path."""

from __future__ import annotations

import ssl

from dynamo.adapters.request_plane.tcp.descriptors import way_out
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, UnavailableError
from dynamo.core.files import check_file


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """What a worker listens with; None without a certificate. A client CA makes clients show theirs."""
    if settings.tls_cert_path is None:
        for field in ("tls_key_path", "tls_client_ca_cert_path"):
            if getattr(settings, field) is not None:
                raise ConfigError(
                    f"{settings.source(field)} is set without {settings.source('tls_cert_path')}"
                )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_chain(context, settings, "tls_cert_path", "tls_key_path")
    if settings.tls_client_ca_cert_path is not None:
        _load_authorities(context, settings, "tls_client_ca_cert_path")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(settings: Settings) -> ssl.SSLContext:
    """What a ``tcps://`` address is dialled with: the system's authorities unless a CA is given."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_ca_cert_path is not None:
        _load_authorities(context, settings, "tls_ca_cert_path")
    if settings.tls_client_cert_path is not None:
        _load_chain(context, settings, "tls_client_cert_path", "tls_client_key_path")
    return context


def is_mutual(settings: Settings) -> bool:
    return settings.tls_client_ca_cert_path is not None


def _load_chain(context: ssl.SSLContext, settings: Settings, cert: str, key: str) -> None:
    cert_path, key_path = getattr(settings, cert), getattr(settings, key)
    _check_files(settings, cert, key)
    shown = f"{settings.source(cert)}={cert_path!r}" + (
        f", {settings.source(key)}={key_path!r}" if key_path else ""
    )

    def passphrase() -> str:  # OpenSSL would ask at the terminal, and wait
        raise ConfigError(f"{shown}: the key is encrypted; give one without a passphrase")

    try:
        context.load_cert_chain(cert_path, key_path, passphrase)
    except FileNotFoundError as error:
        raise ConfigError(f"{shown}: no such file") from error
    except (OSError, ssl.SSLError) as error:
        _check_descriptors(error, shown)
        where = "" if key_path else f"; set {settings.source(key)} to the file of its key"
        raise ConfigError(f"{shown}: not a PEM certificate with its key: {error}{where}") from error


def _load_authorities(context: ssl.SSLContext, settings: Settings, field: str) -> None:
    path = getattr(settings, field)
    _check_files(settings, field)
    try:
        context.load_verify_locations(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{settings.source(field)}={path!r}: no such file") from error
    except (OSError, ssl.SSLError) as error:
        _check_descriptors(error, f"{settings.source(field)}={path!r}")
        raise ConfigError(
            f"{settings.source(field)}={path!r}: not a PEM file of certificates: {error}"
        ) from error


def _check_files(settings: Settings, *fields: str) -> None:
    """That none is a pipe, which OpenSSL would wait for, and the loop with it."""
    for field in fields:
        if (path := getattr(settings, field)) is not None:
            check_file(path, f"{settings.source(field)}={path!r}")


def _check_descriptors(error: OSError, shown: str) -> None:
    """That they are used up says nothing of the file. Raises UnavailableError."""
    if more := way_out(error):
        raise UnavailableError(f"{shown}: {error.strerror}{more}") from error
