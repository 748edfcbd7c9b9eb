"""Monitor: the commands that a server gets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from support.servers import Server


@asynccontextmanager
async def monitored(server: Server) -> AsyncGenerator[list[str]]:
    """Lists the commands that connections send, without what scripts call, readings of the clock and heartbeats."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    commands: list[str] = []

    async def read() -> None:
        while line := (await reader.readline()).decode(errors="replace"):
            found = re.match(r"\+[\d.]+ \[\d+ (\S+)\] \"(\w+)\"", line)
            if found and found[1] != "lua" and found[2].lower() not in ("time", "ping"):
                commands.append(found[2].lower())

    reading = asyncio.create_task(read())
    try:
        yield commands
    finally:
        writer.close()
        await writer.wait_closed()
        await reading
