"""The client's address: the peer of the connection, or what trusted proxies say of it.

A client can write any header, so a header is read from its right end, where the trusted proxies wrote, and no further.

| trusted proxies | the client is |
| --- | --- |
| 0 | the peer; no header is read |
| 1 | the last entry: what the peer, a proxy, saw |
| n | the n-th entry from the right: what the outermost trusted proxy saw |

One header is read, the one that the proxies write (`COUNTERSEAL_PROXY_HEADER`); the other may come straight from the
client and never counts, whether both are there or only that one. Where there are fewer entries than proxies, or an
entry names no address (`unknown`, an obfuscated name, garbage), the client is the last address that was still vouched
for on the way out: at worst the peer. So a fault makes clients share a limit; it never lets one escape it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from starlette.types import Scope

from counterseal.core.settings import ProxyHeader

NO_ADDRESS = "unknown"
"""The address of a peer that has none, as on a Unix socket without a proxy in front."""

_PREFIX = 64
_REMEMBERED = 4096
"""How many addresses are kept as they were read: reading one takes longer than the rest of a request's way here."""

_LONGEST = 64
"""Characters of an address with its zone and its port, and more: a client can make an entry as long as a header."""

_LONGEST_REMEMBERED = 256
"""Bytes of a header that is remembered together with the address that it gives."""

_NAMES = {header: header.value.encode("ascii") for header in ProxyHeader}
_NODE = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PAIR = re.compile(rf"\s*({_WORD})=({_WORD}|{_QUOTED})\s*(?:;|$)", re.DOTALL)


def client_address(
    scope: Scope, trusted: int = 0, *, header: ProxyHeader = ProxyHeader.X_FORWARDED_FOR
) -> str:
    """The address of who sent a request, as its shortest text: `203.0.113.7`, `2001:db8::1`.

    `trusted` is how many proxies every request passes before it comes here, `header` the one that they write. IPv6 that
    stands for IPv4 is given as IPv4. `unknown` when nobody has an address.
    """
    client = scope.get("client")
    peer = client[0] if client else ""
    if trusted <= 0:
        return _parse(peer) or NO_ADDRESS
    lines = _lines(scope, header)
    if len(lines) > _LONGEST_REMEMBERED:
        return _address(peer, lines, trusted, header)
    return _remembered(peer, lines, trusted, header)


@lru_cache(_REMEMBERED)
def limited_as(address: str) -> str:
    """What an address is limited as: itself, or for IPv6 its /64, of which one client has every address."""
    text = _parse(address)
    if text is None or ":" not in text:
        return address
    return str(ipaddress.IPv6Network((text, _PREFIX), strict=False))


def _lines(scope: Scope, header: ProxyHeader) -> bytes:
    """The header's lines as one, in the order in which they came."""
    name = _NAMES[header]
    size = len(name)
    lines = [value for key, value in scope["headers"] if len(key) == size and key.lower() == name]
    return lines[0] if len(lines) == 1 else b",".join(lines)


def _address(peer: str, lines: bytes, trusted: int, header: ProxyHeader) -> str:
    best = _parse(peer)
    for entry in islice(_entries(lines.decode("latin-1"), trusted, header), trusted):
        address = _parse(entry)
        if address is None:
            break
        best = address
    return NO_ADDRESS if best is None else best


_remembered = lru_cache(_REMEMBERED)(_address)


def _entries(text: str, trusted: int, header: ProxyHeader) -> Iterator[str]:
    """What the header names as addresses, from the right; an entry that names none is the empty text."""
    if header is ProxyHeader.X_FORWARDED_FOR:
        return reversed(text.rsplit(",", trusted))
    return (_for(element) for element in _elements(text))


def _elements(text: str) -> Iterator[str]:
    """The elements of `Forwarded`, from the right.

    Read from the left, a quote that a client opened and did not close would swallow what proxies added after it.
    """
    end, quoted = len(text), False
    for at in range(len(text) - 1, -1, -1):
        if text[at] == '"' and _backslashes(text, at) % 2 == 0:
            quoted = not quoted
        elif text[at] == "," and not quoted:
            yield text[at + 1 : end]
            end = at
    yield text[:end]


def _backslashes(text: str, end: int) -> int:
    at = end
    while at and text[at - 1] == "\\":
        at -= 1
    return end - at


def _for(element: str) -> str:
    """The value of `for` in one element; empty when the element is malformed or has not exactly one."""
    found: list[str] = []
    at = 0
    while at < len(element):
        pair = _PAIR.match(element, at)
        if pair is None:
            return ""
        if pair[1].lower() == "for":
            found.append(pair[2])
        at = pair.end()
    if len(found) != 1:
        return ""
    value = found[0]
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _parse(text: str) -> str | None:
    """The shortest text of an address that came with or without its port; None for anything else."""
    text = text.strip(" \t")
    return _parsed(text) if len(text) <= _LONGEST else None


@lru_cache(_REMEMBERED)
def _parsed(text: str) -> str | None:
    node = _NODE.fullmatch(text)
    host = (node["v6"] or node["v4"] or "") if node else text
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
