"""open_store: the one place that decides which connection stands behind a `Store`."""

from __future__ import annotations

from counterseal.core.clock import Clock
from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Settings
from counterseal.store.base import Store
from counterseal.store.cluster import ClusterStore
from counterseal.store.embedded.server import EmbeddedServer
from counterseal.store.link import LinkOptions
from counterseal.store.rest.client import RestBounds
from counterseal.store.rest.store import RestStore
from counterseal.store.route import EmbeddedRoute, FixedRoute, SentinelRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore


def link_options(settings: Settings) -> LinkOptions:
    """Time-outs and bounds of native connections, as configured."""
    redis = settings.redis
    return LinkOptions(
        connect_timeout=redis.connect_timeout,
        command_timeout=redis.command_timeout,
        max_reply_bytes=redis.max_reply_bytes,
        max_inflight_bytes=redis.max_inflight_bytes,
    )


def open_store(settings: Settings, *, clock: Clock | None = None) -> Store:
    """The store that the settings ask for: `REDIS_URL` first, then the Upstash pair, then the embedded server.

    It is not connected yet: use it as `async with`. `clock` replaces this machine's clock in tests. Raises
    `ConfigurationError` with every fault that lies between the settings or in their URL.
    """
    faults = settings.conflicts()
    try:
        store = _choose(settings, clock)
    except ConfigurationError as error:
        faults.extend(error.faults)
        raise ConfigurationError(faults) from error
    if faults:
        raise ConfigurationError(faults)
    return store


def _choose(settings: Settings, clock: Clock | None) -> Store:
    redis = settings.redis
    options = link_options(settings)
    if redis.url is not None:
        address = parse_redis_url(redis.url.get_secret_value())
        if address.kind == "cluster":
            return ClusterStore(address, options, clock=clock)
        if address.kind == "sentinel":
            return NativeStore(SentinelRoute(address), options, kind="sentinel", clock=clock)
        return NativeStore(FixedRoute(address.template), options, clock=clock)
    if redis.upstash_url is not None and redis.upstash_token is not None:
        bounds = RestBounds(
            timeout=redis.rest_timeout,
            max_reply_bytes=redis.max_reply_bytes,
            max_inflight_bytes=redis.max_inflight_bytes,
        )
        return RestStore(redis.upstash_url, redis.upstash_token, bounds=bounds, clock=clock)
    server = EmbeddedServer(settings.data_dir, fsync=redis.fsync)
    return NativeStore(EmbeddedRoute(server), options, kind="embedded", clock=clock)
