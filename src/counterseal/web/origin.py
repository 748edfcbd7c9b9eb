"""Origin: whether a request that may change something comes from a page of this site, or from no page at all.

A browser adds its cookies to whatever another site has it send, and says in `Sec-Fetch-Site` and `Origin` who did; no
page can write these two. (OWASP Cross-Site Request Forgery Prevention, "Fetch Metadata" and "Verifying Origin".)

| `Sec-Fetch-Site` | `Origin` | the request |
| --- | --- | --- |
| `same-origin`, `none` | any | passes |
| `same-site`, `cross-site`, any other | one that is named | passes |
| the same | another, or none | is refused |
| none | one that is named, else that of the host | passes |
| none | another, or `null` | is refused |
| none | none | passes without cookies of ours: it is no browser; with one it is refused |

A request with a bearer token and without cookies of ours passes: a page can have no browser add one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Scope

from counterseal.core.errors import ConfigurationError
from counterseal.web.cookies import has_our_cookie

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_OWN_SITE: Final = frozenset({b"same-origin", b"none"})
_PORTS: Final = {"http": 80, "https": 443}
_PAGE_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_LONGEST: Final = 512

_Origin = tuple[str, str, int]


class Origins:
    """The origins whose pages may send unsafe requests: that of `public_url`, and those in `more`.

    Without a `public_url` it is that of the host which a request names; a proxy that ends TLS may stand in front.
    Raises `ConfigurationError` for what is no origin, as `https://example.com` is.
    """

    def __init__(self, public_url: str | None, more: Iterable[str] = ()) -> None:
        given = (more,) if isinstance(more, str) else tuple(more)
        known = {text: _origin(text) for text in given}
        faults = [
            f"origins: expected a scheme and a host, as https://example.com; came: {text[:60]!r}"
            for text, origin in known.items()
            if origin is None or urlsplit(text).path.strip("/")
        ]
        if faults:
            raise ConfigurationError(faults)
        own = None if public_url is None else _origin(public_url)
        self._known = {origin for origin in (*known.values(), own) if origin is not None}
        self._goes_by_host = own is None

    def allow(self, scope: Scope) -> bool:
        """Whether a request or a handshake may go on; see the table above. No round trip."""
        sites: set[bytes] = set()
        origins: set[bytes] = set()
        hosts: set[bytes] = set()
        bearer = False
        for name, value in scope["headers"]:
            match name.lower():
                case b"sec-fetch-site":
                    sites.add(value)
                case b"origin":
                    origins.add(value)
                case b"host":
                    hosts.add(value)
                case b"authorization":
                    bearer = value[:7].lower() == b"bearer "
                case _:
                    pass
        ours = has_our_cookie(scope["headers"])
        if bearer and not ours:
            return True
        if not sites and not origins:
            return not ours
        # A page that sends no referrer has the origin "null" even to its own site: what the browser says comes first.
        if sites and sites <= _OWN_SITE:
            return True
        if len(origins) != 1:
            return False
        origin = _origin(origins.pop().decode("latin-1"))
        if origin is None:
            return False
        # Behind a proxy that ends TLS a page without TLS has the origin of the host, but the browser knows better.
        return origin in self._known or (not sites and self._is_host(origin, hosts, scope))

    def _is_host(self, origin: _Origin, hosts: set[bytes], scope: Scope) -> bool:
        if not self._goes_by_host or len(hosts) != 1:
            return False
        scheme, _, _ = origin
        served = _PAGE_SCHEMES.get(scope.get("scheme", "http"), "http")
        return scheme in (served, "https") and origin == _origin(
            f"{scheme}://{hosts.pop().decode('latin-1')}"
        )


def _origin(text: str) -> _Origin | None:
    """Scheme, host and port of an origin or a URL; None for what has none."""
    if len(text) > _LONGEST:
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    return (parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port)
