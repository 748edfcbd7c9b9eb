"""A process that uses the embedded server of a data folder, as it is told line by line; it answers in lines of JSON.

python embedded_user.py DATA_DIR
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from embedded_house import process_of

from counterseal.core.errors import CountersealError
from counterseal.core.settings import Fsync
from counterseal.store.embedded.server import EmbeddedServer
from support.client import Client


async def ensure(server: EmbeddedServer) -> dict[str, object]:
    endpoint = await server.ensure()
    password = endpoint.password.get_secret_value()
    return {
        "socket": str(endpoint.socket),
        "password": password,
        "server": process_of(endpoint.socket, password),
    }


async def come_and_go(server: EmbeddedServer, rounds: int, seed: int) -> dict[str, object]:
    """Open, count, close, `rounds` times, with a random number of turns of the loop between."""
    chance = random.Random(seed)
    counts: list[int] = []
    for _ in range(rounds):
        endpoint = await server.ensure()
        client = Client(endpoint.socket, user="default", password=endpoint.password.get_secret_value())
        for _ in range(chance.randrange(1, 30)):
            counts.append(client.execute("INCR", "count"))
            await asyncio.sleep(0)
        client.close()
        await server.close()
    return {"counts": counts}


def fork() -> dict[str, object]:
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    return {"child": child}


async def main(data_dir: str) -> None:
    server = EmbeddedServer(Path(data_dir), fsync=Fsync.EVERYSEC)
    for line in sys.stdin:
        word, *rest = line.split()
        answer: dict[str, object] = {}
        try:
            match word:
                case "ensure":
                    answer = await ensure(server)
                case "close":
                    await server.close()
                case "come-and-go":
                    answer = await come_and_go(server, int(rest[0]), int(rest[1]))
                case "fork":
                    answer = fork()
                case "become":
                    os.seteuid(int(rest[0]))
        except CountersealError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it ends at once, also while it waits for a line
    asyncio.run(main(*sys.argv[1:]))
