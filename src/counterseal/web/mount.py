"""Prefix: a route that hands everything below a path to another ASGI application, the path itself too."""

from __future__ import annotations

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import ASGIApp, Receive, Scope, Send

from counterseal.web.paths import route_path


class Prefix(BaseRoute):
    """As Starlette's `Mount`, but `POST /redis` reaches the application as it is: its clients follow no redirect."""

    def __init__(self, path: str, app: ASGIApp) -> None:
        self.path = path
        self.app = app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = route_path(scope)
        if scope["type"] == "http" and (path == self.path or path.startswith(f"{self.path}/")):
            return Match.FULL, {"route": self, "root_path": scope.get("root_path", "") + self.path}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, path_params)
