"""The shapes that cross a connection, and how a command becomes bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import hiredis

from counterseal.core.errors import CommandError, ScriptMissing, StoreUnavailable, TransactionAborted

Argument: TypeAlias = str | bytes | int | float
"""A part of a command. Text is sent as UTF-8, numbers as their Python text."""

Command: TypeAlias = Sequence[Argument]
"""A command with its arguments, as `("SET", key, value)`."""

Reply: TypeAlias = "bytes | int | list[Reply] | CommandError | None"
"""A reply in RESP2 shapes. `CommandError` stands only inside lists (pipelines, transactions, a script's table)."""


pack_tuple: Callable[[tuple[Any, ...]], bytes] = cast("Any", hiredis).pack_command
"""The RESP bytes of a command given as a tuple, by hiredis. `pack` says more about what it refuses."""


def pack(command: Command) -> bytes:
    """The RESP bytes of one command. Raises `TypeError` for an argument that is not text, bytes or a number."""
    try:
        return pack_tuple(tuple(command))
    except UnicodeEncodeError as fault:
        raise TypeError("a command's text must be encodable as UTF-8 (it has a lone surrogate)") from fault


NOT_NOW = frozenset(("LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "UNBLOCKED"))
"""Kinds of errors by which a server says that it can't serve now; they say nothing about the command."""


def error_reply(message: str | bytes) -> CommandError:
    """The error that stands for an error reply of the server."""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    return ScriptMissing(text) if text.startswith("NOSCRIPT") else CommandError(text)


def in_time(error: CommandError) -> CommandError | StoreUnavailable:
    """The error to raise for an error reply: `StoreUnavailable` when the server only can't serve now."""
    if error.kind in NOT_NOW:
        return StoreUnavailable(f"Redis can't serve now ({error.kind})")
    return error


def aborted(cause: CommandError) -> StoreUnavailable | TransactionAborted:
    """The error to raise for a transaction that was refused while it was queued, from the first cause."""
    error = in_time(cause)
    return error if isinstance(error, StoreUnavailable) else TransactionAborted(str(cause))


def raised(reply: Reply) -> Reply:
    """The reply, unless it is an error that stood in its place in a list: that is raised."""
    if isinstance(reply, CommandError):
        raise in_time(reply)
    return reply
