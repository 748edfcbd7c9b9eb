"""Serving: one process that is the whole of counterseal, from the first line it prints to its last signal."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version

import uvicorn
import uvloop
from starlette.types import ASGIApp

from counterseal.app import Counterseal
from counterseal.cli.ending import Ending
from counterseal.cli.eviction import warning_of_eviction
from counterseal.cli.faults import naming_settings
from counterseal.cli.logs import configure_logs
from counterseal.cli.reporting import reporting
from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Environment, Settings
from counterseal.upstash.open import open_redis_rest
from counterseal.web import create_app

_BACKLOG = 2048
_WEB_SHARE = 0.4
"""How much of the grace period requests may use up. Jobs may use half of it; the rest is for closing."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: they end the process by the signal, not by exit code 0."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def run_server(seal: Counterseal, *, host: str, port: int) -> None:
    """Serve until a signal comes. Raises `ConfigurationError` for what keeps it from starting."""
    settings = seal.settings
    check_host(settings, host)
    configure_logs(settings)
    listener = listen(host, port)
    try:
        with naming_settings(settings), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(seal, listener))
    finally:
        listener.close()


def check_host(settings: Settings, host: str) -> None:
    """Raise `ConfigurationError` when development would be reachable from other machines."""
    if settings.environment is Environment.DEVELOPMENT and not _is_loopback(host):
        raise ConfigurationError(
            "--host: expected 127.0.0.1, ::1 or localhost while COUNTERSEAL_ENV is development;"
            f" came: {_shown(host)}"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `ConfigurationError` that names the option to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigurationError(
            f"--host: expected an address of this machine; came: {_shown(host)}"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as fault:
        listener.close()
        raise ConfigurationError(_bind_fault(fault, host, port)) from fault
    listener.setblocking(False)
    return listener


async def _serve(seal: Counterseal, listener: socket.socket) -> None:
    settings = seal.settings
    ending = Ending(settings.web.grace)
    starting = asyncio.current_task()
    if starting is None:
        raise RuntimeError("a task is needed")
    asked = asyncio.Event()

    def ask_while_starting() -> None:
        asked.set()
        starting.cancel()

    ending.install(ask_while_starting)
    try:
        async with (
            seal,
            open_redis_rest(seal.store, settings) as rest,
            seal.worker() as worker,
            warning_of_eviction(seal.store),
            reporting(worker, data_dir=settings.data_dir),
            seal.scheduler(),
        ):
            server = _Server(_web_configuration(create_app(seal, rest=rest), settings))

            def ask() -> None:
                server.should_exit = True
                if rest is not None:
                    rest.close()

            ending.install(ask)
            print(announcement(seal, settings, listener), flush=True)
            await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        if not asked.is_set():
            raise


def _web_configuration(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # It would believe a header of whoever connects from this machine; web/address.py decides whom to believe.
        proxy_headers=False,
        # A client that finds its idle connection closed sends again, so a write of its may run twice: wait long.
        timeout_keep_alive=90,
        timeout_graceful_shutdown=max(1, int(settings.web.grace.total_seconds() * _WEB_SHARE)),
    )


def announcement(seal: Counterseal, settings: Settings, listener: socket.socket) -> str:
    """What `serve` prints once it listens."""
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    server = seal.store.server
    product = " ".join(filter(None, (server.product.capitalize(), ".".join(map(str, server.version)))))
    return "\n".join(
        [
            f"counterseal {version('counterseal')} listens at http://{address}:{port}",
            f"  Redis      {product} ({seal.store.kind}), {seal.store.description}",
            f"  Database   {seal.database.description}",
            f"  Data       {settings.data_dir.resolve()}",
            f"  Health     http://{address}:{port}/api/health/redis",
        ]
    )


def _bind_fault(fault: OSError, host: str, port: int) -> str:
    if fault.errno == errno.EADDRINUSE:
        return (
            f"--port: expected a free port on {_shown(host)}; came: {port}, on which another process listens"
        )
    if fault.errno == errno.EACCES:
        return f"--port: expected a port that this user may listen on; came: {port}"
    return f"--host: expected an address of this machine; came: {_shown(host)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(text: str) -> str:
    """What was typed, in one line of reasonable length."""
    return ascii(text[:60])[1:-1] or "nothing"
