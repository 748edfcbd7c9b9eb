"""Slots: which part of a Cluster a command belongs to, read from the command itself."""

from __future__ import annotations

from redis.crc import key_slot

from counterseal.store.wire import Argument, Command

_NO_KEY_NAMES = """
ACL AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE DEBUG ECHO FLUSHALL FLUSHDB FUNCTION HELLO INFO KEYS
LASTSAVE LATENCY LOLWUT MODULE PING PUBLISH PUBSUB RANDOMKEY ROLE SAVE SCAN SCRIPT SELECT SLOWLOG TIME WAIT WAITAOF
"""
_NO_KEY = frozenset(_NO_KEY_NAMES.split())
_COUNTED = {
    "EVAL": 2,
    "EVALSHA": 2,
    "EVAL_RO": 2,
    "EVALSHA_RO": 2,
    "FCALL": 2,
    "FCALL_RO": 2,
    "LMPOP": 1,
    "ZMPOP": 1,
    "BLMPOP": 2,
    "BZMPOP": 2,
    "SINTERCARD": 1,
    "ZINTERCARD": 1,
    "ZINTER": 1,
    "ZUNION": 1,
    "ZDIFF": 1,
}
"""Commands whose keys follow a count, and where that count stands."""

_LATER = {"BITOP": 2, "OBJECT": 2, "XINFO": 2, "XGROUP": 2, "MEMORY": 2, "MIGRATE": 3}
"""Commands whose first key is not their first argument, and where it stands."""

_AFTER_STREAMS = frozenset(("XREAD", "XREADGROUP"))


def key_of(command: Command) -> bytes | None:
    """The first key of a command, or None when any node may run it. Nothing is asked of the server."""
    name = _text(command[0]).upper()
    if name in _NO_KEY or len(command) == 1:
        return None
    if name in _COUNTED:
        position = _COUNTED[name]
        if len(command) <= position + 1 or _text(command[position]) == "0":
            return None
        return _bytes(command[position + 1])
    position = _LATER.get(name, 1)
    if name in _AFTER_STREAMS:
        first = 4 if name == "XREADGROUP" else 1  # behind the names of group and consumer
        words = [_text(part).upper() for part in command]
        position = words.index("STREAMS", first) + 1 if "STREAMS" in words[first:] else len(words)
    return _bytes(command[position]) if position < len(command) else None


def slot_of(command: Command) -> int | None:
    """The slot of a command's first key, or None when any node may run it."""
    key = key_of(command)
    return None if key is None else key_slot(key)


def _text(argument: Argument) -> str:
    return argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)


def _bytes(argument: Argument) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()
