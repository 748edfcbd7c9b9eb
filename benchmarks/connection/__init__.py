"""GET of a small value: many tasks, one task, a pipeline; and what a connection costs when nothing is asked of it."""

from benchmarks.plan import FASTEST, Area, Case, Contestant, Target

AREA = Area(
    name="connection",
    title="Connection: GET of 32 bytes",
    peers=(Contestant("redis-py"), Contestant("coredis"), Contestant("valkey-glide")),
    cases=(
        Case(
            name="tasks_100",
            title="100 tasks",
            unit="operations/s",
            handler="tasks",
            options={"tasks": 100, "socket": "tcp"},
            targets=(Target(FASTEST, floor=6.0, aim=10.0),),
        ),
        Case(
            name="sequential",
            title="one task",
            unit="operations/s",
            handler="tasks",
            options={"tasks": 1, "socket": "tcp"},
            targets=(
                Target("redis-py", floor=1.3, aim=1.9, cores=(1,)),
                Target("redis-py", floor=0.9, aim=1.3, cores=(2,)),
            ),
        ),
        Case(
            name="pipeline_100",
            title="pipeline of 100",
            unit="operations/s",
            handler="pipelines",
            options={"commands": 100, "socket": "tcp"},
            targets=(Target("redis-py", floor=2.0),),
        ),
        Case(
            name="tasks_100_unix",
            title="100 tasks, Unix socket",
            unit="operations/s",
            handler="tasks",
            options={"tasks": 100, "socket": "unix"},
            rounds=3,
            seconds=0.4,
        ),
        Case(
            name="sequential_unix",
            title="one task, Unix socket",
            unit="operations/s",
            handler="tasks",
            options={"tasks": 1, "socket": "unix"},
            rounds=3,
            seconds=0.4,
        ),
        Case(
            name="memory_per_connection",
            title="memory of a client with one connection",
            unit="KiB",
            better="less",
            handler="memory",
            options={"clients": 100, "socket": "tcp"},
            cores=(1,),
            rounds=3,
            fresh=True,
        ),
        Case(
            name="idle_cpu",
            title="CPU of an idle client",
            unit="ms/s",
            better="less",
            handler="idle",
            options={"socket": "tcp"},
            cores=(1,),
            rounds=1,
            seconds=3.0,
            fresh=True,
        ),
    ),
)
