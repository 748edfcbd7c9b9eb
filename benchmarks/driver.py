"""The driver's side of the line protocol, for programs that import one library and measure it.

The harness writes one request a line to standard input; the driver answers each with one line on standard output:
`{"value": 123.4}` or `{"error": "what went wrong"}`. It ends when its input does. Only the standard library is used
here, because this module runs in the environment of every peer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DISK = Path("/var/tmp")
"""Where what has to reach a disk is kept: it is one also on machines where /tmp is memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure, for how long, and where the servers are. `postgres_url` is empty where a case has no PostgreSQL.

    The driver is pinned to `client_core` already; a process that it starts itself may be moved to `server_core`.
    """

    handler: str
    seconds: float
    options: Mapping[str, Any]
    tcp_url: str
    unix_url: str
    server_core: int
    client_core: int
    postgres_url: str = ""


Handler = Callable[[Request], Coroutine[Any, Any, float] | float]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def serve(*handlers: Handler, loop_factory: LoopFactory | None = None) -> None:
    """Answer requests until the input ends. A handler is called by its name and returns its figure."""
    # A library that prints must not break the protocol, so standard output becomes standard error for it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    known = {handler.__name__: handler for handler in handlers}
    for line in sys.stdin:
        request = Request(**json.loads(line))
        try:
            answer: dict[str, object] = {"value": _measure(known[request.handler], request, loop_factory)}
        except Exception as error:  # noqa: BLE001 - whatever a library raises is told, and the harness goes on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _measure(handler: Handler, request: Request, loop_factory: LoopFactory | None) -> float:
    gc.collect()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        outcome = handler(request)
        return outcome if isinstance(outcome, (int, float)) else runner.run(outcome)


def private_bytes() -> int:
    """The memory that this process has for itself, in RAM or swapped out; pages of files are not in it."""
    kibibytes = 0
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - nothing is imported for one file
        for line in status:
            if line.startswith(("RssAnon:", "VmSwap:")):
                kibibytes += int(line.split()[1])
    return 1024 * kibibytes
