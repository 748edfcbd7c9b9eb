"""Address: what a `DATABASE_URL` means, in the words of SQLAlchemy and asyncpg."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from counterseal.core.errors import ConfigurationError

NAME: Final = "DATABASE_URL"

_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_POOLER_PORT: Final = 6543  # where Supabase listens with a pooler in transaction mode


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where a PostgreSQL is and how to connect to it. `pooled` says that a pooler shares its connections out.

    A pooler in transaction mode gives every transaction another connection, so no prepared statement may be expected
    to be there again.
    """

    url: URL = field(repr=False)
    pooled: bool
    connect_args: dict[str, Any] = field(repr=False)

    @property
    def description(self) -> str:
        """Host, port and database: no user, no password."""
        host = self.url.host or ""
        host = f"[{host}]" if ":" in host else host
        return f"PostgreSQL, {host}:{self.url.port or 5432}/{self.url.database or ''}"


def parse_postgres_url(text: str) -> PostgresAddress:
    """Read a `postgres://`, `postgresql://` or `postgresql+asyncpg://` URL.

    It takes `sslmode`, `sslrootcert`, `application_name`, `connect_timeout` and `pgbouncer=true`. Raises
    `ConfigurationError` for anything else, so that nothing that was asked for is silently left out.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"{NAME}: expected postgresql://user:password@host:port/database") from None
    options = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    arguments: dict[str, Any] = {}
    if "connect_timeout" in options:
        arguments["timeout"] = _seconds(options.pop("connect_timeout"))
    if secured := _ssl(options.pop("sslmode", None), options.pop("sslrootcert", None)):
        arguments["ssl"] = secured
    if "application_name" in options:
        arguments["server_settings"] = {"application_name": options.pop("application_name")}
    pooled = options.pop("pgbouncer", "").lower() == "true" or url.port == _POOLER_PORT
    if pooled:
        arguments |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,  # no name: PostgreSQL keeps none of them
        }
    if options:
        raise ConfigurationError(
            f"{NAME}: expected no parameters but application_name, connect_timeout, pgbouncer, sslmode and sslrootcert;"
            f" came: {', '.join(sorted(options))[:80]}"
        )
    return PostgresAddress(url.set(drivername="postgresql+asyncpg", query={}), pooled, arguments)


def _seconds(text: str) -> float:
    if not (text.isdecimal() and 0 < int(text) <= 60):
        raise ConfigurationError(f"{NAME}: expected connect_timeout in whole seconds from 1 to 60")
    return float(text)


def _ssl(mode: str | None, root: str | None) -> str | ssl.SSLContext | None:
    if mode is not None and mode not in _SSL_MODES:
        raise ConfigurationError(f"{NAME}: expected sslmode to be one of {', '.join(_SSL_MODES)}")
    if mode not in ("verify-ca", "verify-full"):
        if root is not None:
            raise ConfigurationError(f"{NAME}: expected sslmode=verify-ca or verify-full beside sslrootcert")
        return mode
    try:
        context = ssl.create_default_context(cafile=root)
    except OSError as fault:
        raise ConfigurationError(f"{NAME}: expected sslrootcert to name a file of certificates") from fault
    context.check_hostname = mode == "verify-full"
    return context
