"""Upstash's official rate limiter, unmodified, against the Redis REST server. Its scripts carry a flag of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from upstash_redis import Redis
from upstash_redis.asyncio import Redis as AsyncRedis

from support.gateway import Gateway, gateway_on
from support.servers import Server

official = pytest.importorskip("upstash_ratelimit")
official_asyncio = pytest.importorskip("upstash_ratelimit.asyncio")

pytestmark = pytest.mark.leaves_keys("the keys are the clients' own, as on the service")


@pytest.fixture
async def gateway(valkey: Server) -> AsyncIterator[Gateway]:
    async with gateway_on(valkey) as gateway:
        yield gateway


@pytest.mark.parametrize(
    "limiter",
    [official.FixedWindow(3, 600), official.SlidingWindow(3, 600), official.TokenBucket(3, 1, 600)],
    ids=["fixed", "sliding", "bucket"],
)
async def test_the_official_rate_limiter_works(gateway: Gateway, valkey: Server, limiter: Any) -> None:
    async with AsyncRedis(gateway.url, gateway.token, rest_retries=0) as redis:
        limits = official_asyncio.Ratelimit(redis, limiter)
        answers = [await limits.limit("user") for _ in range(4)]
        assert [answer.allowed for answer in answers] == [True, True, True, False]
        assert [answer.remaining for answer in answers[:3]] == [2, 1, 0]
        valkey.execute("SCRIPT", "FLUSH")
        assert (await limits.limit("other")).allowed
        assert await limits.get_remaining("other") == 2
        assert await limits.get_reset("other") > 0

    def blocking() -> bool:
        with Redis(gateway.url, gateway.token, rest_retries=0) as redis:
            return bool(official.Ratelimit(redis, limiter).limit("third").allowed)

    assert await asyncio.to_thread(blocking)
