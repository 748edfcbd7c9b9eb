"""Cookies: the three that counterseal sets, as they are written and as they are read.

| cookie | holds | goes to | SameSite | lives |
| --- | --- | --- | --- | --- |
| `__Host-cs_at` | the access token | every path | Lax | until the browser is closed |
| `__Secure-cs_rt` | the refresh token | `/api/auth` ¹ | Strict | as long as the session may, at most |
| `__Host-cs_sg` | a signer's access to one request | every path | Lax | |

¹ Below the path at which the application is mounted.

All of them are Secure and HttpOnly. A browser keeps a cookie with these prefixes only when it was set so (RFC 6265bis,
4.1.3), so neither a neighbouring domain nor a page without TLS can plant one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final
from urllib.parse import quote

ACCESS: Final = "__Host-cs_at"
REFRESH: Final = "__Secure-cs_rt"
SIGNER: Final = "__Host-cs_sg"
REFRESH_PATH: Final = "/api/auth"

_IN_A_PATH: Final = "/!$&'()*+:=@"
"""What a path may have as it is (RFC 3986, 3.3), less what would end an attribute."""
_LONGEST_LINE: Final = 4096
"""Browsers take no cookie whose line is longer than that, or of that length."""

_OURS: Final = frozenset(name.encode() for name in (ACCESS, REFRESH, SIGNER))
_IN_OURS: Final = b"-cs_"
"""Is in every name of ours: most requests have none, and are not taken apart for it."""
_COOKIE: Final = b"cookie"
_WRITTEN: Final = bytes(sorted(set(range(0x21, 0x7F)) - set(b'",;\\')))
"""What a value may be made of (RFC 6265, 4.1.1), without the quotes that counterseal never writes."""

Fields = Iterable[tuple[bytes, bytes]]
"""Header fields as ASGI has them."""


def access_cookie(token: str) -> str:
    """The `Set-Cookie` line of an access token."""
    return _line(ACCESS, token, "Path=/; Secure; HttpOnly; SameSite=Lax")


def refresh_cookie(token: str, lives: timedelta, *, below: str = "") -> str:
    """The `Set-Cookie` line of a refresh token; `lives` is what is left of the session at most.

    `below` is the path at which the application is mounted, the `root_path` of ASGI.
    """
    return _refresh_line(token, max(0, int(lives.total_seconds())), below)


def cleared_cookies(*, below: str = "") -> tuple[str, str]:
    """The `Set-Cookie` lines that have a browser forget both tokens; `below` as for `refresh_cookie`."""
    return (
        _line(ACCESS, "", "Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"),
        _refresh_line("", 0, below),
    )


def read_cookie(fields: Fields, name: str) -> str | None:
    """The value of a cookie, whichever of the `Cookie` lines it is in.

    None where it is absent, where two different values came, and for a value that counterseal can't have written.
    """
    wanted = name.encode()
    found = {
        value for line in _lines(fields) if wanted in line for key, value in _pairs(line) if key == wanted
    }
    if len(found) != 1:
        return None
    value = found.pop()
    return value.decode("ascii") if value and len(value) < _LONGEST_LINE and _fits(value) else None


def has_our_cookie(fields: Fields) -> bool:
    """Whether any of the three came, with whatever value."""
    return any(_IN_OURS in line and any(key in _OURS for key, _ in _pairs(line)) for line in _lines(fields))


def _lines(fields: Fields) -> Iterable[bytes]:
    return (line for name, line in fields if len(name) == len(_COOKIE) and name.lower() == _COOKIE)


def _pairs(line: bytes) -> Iterable[tuple[bytes, bytes]]:
    for pair in line.split(b";"):
        key, _, value = pair.partition(b"=")
        yield key.strip(b" \t"), value.strip(b" \t")


def _fits(value: bytes) -> bool:
    return not value.translate(None, _WRITTEN)


def _refresh_line(token: str, seconds: int, below: str) -> str:
    path = quote(below.rstrip("/"), safe=_IN_A_PATH) + REFRESH_PATH
    return _line(REFRESH, token, f"Path={path}; Max-Age={seconds}; Secure; HttpOnly; SameSite=Strict")


def _line(name: str, value: str, attributes: str) -> str:
    line = f"{name}={value}; {attributes}"
    if len(line) >= _LONGEST_LINE or not _fits(value.encode()):
        raise ValueError(f"{name}: expected a value that fits a cookie; came one of {len(value)} characters")
    return line
