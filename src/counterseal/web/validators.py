"""Validators: ETag and Last-Modified, and whether a client has the response already (RFC 9110, 8.8 and 13). Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from counterseal.web.freshness import http_date

_ENTITY_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_LIST: Final = re.compile(r'\s*(?:,\s*)*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)')


def is_entity_tag(text: str) -> bool:
    """Whether this is an entity tag: `"a"` or `W/"a"`."""
    return _ENTITY_TAG.fullmatch(text) is not None


def strong_entity_tag(body: bytes) -> str:
    """The strong entity tag of a body: its whole SHA-256."""
    return f'"{hashlib.sha256(body).hexdigest()}"'


def entity_tags(text: str) -> list[str]:
    """The tags of an `If-None-Match`; none from the first on that can't be read."""
    tags: list[str] = []
    at = 0
    while found := _LIST.match(text, at):
        tags.append(found[1])
        at = found.end()
    return tags


def not_modified(request: Mapping[str, str], *, etag: str, last_modified: str | None) -> bool:
    """Whether the client of a conditional GET has what would be sent, so that 304 is the answer.

    `If-None-Match` is compared weakly; only without it does `If-Modified-Since` count. `request` are headers by name in
    small letters.
    """
    condition = request.get("if-none-match")
    if condition is not None:
        if condition.strip() == "*":
            return True
        return etag.removeprefix("W/") in {tag.removeprefix("W/") for tag in entity_tags(condition)}
    asked = request.get("if-modified-since")
    if asked is None or last_modified is None:
        return False
    since, changed = http_date(asked), http_date(last_modified)
    return since is not None and changed is not None and changed <= since
