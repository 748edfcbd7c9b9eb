"""Faults: what kept a command from its work, told with the setting to look at."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from counterseal.core.errors import ConfigurationError, DatabaseUnavailable, StoreUnavailable
from counterseal.core.settings import Settings


@contextmanager
def naming_settings(settings: Settings) -> Generator[None]:
    """Turn what can't be reached into a `ConfigurationError` that names the setting which says where it is."""
    try:
        yield
    except StoreUnavailable as error:
        raise ConfigurationError(f"{_redis_setting(settings)}: {error}") from error
    except DatabaseUnavailable as error:
        name = "COUNTERSEAL_DATA_DIR" if settings.database.url is None else "DATABASE_URL"
        raise ConfigurationError(f"{name}: {error}") from error


def _redis_setting(settings: Settings) -> str:
    if settings.redis.url is not None:
        return "REDIS_URL"
    return "COUNTERSEAL_DATA_DIR" if settings.redis.upstash_url is None else "UPSTASH_REDIS_REST_URL"
