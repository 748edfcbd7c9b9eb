"""Routes of who asks and of their sessions: on which devices somebody is logged in, and ending that."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response

from counterseal.app import Counterseal
from counterseal.sessions.identity import split_session_id
from counterseal.sessions.session import Device, Reason, Session
from counterseal.web.auth.bodies import DeviceBody, DevicesBody, EndedBody, MeBody, SessionBody, UserBody
from counterseal.web.auth.delivery import clear_tokens
from counterseal.web.auth.route import PENDING, auth_router
from counterseal.web.problems import Problem
from counterseal.web.sessions import current_session, fresh_session, recent_login, unauthorized

_ENDED_LATER: Final[dict[int | str, dict[str, Any]]] = {
    status: {**described, "model": EndedBody} for status, described in PENDING.items()
}


def device_routes(seal: Counterseal) -> APIRouter:
    """`me`, `sessions`, `sessions/{session_id}` and `sessions/revoke-others`."""
    router = auth_router(refusals=(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND))

    @router.get("/me")
    async def me(session: Annotated[Session, Depends(current_session)]) -> MeBody:
        """Who is logged in."""
        user = await seal.accounts.user(session.user_id)
        if user is None:
            raise unauthorized()
        return MeBody(user=UserBody.of(user), session=_session_body(session))

    @router.get("/sessions")
    async def list_sessions(session: Annotated[Session, Depends(fresh_session)]) -> DevicesBody:
        """The devices on which the user is logged in."""
        devices = await seal.sessions.list(session.user_id, current=session.session_id)
        return DevicesBody(sessions=[_device_body(device) for device in devices])

    @router.delete("/sessions/{session_id}", status_code=HTTPStatus.NO_CONTENT, responses=PENDING)
    async def end_session(
        session_id: str, request: Request, session: Annotated[Session, Depends(fresh_session)]
    ) -> Response:
        """End a session of the user. Another one than this needs a log-in of the last 10 minutes.

        404 for what is no live session of this user; 202 while the database is down.
        """
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        if session_id == session.session_id:
            clear_tokens(request, response)
        else:
            await recent_login(request)
        ids = split_session_id(session_id)
        # Of somebody else's it is not told whether there is one.
        ended = None
        if ids is not None and ids[0] == session.user_id:
            ended = await seal.sessions.revoke(session_id, reason=Reason.USER)
        if not ended:
            raise Problem(HTTPStatus.NOT_FOUND, "not_found", "You have no such session.")
        if ended.pending:
            response.status_code = HTTPStatus.ACCEPTED
        return response

    @router.post("/sessions/revoke-others", responses=_ENDED_LATER)
    async def end_others(session: Annotated[Session, Depends(recent_login)], response: Response) -> EndedBody:
        """End every session of the user but this one. Needs a log-in of the last 10 minutes; 202 as above."""
        ended = await seal.sessions.revoke_others(session.session_id, reason=Reason.OTHERS)
        if ended.pending:
            response.status_code = HTTPStatus.ACCEPTED
        return EndedBody(ended=ended.ended, pending=ended.pending)

    return router


def _session_body(session: Session) -> SessionBody:
    return SessionBody(
        session_id=session.session_id,
        profile=session.profile,
        amr=list(session.amr),
        device=session.device,
        created_at=session.created_at,
        authenticated_at=session.authenticated_at,
        last_used_at=session.last_used_at,
        expires_at=session.expires_at,
        idle_expires_at=session.idle_expires_at,
    )


def _device_body(device: Device) -> DeviceBody:
    return DeviceBody(
        session_id=device.session_id,
        device=device.device,
        user_agent=device.user_agent,
        ip=device.ip,
        created_at=device.created_at,
        last_used_at=device.last_used_at,
        expires_at=device.expires_at,
        current=device.current,
    )
