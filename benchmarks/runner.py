"""Runs the cases of an area: interleaved rounds, every contestant in its own process on its own core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import postgres
from benchmarks.driver import Request
from benchmarks.plan import OURS, Area, Case, Contestant
from benchmarks.process import DriverFailed, DriverProcess
from benchmarks.results import Measured
from benchmarks.server import Server, running

QUICK_SECONDS = 0.2

TRIES = 3


@dataclass(frozen=True, slots=True)
class Options:
    """How a run differs from what the cases say. `server_core` and `second_core` are numbers of real cores."""

    server_core: int
    second_core: int | None
    cores: tuple[int, ...] = (1, 2)
    quick: bool = False
    rounds: int | None = None
    peers: tuple[str, ...] = ()

    def rounds_of(self, case: Case) -> int:
        """How often each peer is measured."""
        return self.rounds or (1 if self.quick else case.rounds)

    def seconds_of(self, case: Case) -> float:
        """How long one measurement lasts."""
        return min(QUICK_SECONDS, case.seconds) if self.quick else case.seconds

    def cores_of(self, case: Case) -> tuple[int, ...]:
        """The numbers of cores that a case is measured on."""
        return tuple(n for n in case.cores if n in self.cores and (n == 1 or self.second_core is not None))

    def client_core(self, cores: int) -> int:
        """Where the client runs when client and server share this number of cores."""
        return self.server_core if cores == 1 or self.second_core is None else self.second_core


@dataclass(slots=True)
class _Bench:
    """The processes of one area on one number of cores. They are started when they are first asked."""

    area: Area
    cores: int
    server: Server
    options: Options
    pythons: Mapping[str, Path]
    postgres_url: str = ""
    started: dict[str, DriverProcess] = field(default_factory=dict[str, DriverProcess])

    def figure(self, case: Case, contestant: Contestant) -> float:
        """One measurement on an empty server. Raises `DriverFailed`."""
        if case.fresh:
            self.stop(contestant.name)
        if contestant.name not in self.started:
            core = self.options.client_core(self.cores)
            script = contestant.script(self.area.name)
            python = self.pythons.get(contestant.name)
            if python is None:
                raise DriverFailed("it has no environment")
            self.started[contestant.name] = DriverProcess(python, script, core)
        self.server.clear()
        request = Request(
            handler=case.handler or case.name,
            seconds=self.options.seconds_of(case),
            options=dict(case.options),
            tcp_url=self.server.tcp_url,
            unix_url=self.server.unix_url,
            server_core=self.options.server_core,
            client_core=self.options.client_core(self.cores),
            postgres_url=self.postgres_url if case.postgres else "",
        )
        try:
            return self.started[contestant.name].ask(request)
        except DriverFailed:
            self.stop(contestant.name)
            raise
        finally:
            if case.fresh:
                self.stop(contestant.name)

    def stop(self, name: str) -> None:
        """End one process; the next question starts another."""
        if name in self.started:
            self.started.pop(name).close()

    def close(self) -> None:
        """End them all."""
        for name in list(self.started):
            self.stop(name)


def peers_of(area: Area, case: Case, options: Options) -> tuple[Contestant, ...]:
    """The peers that this run measures a case with."""
    return tuple(peer for peer in area.peers_of(case) if not options.peers or peer.name in options.peers)


def order(peers: tuple[Contestant, ...], options: Options, rounds: int) -> Iterator[tuple[int, Contestant]]:
    """Who is measured when: ours beside every peer, another peer first in each round, ours first in every other one.

    So whatever slows the machine for a while slows ours as often as each of the others. A quick run, which judges
    nothing, measures ours once a round, and so does a case without peers.
    """
    for number in range(rounds):
        if not peers:
            yield number, OURS
        first = number % len(peers) if peers else 0
        for position, peer in enumerate(peers[first:] + peers[:first]):
            pair = (peer, OURS) if number % 2 == 0 else (OURS, peer)
            yield from ((number, one) for one in pair if one is peer or position == 0 or not options.quick)


def steps(area: Area, cases: tuple[Case, ...], options: Options) -> int:
    """How many measurements a run of these cases makes."""
    return sum(
        len(list(order(peers_of(area, case, options), options, options.rounds_of(case))))
        * len(options.cores_of(case))
        for case in cases
    )


def run(
    area: Area,
    cases: tuple[Case, ...],
    options: Options,
    *,
    pythons: Mapping[str, Path],
    on_step: Callable[[str], None],
    on_case: Callable[[Measured], None],
) -> list[Measured]:
    """Measure cases of one area with the Pythons of its contestants, by name.

    `on_step` hears what comes next, `on_case` gets each case when it is done.
    """
    measured: list[Measured] = []
    with ExitStack() as servers:
        server = servers.enter_context(running(options.server_core))
        postgres_url = ""
        if any(case.postgres for case in cases):
            postgres_url = servers.enter_context(postgres.running(options.server_core))
        for cores in options.cores:
            with ExitStack() as stack:
                bench = _Bench(area, cores, server, options, pythons, postgres_url)
                stack.callback(bench.close)
                for case in cases:
                    if cores in options.cores_of(case):
                        outcome = _case(bench, case, on_step)
                        measured.append(outcome)
                        on_case(outcome)
    return measured


def _case(bench: _Bench, case: Case, on_step: Callable[[str], None]) -> Measured:
    outcome = Measured(bench.area, case, bench.cores)
    peers, rounds = peers_of(bench.area, case, bench.options), bench.options.rounds_of(case)
    for number, contestant in order(peers, bench.options, rounds):
        place = f"{bench.area.name}/{case.name}, cores {bench.cores}, round {number + 1} of {rounds}"
        on_step(f"{place}: {contestant.name}")
        if contestant.name in outcome.failures:
            continue
        try:
            figure = _patient(bench, case, contestant, outcome.repeats)
            outcome.samples.setdefault(contestant.name, []).append(figure)
        except DriverFailed as error:
            outcome.failures[contestant.name] = str(error)
            outcome.samples.pop(contestant.name, None)
    return outcome


def _patient(bench: _Bench, case: Case, contestant: Contestant, repeats: list[str]) -> float:
    """One figure, asked for up to three times: a busy machine can stall anybody past a time-out now and then."""
    for _ in range(TRIES - 1):
        try:
            return bench.figure(case, contestant)
        except DriverFailed as error:
            repeats.append(f"{contestant.name}: {error}")
    return bench.figure(case, contestant)
