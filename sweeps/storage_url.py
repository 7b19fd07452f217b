"""Where a study is kept, as a sweep file says it: a journal file, PostgreSQL, or Optuna's gRPC proxy.

A URL may name an environment variable, ``$NAME``, which holds it. Only there may it have a password: what a sweep file says
is copied into the study's folder, which others read.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs, urlsplit

from methods.framework.errors import ConfigError

SCHEMES = ("postgresql", "grpc")
_ALLOWED = (
    "postgresql://USER@HOST:PORT/DATABASE, grpc://HOST:PORT, or $NAME for an environment variable with one of them"
)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")


def check_storage(storage: str) -> str:
    """Return what a sweep file says, if it may be written there; a validator of pydantic.

    Raises:
        ValueError: another kind of storage, an address that is not complete, or a password.
    """
    if _VARIABLE.fullmatch(storage):
        return storage
    if _password(storage):
        raise ValueError(
            "a password in a sweep file is read by all who read the file or the study's folder; leave it to PGPASSWORD "
            "or ~/.pgpass, or put the URL into an environment variable and write storage: $NAME"
        )
    _check_address(storage)
    return storage


def resolved_storage(storage: str) -> str:
    """Return the URL itself, from its environment variable where it is in one.

    Raises:
        ConfigError: there is no such variable, or it holds no such URL.
    """
    named = _VARIABLE.fullmatch(storage)
    if named is None:
        return storage
    url = os.environ.get(named[1])
    if url is None:
        raise ConfigError(f"storage: environment variable {named[1]} is not set; allowed: {_ALLOWED}")
    try:
        _check_address(url)
    except ValueError as error:
        raise ConfigError(f"storage: environment variable {named[1]}: {error}") from error
    return url


def address(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL; 0 where it states no port."""
    parts = urlsplit(url)
    return parts.scheme.partition("+")[0], parts.hostname or "", parts.port or 0


def without_password(text: str, url: str) -> str:
    """Return a message about ``url`` with its password blackened."""
    secret = _password(url)
    return text.replace(secret, "***") if secret else text


def _password(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts.password or "".join(parse_qs(parts.query).get("password", ()))
    except ValueError:
        return ""


def _check_address(url: str) -> None:
    """Check the parts of a URL; messages tell none of what may be secret."""
    try:
        scheme, host, port = address(url)
    except ValueError:
        raise ValueError(f"this is no URL with a host and a port; allowed: {_ALLOWED}") from None
    if scheme not in SCHEMES:
        raise ValueError(
            f"found a storage of kind {scheme or 'file'!r}; allowed: {_ALLOWED}, or nothing for a journal file"
        )
    if scheme == "grpc" and not (host and port):
        raise ValueError("a gRPC proxy needs host and port: grpc://HOST:PORT")
    if scheme == "postgresql" and not urlsplit(url).path.strip("/"):
        raise ValueError("PostgreSQL needs a database: postgresql://USER@HOST:PORT/DATABASE")
