"""The store's clock follows the server, not this machine."""

import asyncio
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from counterseal.core.errors import StoreTimeout
from counterseal.store.clock import StoreClock
from support.waiting import eventually

SERVER_MS = 1_700_000_000_000


class Machine:
    """A machine whose wall clock is wrong by some milliseconds."""

    def __init__(self, skew_ms: int = 0, *, boot_ms: int = 5_000) -> None:
        self.skew_ms = skew_ms
        self.passed_ms = 0
        self.boot_ms = boot_ms

    def wall_ms(self) -> int:
        return SERVER_MS + self.passed_ms + self.skew_ms

    def steady_ns(self) -> int:
        return (self.boot_ms + self.passed_ms) * 1_000_000


def server_time(machine: Machine, *, travel_ms: int = 0):
    async def answer() -> tuple[int, int]:
        machine.passed_ms += travel_ms // 2
        now = SERVER_MS + machine.passed_ms
        machine.passed_ms += travel_ms - travel_ms // 2
        return now // 1000, now % 1000 * 1000

    return answer


@given(skews=st.lists(st.integers(-200, 200), min_size=8, max_size=8), travel_ms=st.integers(0, 40))
def test_eight_clients_skewed_by_up_to_200_ms_agree(skews: list[int], travel_ms: int):
    async def read() -> list[int]:
        answers: list[int] = []
        for skew in skews:
            machine = Machine(skew, boot_ms=skew + 1_000)
            clock = StoreClock(machine)
            await clock.read(server_time(machine, travel_ms=travel_ms))
            machine.passed_ms = 10_000
            answers.append(clock.now_ms() - SERVER_MS)
        return answers

    assert all(abs(answer - 10_000) <= 1 for answer in asyncio.run(read()))


async def test_skew_tells_how_far_the_machine_is_ahead():
    machine = Machine(150)
    clock = StoreClock(machine)
    await clock.read(server_time(machine))
    assert clock.skew_ms == 150


async def test_a_reading_that_grew_old_while_the_machine_slept_is_taken_again():
    machine = Machine()
    clock = StoreClock(machine)
    readings = 0
    again = asyncio.Event()

    async def answer() -> tuple[int, int]:
        nonlocal readings
        readings += 1
        if readings == 2:
            raise StoreTimeout("not just now")
        if readings > 2:
            again.set()
        now = SERVER_MS + machine.passed_ms + 3_600_000 * (readings > 1)
        return now // 1000, now % 1000 * 1000

    await clock.read(answer)
    keeping = asyncio.create_task(clock.keep(answer))
    await asyncio.sleep(0)
    machine.passed_ms += 10_001
    clock.now_ms()

    def read_again() -> bool:
        clock.now_ms()  # asks for a reading when the last one is too old
        return again.is_set()

    await eventually(read_again)
    assert clock.now_ms() == SERVER_MS + 10_001 + 3_600_000
    keeping.cancel()


async def test_travelling_moves_the_clock_and_a_new_reading_does_not_move_it_back():
    machine = Machine()
    clock = StoreClock(machine)
    await clock.read(server_time(machine))
    clock.travel(timedelta(hours=2))
    await clock.read(server_time(machine))
    assert clock.now_ms() == SERVER_MS + 7_200_000


async def test_a_slow_reading_is_taken_again_and_the_quicker_one_counts():
    machine = Machine()
    clock = StoreClock(machine)
    travels = [400, 2]

    async def answer() -> tuple[int, int]:
        now = SERVER_MS + machine.passed_ms  # the server answers at once; the way back takes all the time
        machine.passed_ms += travels.pop(0)
        return now // 1000, now % 1000 * 1000

    await clock.read(answer)
    assert (travels, clock.skew_ms) == ([], 1)


async def test_where_every_round_trip_takes_as_long_a_reading_is_one_command():
    machine = Machine()
    clock = StoreClock(machine)
    travels: list[int] = []
    asked = 0

    async def answer() -> tuple[int, int]:
        nonlocal asked
        asked += 1
        now = SERVER_MS + machine.passed_ms
        machine.passed_ms += travels.pop(0)
        return now // 1000, now % 1000 * 1000

    counts: list[int] = []
    for taken in ([80, 90], [100], [140], [300, 90], [130]):  # far longer than the last is taken again
        asked, travels = 0, taken
        await clock.read(answer)
        counts.append(asked)
    assert counts == [2, 1, 1, 2, 1]
