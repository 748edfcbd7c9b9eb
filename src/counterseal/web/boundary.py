"""Boundary: what every request passes on its way in and every response on its way out. Raw ASGI."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from counterseal.web.metrics import HttpMetrics
from counterseal.web.paths import route_path
from counterseal.web.problems import problem_response, unexpected

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
UNMATCHED = "(none)"
"""The route of a request that no route matched, so that invented paths make no new series."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Boundary:
    """Measures each request, adds the security headers, and turns what nobody caught into a problem.

    HEAD is answered as GET without its body, on every route but those of `mounts`, which answer for themselves.
    """

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics, mounts: Sequence[str] = ()) -> None:
        self._app = app
        self._metrics = metrics
        self._mounts = tuple(mounts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        method: str = scope["method"] if scope["method"] in _METHODS else "OTHER"
        bodiless = method == "HEAD" and self._mount(scope) is None
        if bodiless:
            scope = {**scope, "method": "GET"}
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(MutableHeaders(scope=message))
            elif bodiless:
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            logger.exception("a request to %s failed", self._route(scope))
            if status:
                raise
            await problem_response(unexpected())(scope, receive, send_on)
        finally:
            self._metrics.observe(method, self._route(scope), status or 499, time.perf_counter() - began)

    def _route(self, scope: Scope) -> str:
        path = getattr(scope.get("route"), "path", None)
        return path if isinstance(path, str) else self._mount(scope) or UNMATCHED

    def _mount(self, scope: Scope) -> str | None:
        asked = route_path(scope)
        return next(
            (mount for mount in self._mounts if asked == mount or asked.startswith(f"{mount}/")), None
        )


def _complete(headers: MutableHeaders) -> None:
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    allowed = headers.get("Allow", "").split(", ")
    if "GET" in allowed and "HEAD" not in allowed:
        headers["Allow"] = ", ".join([*allowed, "HEAD"])
