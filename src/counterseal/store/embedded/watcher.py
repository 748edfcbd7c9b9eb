"""The watcher of the embedded server: the parent of one Valkey, which it ends when no process uses it any more.

`embedded.py` runs this file as a script, in a session of its own, with the standard library alone and few modules,
because it lives as long as the server::

    python -I -S watcher.py USERS_LOCK SERVER_LOCK_FD BINARY CONFIG DATA RECORD SOCKET [FOLDER]

Every user holds a shared lock on USERS_LOCK; the exclusive one, for which the watcher waits, means that none is left.
SERVER_LOCK_FD is an exclusive lock that this process and the server inherit: it is free when both are gone, and only
who holds it may touch DATA, RECORD, SOCKET and FOLDER; the last three are removed in the end.
If the server ends by itself, the watcher ends too.

The server writes each change to its log file before it answers, and the watcher has the system put that file on the
disk every second. Valkey's own `appendfsync everysec` is not used: while its fsync runs, it keeps changes that it has
acknowledged in its memory, for up to 2 s, and loses them when it is killed.

If the watcher is killed, the server gets SIGTERM: from the kernel on Linux, from a guard process elsewhere.
"""

# pathlib would cost this process 1.4 MB.
# ruff: noqa: PTH106, PTH108, PTH119, PTH120, PTH208

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import signal
import sys
import time

try:
    import ctypes
except ImportError:  # some builds of Python leave it out; the guard serves them
    ctypes = None

_GRACE_S = 5
"""How long a server may take to flush its log and end, before SIGKILL. What it had written by then is kept."""

_SYNC_S = 1
_PR_SET_PDEATHSIG = 1
_AWAITED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


def main(arguments: list[str]) -> None:
    """Detach from the starter, run the server, end it with its last user, clear up."""
    users_lock, server_lock, binary, config, data, record, socket, *folder = arguments
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    _reset_signals()
    users = os.open(users_lock, os.O_RDWR)
    home = os.open(os.path.dirname(record), os.O_RDONLY)
    with_kernel = sys.platform == "linux" and ctypes is not None
    server = _start(binary, config, with_kernel=with_kernel)
    guard = None if with_kernel else _start_guard(server, (users, int(server_lock)))
    _thread.start_new_thread(_await_last_user, (users,))
    _thread.start_new_thread(_sync, (data,))
    _watch(server)
    if guard is not None:
        _dismiss(guard)
    with contextlib.suppress(OSError):
        # Relative to the folder as it was: one that was deleted and made again belongs to another server.
        os.unlink(os.path.basename(record), dir_fd=home)
    with contextlib.suppress(OSError):
        os.unlink(socket)
    for path in folder:
        with contextlib.suppress(OSError):
            os.rmdir(path)
    # Not sys.exit: a thread may still wait for its lock. The locks go with the process.
    os._exit(0)


def _reset_signals() -> None:
    for number in _AWAITED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, _AWAITED)


def _start(binary: str, config: str, *, with_kernel: bool) -> int:
    """Fork and run the server. Its environment is empty: nothing of the application's is kept in it."""
    watcher = os.getpid()
    server = os.fork()
    if server:
        return server
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if with_kernel and ctypes is not None:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
            if os.getppid() != watcher:
                os._exit(0)
        os.execve(binary, [binary, config], {})  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - a child must not return into its parent's code
        os.write(2, f"{binary} can't be run: {error}\n".encode())
    finally:
        os._exit(127)


def _start_guard(server: int, locks: tuple[int, ...]) -> int:
    """Fork a process that ends the server when the watcher's end of a pipe closes without a word."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return writing
    try:
        for lock in (*locks, writing):
            os.close(lock)
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        if not os.read(reading, 1):
            os.kill(server, signal.SIGTERM)
    finally:
        os._exit(0)


def _await_last_user(users: int) -> None:
    fcntl.flock(users, fcntl.LOCK_EX)
    os.kill(os.getpid(), signal.SIGTERM)


def _sync(data: str) -> None:
    """Every second, put what was appended to the log files on the disk. A disk that fails ends the server."""
    synced: dict[str, int] = {}
    while True:
        time.sleep(_SYNC_S)
        try:
            sizes = {name: _sync_file(f"{data}/{name}", synced.get(name, 0)) for name in _log_files(data)}
        except OSError as error:
            os.write(2, f"the log can't be put on the disk: {error}\n".encode())
            os.kill(os.getpid(), signal.SIGTERM)
            return
        synced = sizes


def _log_files(data: str) -> list[str]:
    try:
        return [name for name in os.listdir(data) if name.endswith(".incr.aof")]
    except FileNotFoundError:  # not made yet
        return []


def _sync_file(path: str, synced: int) -> int:
    """Put a file on the disk if its size is not `synced`; return its size."""
    try:
        log = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # replaced by a rewrite, which the server has put on the disk
        return 0
    try:
        size = os.fstat(log).st_size
        if size != synced:
            if sys.platform == "darwin":
                fcntl.fcntl(log, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(log)
        return size
    finally:
        os.close(log)


def _watch(server: int) -> None:
    """Return when the server has ended. SIGTERM and SIGINT, also from a thread, are passed on to it."""
    while True:
        received = signal.sigwait(_AWAITED)
        if received == signal.SIGCHLD:
            ended, _ = os.waitpid(server, os.WNOHANG)
            if ended:
                return
        elif received == signal.SIGALRM:
            os.kill(server, signal.SIGKILL)
        else:
            os.kill(server, signal.SIGTERM)
            signal.alarm(_GRACE_S)


def _dismiss(guard: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(guard, b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
