"""Routes of the second factor: setting it up, showing it, and taking it away."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from counterseal.app import Counterseal
from counterseal.sessions.session import Context, Session, Tokens
from counterseal.web.address import limited_as
from counterseal.web.auth.bodies import (
    BackupCodesBody,
    CodeGiven,
    Confirmation,
    EnrolmentBody,
    RenewedBody,
    StepUpBody,
    TokensBody,
    TotpBody,
    Verification,
)
from counterseal.web.auth.delivery import Delivery
from counterseal.web.auth.refusal import unless_refused
from counterseal.web.auth.route import auth_router
from counterseal.web.caller import Carrier, caller_of
from counterseal.web.client import client_of
from counterseal.web.cookies import REFRESH, read_cookie
from counterseal.web.sessions import anywhere_session, fresh_session, recent_login

Fresh = Annotated[Session, Depends(fresh_session)]
Recent = Annotated[Session, Depends(recent_login)]
Anywhere = Annotated[Session, Depends(anywhere_session)]


def totp_routes(seal: Counterseal) -> APIRouter:
    """`totp` and what is below it, save the second step of a log-in."""
    router = auth_router(
        "/totp", refusals=(HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.CONFLICT)
    )
    totp, delivery = seal.accounts.totp, Delivery(seal)

    def given(tokens: Tokens | None, request: Request, response: Response) -> TokensBody | None:
        if tokens is None:
            return None
        in_body = caller_of(request.scope).carrier is Carrier.BEARER
        return delivery.give(tokens, request, response, in_body=in_body)

    @router.get("")
    async def state(session: Fresh) -> TotpBody:
        """What the second factor of the user is asked for, and how many backup codes are left."""
        found = await totp.state(session.user_id)
        return TotpBody(
            login_enabled=found.login_enabled,
            signing_enabled=found.signing_enabled,
            pending=found.pending,
            stopped=found.stopped,
            backup_codes_left=found.backup_codes_left,
        )

    @router.post("/set-up")
    async def set_up(session: Recent) -> EnrolmentBody:
        """Begin: a secret for an authenticator, which counts once `confirm` got a code. One that counts goes on."""
        found = unless_refused(await totp.set_up(session))
        return EnrolmentBody(secret=found.secret, uri=found.uri, qr_svg=found.qr_svg)

    @router.post("/confirm")
    async def confirm(
        body: Confirmation, session: Recent, request: Request, response: Response
    ) -> BackupCodesBody:
        """Enable what was set up. Every other session of the user ends, and this one gets new tokens."""
        made = unless_refused(
            await totp.confirm(session, body.code.get_secret_value(), login=body.login, signing=body.signing)
        )
        return BackupCodesBody(backup_codes=list(made.codes), tokens=given(made.tokens, request, response))

    @router.post("/verify")
    async def verify(
        body: Verification, session: Anywhere, request: Request, response: Response
    ) -> StepUpBody:
        """Show a code within this session, for what needs one. 400 `code_invalid`.

        The session gets a new access token, and a new refresh token where its own came along: in the cookie, or in the
        body with `Authorization: Bearer`.
        """
        client = client_of(request, seal.settings.web)
        in_body = caller_of(request.scope).carrier is Carrier.BEARER
        held = body.refresh_token
        if in_body:
            refresh_token = None if held is None else held.get_secret_value()
        else:
            refresh_token = read_cookie(request.scope["headers"], REFRESH)
        made = unless_refused(
            await totp.step_up(
                session,
                body.code.get_secret_value(),
                context=Context(body.context),
                request_id=body.request_id,
                address=None if client.ip is None else limited_as(client.ip),
                refresh_token=refresh_token,
                user_agent=client.user_agent,
                ip=client.ip,
            )
        )
        shown = made.step_up
        return StepUpBody(
            context=shown.context,
            request_id=shown.request_id,
            method=shown.method,
            verified_at=shown.verified_at,
            tokens=delivery.give_stepped_up(made, request, response, in_body=in_body),
        )

    @router.post("/disable")
    async def disable(body: CodeGiven, session: Recent, request: Request, response: Response) -> RenewedBody:
        """Take the second factor away. Every other session of the user ends, and this one gets new tokens."""
        made = unless_refused(await totp.disable(session, body.code.get_secret_value()))
        return RenewedBody(session_id=session.session_id, tokens=given(made.tokens, request, response))

    @router.post("/backup-codes")
    async def new_backup_codes(body: CodeGiven, session: Fresh) -> BackupCodesBody:
        """New backup codes in place of the old ones, by a code of the authenticator."""
        made = unless_refused(await totp.new_backup_codes(session, body.code.get_secret_value()))
        return BackupCodesBody(backup_codes=list(made.codes), tokens=None)

    return router
