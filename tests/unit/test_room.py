"""Room is granted in the order of asking, and what nobody takes goes to the next."""

import asyncio
import time

import pytest

from counterseal.core.errors import StoreBusy, StoreUnavailable
from counterseal.store.room import Room


async def asked(room: Room, size: int, seconds: float = 5) -> asyncio.Task[None]:
    """A caller who waits for room and takes it."""

    async def take() -> None:
        await room.wait(size, seconds)
        room.taken += size

    task = asyncio.create_task(take())
    await asyncio.sleep(0)
    return task


async def test_callers_are_let_in_one_after_another_as_room_becomes_free():
    room = Room(10)
    room.taken = 10
    first, second = await asked(room, 10), await asked(room, 8)
    room.free(10)
    await first
    assert (second.done(), room.taken) == (False, 10)
    room.free(10)
    await second
    assert (room.taken, room.full) == (8, False)


async def test_what_was_granted_to_a_caller_who_went_away_goes_to_the_next():
    room = Room(10)
    room.taken = 10
    first, second = await asked(room, 10), await asked(room, 10)
    room.free(10)  # granted to the first
    first.cancel()
    await asyncio.wait({first})
    await second
    room.free(10)
    assert (room.taken, room.full) == (0, False)


async def test_a_caller_who_went_away_while_waiting_holds_nobody_up():
    room = Room(10)
    room.taken = 10
    first, second = await asked(room, 1), await asked(room, 1)
    first.cancel()
    await asyncio.wait({first})
    room.free(10)
    await second


async def test_waiting_in_vain_is_told_and_leaves_no_trace():
    room = Room(10)
    room.taken = 10
    with pytest.raises(StoreBusy, match="nothing was sent"):
        await room.wait(1, 0.01)
    room.free(10)
    assert not room.full


async def test_time_in_which_the_loop_stood_still_does_not_count():
    room = Room(10)
    room.taken = 10
    waiting = await asked(room, 1, 0.1)
    asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_later, 0.15, room.free, 10)
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - the loop stands still past the time-out
    await waiting


async def test_closing_turns_away_who_waits():
    room = Room(10)
    room.taken = 10
    waiting = await asked(room, 1)
    room.close("the store is closed")
    with pytest.raises(StoreUnavailable, match="closed"):
        await waiting
