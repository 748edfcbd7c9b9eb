"""Hits, misses and reads of many: in Redis and in the process's own memory."""

from benchmarks.plan import FASTEST, Area, Case, Contestant, Target

_SERVERS = ("cashews", "aiocache", "redis-py-orjson")
_NEAR = "cashews-client-side"

AREA = Area(
    name="cache",
    title="Cache: a value of 1 KB of JSON",
    peers=(
        Contestant("cashews"),
        Contestant("aiocache"),
        Contestant("redis-py-orjson"),
        Contestant(_NEAR, environment="cashews"),
    ),
    cases=(
        Case(
            name="hit_100",
            title="hit in Redis, 100 tasks",
            unit="hits/s",
            handler="hits",
            options={"tasks": 100},
            targets=(Target(FASTEST, floor=5.0, aim=8.0),),
            peers=_SERVERS,
        ),
        Case(
            name="hit_1",
            title="hit in Redis, one task",
            unit="hits/s",
            handler="hits",
            options={"tasks": 1},
            peers=_SERVERS,
            rounds=3,
        ),
        Case(
            name="many_100",
            title="100 values at once, one task",
            unit="values/s",
            handler="many",
            peers=_SERVERS,
            rounds=3,
        ),
        Case(
            name="near",
            title="hit in this process's memory, a value that callers may change",
            unit="hits/s",
            options={"immutable": False},
            targets=(Target(_NEAR, floor=0.9, aim=1.3),),
            cores=(1,),
            peers=(_NEAR,),
        ),
        Case(
            name="near_immutable",
            title="hit in this process's memory, a value that nobody can change",
            unit="hits/s",
            handler="near",
            options={"immutable": True},
            targets=(Target(_NEAR, floor=5.0),),
            cores=(1,),
            peers=(_NEAR,),
        ),
        Case(
            name="stampede_loads",
            title="200 misses of one key in four processes at once",
            unit="loads",
            better="less",
            handler="stampede",
            options={"figure": "loads"},
            targets=(Target(FASTEST, floor=1.0),),
            cores=(2,),
            peers=_SERVERS,
            rounds=3,
            fresh=True,
        ),
        Case(
            name="stampede_wait",
            title="200 misses of one key in four processes at once: waited longer than the load of 50 ms",
            unit="ms",
            better="less",
            handler="stampede",
            options={"figure": "wait"},
            cores=(2,),
            peers=_SERVERS,
            rounds=3,
            fresh=True,
        ),
    ),
)
