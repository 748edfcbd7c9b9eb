"""Decisions about identifiers: allowed by each algorithm, and refused."""

from benchmarks.plan import FASTEST, Area, Case, Contestant, Target

_TARGETS = (
    Target(FASTEST, floor=5.0, aim=7.0, cores=(1,)),
    Target(FASTEST, floor=3.0, aim=5.0, cores=(2,)),
)


def _allowed(algorithm: str, title: str, *peers: str) -> Case:
    return Case(
        name=f"{algorithm}_100",
        title=f"{title}, 100 tasks, allowed",
        unit="decisions/s",
        handler="allowed",
        options={"tasks": 100, "algorithm": algorithm},
        targets=_TARGETS,
        peers=peers,
    )


AREA = Area(
    name="ratelimit",
    title="Rate limits: decisions about 1,000 identifiers",
    peers=(Contestant("limits"), Contestant("throttled-py"), Contestant("pyrate-limiter")),
    cases=(
        _allowed("fixed_window", "fixed window"),
        _allowed("sliding_window", "sliding window"),
        _allowed("gcra", "GCRA", "throttled-py", "pyrate-limiter"),
        Case(
            name="refused_100",
            title="100 tasks, refused",
            unit="decisions/s",
            handler="refused",
            options={"tasks": 100, "algorithm": "any"},
            targets=(Target(FASTEST, floor=20.0),),
        ),
        Case(
            name="decision_1",
            title="sliding window, one task, allowed",
            unit="decisions/s",
            handler="allowed",
            options={"tasks": 1, "algorithm": "sliding_window"},
            rounds=3,
        ),
    ),
)
