"""Records that somebody deleted, over every connection: no counter and no slot of a flow stays behind with them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from counterseal.jobs.context import JobContext
from counterseal.jobs.options import Flow
from counterseal.jobs.scripts import Batch, Leased, Queue, Result
from counterseal.jobs.service import Jobs
from counterseal.jobs.task import DEFAULT_QUEUE, task
from counterseal.store.base import Store
from counterseal.store.keys import Keys
from support.stores import travel

KEYS = Keys()
DAY_MS = 86_400_000
LEASE = timedelta(seconds=15)
HOUR = timedelta(hours=1)
ONE = Flow("f", parallelism=1)


@task(name="mail")
async def mail(context: JobContext, to: str) -> str:
    return to


@task(name="note")
async def note(context: JobContext) -> None:
    return


class Place:
    """A queue with a worker that leases from it, and somebody who deletes records."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs = Jobs(store, keys=KEYS, tasks=[mail, note])
        self.queue = Queue(store, KEYS, DEFAULT_QUEUE)
        self.calls = 0

    async def lease(self, room: int = 100) -> Batch:
        self.calls += 1
        lease_ms = LEASE // timedelta(milliseconds=1)
        return await self.queue.lease(room=room, worker="w", call=str(self.calls), lease_ms=lease_ms)

    async def finish(self, leased: Leased, outcome: str = "completed", ms: int = DAY_MS) -> bool:
        text = b"" if outcome == "completed" else b'["E","",""]'
        (held,) = await self.queue.finish([Result(leased.part, leased.token, outcome, ms, 5, text)])
        return held

    async def delete(self, identifier: str) -> None:
        await self.store.command("DEL", f"{self.queue.prefix}:job:{identifier.partition('.')[2]}")

    async def pending(self) -> tuple[int, int]:
        stats = await self.jobs.stats()
        return stats["mail"].pending, stats["note"].pending

    async def gone(self) -> int:
        return (await self.jobs.queues())[0].gone


@pytest.fixture
def place(store: Store) -> Place:
    return Place(store)


async def test_a_queued_job_without_a_record_is_not_pending_once_that_is_seen(place: Place) -> None:
    ids = [(await place.jobs.enqueue(mail, str(n))).id for n in range(3)]
    await place.jobs.enqueue(note)
    await place.delete(ids[0])
    assert (await place.lease(1)).gone == 1
    assert await place.pending() == (2, 1)
    assert (await place.gone(), (await place.jobs.queues())[0].queued) == (1, 2)
    rest = (await place.lease()).jobs
    assert len(rest) == 2
    assert await place.pending() == (2, 1)


async def test_in_a_queue_too_long_to_be_counted_again_the_queue_is_right_at_once_and_the_type_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(await place.jobs.enqueue(mail, str(n))).id for n in range(4)]
    await place.delete(ids[0])
    with monkeypatch.context() as patch:
        patch.setattr("counterseal.jobs.tally._MOST_RECOUNTED", 2)
        await place.lease(1)
        assert (await place.pending(), (await place.jobs.queues())[0].queued) == ((4, 0), 2)
    await place.lease(2)
    assert (await place.pending(), (await place.jobs.queues())[0].queued) == ((3, 0), 0)


async def test_what_was_made_right_is_made_right_once_though_others_are_still_in_their_places(
    place: Place,
) -> None:
    ids = [(await place.jobs.enqueue(mail, str(n))).id for n in range(4)]
    for one in (ids[0], ids[2]):
        await place.delete(one)
    await place.lease(1)
    assert (await place.pending(), await place.gone()) == (
        (2, 0),
        2,
    )  # the second was found by counting again
    assert len((await place.lease()).jobs) == 1
    assert (await place.pending(), await place.gone()) == ((2, 0), 2)


async def test_a_job_that_ran_without_a_record_frees_its_slot_when_it_ends(place: Place) -> None:
    first = await place.jobs.enqueue(mail.using(flow=ONE), "a")
    second = await place.jobs.enqueue(mail.using(flow=ONE), "b")
    await place.jobs.enqueue(note)
    running = {f"{DEFAULT_QUEUE}.{one.part}": one for one in (await place.lease()).jobs}
    assert second.id not in running
    await place.delete(first.id)
    assert await place.finish(running[first.id]) is False
    assert [one.part for one in (await place.lease()).jobs] == [second.id.partition(".")[2]]
    assert (await place.pending(), await place.gone()) == ((1, 1), 1)
    assert await place.finish(running[first.id]) is False
    assert await place.gone() == 1


@pytest.mark.parametrize("runs", [1, 2])
async def test_a_slot_is_free_when_a_job_without_a_record_is_taken_over(
    place: Place, store: Store, runs: int
) -> None:
    first = await place.jobs.enqueue(mail.using(flow=ONE), "a")
    for _ in range(runs - 1):
        await place.lease()
        travel(store, LEASE)
    assert len((await place.lease()).jobs) == 1
    await place.delete(first.id)
    second = await place.jobs.enqueue(mail.using(flow=ONE), "b")
    assert (await place.lease()).jobs == []
    travel(store, LEASE)
    assert [one.part for one in (await place.lease()).jobs] == [second.id.partition(".")[2]]
    assert (await place.pending(), await place.gone()) == ((1, 0), 1)


async def test_a_lane_of_a_flow_whose_records_are_gone_keeps_no_slot(place: Place) -> None:
    ids = [(await place.jobs.enqueue(mail.using(flow=ONE), str(n))).id for n in range(3)]
    for one in ids[:2]:
        await place.delete(one)
    found = [one for _ in range(3) for one in (await place.lease()).jobs]
    assert [one.part for one in found] == [ids[2].partition(".")[2]]
    assert (await place.pending(), await place.gone()) == ((1, 0), 2)


async def test_a_job_that_was_given_back_without_a_record_is_gone_once(place: Place, store: Store) -> None:
    made = await place.jobs.enqueue(mail.using(flow=ONE), "a")
    (leased,) = (await place.lease()).jobs
    assert await place.finish(leased, "queued")
    await place.delete(made.id)
    assert (await place.lease()).gone == 1
    assert (await place.pending(), await place.gone()) == ((0, 0), 1)
    assert await store.command("EXISTS", f"{place.queue.prefix}:state") == 0


async def test_what_is_due_without_a_record_is_not_pending(place: Place, store: Store) -> None:
    later = await place.jobs.enqueue(mail.using(delay=HOUR), "a")
    again = await place.jobs.enqueue(note)
    (leased,) = (await place.lease()).jobs
    assert await place.finish(leased, "retrying", 1000)
    for one in (later, again):
        await place.delete(one.id)
    travel(store, HOUR)
    assert (await place.lease()).gone == 2
    assert (await place.pending(), await place.gone()) == ((0, 0), 2)


async def test_a_job_that_is_to_run_again_is_right_as_soon_as_somebody_would_cancel_it(
    place: Place, store: Store
) -> None:
    await place.jobs.set_parallelism(DEFAULT_QUEUE, 1)
    made = await place.jobs.enqueue(mail, "a")
    (leased,) = (await place.lease()).jobs
    assert await place.finish(leased, "retrying", 10**9)
    await place.jobs.enqueue(note)
    await place.delete(made.id)
    assert await place.jobs.cancel(made.id) is None
    assert await place.pending() == (0, 1)
    assert len((await place.lease()).jobs) == 1  # it held up the strict queue


async def test_a_running_job_without_a_record_that_shall_end_frees_all_it_had(
    place: Place, store: Store
) -> None:
    made = await place.jobs.enqueue(mail.using(flow=ONE), "a")
    await place.lease()
    await place.jobs.cancel(made.id)
    await place.delete(made.id)
    assert await place.jobs.cancel(made.id) is None
    assert await place.pending() == (0, 0)
    await place.jobs.enqueue(mail.using(flow=ONE), "b")
    assert len((await place.lease()).jobs) == 1
    assert await store.command("EXISTS", f"{place.queue.prefix}:cancel") == 0


async def test_a_parked_job_without_a_record_is_not_pending_once_it_is_deleted(place: Place) -> None:
    made = await place.jobs.enqueue(mail, "a")
    (leased,) = (await place.lease()).jobs
    assert await place.finish(leased, "parked", 1)
    await place.delete(made.id)
    assert await place.pending() == (1, 0)
    assert await place.jobs.delete_dead(made.id) == 0
    assert await place.pending() == (0, 0)
    assert (await place.jobs.queues())[0].parked == 0


async def test_a_cancelled_job_that_is_kept_no_more_is_not_gone(place: Place, store: Store) -> None:
    await place.jobs.pause()
    made = await place.jobs.enqueue(mail, "a")
    await place.jobs.enqueue(note)
    await place.jobs.cancel(made.id)
    await place.delete(made.id)  # as its lifetime does
    await place.jobs.resume()
    batch = await place.lease()
    assert (len(batch.jobs), batch.gone, await place.gone()) == (1, 0, 0)
    assert await place.pending() == (0, 1)
    assert await store.command("EXISTS", f"{place.queue.prefix}:left") == 0


async def test_an_id_whose_job_ran_without_a_record_is_free_for_another_which_is_run_and_not_that_one(
    place: Place,
) -> None:
    asking = mail.using(id="same", flow=ONE)
    await place.jobs.enqueue(asking, "a")
    (former,) = (await place.lease()).jobs
    await place.delete("default.same")
    assert (await place.jobs.enqueue(asking, "b")).created
    assert await place.finish(former) is False
    (leased,) = (await place.lease()).jobs
    assert b'"b"' in leased.args
    assert int(leased.token) > int(former.token)
    assert (await place.pending(), await place.gone()) == ((1, 0), 1)
    assert await place.finish(former) is False
    assert await place.finish(leased) is True
    assert (await place.jobs.stats())["mail"].completed == 1
    assert await place.pending() == (0, 0)


@pytest.mark.parametrize("state", ["scheduled", "retrying", "parked", "queued"])
async def test_an_id_whose_job_waited_without_a_record_is_free_for_another_which_is_run_at_once(
    place: Place, store: Store, state: str
) -> None:
    await place.jobs.set_parallelism(DEFAULT_QUEUE, 1)
    await place.jobs.enqueue(mail.using(id="same", delay=HOUR if state == "scheduled" else None), "a")
    if state != "scheduled":
        (former,) = (await place.lease()).jobs
        assert await place.finish(former, state, 10**7)
    await place.delete("default.same")
    assert (await place.jobs.enqueue(mail.using(id="same"), "b")).created
    (leased,) = (await place.lease()).jobs
    assert b'"b"' in leased.args
    assert await place.finish(leased)
    await place.lease()
    assert (await place.pending(), (await place.jobs.stats())["mail"].total) == ((0, 0), 1)
    found = (await place.jobs.queues())[0]
    assert (found.delayed, found.parked) == (0, 0)
    assert await store.command("EXISTS", f"{place.queue.prefix}:state") == 0


async def test_an_id_whose_job_ran_without_a_record_is_free_for_one_that_is_due_later(
    place: Place, store: Store
) -> None:
    await place.jobs.enqueue(mail.using(id="same"), "a")
    (former,) = (await place.lease()).jobs
    await place.delete("default.same")
    assert (await place.jobs.enqueue(mail.using(id="same", delay=HOUR), "b")).created
    assert (await place.lease()).jobs == []
    travel(store, HOUR)
    (leased,) = (await place.lease()).jobs
    assert (b'"b"' in leased.args, int(leased.token)) == (True, int(former.token) + 1)
    assert await place.finish(former) is False


async def test_counters_that_were_lost_are_right_again_when_a_job_of_before_has_ended(
    place: Place, store: Store
) -> None:
    await place.jobs.enqueue_many([mail.call(str(n)) for n in range(3)])
    (leased,) = (await place.lease(1)).jobs
    await store.command("DEL", f"{place.queue.prefix}:stats:mail")
    assert await place.finish(leased)
    assert await place.pending() == (2, 0)
    await place.lease(1)
    found = (await place.jobs.stats())["mail"]
    assert (found.running, found.queued, found.completed, found.total) == (1, 1, 1, 3)
