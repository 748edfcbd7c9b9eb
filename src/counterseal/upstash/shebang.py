"""Shebang: the script flag `allow-key-locking`, which Upstash alone knows, taken out before the server sees it.

The scripts of the official rate-limit libraries begin with `#!lua flags=allow-key-locking`. A stock server refuses the
flag, and once it is taken out it knows the script by another sum than the client does; `ScriptSums` keeps the pairs.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict

FLAG = b"allow-key-locking"
MAX_SUMS = 4096

_FUNCTION_FLAGS = re.compile(rb"(\bflags\s*=\s*\{)([^}]*)(\})")
_FUNCTION_FLAG = re.compile(rb"\s*(['\"])" + FLAG + rb"\1\s*")


def without_flag(source: bytes) -> bytes:
    """A script without the flag. Its lines keep their numbers; the shebang goes when it says nothing else."""
    line, newline, rest = source.partition(b"\n")
    if not line.startswith(b"#!") or FLAG not in line:
        return source
    name, *options = line.split()
    kept: list[bytes] = []
    found = False
    for option in options:
        if not option.startswith(b"flags="):
            kept.append(option)
            continue
        flags = option.removeprefix(b"flags=").split(b",")
        others = [flag for flag in flags if flag != FLAG]
        found = found or len(others) < len(flags)
        if others:
            kept.append(b"flags=" + b",".join(others))
    if not found:
        return source
    return b"".join([b" ".join([name, *kept]) if kept else b"", newline, rest])


def library_without_flag(source: bytes) -> bytes:
    """The code of FUNCTION LOAD without the flag in `flags={...}`."""
    if FLAG not in source:
        return source
    return _FUNCTION_FLAGS.sub(_strip_flags, source)


def sum_of(source: bytes) -> str:
    """The sum by which a server knows a script: SHA-1 of its text, in hex."""
    return hashlib.sha1(source).hexdigest()  # noqa: S324 - Redis' own name for a script


class ScriptSums:
    """The sums that clients know, and those the server knows. In memory, bounded, the least used go first.

    A lost pair mends itself: the server answers NOSCRIPT, and the client's EVAL brings the script again.
    """

    def __init__(self, limit: int = MAX_SUMS) -> None:
        self._limit = limit
        self._sums: OrderedDict[str, str] = OrderedDict()

    def add(self, source: bytes, sent: bytes) -> str:
        """Remember what was sent instead of a script. Returns the sum that the client knows."""
        known = sum_of(source)
        self._sums[known] = sum_of(sent)
        self._sums.move_to_end(known)
        if len(self._sums) > self._limit:
            self._sums.popitem(last=False)
        return known

    def sent(self, known: str | bytes) -> str | None:
        """The sum that the server knows, where it is another one."""
        if not self._sums:
            return None
        text = (known.decode("latin-1") if isinstance(known, bytes) else known).lower()
        found = self._sums.get(text)
        if found is not None:
            self._sums.move_to_end(text)
        return found


def _strip_flags(found: re.Match[bytes]) -> bytes:
    flags = [flag for flag in found[2].split(b",") if not _FUNCTION_FLAG.fullmatch(flag)]
    return found[1] + b",".join(flags) + found[3]
