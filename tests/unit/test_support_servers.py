"""The kit's servers: real ones, which freeze, die and come back."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hiredis import ReplyError

from support.client import Client
from support.requirements import needs
from support.servers import Server
from support.waiting import wait_until

Servers = Callable[..., Server]


def test_a_server_answers_on_its_port_and_on_its_socket(valkey: Server) -> None:
    valkey.execute("SET", "cs:greeting", "hello", "PX", 60_000)
    for address in (("127.0.0.1", valkey.port), valkey.socket):
        with Client(address) as client:
            assert client.execute("GET", "cs:greeting") == b"hello"


def test_a_server_listens_on_loopback_only(valkey: Server) -> None:
    assert valkey.execute("CONFIG", "GET", "bind")[1] == b"127.0.0.1"


def test_a_frozen_server_takes_connections_but_does_not_answer(valkey: Server) -> None:
    valkey.freeze()
    with socket.create_connection(("127.0.0.1", valkey.port), 1) as connection:
        connection.settimeout(0.05)
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(10)
        valkey.thaw()
        connection.settimeout(5)
        assert connection.recv(10) == b"+PONG\r\n"


def test_a_killed_server_refuses_connections_and_comes_back_on_its_port(servers: Servers) -> None:
    server = servers()
    port, pid = server.port, server.pid
    server.kill()
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    server.start()
    assert server.port == port
    assert server.pid != pid
    assert server.execute("PING") == b"PONG"


def test_an_appendonly_server_keeps_its_data_over_a_restart(servers: Servers) -> None:
    server = servers(appendonly=True)
    server.execute("SET", "cs:kept", "yes", "PX", 60_000)
    server.restart()
    assert server.execute("GET", "cs:kept") == b"yes"


def test_a_server_without_appendonly_forgets_over_a_restart(servers: Servers) -> None:
    server = servers()
    server.execute("SET", "cs:lost", "yes", "PX", 60_000)
    server.restart()
    assert server.execute("GET", "cs:lost") is None


def test_a_password_is_asked_of_the_default_user_and_stands_in_the_url(servers: Servers) -> None:
    password = f'{secrets.token_hex(4)} /@"\\'
    server = servers(password=password)
    stranger = Client(server.socket, user="default", password="no")
    with stranger, pytest.raises(ReplyError, match="WRONGPASS"):
        stranger.execute("PING")
    with Client(server.socket, user="default", password=password) as client:
        assert client.execute("PING") == b"PONG"
    assert password not in server.url
    assert server.url.endswith(f"@127.0.0.1:{server.port}/0")


def test_acl_lines_make_users(servers: Servers) -> None:
    password = secrets.token_hex(8)
    server = servers(acl=[f"app on >{password} ~cs:* +@all -keys"])
    with Client(server.socket, user="app", password=password) as client:
        with pytest.raises(ReplyError, match="NOPERM"):
            client.execute("KEYS", "*")
        with pytest.raises(ReplyError, match="NOPERM"):
            client.execute("GET", "other")
        assert client.execute("GET", "cs:mine") is None


def test_a_server_that_can_not_start_shows_its_log() -> None:
    server = Server(config=["nonsense yes"])
    with pytest.raises(RuntimeError, match="nonsense"):
        server.start()
    server.close()


def test_a_random_port_that_was_taken_meanwhile_is_replaced() -> None:
    with socket.socket() as squatter:
        server = Server()
        squatter.bind(("127.0.0.1", server.port))
        squatter.listen()
        taken = server.port
        with server:
            assert server.port != taken
            with Client(("127.0.0.1", server.port)) as client:
                assert client.execute("PING") == b"PONG"


def test_debians_redis_is_served_alike(redis7: Server) -> None:
    assert redis7.info("server")["redis_version"].startswith("7.0.")
    redis7.execute("SET", "cs:greeting", "hello", "PX", 60_000)
    redis7.freeze()
    redis7.thaw()
    assert redis7.execute("GET", "cs:greeting") == b"hello"


def test_close_leaves_no_process_and_no_folder() -> None:
    with Server() as server:
        pid, folder = server.pid, server.folder
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


def test_no_server_outlives_a_killed_test_run() -> None:
    needs("setpriv")
    program = textwrap.dedent("""
        import sys, threading
        from support.servers import Server
        server = Server()
        starting = threading.Thread(target=server.start)
        starting.start()
        starting.join()
        print(server.pid, server.folder, flush=True)
        assert server.execute("PING") == b"PONG"
        print("alive", flush=True)
        sys.stdin.read()
    """)
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        text=True,
    )
    with run:
        assert run.stdout is not None
        pid, folder = run.stdout.readline().split()
        assert run.stdout.readline() == "alive\n"
        run.kill()
    try:
        wait_until(lambda: not _lives(pid))
    finally:
        shutil.rmtree(folder)


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
