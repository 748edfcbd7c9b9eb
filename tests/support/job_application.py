"""An application as a user writes one: its tasks, and the function that `--app` names."""

from __future__ import annotations

import asyncio
import os
import time

from counterseal import Counterseal, JobContext, task


@task(name="greet")
async def greet(context: JobContext, name: str) -> str:
    context.progress(0.5, "half way")
    context.log(f"greeting {name}")
    return f"hello {name}, from process {os.getpid()}"


@task(name="hang", timeout=None)
async def hang(context: JobContext) -> None:
    await asyncio.Event().wait()


@task(name="block", timeout=None)
async def block(context: JobContext) -> None:
    time.sleep(3600)  # noqa: ASYNC251 - it is what a handler must not do


@task(name="swell")
async def swell(context: JobContext, megabytes: int) -> None:
    held.append(os.urandom(2**20) * megabytes)


@task(name="fail", retry=0)
async def fail(context: JobContext, why: str) -> None:
    raise LookupError(why)


TASKS = (greet, hang, block, swell, fail)
held: list[bytes] = []


def create() -> Counterseal:
    return Counterseal.open(tasks=TASKS)


def something_else() -> str:
    return "no application"


async def create_later() -> Counterseal:
    return create()


def broken() -> Counterseal:
    raise RuntimeError("s3cret")
