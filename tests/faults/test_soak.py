"""A store under random faults for minutes: only `StoreUnavailable`, never another's reply, and well in the end."""

import asyncio
import random
import time

import pytest

from counterseal.core.errors import StoreUnavailable
from counterseal.store.link import LinkOptions
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.relay import Relay
from support.servers import Server
from support.waiting import eventually

SECONDS = 120
WORKERS = 50


@pytest.mark.soak
@pytest.mark.every_loop
async def test_two_minutes_of_random_faults_give_no_wrong_reply():
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    draw = random.Random(seed)
    with Server(appendonly=True) as server:
        async with (
            Relay(server) as relay,
            NativeStore(FixedRoute(parse_redis_url(relay.url).template), LinkOptions()) as store,
        ):
            stop = time.monotonic() + SECONDS
            done = failed = 0

            async def work(name: str) -> None:
                nonlocal done, failed
                count = 0
                while time.monotonic() < stop:
                    count += 1
                    value = f"{name}:{count}".encode()
                    try:
                        assert await store.command("ECHO", value) == value
                        assert await store.pipeline([("ECHO", value)] * 3) == [value] * 3
                        assert await store.transaction([("ECHO", value)] * 2) == [value] * 2
                        done += 1
                    except StoreUnavailable:
                        failed += 1
                        await asyncio.sleep(0.001)

            async def hurt() -> None:
                while time.monotonic() < stop:
                    await asyncio.sleep(draw.uniform(0, 1))
                    fault = draw.choice(("cut", "cut in a reply", "freeze", "kill", "stand still"))
                    if fault == "cut":
                        relay.cut(reset=draw.random() < 0.5)
                    elif fault == "cut in a reply":
                        relay.cut_after(draw.randrange(10_000))
                    elif fault == "freeze":
                        server.freeze()
                        await asyncio.sleep(draw.uniform(0, 1))
                        server.thaw()
                    elif fault == "kill":
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.start)
                    else:
                        time.sleep(draw.uniform(0, 0.2))  # noqa: ASYNC251 - the fault is that the loop stands still

            await asyncio.gather(hurt(), *(work(f"worker-{number}") for number in range(WORKERS)))
            await eventually(lambda: store.available, within=40)
            assert await store.command("ECHO", "well") == b"well"
            print(f"{done} rounds, {failed} failures, {store.counts}")  # noqa: T201 - as above
            assert done > 1000
            assert failed > 0
            server.flush()
