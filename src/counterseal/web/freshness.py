"""Freshness: whether a response may be stored, for whom, and for how long (RFC 9111). Pure.

Where a header contradicts itself or can't be read, the reading that stores less counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

Headers = Iterable[tuple[str, str]]
"""Header lines in their order: names in small letters, values as they came."""

_DIRECTIVE: Final = re.compile(r'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*))?')
_LONGEST_S: Final = 2**31


class Refusal(StrEnum):
    """Why a response is not stored. `Cache-Status` and the log say it in these words."""

    STATUS = "status"
    """Its status is none of those that are stored."""
    SERVER_ERROR = "server-error"
    """Its status is 5xx: the next request may fare better."""
    SET_COOKIE = "set-cookie"
    """It sets a cookie, which is for one client."""
    NO_STORE = "no-store"
    PRIVATE = "private"
    NO_CACHE = "no-cache"
    EXPIRED = "expired"
    """Its own headers give it no time to live."""
    VARY = "vary"
    """It varies on `*`, or on a header that the cache does not vary on."""
    AUTHORIZATION = "authorization"
    """The request was authorised, and the response does not say that others may have it (RFC 9111, 3.5)."""
    READ = "read"
    """The handler read something of the request that the cache does not vary on, as the session."""
    TOO_LARGE = "too-large"
    PARTIAL = "partial"
    """Only a part, or not as many bytes as it said."""
    EXTENSION = "extension"
    """It was sent by a means of the server that can't be replayed: trailers, or a file by its path."""
    FAILED = "failed"
    """The handler raised."""

    @property
    def passes(self) -> bool:
        """Whether it says nothing about the next response to the same request."""
        return self in {Refusal.SERVER_ERROR, Refusal.PARTIAL, Refusal.FAILED}


def directives(headers: Headers) -> dict[str, str]:
    """The directives of all `Cache-Control` lines, names in small letters; without a value it is empty.

    Of a directive that stands there twice, the smaller number counts.
    """
    found: dict[str, str] = {}
    for name, line in headers:
        if name == "cache-control":
            for directive, value in _DIRECTIVE.findall(line):
                text = value[1:-1] if value.startswith('"') else value
                key = directive.lower()
                found[key] = min(found[key], text, key=seconds) if key in found else text
    return found


def seconds(text: str) -> int:
    """A number of seconds as a directive gives it; 0 when it can't be read."""
    return min(int(text), _LONGEST_S) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def varying(headers: Headers) -> frozenset[str]:
    """The header names of all `Vary` lines, in small letters."""
    lines = [value for name, value in headers if name == "vary"]
    return frozenset(part.strip().lower() for line in lines for part in line.split(",") if part.strip())


def lifetime_s(headers: Collection[tuple[str, str]], now: datetime) -> int | None:
    """How long a response says that it may be reused, from now on; None when it does not say.

    `s-maxage` counts before `max-age` and that before `Expires`. What `Age` says has passed already.
    """
    said = directives(headers)
    fields = dict(headers)
    for name in ("s-maxage", "max-age"):
        if name in said:
            return seconds(said[name]) - seconds(fields.get("age", ""))
    if "expires" in fields:
        ends, began = _moment(fields["expires"]), _moment(fields.get("date", "")) or now
        return 0 if ends is None else int((ends - began).total_seconds()) - seconds(fields.get("age", ""))
    return None


def refusal(
    status: int,
    headers: Collection[tuple[str, str]],
    *,
    statuses: Collection[int],
    vary: Collection[str],
    personal: bool,
    authorised: bool,
    now: datetime,
) -> Refusal | None:
    """Why a response that begins like this is not stored; None when it may be.

    `vary` are the headers that the cache varies on, in small letters. `personal`: it keeps an entry for each user, so
    that what is private may be stored, and what depends on the user's cookie or authorisation. `authorised`: the
    request had credentials in `Authorization` that the cache does not vary on.
    """
    said = directives(headers)
    names = {name for name, _ in headers}
    varies = varying(headers)
    lives_s = lifetime_s(headers, now)
    allowed = {*vary, "cookie", "authorization"} if personal else set(vary)
    checks: Mapping[Refusal, bool] = {
        Refusal.SERVER_ERROR: status >= 500 and status not in statuses,
        Refusal.STATUS: status not in statuses,
        Refusal.PARTIAL: "content-range" in names,
        Refusal.SET_COOKIE: "set-cookie" in names,
        Refusal.NO_STORE: "no-store" in said,
        Refusal.PRIVATE: "private" in said and not personal,
        Refusal.NO_CACHE: "no-cache" in said or (not said and ("pragma", "no-cache") in headers),
        Refusal.EXPIRED: lives_s is not None and lives_s <= 0,
        Refusal.VARY: not varies <= allowed,
        Refusal.AUTHORIZATION: authorised and not {"public", "s-maxage", "must-revalidate"} & said.keys(),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def never_stale(headers: Headers) -> bool:
    """Whether a response must not be used after its lifetime, whatever the cache would allow."""
    return not {"must-revalidate", "proxy-revalidate", "s-maxage"}.isdisjoint(directives(headers))


def http_date(text: str) -> datetime | None:
    """The moment of an HTTP date in UTC; None when it is none."""
    return _moment(text)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
