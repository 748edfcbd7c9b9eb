"""Target: one server to connect to, and what a `REDIS_URL` says about it.

| form | meaning |
| --- | --- |
| `redis://[user[:password]@]host[:port][/database]` | one server |
| `rediss://…` | the same over TLS; options `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs`, `ssl_check_hostname` |
| `unix://[user[:password]@]/path/of/socket[?db=1]` | a Unix socket |
| `redis+sentinel://[user[:password]@]host:port,host:port/service[/database]` | the primary that the sentinels name; options `sentinel_username`, `sentinel_password` |
| `redis+cluster://[user[:password]@]host:port,host:port` | a Cluster, found through any of its nodes |

`rediss+sentinel://` and `rediss+cluster://` use TLS. Further options of redis-py's TLS contexts are taken as they are.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr
from redis.asyncio.connection import RedisSSLContext, parse_url
from redis.exceptions import RedisError

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import split_url

LOCAL_TIMEOUT = timedelta(milliseconds=50)
REMOTE_CONNECT_TIMEOUT = timedelta(seconds=1)
REMOTE_READ_TIMEOUT = timedelta(milliseconds=250)
MAX_SOCKET_PATH = 103
"""Bytes of a Unix socket's path that every system takes."""

_TLS_OPTIONS = frozenset(
    ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
)
_OPTIONS = _TLS_OPTIONS | {"db", "sentinel_username", "sentinel_password"}


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server is trusted: the context for our own connections, the options that redis-py makes the same from."""

    context: ssl.SSLContext = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """One server: where it is and how to introduce oneself. Its repr shows no password."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    database: int = 0
    username: str | None = None
    password: SecretStr | None = None
    tls: Tls | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: a Unix socket or a loopback address."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def description(self) -> str:
        """Where it is, for people: `redis://127.0.0.1:6379/0`, never with user or password."""
        if self.path is not None:
            return f"unix://{self.path}?db={self.database}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A `REDIS_URL`, understood: `single`, `sentinel` or `cluster`, and the servers it names.

    For Sentinel, `nodes` are the sentinels, `service` is the name they know the primary by, and `template` says how to
    introduce oneself to that primary.
    """

    kind: str
    nodes: tuple[Target, ...]
    template: Target
    service: str | None = None


def parse_redis_url(url: str) -> RedisAddress:
    """Understand a `REDIS_URL`. Raises `ConfigurationError` that names the setting and shows nothing of the URL."""
    try:
        parts = split_url(url)
    except ValueError:
        raise _fault("expected a Redis URL", "one that can't be understood") from None
    scheme, _, kind = parts.scheme.partition("+")
    kind = kind or "single"
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if unknown := sorted(set(options) - _OPTIONS):
        raise _fault(f"expected only the options {', '.join(sorted(_OPTIONS))}", f"{len(unknown)} others")
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, database_text = _path(parts.path, kind)
    if kind == "single":
        return _single(url, scheme, database_text)
    if kind == "sentinel" and not service:
        raise _fault("expected /service after the sentinels' addresses", "no service name")
    user, _, password = credentials.partition(":")
    template = Target(
        database=_database(options.get("db", database_text)),
        username=unquote(user) or None,
        password=SecretStr(unquote(password)) if password else None,
        tls=_tls(options) if scheme == "rediss" else None,
    )
    if kind == "cluster" and template.database:
        raise _fault("expected database 0 with a Cluster, which has no other", "another database")
    nodes: list[Target] = []
    for entry in hosts.split(","):
        host, port = _host_and_port(entry, default=26379 if kind == "sentinel" else 6379)
        if kind == "sentinel":
            secret = options.get("sentinel_password")
            nodes.append(
                Target(
                    host=host,
                    port=port,
                    username=options.get("sentinel_username"),
                    password=SecretStr(secret) if secret else None,
                    tls=template.tls,
                )
            )
        else:
            nodes.append(
                Target(
                    host=host,
                    port=port,
                    username=template.username,
                    password=template.password,
                    tls=template.tls,
                )
            )
    return RedisAddress(kind, tuple(nodes), template, service or None)


def _single(url: str, scheme: str, database_text: str) -> RedisAddress:
    try:
        found = cast("dict[str, Any]", parse_url(url))
    except ValueError:
        raise _fault("expected a Redis URL", "one that can't be understood") from None
    password = found.get("password")
    if len(str(found.get("path", "")).encode()) > MAX_SOCKET_PATH:
        raise _fault(f"expected a socket's path of at most {MAX_SOCKET_PATH} bytes", "a longer one")
    target = Target(
        host=str(found.get("host", "localhost")),
        port=int(found.get("port", 6379)),
        path=found.get("path"),
        database=_database(str(found["db"]) if "db" in found else "" if scheme == "unix" else database_text),
        username=found.get("username"),
        password=SecretStr(password) if password else None,
        tls=_tls({name: str(value) for name, value in found.items()}) if scheme == "rediss" else None,
    )
    return RedisAddress("single", (target,), target)


def _path(path: str, kind: str) -> tuple[str, str]:
    pieces = [unquote(piece) for piece in path.strip("/").split("/")]
    if kind == "sentinel":
        return pieces[0], pieces[1] if len(pieces) > 1 else ""
    return "", pieces[0]


def _host_and_port(entry: str, *, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{entry}")
        port = parts.port or default
    except ValueError:
        raise _fault("expected host:port pairs with commas between them", "a port out of range") from None
    if not parts.hostname:
        raise _fault("expected host:port pairs with commas between them", "an empty host")
    return parts.hostname, port


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 9:
        raise _fault("expected the number of a database", "something else")
    return int(text)


def _tls(given: Mapping[str, str]) -> Tls:
    check = given.get("ssl_check_hostname", "true").lower() not in ("false", "0", "no")
    options: dict[str, Any] = {name: given[name] for name in _TLS_OPTIONS if name in given}
    options |= {"ssl_check_hostname": check, "ssl_cert_reqs": given.get("ssl_cert_reqs", "required")}
    try:
        maker = RedisSSLContext(**{name.removeprefix("ssl_"): value for name, value in options.items()})
        context = cast("ssl.SSLContext", maker.get())  # pyright: ignore[reportUnknownMemberType]
    except (OSError, RedisError) as error:
        raise _fault(
            "expected readable certificate files in its ssl_ options", type(error).__name__
        ) from error
    return Tls(context, options)


def _fault(expected: str, came: str) -> ConfigurationError:
    return ConfigurationError(f"REDIS_URL: {expected}; came: {came}")
