"""`counterseal serve` as a process: what it prints, how it ends, and what it does when Redis goes away."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from support.client import Client
from support.program import Program
from support.servers import Server
from support.waiting import wait_until

ADMIN_KEY = secrets.token_urlsafe(24)
HEALTH = "/api/health/redis"
SERVE = ("serve", "--port", "0", "--data-dir", "data")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20) as client:
        yield client


def begin_order(url: str, action: str) -> tuple[socket.socket, bytes]:
    """Begin `POST /api/health/redis` and return when the server waits for its body: the request is under way."""
    parts = urlsplit(url)
    body = json.dumps({"action": action}).encode()
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
    head = (
        f"POST {HEALTH} HTTP/1.1\r\nHost: counterseal\r\nX-Admin-Key: {ADMIN_KEY}\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    connection.sendall(head.encode())
    assert connection.recv(1024).startswith(b"HTTP/1.1 100")
    return connection, body


def refuses(url: str) -> bool:
    """Whether nobody listens there any more."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_with_nothing_configured_everything_starts_and_is_healthy(
    tmp_path: Path, client: httpx.Client
) -> None:
    with Program(SERVE, folder=tmp_path, fresh=True) as program:
        url = program.url()
        health = client.get(url + HEALTH)
        assert (health.status_code, health.json()["status"]) == (200, "healthy")
        assert client.get(f"{url}/health/ready").status_code == 200
        assert "server" not in health.headers
        program.send(signal.SIGTERM)
        assert program.wait() == 0
        lines = program.output.splitlines()
        assert lines[0].startswith("counterseal ")
        assert lines[0].endswith(f" listens at {url}")
        said = dict(line.split(maxsplit=1) for line in lines[1:])
        assert said["Redis"].startswith("Valkey 9")
        assert "(embedded)" in said["Redis"]
        assert said["Database"] == f"SQLite, {tmp_path / 'data' / 'counterseal.db'}"
        assert said["Data"] == str(tmp_path / "data")
        assert said["Health"] == url + HEALTH
        assert "Traceback" not in program.errors


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path, client: httpx.Client) -> None:
    token = secrets.token_urlsafe(24)
    settings = {"COUNTERSEAL_REST_TOKEN": token}
    headers = {"Authorization": f"Bearer {token}"}
    with Program(SERVE, folder=tmp_path, settings=settings) as program:
        assert (
            client.post(f"{program.url()}/redis", json=["SET", "a", "1"], headers=headers).json()["result"]
            == "OK"
        )
        program.send(signal.SIGINT)
        assert program.wait() == 0
    with Program(SERVE, folder=tmp_path, settings=settings) as program:
        assert client.get(f"{program.url()}/redis/get/a", headers=headers).json()["result"] == "1"


def test_a_request_under_way_is_answered_after_sigterm_and_load_sees_no_error(
    valkey: Server, tmp_path: Path
) -> None:
    settings = {
        "REDIS_URL": valkey.url,
        "COUNTERSEAL_ADMIN_KEY": ADMIN_KEY,
        "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
    }
    with Program(SERVE, folder=tmp_path, settings=settings) as program, ThreadPoolExecutor(4) as pool:
        url = program.url()
        statuses: list[list[int]] = [[], [], [], []]
        loads = [pool.submit(ask_until_refused, url + HEALTH, seen) for seen in statuses]
        wait_until(lambda: all(statuses))
        connection, body = begin_order(url, "test_job_queue")
        with connection:
            program.send(signal.SIGTERM)
            wait_until(lambda: refuses(url))
            connection.sendall(body)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["job"]["state"] == "completed"
        assert program.wait() == 0
        for load, seen in zip(loads, statuses, strict=True):
            load.result()
            assert set(seen) == {200}
        assert "Traceback" not in program.errors


def ask_until_refused(url: str, statuses: list[int]) -> None:
    """Ask again and again until nobody listens any more, and note the status of every answer."""
    with httpx.Client(timeout=20) as client:
        while True:
            try:
                statuses.append(client.get(url).status_code)
            except httpx.ConnectError:
                return
            except httpx.TransportError:
                # An idle connection that the server has closed. Whether it still listens, the next round shows.
                continue


def test_a_request_that_never_ends_does_not_hold_the_process_beyond_its_grace(
    valkey: Server, tmp_path: Path
) -> None:
    settings = {"REDIS_URL": valkey.url, "COUNTERSEAL_ADMIN_KEY": ADMIN_KEY, "COUNTERSEAL_GRACE": "2s"}
    with Program(SERVE, folder=tmp_path, settings=settings) as program:
        connection, _ = begin_order(program.url(), "clear_cache")
        with connection:
            before = time.monotonic()
            program.send(signal.SIGTERM)
            assert program.wait() == 0
            assert time.monotonic() - before < 4


def test_a_second_signal_ends_it_at_once(valkey: Server, tmp_path: Path) -> None:
    settings = {"REDIS_URL": valkey.url, "COUNTERSEAL_ADMIN_KEY": ADMIN_KEY, "COUNTERSEAL_GRACE": "1h"}
    with Program(SERVE, folder=tmp_path, settings=settings) as program:
        url = program.url()
        connection, _ = begin_order(url, "clear_cache")
        with connection:
            program.send(signal.SIGTERM)
            wait_until(lambda: refuses(url))
            program.send(signal.SIGTERM)
            assert program.wait(5) == 128 + signal.SIGTERM


def test_a_signal_while_it_starts_ends_it_with_exit_code_0(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}",
            "COUNTERSEAL_CONNECT_TIMEOUT": "1h",
            "COUNTERSEAL_COMMAND_TIMEOUT": "1h",
        }
        with Program(SERVE, folder=tmp_path, settings=settings) as program:
            silent.settimeout(20)
            connection, _ = silent.accept()
            with connection:
                program.send(signal.SIGTERM)
                assert program.wait() == 0
            assert "Traceback" not in program.errors


def test_redis_killed_under_load_is_answered_503_and_used_again_when_it_is_back(
    valkey: Server, tmp_path: Path
) -> None:
    settings = {"REDIS_URL": valkey.url, "COUNTERSEAL_ADMIN_KEY": ADMIN_KEY}
    with Program(SERVE, folder=tmp_path, settings=settings) as program, ThreadPoolExecutor(4) as pool:
        url = program.url()
        answers: list[list[httpx.Response]] = [[], [], [], []]
        orders = [pool.submit(order_until_well_again, url, seen) for seen in answers]
        wait_until(lambda: all(answers))
        valkey.kill()
        wait_until(lambda: httpx.get(url + HEALTH).status_code == 503)
        assert httpx.get(f"{url}/health/live").status_code == 200
        valkey.start()
        wait_until(lambda: httpx.get(url + HEALTH).status_code == 200, within=20)
        for order, seen in zip(orders, answers, strict=True):
            order.result()
            assert {answer.status_code for answer in seen} == {200, 503}
            for answer in seen:
                if answer.status_code == 503:
                    assert answer.headers["Content-Type"] == "application/problem+json"
                    assert answer.json()["code"] in ("store_unavailable", "store_timeout")
                    assert "Retry-After" in answer.headers
        program.send(signal.SIGTERM)
        assert program.wait() == 0


def order_until_well_again(url: str, answers: list[httpx.Response]) -> None:
    """Clear the cache again and again until Redis was away and is back; keeps every answer."""
    deadline = time.monotonic() + 30
    was_away = False
    with httpx.Client(timeout=20, headers={"X-Admin-Key": ADMIN_KEY}) as client:
        while time.monotonic() < deadline:
            answer = client.post(url + HEALTH, json={"action": "clear_cache"})
            answers.append(answer)
            if was_away and answer.status_code == 200:
                return
            was_away = was_away or answer.status_code != 200
    raise AssertionError("Redis was not away and back within 30 s")


def test_the_embedded_server_killed_under_it_comes_back_by_itself(
    tmp_path: Path, client: httpx.Client
) -> None:
    token = secrets.token_urlsafe(24)
    headers = {"Authorization": f"Bearer {token}"}
    with Program(SERVE, folder=tmp_path, settings={"COUNTERSEAL_REST_TOKEN": token}) as program:
        url = program.url()

        def ask(*command: str) -> object:
            return client.post(f"{url}/redis", json=command, headers=headers).json().get("result")

        assert ask("SET", "a", "1") == "OK"
        os.kill(embedded_pid(tmp_path / "data"), signal.SIGKILL)
        wait_until(lambda: client.get(url + HEALTH).status_code == 200 and ask("GET", "a") == "1", within=20)


def embedded_pid(data: Path) -> int:
    """The process of the embedded server of a data folder."""
    endpoint = json.loads((data / "valkey" / "endpoint.json").read_text())
    client = Client(Path(endpoint["socket"]), user="default", password=endpoint["password"])
    try:
        return int(client.execute("INFO", "server").partition(b"process_id:")[2].split()[0])
    finally:
        client.close()


def test_logs_in_production_are_json_without_a_secret(tmp_path: Path) -> None:
    password, key = secrets.token_urlsafe(24), "k1:" + secrets.token_hex(32)
    with Server(password=password, appendonly=True) as server:
        settings = {
            "COUNTERSEAL_ENV": "production",
            "COUNTERSEAL_SECRET_KEYS": key,
            "REDIS_URL": server.url,
            "COUNTERSEAL_LOG_LEVEL": "debug",
        }
        with Program(SERVE, folder=tmp_path, settings=settings) as program:
            url = program.url()
            server.kill()
            wait_until(lambda: program.errors.count("\n") > 0)
            wait_until(lambda: httpx.get(url + HEALTH).status_code == 503)
            program.send(signal.SIGTERM)
            assert program.wait() == 0
            lines = [json.loads(line) for line in program.errors.splitlines()]
            assert lines
            assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
            for secret in (password, key, key.partition(":")[2]):
                assert secret not in program.errors + program.output


def test_redis_rest_beside_an_outer_redis_needs_a_database_of_its_own(valkey: Server, tmp_path: Path) -> None:
    token = secrets.token_urlsafe(24)
    settings = {"REDIS_URL": valkey.url, "COUNTERSEAL_REST_TOKEN": token}
    for database, words in ((None, "it is missing"), ("0", "came: 0")):
        more = {} if database is None else {"COUNTERSEAL_REST_DATABASE": database}
        with Program(SERVE, folder=tmp_path, settings=settings | more) as program:
            assert program.wait() == 2
            assert program.errors.startswith("counterseal: COUNTERSEAL_REST_DATABASE: expected")
            assert words in program.errors
            assert program.errors.count("\n") == 1
            assert token not in program.errors
