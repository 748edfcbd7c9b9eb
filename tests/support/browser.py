"""Browser: Debian's Chromium without a window, driven by the DevTools protocol over two pipes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from support.processes import end_process, start_process
from support.requirements import needs
from support.waiting import wait_until

_SWITCHES = (
    "--headless",
    "--no-sandbox",  # it refuses to be root with one
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
)
_PATIENCE = 30.0


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    async def go(self, url: str) -> None:
        """Open a URL; returns when it has loaded."""
        loaded = self._browser.expect(self._session, "Page.loadEventFired")
        answer = await self._browser.call("Page.navigate", self._session, url=url)
        assert "errorText" not in answer, answer
        await loaded

    async def run(self, script: str) -> Any:
        """The value of an expression; that of a promise once it has one."""
        answer = await self._browser.call(
            "Runtime.evaluate", self._session, expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def leave(self, script: str) -> None:
        """Run what has the tab go elsewhere; returns when that has loaded."""
        loaded = self._browser.expect(self._session, "Page.loadEventFired")
        await self.run(script)
        await loaded


class Browser:
    """A browser with a profile of its own. `requests` and `answers` are its pipes."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._buffer = b""
        self._number = 0
        self._ended = False
        self._waiting: dict[object, asyncio.Future[Any]] = {}
        asyncio.get_running_loop().add_reader(answers, self._read)

    async def page(self) -> Page:
        """A new tab."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        await self.call("Page.enable", session)
        return Page(self, session)

    async def cookies(self) -> dict[str, dict[str, Any]]:
        """The cookies that it keeps, by name, each named once."""
        found = (await self.call("Storage.getCookies"))["cookies"]
        by_name = {cookie["name"]: cookie for cookie in found}
        assert len(by_name) == len(found), found
        return by_name

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol answers."""
        self._number += 1
        told: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            told["sessionId"] = session
        answered = self._wait(self._number)
        os.write(self._requests, json.dumps(told).encode() + b"\0")
        answer = await answered
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def expect(self, session: str, event: str) -> asyncio.Future[Any]:
        """Done with the next such event of a tab."""
        return self._wait((session, event))

    def stop(self) -> None:
        """Listen no more; whoever waits is told that nothing comes."""
        self._ended = True
        asyncio.get_running_loop().remove_reader(self._answers)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("the browser has ended"))

    def _wait(self, key: object) -> asyncio.Future[Any]:
        if self._ended:
            raise ConnectionResetError("the browser has ended")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future

        async def bounded() -> Any:
            async with asyncio.timeout(_PATIENCE):
                return await future

        return asyncio.ensure_future(bounded())

    def _read(self) -> None:
        data = os.read(self._answers, 1 << 16)
        if not data:
            self.stop()
            return
        *whole, self._buffer = (self._buffer + data).split(b"\0")
        for message in map(json.loads, whole):
            key = message.get("id") or (message.get("sessionId"), message.get("method"))
            future = self._waiting.pop(key, None)
            if future is not None and not future.done():
                future.set_result(message)


@asynccontextmanager
async def browser_in(folder: Path) -> AsyncIterator[Browser]:
    """A running browser, whose profile is in a folder that it makes. No process of it is left behind."""
    program = needs("chromium")
    folder.mkdir()
    for name in ("requests", "answers"):
        os.mkfifo(folder / name)
    # Both ways at once, so that nobody waits for the other to open it.
    requests = os.open(folder / "requests", os.O_RDWR)
    answers = os.open(folder / "answers", os.O_RDONLY | os.O_NONBLOCK)
    process = start_process(
        [
            "/bin/sh",
            "-c",
            'exec "$0" "$@" 3<requests 4>answers',
            str(program),
            *_SWITCHES,
            f"--user-data-dir={folder / 'profile'}",
            "about:blank",
        ],
        folder / "output",
        folder,
    )
    browser = Browser(requests, answers)
    try:
        yield browser
    finally:
        browser.stop()
        await asyncio.to_thread(end_process, process)
        os.close(requests)
        os.close(answers)
        await asyncio.to_thread(wait_until, lambda: not _processes_in(folder))


def _processes_in(folder: Path) -> list[int]:
    """Processes that work in a folder, as the browser and all its children do."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if (entry / "cwd").readlink() == folder:
                    found.append(int(entry.name))
    return found
