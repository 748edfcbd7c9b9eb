"""Threads: where plain functions run, and what the end of a process does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads(Executor):
    """At most `most` daemon threads, begun as they are needed.

    A thread can't be stopped. `ThreadPoolExecutor` has the process wait for its threads, however long they take: a job
    that never returns would keep a worker from ending, when its lease may long have gone to another.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._begun = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread, as soon as one is free. Raises `RuntimeError` after `shutdown`."""
        if self._closed:
            raise RuntimeError("the threads have been let go")
        future: Future[T] = Future()
        self._work.put((future, lambda: fn(*args, **kwargs)))
        if not self._idle.acquire(blocking=False) and self._begun < self._most:
            self._begun += 1
            threading.Thread(target=self._run, name=f"counterseal-job-{self._begun}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end when they are done. It waits for none, whatever is asked."""
        self._closed = True
        for _ in range(self._begun):
            self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as fault:  # noqa: BLE001 - it belongs to whoever waits
                    future.set_exception(fault)
            del item, future, call
            self._idle.release()
