"""Variant: which of the stored responses answers a request. Pure.

Its key is the whole SHA-256 of everything that may tell two responses apart, each part in a place of its own, so that
no two requests share a key by accident, however long or strange they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_plus, unquote_to_bytes

import msgspec
from starlette.types import Scope


def variant_key(
    scope: Scope,
    headers: Mapping[str, str],
    *,
    tenant: str,
    vary: Iterable[str],
    user: str | None,
    authorised: bool,
) -> str:
    """The key of the response to a GET of `scope`. `headers` and `vary` have names in small letters.

    `authorised` keeps what was made for requests with `Authorization` apart from what was made without.
    """
    raw: bytes = scope.get("raw_path") or b""
    parts = (
        "GET",
        scope.get("scheme", "http"),
        tenant,
        scope["path"],
        raw.decode("latin-1"),
        sorted_query(scope.get("query_string", b"")),
        [(name, headers.get(name)) for name in sorted(set(vary))],
        user,
        authorised,
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def path_tag(kind: str, path: str) -> str:
    """The tag of every stored response to a path, whatever its query, tenant, user and headers.

    There are 65,536, because a tag is remembered for 30 days and anybody can ask for ever new paths: forgetting a path
    also forgets one in 65,536 of the others.
    """
    return f"{kind}:path:{hashlib.sha256(path.encode('utf-8', 'surrogatepass')).hexdigest()[:4]}"


def sorted_query(query: bytes) -> list[str]:
    """The parameters of a query by name; those of one name keep their order, because a handler sees it."""
    parts = [part for part in query.split(b"&") if part]
    parts.sort(key=lambda part: unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")))
    return [part.decode("latin-1") for part in parts]


def query_names(query: bytes) -> frozenset[str]:
    """The names of the parameters of a query, as a handler sees them."""
    parts = query.decode("latin-1").split("&")
    return frozenset(unquote_plus(part.partition("=")[0]) for part in parts if part)


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers of a request by name in small letters; the lines of one name are joined as RFC 9110 says."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
