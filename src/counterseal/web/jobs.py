"""Routes of jobs: where QStash delivers."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from counterseal.app import Counterseal
from counterseal.jobs.delivery import Delivered
from counterseal.jobs.qstash import PATH
from counterseal.jobs.schedule_ticks import Sent
from counterseal.web.problems import MEDIA_TYPE, Problem

LONGEST_BODY: Final = 4096
"""A message names its job; it has no arguments."""

LONGEST_ID: Final = 256
SIGNATURE: Final = "Upstash-Signature"
NON_RETRYABLE: Final = 489

_SENTENCES: Final[Mapping[str, tuple[int, str]]] = {
    "failed": (NON_RETRYABLE, "The job has failed for good."),
    "gone": (NON_RETRYABLE, "There is no such job."),
    "other": (NON_RETRYABLE, "The job is of another type."),
    "malformed": (NON_RETRYABLE, 'A JSON object is expected, as {"id": "default.…", "type": "email"}.'),
    "retrying": (500, "The job has failed, and is to run again."),
    "parked": (503, "No task of this release can run the job."),
    "queued": (503, "The job was not begun, or given back; it is to run again."),
    "lost": (503, "The lease of the job had run out."),
    "running": (503, "The job is running."),
    "paused": (503, "The queue of the job is paused."),
    "full": (503, "As many jobs of the queue run as may."),
    "early": (503, "The job is not due yet."),
}


def install_jobs(app: FastAPI, seal: Counterseal) -> None:
    """Add `/api/jobs/{type}` where deliveries are configured; else it is not there, and answers 404."""
    deliveries = seal.carriage.deliveries
    if deliveries is None:
        return

    @app.post(f"{PATH}/{{kind}}", response_class=Response, tags=["jobs"])
    async def deliver(kind: str, request: Request) -> Response:
        """Run the job that QStash delivers. 200: it has ended well; 489: it never will; 500 and 503: come again.

        401: it is no delivery that QStash has signed for this URL and body, or it has come before. Nothing ran then.
        """
        body = await _read_body(request)
        if not await deliveries.accept(
            request.headers.getlist(SIGNATURE), target=_target(request), body=body
        ):
            raise Problem(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "A delivery that is signed for this URL and this body is needed, and that has not come before.",
                headers={"WWW-Authenticate": SIGNATURE},
            )
        return _answer(await deliveries.run(kind, body, _sent(request)))


def _target(request: Request) -> str:
    """What follows `/api/jobs` in the URL as it was sent."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope.get("query_string", b"")
    _, _, rest = raw.decode("latin-1").rpartition(f"{PATH}/")
    return f"/{rest}" + (f"?{query.decode('latin-1')}" if query else "")


def _sent(request: Request) -> Sent:
    """What QStash says of a message besides its body."""
    headers = request.headers
    return Sent(
        headers.get("Upstash-Message-Id", "")[:LONGEST_ID],
        headers.get("Upstash-Schedule-Id", "")[:LONGEST_ID],
        retried=headers.get("Upstash-Retried", "0") != "0",
    )


def _answer(delivered: Delivered) -> Response:
    headers = {"Cache-Control": "no-store"}
    if delivered.state in ("completed", "cancelled", "skipped"):
        said: dict[str, Any] = {"id": delivered.id, "state": delivered.state}
        return Response(msgspec.json.encode(said), 200, headers, media_type="application/json")
    status, detail = _SENTENCES[delivered.state]
    if status == NON_RETRYABLE:
        headers["Upstash-NonRetryable-Error"] = "true"
    if delivered.again_ms is not None:
        headers["Retry-After"] = str(-(-delivered.again_ms // 1000))
    problem = {
        "type": "about:blank",
        "title": "Non-Retryable Error" if status == NON_RETRYABLE else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": f"job_{delivered.state}",
    }
    return Response(msgspec.json.encode(problem), status, headers, media_type=MEDIA_TYPE)


async def _read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_BODY:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body_too_large",
                f"At most {LONGEST_BODY} bytes are taken here.",
            )
    return body
