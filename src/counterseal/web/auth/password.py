"""Routes of passwords, and of the links that come by mail."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from counterseal.accounts.events import EmailVerificationRequested, PasswordResetRequested
from counterseal.app import Counterseal
from counterseal.sessions.session import Session
from counterseal.web.auth.bodies import Forgotten, PasswordChange, RenewedBody, Reset, TokenGiven
from counterseal.web.auth.delivery import Delivery
from counterseal.web.auth.refusal import unless_refused
from counterseal.web.auth.route import auth_router
from counterseal.web.caller import Carrier, caller_of
from counterseal.web.client import client_of
from counterseal.web.problems import Problem
from counterseal.web.sessions import fresh_session, recent_login


def password_routes(seal: Counterseal) -> APIRouter:
    """`password`, `password/forgot`, `password/reset`, `email/send-verification` and `email/verify`."""
    router = auth_router(refusals=(HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED))
    accounts, web, delivery = seal.accounts, seal.settings.web, Delivery(seal)

    def check_mail(kind: type) -> None:
        # A mail that nobody sends is not to be promised.
        if not seal.events.heard(kind):
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "mail_unavailable", "Mails can't be sent from here."
            )

    @router.post("/password")
    async def change_password(
        body: PasswordChange,
        session: Annotated[Session, Depends(recent_login)],
        request: Request,
        response: Response,
    ) -> RenewedBody:
        """Replace the password. Needs a log-in of the last 10 minutes, which it does not renew.

        Every other session of the user ends, and this one gets new tokens.
        """
        made = unless_refused(
            await accounts.change_password(
                session,
                current=body.current_password.get_secret_value(),
                new=body.new_password.get_secret_value(),
            )
        )
        in_body = caller_of(request.scope).carrier is Carrier.BEARER
        return RenewedBody(
            session_id=made.session.session_id,
            tokens=delivery.give(made.tokens, request, response, in_body=in_body),
        )

    @router.post("/password/forgot", status_code=HTTPStatus.ACCEPTED)
    async def forgot_password(body: Forgotten) -> Response:
        """Have a link sent, if there is an account; the answer is the same if there is none. 503 `mail_unavailable`."""
        check_mail(PasswordResetRequested)
        await accounts.request_password_reset(email=body.email)
        return Response(status_code=HTTPStatus.ACCEPTED)

    @router.post("/password/reset", status_code=HTTPStatus.NO_CONTENT)
    async def reset_password(body: Reset, request: Request) -> Response:
        """Set a password by the token of a link. Every session of the user ends. 400 `token_invalid`."""
        client = client_of(request, web)
        unless_refused(
            await accounts.reset_password(
                token=body.token.get_secret_value(),
                new=body.new_password.get_secret_value(),
                user_agent=client.user_agent,
                ip=client.ip,
            )
        )
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @router.post("/email/send-verification", status_code=HTTPStatus.ACCEPTED)
    async def send_verification(session: Annotated[Session, Depends(fresh_session)]) -> Response:
        """Have a link sent that verifies the address, unless it is verified. 503 `mail_unavailable`."""
        check_mail(EmailVerificationRequested)
        unless_refused(await accounts.request_email_verification(session.user_id))
        return Response(status_code=HTTPStatus.ACCEPTED)

    @router.post("/email/verify", status_code=HTTPStatus.NO_CONTENT)
    async def verify_email(body: TokenGiven) -> Response:
        """Show that mails to the address arrive, by the token of a link. 400 `token_invalid`."""
        unless_refused(await accounts.verify_email(token=body.token.get_secret_value()))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return router
