"""Commands: what is sent to the server for each command that a client asks for, and what its reply becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from counterseal.store.scripts import load_script
from counterseal.store.wire import Argument, Reply
from counterseal.upstash.policy import (
    CONFIG_PARAMETER,
    INFO_HIDDEN,
    INFO_SECTIONS,
    SUBCOMMANDS,
    TREATMENTS,
    Treatment,
)
from counterseal.upstash.request import Arguments
from counterseal.upstash.shebang import ScriptSums, library_without_flag, sum_of, without_flag

COMPATIBILITY = "https://upstash.com/docs/redis/overall/rediscompatibility"
COPY = load_script("counterseal.upstash", "copy")

_SHOWN = 128


class Route(Enum):
    """How a command travels."""

    SHARED = "with the others"
    IN_TRANSACTION = "in a MULTI/EXEC of its own"
    ADMIN = "over the connection of the server's owner"


@dataclass(frozen=True, slots=True)
class Send:
    """Send this instead; `finish` makes the client's reply from the server's."""

    arguments: Sequence[Argument]
    route: Route = Route.SHARED
    finish: Callable[[Reply], Reply] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Nothing is sent: this is the reply."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing is sent: this is the error."""

    text: str


Step = Send | Answer | Refusal

# Looked up before anything is copied: clients send names in capitals or in small letters.
_BY_NAME: dict[str, Treatment] = {
    **TREATMENTS,
    **{name.lower(): treatment for name, treatment in TREATMENTS.items()},
}


class CommandPolicy:
    """The policy, acting on commands for one database.

    `database` is the server's index behind the client's database 0. `reserved` is a prefix of channels that belong to
    others; empty when there are none. Where the server can't keep COPY within a database, `may_copy` is false, and a
    script does it.
    """

    def __init__(self, *, database: int = 0, reserved: str = "", may_copy: bool = True) -> None:
        self._database = database
        self._reserved = reserved.encode()
        self._may_copy = may_copy
        self._sums = ScriptSums()
        self._actions: dict[Treatment, Callable[[Arguments], Step | None]] = {
            Treatment.NEVER_WAITS: _in_transaction,
            Treatment.NEVER_WAITS_IF_ASKED: _in_transaction_if_asked,
            Treatment.SUBCOMMAND: _subcommand,
            Treatment.SCRIPT: self._script,
            Treatment.SCRIPT_BY_SUM: self._script_by_sum,
            Treatment.SCRIPT_CONTROL: self._script_control,
            Treatment.FUNCTION_CONTROL: _function_control,
            Treatment.CHANNEL: self._channel,
            Treatment.CHANNEL_LIST: self._channel_list,
            Treatment.CONFIG: _config,
            Treatment.INFO: self._info,
            Treatment.NOTHING: _nothing,
            Treatment.SELECT: _select,
            Treatment.FLUSH: _flush,
            Treatment.COPY: self._copy,
            Treatment.SESSION: _session,
        }

    def step(self, arguments: Arguments) -> Step | None:
        """What to do for a command. None: send it as it is. A script with Upstash's flag is remembered by its sums."""
        name = arguments[0]
        treatment = _BY_NAME.get(name) if isinstance(name, str) else None
        if treatment is Treatment.PASS:
            return None
        if treatment is None:
            treatment = TREATMENTS.get(_word(name))
            if treatment is None:
                return _unavailable(name)
            if treatment is Treatment.PASS:
                return None
        return self._actions[treatment](arguments)

    def is_reserved(self, channel: bytes) -> bool:
        """Whether a channel belongs to others."""
        return bool(self._reserved) and channel.startswith(self._reserved)

    def _script(self, arguments: Arguments) -> Step | None:
        if len(arguments) < 2 or (stripped := self._without_flag(arguments[1])) is None:
            return None
        return Send([arguments[0], stripped, *arguments[2:]])

    def _without_flag(self, script: str | bytes) -> bytes | None:
        """A script as it has to be sent, its sums remembered; None when it may stay as it is."""
        if script[:2] not in ("#!", b"#!"):
            return None
        source = _bytes(script)
        stripped = without_flag(source)
        if stripped is source:
            return None
        self._sums.add(source, stripped)
        return stripped

    def _script_by_sum(self, arguments: Arguments) -> Step | None:
        sent = self._sums.sent(arguments[1]) if len(arguments) > 1 else None
        return Send([arguments[0], sent, *arguments[2:]]) if sent else None

    def _script_control(self, arguments: Arguments) -> Step | None:
        refusal = _subcommand(arguments)
        if refusal is not None or len(arguments) < 3:
            return refusal
        word = _word(arguments[1])
        if word == "EXISTS":
            return Send([*arguments[:2], *(self._sums.sent(known) or known for known in arguments[2:])])
        if word != "LOAD" or (stripped := self._without_flag(arguments[2])) is None:
            return None
        known = sum_of(_bytes(arguments[2])).encode()
        return Send([*arguments[:2], stripped, *arguments[3:]], finish=lambda _: known)

    def _channel(self, arguments: Arguments) -> Step | None:
        if len(arguments) > 1 and self.is_reserved(_bytes(arguments[1])):
            return Refusal("NOPERM this user has no permissions to access the channel")
        return None

    def _channel_list(self, arguments: Arguments) -> Step | None:
        refusal = _subcommand(arguments)
        if refusal is not None or not self._reserved or len(arguments) < 2:
            return refusal
        if _word(arguments[1]) != "CHANNELS":
            return None
        return Send(arguments, finish=self._without_reserved)

    def _without_reserved(self, reply: Reply) -> Reply:
        if not isinstance(reply, list):
            return reply
        return [name for name in reply if not (isinstance(name, bytes) and self.is_reserved(name))]

    def _copy(self, arguments: Arguments) -> Step | None:
        """COPY source destination [DB index] [REPLACE]: `DB 0` is the client's own database, and is left out."""
        kept: Arguments = list(arguments[:3])
        options = iter(arguments[3:])
        for option in options:
            if _word(option) != "DB":
                kept.append(option)
            elif _bytes(next(options, "")) != b"0":
                return Refusal("ERR DB index is out of range")
        if not self._may_copy and len(kept) >= 3:
            return _copy_by_script(kept)
        return None if len(kept) == len(arguments) else Send(kept)

    def _info(self, arguments: Arguments) -> Step:
        asked = {_word(word).lower() for word in arguments[1:]}
        everything = not asked or asked & {"default", "all", "everything"}
        sections = [name for name in INFO_SECTIONS if everything or name in asked]
        if not sections:
            return Answer(b"")
        return Send(["INFO", *sections], Route.ADMIN, finish=self._own_info)

    def _own_info(self, reply: Reply) -> Reply:
        """INFO with one database, under the index that the client knows, and without fields about the machine."""
        if not isinstance(reply, bytes):
            return reply
        lines: list[bytes] = []
        for line in reply.split(b"\r\n"):
            name, found, value = line.partition(b":")
            if not found or name.startswith(b"#"):
                lines.append(line)
            elif name.startswith(b"db") and name[2:].isdigit():
                if int(name[2:]) == self._database:
                    lines.append(b"db0:" + value)
            elif name.decode("latin-1") not in INFO_HIDDEN:
                lines.append(line)
        return b"\r\n".join(lines)


def client_error(text: str) -> str:
    """A server's error in the words that clients expect."""
    if text.startswith("NOSCRIPT"):
        return "NOSCRIPT No matching script. Please use EVAL."
    if text.startswith("NOPERM"):
        return _no_permission(text)
    if text.startswith("ERR unknown command"):
        return _unavailable(text.partition("'")[2].partition("'")[0]).text
    if text.startswith("ERR Can not execute a script with write flag using *_ro command"):
        return "ERR Error running script: READONLY Write commands are not allowed from read-only scripts"
    return text


def _no_permission(text: str) -> str:
    before, found, after = text.partition("has no permissions to run the ")
    if not found:
        return text
    quoted = after.split(" ", 1)[0]
    return f"{before.split(' ', 1)[0]} this user has no permissions to run the {quoted} command or its subcommand"


def _bytes(argument: str | bytes) -> bytes:
    return argument if isinstance(argument, bytes) else argument.encode("utf-8", "surrogatepass")


def _word(argument: Argument) -> str:
    """A keyword in capitals; empty for what can't be one, such as text that only its capitals turn into ASCII."""
    text = argument.decode("latin-1") if isinstance(argument, bytes) else str(argument)
    return text.upper() if text.isascii() else ""


def _unavailable(*words: Argument) -> Refusal:
    named = " ".join(
        word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in words
    )
    return Refusal(f"ERR Command is not available: '{named[:_SHOWN]}'. See {COMPATIBILITY} for details")


def _in_transaction(arguments: Arguments) -> Step:
    return Send(arguments, Route.IN_TRANSACTION)


def _in_transaction_if_asked(arguments: Arguments) -> Step | None:
    return _in_transaction(arguments) if "BLOCK" in map(_word, arguments[1:]) else None


def _subcommand(arguments: Arguments) -> Step | None:
    if len(arguments) > 1 and _word(arguments[1]) not in SUBCOMMANDS[_word(arguments[0])]:
        return _unavailable(*arguments[:2])
    return None


def _function_control(arguments: Arguments) -> Step | None:
    refusal = _subcommand(arguments)
    if refusal is not None or len(arguments) < 3 or _word(arguments[1]) != "LOAD":
        return refusal
    source = _bytes(arguments[-1])
    stripped = library_without_flag(source)
    return None if stripped == source else Send([*arguments[:-1], stripped])


def _config(arguments: Arguments) -> Step:
    word = _word(arguments[1]) if len(arguments) > 1 else ""
    names = [_word(argument).lower() for argument in arguments[2:]]
    if word == "GET" and names:
        if CONFIG_PARAMETER not in names:
            return Answer([])
        return Send(["CONFIG", "GET", CONFIG_PARAMETER], Route.ADMIN)
    if word == "SET" and names:
        if names[::2] != [CONFIG_PARAMETER] or len(names) != 2:
            return Refusal(f"ERR CONFIG SET is available for '{CONFIG_PARAMETER}' only")
        return Send(["CONFIG", "SET", CONFIG_PARAMETER, arguments[3]], Route.ADMIN)
    return _unavailable(*arguments[:2])


def _nothing(arguments: Arguments) -> Step:
    return Answer([])


def _select(arguments: Arguments) -> Step:
    if len(arguments) != 2:
        return Refusal("ERR wrong number of arguments for 'select' command")
    return Answer(b"OK") if _bytes(arguments[1]) == b"0" else Refusal("ERR DB index is out of range")


def _flush(arguments: Arguments) -> Step:
    return Send(["FLUSHDB", *arguments[1:]])


def _copy_by_script(arguments: Arguments) -> Step:
    _, source, destination, *options = arguments
    words = [_word(option) for option in options]
    if any(word != "REPLACE" for word in words):
        return Refusal("ERR syntax error")
    count, bound = COPY.bind({"source": source, "destination": destination, "replace": 1 if words else 0})
    return Send(["EVAL", COPY.source, count, *bound])


def _session(arguments: Arguments) -> Step:
    return Refusal(
        f'ERR Command "{_word(arguments[0])}" is not allowed in REST or it has a special context path'
    )
