"""Tour 6: let nobody do too much.

A limiter counts for each identifier, for all processes together. Refusal is a value; Redis being away is one, too.
"""

from datetime import timedelta

from counterseal import Counterseal
from counterseal.ratelimit import Algorithm, Limit, Policy, Reason
from support.servers import Server

MINUTE = timedelta(minutes=1)


async def test_five_documents_a_minute(seal: Counterseal) -> None:
    pdfs = seal.rate_limits.pdf_generation

    decisions = [await pdfs.limit("ada") for _ in range(6)]

    assert [decision.success for decision in decisions] == [True] * 5 + [False]
    assert decisions[0].remaining == 4
    assert decisions[5].retry_after > timedelta(0)  # exact: a millisecond earlier it would be refused again
    assert (await pdfs.limit("bob")).success  # everybody has a count of their own

    await pdfs.refund("ada", decision=decisions[4])  # it was not needed after all
    assert (await pdfs.limit("ada")).success


async def test_an_application_adds_a_limiter(seal: Counterseal) -> None:
    uploads = Policy("uploads", (Limit(2, timedelta(hours=1)), Limit(3, timedelta(days=1))))
    async with Counterseal.open(seal.settings, limits=[uploads]) as own:
        limiter = own.rate_limits.limiter("uploads")
        assert (await limiter.limit("ada", cost=2)).success
        assert not (await limiter.limit("ada", cost=2)).success  # both limits are charged, or neither is
        assert (await limiter.peek("ada")).limit == 2


async def test_limits_change_without_a_deploy(seal: Counterseal) -> None:
    await seal.rate_limits.set_limits("email", Limit(500, MINUTE, Algorithm.GCRA), identifier="newsletter")
    await seal.rate_limits.deny("203.0.113.0/24")

    assert (await seal.rate_limits.email.limit("newsletter")).limit == 500
    assert (await seal.rate_limits.email.limit("ada")).limit == 20
    assert (await seal.rate_limits.api.limit("203.0.113.9")).reason is Reason.DENIED


async def test_without_redis_a_process_counts_for_itself_and_log_ins_are_counted_in_the_database(
    seal: Counterseal, valkey: Server
) -> None:
    await seal.rate_limits.api.limit("ada")
    valkey.kill()

    api = await seal.rate_limits.api.limit("ada")
    log_ins = [await seal.rate_limits.auth.limit("ada") for _ in range(11)]
    await seal.database.close()
    unknown = await seal.rate_limits.auth.limit("grace")

    assert (api.success, api.degraded) == (True, True)
    assert [log_in.success for log_in in log_ins] == [True] * 10 + [False]
    assert (unknown.success, unknown.reason) == (False, Reason.UNAVAILABLE)
