"""Background jobs: enqueued in bulk, by 100 tasks and one by one, drained, picked up, and run again after a kill."""

from benchmarks.plan import BOUND, FASTEST, Area, Case, Contestant, Target

_ASYNC = ("arq", "saq", "taskiq-streams", "taskiq-list", "streaq", "pydocket")
_SURVIVING = "that survives kill -9"
_SURVIVORS = ("arq", "saq", "taskiq-streams", "streaq", "pydocket", "celery")
_RECOVERING = ("arq", "saq", "streaq", "pydocket", "celery")


def _pick_up(percentile: int) -> Case:
    return Case(
        name=f"pickup_p{percentile}",
        title=f"idle worker, from the enqueuing to the start, p{percentile}",
        unit="ms",
        better="less",
        handler="pickup",
        options={"percentile": percentile},
        targets=(Target(FASTEST, floor=1.0),),
        rounds=3,
        seconds=3.0,
    )


AREA = Area(
    name="jobs",
    title="Jobs: no-op with 200 bytes",
    peers=(
        Contestant("arq"),
        Contestant("saq"),
        Contestant("taskiq-streams", environment="taskiq"),
        Contestant("taskiq-list", environment="taskiq"),
        Contestant("streaq"),
        Contestant("pydocket"),
        Contestant("rq"),
        Contestant("celery"),
        Contestant("dramatiq"),
        Contestant("huey"),
    ),
    groups={_SURVIVING: _SURVIVORS},
    cases=(
        Case(
            name="enqueue_bulk",
            title="enqueue in bulk",
            unit="jobs/s",
            targets=(Target(FASTEST, floor=4.0, aim=8.0),),
        ),
        Case(
            name="enqueue_100",
            title="enqueue, 100 tasks",
            unit="jobs/s",
            handler="enqueue",
            options={"tasks": 100},
            targets=(Target(FASTEST, floor=7.0, aim=11.0),),
            peers=_ASYNC,
        ),
        Case(
            name="enqueue_one",
            title="enqueue, one by one",
            unit="jobs/s",
            handler="enqueue",
            options={"tasks": 1},
            targets=(
                Target(FASTEST, floor=1.1, aim=1.6, cores=(1,)),
                Target(FASTEST, floor=0.9, aim=1.3, cores=(2,)),
            ),
        ),
        Case(
            name="drain",
            title="drain by one worker process",
            unit="jobs/s",
            targets=(
                Target(_SURVIVING, floor=7.0, aim=10.0, cores=(1,)),
                Target(_SURVIVING, floor=6.0, aim=10.0, cores=(2,)),
                Target(FASTEST, floor=3.0, aim=4.5),
            ),
            rounds=3,
            seconds=1.0,
        ),
        _pick_up(50),
        _pick_up(99),
        Case(
            name="commands_per_job",
            title="drain: commands that the server counted for each job",
            unit="commands",
            better="less",
            handler="commands",
            cores=(1,),
            rounds=1,
            seconds=1.0,
        ),
        Case(
            name="round_trips_per_job",
            title="drain: reads of the server from its clients for each job",
            unit="reads",
            better="less",
            handler="round_trips",
            cores=(1,),
            rounds=1,
            seconds=1.0,
        ),
        Case(
            name="recovery",
            title="a worker killed in the middle of a job: until the job runs again",
            unit="s",
            better="less",
            targets=(Target(BOUND, floor=1.0),),
            cores=(1,),
            rounds=1,
            seconds=60.0,
            alone=True,
            bound=15.0,
        ),
        Case(
            name="recovery_beside_peers",
            title="the same beside the peers that run it again at all on a quiet queue",
            unit="s",
            better="less",
            handler="recovery",
            targets=(Target(FASTEST, floor=1.0),),
            cores=(1,),
            peers=_RECOVERING,
            rounds=1,
            seconds=400.0,
            named=True,
        ),
    ),
)
