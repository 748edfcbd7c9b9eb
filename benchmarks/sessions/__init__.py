"""Reads of live sessions, by themselves and in a request, and writes beside the database's own."""

from benchmarks import postgres
from benchmarks.plan import FASTEST, Area, Case, Contestant, Target

_READERS = ("starsessions", "redis-py-orjson")


def _write(what: str, title: str, database: str, tasks: int) -> Case:
    """A call that writes a row, beside the same database's own commit of one row."""
    driver, label = {"sqlite": ("aiosqlite", "SQLite"), "postgresql": ("asyncpg", "PostgreSQL")}[database]
    return Case(
        name=f"{what}_{database}_{tasks}",
        title=f"{title} ({driver}: one INSERT or UPDATE, one commit), {label}, "
        f"{'one task' if tasks == 1 else f'{tasks} tasks'}",
        unit="commits/s",
        handler=what,
        options={"tasks": tasks, "database": database},
        targets=(Target(driver, aim=1.0),),
        cores=(2,),
        peers=(driver,),
        rounds=3,
        seconds=1.0,
        postgres=database == "postgresql",
    )


AREA = Area(
    name="sessions",
    title="Sessions: 100 live sessions, and new ones",
    peers=(
        Contestant("starsessions"),
        Contestant("redis-py-orjson"),
        Contestant("aiosqlite"),
        Contestant("asyncpg"),
    ),
    cases=(
        Case(
            name="get_100",
            title="get of a live session, 100 tasks",
            unit="sessions/s",
            handler="get",
            options={"tasks": 100},
            targets=(
                Target("starsessions", floor=5.0, aim=10.0, cores=(1,)),
                Target("starsessions", floor=3.0, aim=7.0, cores=(2,)),
            ),
            peers=_READERS,
        ),
        Case(
            name="get_1",
            title="get of a live session, one task",
            unit="sessions/s",
            handler="get",
            options={"tasks": 1},
            peers=_READERS,
            rounds=3,
        ),
        Case(
            name="round_trips",
            title="get of a live session: round trips to Redis for each",
            unit="round trips",
            better="less",
            targets=(Target(FASTEST, floor=1.0),),
            cores=(1,),
            peers=_READERS,
            rounds=1,
        ),
        Case(
            name="request_100",
            title="a Starlette request that reads the session, 100 tasks",
            unit="requests/s",
            handler="in_request",
            options={"tasks": 100},
            peers=("starsessions",),
            rounds=3,
        ),
        *(
            _write(what, title, database, tasks)
            for database in ("sqlite", *(["postgresql"] if postgres.available() else []))
            for what, title, tasks in (
                ("create", "create", 100),
                ("create", "create", 1),
                ("rotate", "rotate", 100),
            )
        ),
    ),
)
