"""Upstash's official clients, unmodified, against the Redis REST server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from upstash_redis import Redis
from upstash_redis.asyncio import Redis as AsyncRedis
from upstash_redis.errors import UpstashError

from support.gateway import Gateway, gateway_on
from support.servers import Server

pytestmark = pytest.mark.leaves_keys("the keys are the clients' own, as on the service")


@pytest.fixture
async def gateway(valkey: Server) -> AsyncIterator[Gateway]:
    async with gateway_on(valkey) as gateway:
        yield gateway


def use_blocking_client(gateway: Gateway, encoding: str | None) -> None:
    """What an application does with the blocking client. Runs in a thread."""
    with Redis(gateway.url, gateway.token, rest_encoding=encoding, rest_retries=0) as redis:  # type: ignore[arg-type]
        assert redis.ping() == "PONG"
        assert redis.set("k", "v", ex=100) is True
        assert redis.get("k") == "v"
        assert redis.get("none") is None
        assert redis.set("n", 1.5) is True
        assert redis.incrbyfloat("n", 0.5) == 2
        assert redis.hset("h", values={"a": 1, "b": "é"}) == 2
        assert redis.hgetall("h") == {"a": "1", "b": "é"}
        assert redis.zadd("z", {"one": 1, "two": 2.5}) == 2
        assert redis.zrange("z", 0, -1, withscores=True) == [("one", 1.0), ("two", 2.5)]
        assert redis.eval("return {KEYS[1], ARGV[1]}", keys=["k"], args=["x"]) == ["k", "x"]
        assert redis.xadd("s", "*", {"f": "v"})
        assert redis.json is not None
        pipeline = redis.pipeline()
        pipeline.incr("c")
        pipeline.incr("c")
        pipeline.get("k")
        assert pipeline.exec() == [1, 2, "v"]
        multi = redis.multi()
        multi.set("m", "1")
        multi.incr("m")
        assert multi.exec() == [True, 2]
        with pytest.raises(UpstashError, match="WRONGTYPE"):
            redis.incr("h")
        with pytest.raises(UpstashError, match=r"Command is not available: 'JSON\.GET'"):
            redis.json.get("k")
        assert redis.flushall() is True
        assert redis.dbsize() == 0


@pytest.mark.parametrize("encoding", ["base64", None])
async def test_the_blocking_client_works_with_and_without_base64(
    gateway: Gateway, encoding: str | None
) -> None:
    await asyncio.to_thread(use_blocking_client, gateway, encoding)


async def test_the_asyncio_client_works(gateway: Gateway) -> None:
    async with AsyncRedis(gateway.url, gateway.token, rest_retries=0) as redis:
        assert await redis.mset({"a": "1", "b": "null", "c": "😀\x00"}) is True
        assert await redis.mget("a", "b", "c", "d") == ["1", "null", "😀\x00", None]
        assert sorted(await asyncio.gather(*(redis.incr("n") for _ in range(50)))) == list(range(1, 51))
        pipeline = redis.pipeline()
        for _ in range(1001):
            pipeline.incr("many")
        assert await pipeline.exec() == list(range(1, 1002))
        multi = redis.multi()
        multi.rpush("l", "a", "b")
        multi.lrange("l", 0, -1)
        assert await multi.exec() == [2, ["a", "b"]]
        sha = await redis.script_load("return ARGV[1]")
        assert await redis.evalsha(sha, args=["x"]) == "x"
        assert await redis.script_exists(sha, "0" * 40) == [True, False]
        token = redis._sync_token
        await redis.set("k", "v")
        assert redis._sync_token
        assert redis._sync_token != token


async def test_a_wrong_token_is_an_error_of_the_client(gateway: Gateway) -> None:
    async with AsyncRedis(gateway.url, "wrong", rest_retries=0) as redis:
        with pytest.raises(UpstashError, match="WRONGPASS invalid or missing auth token"):
            await redis.get("k")
