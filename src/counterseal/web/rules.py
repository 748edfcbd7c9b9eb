"""Rules: what a cache of responses is declared to do, and what follows for a request and for a response. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from starlette.types import Scope

from counterseal.web.freshness import Refusal, directives, refusal, seconds
from counterseal.web.reads import SESSION, STATE, WATCHED, Reads, reads_of
from counterseal.web.variant import headers_of, path_tag, query_names, variant_key

_CREDENTIALS: Final = frozenset({"cookie", "authorization"})
_OTHER_CONDITIONS: Final = ("range", "if-range", "if-match", "if-unmodified-since")
"""What a handler answers by itself."""
_PARTS: Final = frozenset({206, 304})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for that may be answered with a kept response.

    `headers` are by name in small letters; `authorised` is as in `variant_key`; `most_age_s` is how old an answer the
    client takes, None when it does not say; `reads` is what was read of the request so far.
    """

    key: str
    headers: Mapping[str, str]
    authorised: bool
    head: bool
    most_age_s: int | None
    reads: Reads
    tags: list[str]


@dataclass(frozen=True, slots=True)
class Passed:
    """Why a request is passed on to its handler, in the words of `Cache-Status`."""

    told: str
    refusal: Refusal | None = None


class Rules:
    """What the arguments of a `ResponseCache` say; see there. `kind` is the name of the kind."""

    def __init__(
        self,
        kind: str,
        *,
        vary: Iterable[str],
        personal: Callable[[Scope], str | None] | None,
        tenant: Callable[[Scope], str] | None,
        tags: Callable[[Scope], Iterable[str]] | None,
        statuses: Collection[int],
        ignore: Iterable[str],
        query: Iterable[str] | None,
    ) -> None:
        self._texts = {
            name: given
            for name, given in {"vary": vary, "ignore": ignore, "query": query}.items()
            if isinstance(given, str)
        }
        self.vary = frozenset(name.lower() for name in vary)
        self.personal = personal is not None
        self._kind = kind
        self._user = personal
        self._tenant = tenant
        self._tags = tags
        self._statuses = frozenset(statuses)
        self._query = None if query is None else frozenset(query)
        declared = {*self.vary, *(name.lower() for name in ignore)}
        if tenant is None:
            declared.add("host")
        if "cookie" in self.vary:
            declared.add(SESSION)
        if self.personal:
            declared |= WATCHED | _CREDENTIALS
        self.declared = frozenset(declared)
        """What may be read of a request without its response being kept out, in the names of `Reads`."""

    def undeclared(self, reads: Reads) -> list[str]:
        """What was read that keeps a response out, sorted."""
        return sorted(
            name
            for name in reads
            if name not in self.declared and not (self.personal and name.partition(".")[0] == STATE)
        )

    def faults(self) -> list[str]:
        """What is wrong with the arguments, in sentences."""
        faults: list[str] = []
        unfit = sorted(status for status in self._statuses if not 200 <= status <= 599 or status in _PARTS)
        if unfit:
            faults.append(f"statuses: expected those of whole responses; came: {', '.join(map(str, unfit))}")
        if "*" in self.vary:
            faults.append("vary: expected names of headers; came: '*'")
        faults.extend(
            f"{name}: expected several names, as a list; came: {given!r}"
            for name, given in self._texts.items()
        )
        return faults

    def ask(self, scope: Scope) -> Asked | Passed:
        """What a GET or HEAD asks for; or why it is passed on."""
        headers = headers_of(scope)
        said = directives(headers.items())
        told = self._passed(scope, headers, said)
        if told is not None:
            return Passed(told)
        user = None if self._user is None else self._user(scope)
        if self.personal and user is None:
            return Passed("fwd=bypass; detail=nobody")
        reads = reads_of(scope)
        if self.undeclared(reads):
            return Passed(f"fwd=bypass; detail={Refusal.READ}", Refusal.READ)
        authorised = "authorization" in headers and not self.personal and "authorization" not in self.vary
        tenant = headers.get("host", "").lower() if self._tenant is None else self._tenant(scope)
        return Asked(
            variant_key(scope, headers, tenant=tenant, vary=self.vary, user=user, authorised=authorised),
            headers=headers,
            authorised=authorised,
            head=scope["method"] == "HEAD",
            most_age_s=seconds(said["max-age"]) if "max-age" in said else None,
            reads=reads,
            tags=[
                path_tag(self._kind, scope["path"]),
                *([] if user is None else [f"user:{user}"]),
                *(self._tags(scope) if self._tags is not None else ()),
            ],
        )

    def _passed(self, scope: Scope, headers: Mapping[str, str], said: Mapping[str, str]) -> str | None:
        """Why a request is passed on, whoever asks. `said` is what its `Cache-Control` says."""
        if not said.keys().isdisjoint({"no-store", "no-cache"}) or seconds(said.get("max-age", "1")) == 0:
            return "fwd=request"
        if not said and headers.get("pragma") == "no-cache":
            return "fwd=request"
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if has_body or any(name in headers for name in _OTHER_CONDITIONS):
            return "fwd=bypass"
        if self._query is not None and not query_names(scope.get("query_string", b"")) <= self._query:
            return "fwd=bypass; detail=query"
        return None

    def refusal(
        self, asked: Asked, status: int, headers: Collection[tuple[str, str]], now: datetime
    ) -> Refusal | None:
        """Why a response that begins like this is not kept, as things stand; None when it may be."""
        found = refusal(
            status,
            headers,
            statuses=self._statuses,
            vary=self.vary,
            personal=self.personal,
            authorised=asked.authorised,
            now=now,
        )
        return found or (Refusal.READ if self.undeclared(asked.reads) else None)
