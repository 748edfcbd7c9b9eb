"""Settings: everything that can be configured, read once from the environment and from a `.env` file.

Nothing else reads the environment; `environment.py` does it for them. Every fault is found before any is reported, none
shows a value, and a name that begins with `COUNTERSEAL_` but is no setting is a fault too. Durations are a number of
seconds or a number with a unit: `50ms`, `1s`, `15min`, `24h`, `7d`.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from counterseal.core.environment import DATA_DIR, DEFAULT_DATA_DIR, read_environment
from counterseal.core.errors import ConfigurationError

PREFIX = "COUNTERSEAL_"
CACHE_TTL_PREFIX = f"{PREFIX}CACHE_TTL_"

_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)?\s*$")
MINIMUM_KEY_BYTES = 32
_KEY_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class Environment(StrEnum):
    """What the process runs as; `nodeEnv` of the health answer."""

    DEVELOPMENT = "development"
    TEST = "test"
    PRODUCTION = "production"


class Fsync(StrEnum):
    """When the embedded server writes its log to the disk: each second, or before each answer."""

    EVERYSEC = "everysec"
    ALWAYS = "always"


class ProxyHeader(StrEnum):
    """The header in which proxies pass the client's address on."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"


def _duration(value: object) -> object:
    if isinstance(value, str):
        found = _DURATION.match(value)
        if not found:
            raise ValueError("expected a duration such as 250ms, 2s, 15min, 24h or 7d")
        try:
            return timedelta(seconds=float(found[1]) * _UNITS[found[2] or "s"])
        except OverflowError:
            raise ValueError("expected a duration of less than a million years") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return timedelta(seconds=value)
    return value


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("expected a duration above zero")
    return value


def split_url(url: str) -> SplitResult:
    """`urlsplit` for URLs that may name several hosts. Raises `ValueError` for what is no URL.

    Recent releases of Python take brackets only around a single host, so the hosts are left out while it splits.
    """
    scheme, _, rest = url.partition("://")
    hosts = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "," not in hosts:
        return urlsplit(url)
    return urlsplit(f"{scheme}://hosts{rest[len(hosts) :]}")._replace(netloc=hosts)


def _check_url(value: str, schemes: tuple[str, ...]) -> None:
    expected = f"expected a URL that begins with {', '.join(f'{scheme}://' for scheme in schemes)}"
    try:
        parts = split_url(value)
        _ = None if "," in parts.netloc else parts.port
    except ValueError:
        raise ValueError(f"{expected}, with a port from 1 to 65535") from None
    if parts.scheme not in schemes:
        raise ValueError(expected)
    if parts.scheme != "unix" and not parts.netloc.rpartition("@")[2]:
        raise ValueError(f"{expected}, followed by a host")
    if parts.scheme == "unix" and not parts.path:
        raise ValueError(f"{expected}; a unix:// URL names the socket's path")


def _secret_url(value: SecretStr, *, schemes: tuple[str, ...]) -> SecretStr:
    _check_url(value.get_secret_value(), schemes)
    return value


def _plain_url(value: str, *, schemes: tuple[str, ...]) -> str:
    _check_url(value, schemes)
    if "@" in split_url(value).netloc:
        raise ValueError("expected a URL without a user and a password")
    return value.rstrip("/")


def parse_secret_keys(text: str) -> dict[str, bytes]:
    """Keys by their id, in the order of `kid:base64` pairs with commas between them.

    Raises `ValueError`, with a sentence that shows nothing of them.
    """
    keys: dict[str, bytes] = {}
    for entry in text.split(","):
        name, found, encoded = entry.strip().partition(":")
        if not (found and _KEY_ID.fullmatch(name)):
            raise ValueError("expected kid:base64 pairs with commas between them, newest first")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise ValueError("expected base64 after each kid:") from None
        if len(key) < MINIMUM_KEY_BYTES:
            raise ValueError(f"expected keys of at least {MINIMUM_KEY_BYTES} bytes before base64")
        if name in keys:
            raise ValueError("expected a kid of its own for each key")
        keys[name] = key
    return keys


def _keys(value: SecretStr) -> SecretStr:
    parse_secret_keys(value.get_secret_value())
    return value


def _namespace(value: str) -> str:
    if not _NAMESPACE.fullmatch(value):
        raise ValueError("expected 1 to 32 letters, digits, '.', '_' or '-'")
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 16:
        raise ValueError("expected at least 16 characters")
    return value


REDIS_SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)

Namespace = Annotated[str, AfterValidator(_namespace)]
Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_positive)]
RedisUrl = Annotated[SecretStr, AfterValidator(partial(_secret_url, schemes=REDIS_SCHEMES))]
DatabaseUrl = Annotated[
    SecretStr,
    AfterValidator(
        partial(_secret_url, schemes=("postgres", "postgresql", "postgresql+asyncpg")),
    ),
]
SmtpUrl = Annotated[SecretStr, AfterValidator(partial(_secret_url, schemes=("smtp", "smtps")))]
HttpUrl = Annotated[str, AfterValidator(partial(_plain_url, schemes=("http", "https")))]
AccessKey = Annotated[SecretStr, AfterValidator(_long_enough)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


class RedisSettings(_Group):
    """The connection to Redis: a URL, else the Upstash pair, else the embedded server."""

    url: RedisUrl | None = Field(default=None, validation_alias="REDIS_URL")
    upstash_url: HttpUrl | None = Field(default=None, validation_alias="UPSTASH_REDIS_REST_URL")
    upstash_token: SecretStr | None = Field(default=None, validation_alias="UPSTASH_REDIS_REST_TOKEN")
    connect_timeout: Duration | None = Field(default=None, validation_alias="COUNTERSEAL_CONNECT_TIMEOUT")
    command_timeout: Duration | None = Field(default=None, validation_alias="COUNTERSEAL_COMMAND_TIMEOUT")
    rest_timeout: Duration = Field(default=timedelta(seconds=2), validation_alias="COUNTERSEAL_REST_TIMEOUT")
    max_reply_bytes: int = Field(default=64 * 2**20, ge=2**16, validation_alias="COUNTERSEAL_MAX_REPLY_BYTES")
    max_inflight_bytes: int = Field(
        default=64 * 2**20, ge=2**16, validation_alias="COUNTERSEAL_MAX_INFLIGHT_BYTES"
    )
    fsync: Fsync = Field(default=Fsync.EVERYSEC, validation_alias="COUNTERSEAL_FSYNC")
    min_replicas: int = Field(default=0, ge=0, le=16, validation_alias="COUNTERSEAL_MIN_REPLICAS")
    require_noeviction: bool = Field(default=False, validation_alias="COUNTERSEAL_REQUIRE_NOEVICTION")
    allow_embedded: bool = Field(default=False, validation_alias="COUNTERSEAL_ALLOW_EMBEDDED")


class QStashSettings(_Group):
    """QStash as the carrier of jobs."""

    url: HttpUrl | None = Field(default=None, validation_alias="QSTASH_URL")
    token: SecretStr | None = Field(default=None, validation_alias="QSTASH_TOKEN")
    current_signing_key: SecretStr | None = Field(default=None, validation_alias="QSTASH_CURRENT_SIGNING_KEY")
    next_signing_key: SecretStr | None = Field(default=None, validation_alias="QSTASH_NEXT_SIGNING_KEY")


class DatabaseSettings(_Group):
    """The durable record: PostgreSQL, else SQLite in the data folder."""

    url: DatabaseUrl | None = Field(default=None, validation_alias="DATABASE_URL")
    timeout: Duration = Field(default=timedelta(seconds=5), validation_alias="COUNTERSEAL_DATABASE_TIMEOUT")


class MailSettings(_Group):
    """Outgoing mail: a server, else files in the outbox folder."""

    smtp_url: SmtpUrl | None = Field(default=None, validation_alias="SMTP_URL")


class SessionSettings(_Group):
    """How long sessions live, and how many a user may have."""

    absolute: Duration = Field(
        default=timedelta(days=7), le=timedelta(days=30), validation_alias="COUNTERSEAL_SESSION_ABSOLUTE"
    )
    idle: Duration = Field(
        default=timedelta(hours=24), le=timedelta(days=30), validation_alias="COUNTERSEAL_SESSION_IDLE"
    )
    remember: bool = Field(default=False, validation_alias="COUNTERSEAL_SESSION_REMEMBER")
    max_per_user: int = Field(default=5, ge=1, le=20, validation_alias="COUNTERSEAL_SESSION_MAX")
    refresh_grace: Duration = Field(
        default=timedelta(seconds=10), le=timedelta(seconds=30), validation_alias="COUNTERSEAL_REFRESH_GRACE"
    )
    access_ttl: Duration = Field(
        default=timedelta(minutes=10), le=timedelta(minutes=10), validation_alias="COUNTERSEAL_ACCESS_TTL"
    )


class CacheSettings(_Group):
    """What the cache may take of this process."""

    near_bytes: int = Field(default=64 * 2**20, ge=2**16, validation_alias="COUNTERSEAL_CACHE_NEAR_BYTES")


class JobsSettings(_Group):
    """How jobs travel."""

    carrier: Literal["redis", "qstash"] = Field(default="redis", validation_alias="COUNTERSEAL_JOBS_CARRIER")
    concurrency: int = Field(default=10, ge=1, le=10_000, validation_alias="COUNTERSEAL_JOBS_CONCURRENCY")
    lease: Duration = Field(
        default=timedelta(seconds=15), le=timedelta(hours=1), validation_alias="COUNTERSEAL_JOBS_LEASE"
    )
    max_payload: int = Field(
        default=2**20, ge=1024, le=64 * 2**20, validation_alias="COUNTERSEAL_JOBS_MAX_PAYLOAD"
    )


class WebSettings(_Group):
    """The web server, its keys, and the wire-compatible Redis REST server."""

    public_url: HttpUrl | None = Field(default=None, validation_alias="COUNTERSEAL_PUBLIC_URL")
    url: HttpUrl = Field(default="http://127.0.0.1:8787", validation_alias="COUNTERSEAL_URL")
    admin_key: AccessKey | None = Field(default=None, validation_alias="COUNTERSEAL_ADMIN_KEY")
    grace: Duration = Field(default=timedelta(seconds=10), validation_alias="COUNTERSEAL_GRACE")
    rest_token: AccessKey | None = Field(default=None, validation_alias="COUNTERSEAL_REST_TOKEN")
    rest_database: int | None = Field(default=None, ge=0, le=15, validation_alias="COUNTERSEAL_REST_DATABASE")
    trusted_proxies: int = Field(default=0, ge=0, le=16, validation_alias="COUNTERSEAL_TRUSTED_PROXIES")
    proxy_header: ProxyHeader = Field(
        default=ProxyHeader.X_FORWARDED_FOR, validation_alias="COUNTERSEAL_PROXY_HEADER"
    )


class Settings(_Group):
    """The whole configuration. `Settings.load()` reads it; a program may also build one by hand, group by group."""

    environment: Environment = Field(default=Environment.DEVELOPMENT, validation_alias="COUNTERSEAL_ENV")
    data_dir: Path = Field(default=DEFAULT_DATA_DIR, validation_alias=DATA_DIR)
    namespace: Namespace = Field(default="cs", validation_alias="COUNTERSEAL_NAMESPACE")
    secret_keys: Annotated[SecretStr, AfterValidator(_keys)] | None = Field(
        default=None, validation_alias="COUNTERSEAL_SECRET_KEYS"
    )
    processes: int = Field(default=1, ge=1, le=1024, validation_alias="COUNTERSEAL_PROCESSES")
    tsa_url: HttpUrl | None = Field(default=None, validation_alias="COUNTERSEAL_TSA_URL")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias="COUNTERSEAL_LOG_LEVEL"
    )
    cache_ttl: Mapping[str, Duration] = Field(default_factory=dict[str, timedelta])

    redis: RedisSettings = Field(default_factory=RedisSettings)
    qstash: QStashSettings = Field(default_factory=QStashSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    mail: MailSettings = Field(default_factory=MailSettings)
    sessions: SessionSettings = Field(default_factory=SessionSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    web: WebSettings = Field(default_factory=WebSettings)

    GROUPS: ClassVar[Mapping[str, type[_Group]]] = {
        "redis": RedisSettings,
        "qstash": QStashSettings,
        "database": DatabaseSettings,
        "mail": MailSettings,
        "sessions": SessionSettings,
        "cache": CacheSettings,
        "jobs": JobsSettings,
        "web": WebSettings,
    }

    @classmethod
    def load(cls, variables: Mapping[str, str] | None = None, **overrides: object) -> Self:
        """Read the settings from `variables`, by default the `.env` file of the current folder, then the environment.

        `overrides` are top-level fields that a command line gave, such as `data_dir`. Raises `ConfigurationError`
        with a sentence for every fault.
        """
        read = read_environment() if variables is None else variables
        given = {name: value for name, value in read.items() if value.strip()}
        faults: list[str] = list(_unknown(given, cls.names()))
        groups: dict[str, Any] = {}
        for name, group in cls.GROUPS.items():
            _collect(
                faults, lambda name=name, group=group: groups.update({name: group(**_fields(group, given))})
            )
        chosen: dict[str, Any] = {"cache_ttl": _cache_ttls(given), **_fields(cls, given)}
        aliases = _aliases(cls)
        chosen.update({aliases[name]: value for name, value in overrides.items() if value is not None})
        made: list[Self] = []
        _collect(faults, lambda: made.append(cls(**chosen, **groups)))
        if made:
            faults.extend(made[0].conflicts())
        if faults:
            raise ConfigurationError(faults)
        return made[0]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The environment names of all settings, sorted."""
        groups: tuple[type[_Group], ...] = (cls, *cls.GROUPS.values())
        return tuple(sorted(name for group in groups for name in _aliases(group).values()))

    def conflicts(self) -> list[str]:
        """Faults that lie between settings: a sentence each."""
        faults: list[str] = []
        redis = self.redis
        if (redis.upstash_url is None) != (redis.upstash_token is None):
            present, absent = "UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"
            if redis.upstash_url is None:
                present, absent = absent, present
            faults.append(f"{absent}: expected together with {present}, which is set; it is missing")
        if self.environment is Environment.PRODUCTION and self.secret_keys is None:
            faults.append(
                "COUNTERSEAL_SECRET_KEYS: expected kid:base64 in production, with a key of at least 32 bytes;"
                " it is missing"
            )
        embedded = redis.url is None and redis.upstash_url is None and redis.upstash_token is None
        if self.environment is Environment.PRODUCTION and embedded and not redis.allow_embedded:
            faults.append(
                "REDIS_URL: expected in production, or UPSTASH_REDIS_REST_URL with its token,"
                " or COUNTERSEAL_ALLOW_EMBEDDED=true for the embedded server; none of them is set"
            )
        if self.jobs.carrier == "qstash":
            needed = {
                "QSTASH_TOKEN": self.qstash.token,
                "QSTASH_CURRENT_SIGNING_KEY": self.qstash.current_signing_key,
                "QSTASH_NEXT_SIGNING_KEY": self.qstash.next_signing_key,
                "COUNTERSEAL_PUBLIC_URL": self.web.public_url,
            }
            faults.extend(
                f"{name}: expected because COUNTERSEAL_JOBS_CARRIER is qstash; it is missing"
                for name, value in needed.items()
                if value is None
            )
            if redis.min_replicas:
                faults.append(
                    "COUNTERSEAL_MIN_REPLICAS: expected without COUNTERSEAL_JOBS_CARRIER=qstash, which accepts jobs"
                    " without asking the replicas; both are set"
                )
        return faults


def _aliases(group: type[_Group]) -> dict[str, str]:
    return {
        field: info.validation_alias
        for field, info in group.model_fields.items()
        if isinstance(info.validation_alias, str)
    }


def _fields(group: type[_Group], given: Mapping[str, str]) -> dict[str, str]:
    return {alias: given[alias] for alias in _aliases(group).values() if alias in given}


def _cache_ttls(given: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(CACHE_TTL_PREFIX).lower(): value
        for name, value in given.items()
        if name.startswith(CACHE_TTL_PREFIX) and name != CACHE_TTL_PREFIX
    }


def _unknown(given: Mapping[str, str], known: tuple[str, ...]) -> list[str]:
    faults: list[str] = []
    for name in sorted(given):
        if not name.startswith(PREFIX) or name in known or name.startswith(CACHE_TTL_PREFIX):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else "see .env.example for all of them"
        faults.append(f"{name}: no setting has this name; {hint}")
    return faults


def _collect(faults: list[str], build: Callable[[], object]) -> None:
    try:
        build()
    except ValidationError as error:
        faults.extend(_sentence(fault) for fault in error.errors(include_url=False))


def _sentence(fault: ErrorDetails) -> str:
    place = [str(part) for part in fault["loc"]]
    name = (
        f"{CACHE_TTL_PREFIX}{place[1].upper()}" if place[:1] == ["cache_ttl"] and len(place) > 1 else place[0]
    )
    expected = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{name}: {expected}; came: {_shape(fault['input'])}"


def _shape(value: object) -> str:
    """What came, described without showing it."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    return f"a value of type {type(value).__name__}"
