"""Guard: which commands may run on a connection that many tasks share.

A command that changes the connection itself would change it for everybody; one that waits on the server would make
everybody wait. Both are refused before a byte is written. Inside MULTI/EXEC a server never waits, so there the second
kind is allowed.
"""

from __future__ import annotations

from counterseal.core.errors import CommandError
from counterseal.store.wire import Argument, Command

_STATEFUL_TEXT = """
AUTH HELLO RESET QUIT SELECT MULTI EXEC DISCARD WATCH UNWATCH MONITOR SUBSCRIBE PSUBSCRIBE SSUBSCRIBE UNSUBSCRIBE
PUNSUBSCRIBE SUNSUBSCRIBE SYNC PSYNC REPLCONF ASKING READONLY READWRITE
"""
_BLOCKING_TEXT = "BLPOP BRPOP BRPOPLPUSH BLMOVE BLMPOP BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF"
_STATEFUL = frozenset(_STATEFUL_TEXT.split())
_BLOCKING = frozenset(_BLOCKING_TEXT.split())
_BLOCKING_BY_OPTION = frozenset(("XREAD", "XREADGROUP"))
_STATEFUL_CLIENT = frozenset(("REPLY", "TRACKING", "CACHING", "NO-EVICT", "NO-TOUCH"))

_LONGEST = max(map(len, _STATEFUL | _BLOCKING | _BLOCKING_BY_OPTION | {"CLIENT"}))
PLAIN: frozenset[Argument] = frozenset(
    form
    for name in (
        "GET",
        "SET",
        "MGET",
        "DEL",
        "UNLINK",
        "EVALSHA",
        "HGET",
        "HMGET",
        "HGETALL",
        "PING",
        "PUBLISH",
    )
    for form in (name, name.lower(), name.encode())
)
"""Names that need no second look, as they are usually written."""


def check(command: Command) -> None:
    """Raise `CommandError` unless the command may run on a shared connection."""
    name = _word(command[0])
    if name in _BLOCKING or (name in _BLOCKING_BY_OPTION and _has_block(command)):
        raise CommandError(f"ERR {name} waits on the server: run it by block()")
    check_queued(command)


def check_queued(command: Command) -> None:
    """Raise `CommandError` unless the command may run inside MULTI/EXEC on a shared connection."""
    name = _word(command[0])
    sub = _word(command[1]) if len(command) > 1 else ""
    if (
        name in _STATEFUL
        or (name, sub) == ("SCRIPT", "DEBUG")
        or (name == "CLIENT" and sub in _STATEFUL_CLIENT)
    ):
        raise CommandError(f"ERR {name} changes the connection, which other tasks share")


def _has_block(command: Command) -> bool:
    """Whether the option BLOCK stands before the streams of XREAD or XREADGROUP."""
    options = [_word(part) for part in command[4 if _word(command[0]) == "XREADGROUP" else 1 :]]
    return "BLOCK" in options[: options.index("STREAMS") if "STREAMS" in options else len(options)]


def _word(argument: Argument) -> str:
    if isinstance(argument, bytes):
        return argument[: _LONGEST + 1].decode("latin-1").upper()
    return str(argument)[: _LONGEST + 1].upper()
