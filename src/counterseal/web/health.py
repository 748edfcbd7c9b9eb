"""Routes of health: what operators, load balancers and process managers ask."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Annotated

import msgspec
from fastapi import FastAPI, Request
from pydantic import SecretStr
from starlette.responses import Response

from counterseal.app import Counterseal
from counterseal.core.codec import JsonValue
from counterseal.web.problems import Problem

NEVER_CACHED = {"Cache-Control": "no-cache, no-store, must-revalidate"}

_LONGEST_BODY = 4096
_ACTION_NAME = 64


class Order(msgspec.Struct):
    """The body of `POST /api/health/redis`."""

    action: Annotated[str, msgspec.Meta(max_length=_ACTION_NAME)]


def install_health(app: FastAPI, seal: Counterseal) -> None:
    """Add `/api/health/redis`, `/health/live` and `/health/ready`."""
    actions = _actions(seal)

    @app.get("/api/health/redis", response_class=Response, tags=["health"])
    async def redis_health() -> Response:
        """The state of all services: 200 when each is healthy, else 503."""
        report = await seal.health.check()
        return _json(report.body, HTTPStatus.OK if report.healthy else HTTPStatus.SERVICE_UNAVAILABLE)

    @app.post("/api/health/redis", response_class=Response, tags=["health"])
    async def redis_action(request: Request) -> Response:
        """Run one action for an operator, who has the admin key."""
        check_key(request, seal.settings.web.admin_key)
        order = _read_order(await _read_body(request))
        action = actions.get(order.action)
        if action is None:
            known = sorted(actions)
            raise Problem(
                HTTPStatus.BAD_REQUEST,
                "unknown_action",
                f"No action has this name; known are {', '.join(known)}.",
                actions=known,
            )
        return _json({"action": order.action, **await action()}, HTTPStatus.OK)

    @app.get("/health/live", response_class=Response, tags=["health"])
    async def live() -> Response:
        """200 for as long as the process answers; nothing else is asked."""
        return _json({"status": "alive"}, HTTPStatus.OK)

    @app.get("/health/ready", response_class=Response, tags=["health"])
    async def ready() -> Response:
        """200 when Redis and the database answer, else 503."""
        found = await seal.health.ready()
        if found.ready:
            return _json({"status": "ready"}, HTTPStatus.OK)
        body: dict[str, JsonValue] = {"status": "not ready", "errors": dict(found.faults)}
        return _json(body, HTTPStatus.SERVICE_UNAVAILABLE)


def check_key(request: Request, expected: SecretStr | None) -> None:
    """Raise the problem 401 unless the request carries the admin key. Takes the same time for every wrong one."""
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("X-Admin-Key", "")
    if expected is not None and hmac.compare_digest(given.encode(), expected.get_secret_value().encode()):
        return
    raise Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "The admin key is needed: Authorization: Bearer, or X-Admin-Key.",
        headers={"WWW-Authenticate": 'Bearer realm="counterseal"'},
    )


def _actions(seal: Counterseal) -> Mapping[str, Callable[[], Awaitable[dict[str, JsonValue]]]]:
    async def detailed_diagnostics() -> dict[str, JsonValue]:
        return {"success": True, "diagnostics": await seal.health.detailed_diagnostics()}

    async def clear_cache() -> dict[str, JsonValue]:
        await seal.cache.clear()
        return {"success": True, "cleared": [kind.name for kind in seal.cache.kinds]}

    async def test_job_queue() -> dict[str, JsonValue]:
        run = await seal.jobs.run_probe()
        state = run.state.value if run.state else "removed"
        return {"success": state == "completed", "job": {"id": run.id, "state": state, "duration": run.ms}}

    async def reset_analytics() -> dict[str, JsonValue]:
        return {"success": True, "keysDeleted": await seal.analytics.reset()}

    return {
        action.__name__: action
        for action in (detailed_diagnostics, clear_cache, test_job_queue, reset_analytics)
    }


async def _read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_BODY:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body_too_large",
                f"At most {_LONGEST_BODY} bytes are taken here.",
            )
    return body


def _read_order(body: bytes) -> Order:
    try:
        return msgspec.json.decode(body, type=Order)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Problem(
            HTTPStatus.BAD_REQUEST, "bad_request", 'A JSON object is expected, as {"action": "clear_cache"}.'
        ) from None


def _json(body: object, status: HTTPStatus) -> Response:
    return Response(msgspec.json.encode(body), status, NEVER_CACHED, media_type="application/json")
