"""Tour 5: ask how it is.

Every service does some work for the answer; nothing in it is taken for granted.
"""

from counterseal import Counterseal
from support.servers import Server


async def test_all_is_well(seal: Counterseal) -> None:
    report = await seal.health.check()

    assert report.healthy
    assert report.body["services"]["cache"]["operations"] == {"set": True, "get": True, "delete": True}


async def test_what_fails_says_so_and_the_rest_is_still_told(seal: Counterseal, valkey: Server) -> None:
    valkey.execute("SET", "cs:jobs:{default}:running", "in the way of the queue", "PX", 60_000)

    report = await seal.health.check()

    services = report.body["services"]
    assert not report.healthy
    assert services["jobQueue"]["canAccessJobs"] is False
    assert services["jobQueue"]["error"] == "Redis refused a command (WRONGTYPE)."
    assert services["analytics"]["status"] == "healthy"


async def test_whether_it_is_ready_to_serve(seal: Counterseal) -> None:
    assert (await seal.health.ready()).ready
