"""StoredResponse: a response as the cache keeps it, and as a client gets it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from starlette.types import Send

from counterseal.cache.kind import MAX_VALUE_BYTES, Kind
from counterseal.web.freshness import directives, lifetime_s, never_stale, varying
from counterseal.web.validators import is_entity_tag, not_modified, strong_entity_tag

RawHeaders = Iterable[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OF_ONE_ANSWER: Final = frozenset(
    {"age", "authentication-info", "content-length", "retry-after", "set-cookie", "set-cookie2"}
)
_OF_ONE_ANSWER_BEGIN: Final = ("ratelimit", "x-ratelimit-")
_NOT_WITH_304: Final = frozenset(
    {
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "last-modified",
    }
)
_HEAD_BYTES: Final = 512
"""What a stored response takes besides its headers and its body, generously."""


class StoredResponse(msgspec.Struct, frozen=True, array_like=True):
    """A whole response: the type of a kind that `response_kind` makes.

    - `headers`: names in small letters; none that belongs to a connection or to one answer, and never a cookie.
    - `etag`: the handler's, else strong and made of the whole body.
    - `made_ms`: when it was complete, by the store's clock.
    - `lives_s`: how long its own headers let it be reused; None when they don't say, and the kind alone decides.
    - `strict`: it is not to be used after its lifetime, even where the kind would hand out what is stale.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    etag: str
    made_ms: int
    lives_s: int | None = None
    strict: bool = False

    def age_s(self, now_ms: int) -> int:
        """How old it is in whole seconds."""
        return max(0, now_ms - self.made_ms) // 1000

    def size(self) -> int:
        """At least as many bytes as its JSON text has, save for control characters in headers."""
        fields = sum(len(name) + len(value) + 6 for name, value in self.headers)
        return _HEAD_BYTES + fields + (len(self.body) + 2) // 3 * 4


def _lives(stored: StoredResponse) -> timedelta | None:
    """How long its own headers let a response be reused; None when they don't say."""
    return None if stored.lives_s is None else timedelta(seconds=stored.lives_s)


def _may_be_stale(stored: StoredResponse) -> bool:
    """Whether its own headers let a response be used after its lifetime."""
    return not stored.strict


def response_kind(
    name: str,
    ttl: timedelta,
    *,
    negative_ttl: timedelta | None = timedelta(seconds=30),
    stale_while_revalidate: timedelta = timedelta(0),
    stale_if_error: timedelta = timedelta(0),
    early_refresh: bool = True,
    near: timedelta | None = None,
    max_value_bytes: int = MAX_VALUE_BYTES,
) -> Kind[StoredResponse]:
    """A kind of responses for a `ResponseCache`: `response_kind("page", timedelta(minutes=5))`.

    A `Kind` with these arguments, whose responses live shorter where their own headers say so, and are never given
    after that where these forbid it. For `negative_ttl` a request whose response was not to be kept is passed on at
    once. Raises `ConfigurationError` as `Kind` does.
    """
    return Kind(
        name,
        ttl,
        type=StoredResponse,
        negative_ttl=negative_ttl,
        stale_while_revalidate=stale_while_revalidate,
        stale_if_error=stale_if_error,
        early_refresh=early_refresh,
        near=near,
        max_value_bytes=max_value_bytes,
        lives=_lives,
        may_be_stale=_may_be_stale,
    )


def is_response_kind(kind: Kind[Any]) -> bool:
    """Whether `response_kind` made this kind."""
    return (kind.type, kind.lives, kind.may_be_stale) == (StoredResponse, _lives, _may_be_stale)


def response_of(
    status: int,
    raw: RawHeaders,
    body: bytes,
    *,
    vary: Collection[str],
    personal: bool,
    made_ms: int,
) -> StoredResponse:
    """What is kept of a complete response that may be stored. `vary` are the headers that the cache varies on."""
    headers = plain(raw)
    connection = {
        part.strip().lower() for name, line in headers if name == "connection" for part in line.split(",")
    }
    kept = [
        (name, value)
        for name, value in headers
        if name not in _HOP_BY_HOP | _OF_ONE_ANSWER | connection
        and not name.startswith(_OF_ONE_ANSWER_BEGIN)
        and name != "vary"
    ]
    varies = sorted({*vary, *varying(headers)})
    if varies:
        kept.append(("vary", ", ".join(varies)))
    given = next((value for name, value in kept if name == "etag"), "")
    etag = given if is_entity_tag(given) else strong_entity_tag(body)
    kept = [(name, value) for name, value in kept if name != "etag"]
    if personal and not {"private", "public", "s-maxage"} & directives(kept).keys():
        # Whatever lies between here and the client keeps no entry for each user.
        kept.append(("cache-control", "private"))
    return StoredResponse(
        status,
        tuple(kept),
        body,
        etag,
        made_ms,
        lifetime_s(headers, datetime.fromtimestamp(made_ms / 1000, UTC)),
        never_stale(headers),
    )


def plain(raw: RawHeaders) -> list[tuple[str, str]]:
    """The header lines of an ASGI message as text, names in small letters."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]


async def answer(
    stored: StoredResponse,
    send: Send,
    *,
    request: Mapping[str, str],
    head: bool,
    age_s: int | None,
    told: str,
) -> None:
    """Send a stored response: 304 when the client has it already, without its body for HEAD.

    `request` are the client's headers by name in small letters, `age_s` what `Age` says (None for a response that was
    made for this request), `told` what `Cache-Status` says.
    """
    last_modified = next((value for name, value in stored.headers if name == "last-modified"), None)
    unchanged = stored.status == 200 and not_modified(request, etag=stored.etag, last_modified=last_modified)
    headers = [line for line in stored.headers if not (unchanged and line[0] in _NOT_WITH_304)]
    headers.append(("etag", stored.etag))
    if age_s is not None:
        headers.append(("age", str(age_s)))
    if not unchanged:
        headers.append(("content-length", str(len(stored.body))))
    headers.append(("cache-status", told))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": 304 if unchanged else stored.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if unchanged or head else stored.body})
