"""Routes of logging in: signing up, logging in with one factor or two, and new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from counterseal.accounts.log_in import LoggedIn, TotpNeeded
from counterseal.app import Counterseal
from counterseal.sessions.identity import split_session_id
from counterseal.sessions.session import Reason
from counterseal.web.auth.bodies import (
    EnrolledLogInBody,
    EnrollingStep,
    EnrolmentBody,
    Held,
    LoggedInBody,
    LogIn,
    RenewedBody,
    SecondStep,
    SignUp,
    TicketGiven,
    TotpNeededBody,
    UserBody,
)
from counterseal.web.auth.delivery import Delivery
from counterseal.web.auth.named import held_token, named_sessions
from counterseal.web.auth.refusal import unless_refused
from counterseal.web.auth.route import auth_router
from counterseal.web.client import client_of
from counterseal.web.cookies import REFRESH, read_cookie
from counterseal.web.security_schemes import OR_WITHOUT, ByRefreshCookie
from counterseal.web.sessions import unauthorized


def log_in_routes(seal: Counterseal) -> APIRouter:
    """`sign-up`, `log-in`, `totp/log-in` and what is below it, and `refresh`."""
    router = auth_router(refusals=(HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.CONFLICT))
    accounts, web, delivery = seal.accounts, seal.settings.web, Delivery(seal)

    def before(request: Request, *, in_body: bool) -> list[str]:
        # The cookies that go now would leave them alive, where nobody has their tokens (ASVS 5.0, 7.2.4).
        return [] if in_body else sorted(named_sessions(request, of_cookies=True))

    async def logged_in(
        made: LoggedIn, ends: Sequence[str], request: Request, response: Response, *, in_body: bool
    ) -> LoggedInBody:
        for number, session_id in enumerate(ends):
            # The first went with the log-in, in one transaction, unless it is of another user.
            if number > 0 or not _is_of(session_id, made.user.id):
                await seal.sessions.revoke(session_id, reason=Reason.LOGOUT)
        return LoggedInBody(
            user=UserBody.of(made.user),
            session_id=made.session.session_id,
            tokens=delivery.give(made.tokens, request, response, in_body=in_body),
        )

    @router.post("/sign-up", status_code=HTTPStatus.CREATED)
    async def sign_up(body: SignUp, request: Request, response: Response) -> LoggedInBody:
        """Make an account and log in. 409 `email_taken`, 422 `email_invalid`, `name_invalid`, `password_too_weak`."""
        client = client_of(request, web)
        answer = await accounts.sign_up(
            email=body.email,
            password=body.password.get_secret_value(),
            full_name=body.full_name,
            user_agent=client.user_agent,
            ip=client.ip,
        )
        in_body = body.tokens == "body"
        return await logged_in(
            unless_refused(answer), before(request, in_body=in_body), request, response, in_body=in_body
        )

    @router.post("/log-in")
    async def log_in(body: LogIn, request: Request, response: Response) -> LoggedInBody | TotpNeededBody:
        """Log in, or be told that a second factor is wanted. 400 `invalid_credentials`, 429 `locked`."""
        client, in_body = client_of(request, web), body.tokens == "body"
        ends = before(request, in_body=in_body)
        answer = unless_refused(
            await accounts.log_in(
                email=body.email,
                password=body.password.get_secret_value(),
                user_agent=client.user_agent,
                ip=client.ip,
                remember=body.remember,
                replacing=ends[0] if ends else None,
            )
        )
        if isinstance(answer, TotpNeeded):
            return TotpNeededBody(
                ticket=answer.ticket, expires_at=answer.expires_at, enrolled=answer.enrolled
            )
        return await logged_in(answer, ends, request, response, in_body=in_body)

    @router.post("/totp/log-in")
    async def finish_log_in(body: SecondStep, request: Request, response: Response) -> LoggedInBody:
        """The second step of a log-in. 400 `ticket_invalid`, `code_invalid`."""
        client, in_body = client_of(request, web), body.tokens == "body"
        ends = before(request, in_body=in_body)
        answer = await accounts.finish_log_in(
            ticket=body.ticket.get_secret_value(),
            code=body.code.get_secret_value(),
            user_agent=client.user_agent,
            ip=client.ip,
            replacing=ends[0] if ends else None,
        )
        return await logged_in(unless_refused(answer), ends, request, response, in_body=in_body)

    @router.post("/totp/log-in/set-up")
    async def set_up_totp(body: TicketGiven) -> EnrolmentBody:
        """In the middle of a log-in, for who needs a second factor and has none. 400 `ticket_invalid`."""
        made = unless_refused(await accounts.set_up_totp(ticket=body.ticket.get_secret_value()))
        return EnrolmentBody(secret=made.secret, uri=made.uri, qr_svg=made.qr_svg)

    @router.post("/totp/log-in/confirm")
    async def confirm_totp(body: EnrollingStep, request: Request, response: Response) -> EnrolledLogInBody:
        """Enable what was set up, by its first code, and log in. Every other session of the user ends.

        400 `ticket_invalid`, `code_invalid`.
        """
        client, in_body = client_of(request, web), body.tokens == "body"
        ends = before(request, in_body=in_body)
        made = unless_refused(
            await accounts.confirm_totp(
                ticket=body.ticket.get_secret_value(),
                code=body.code.get_secret_value(),
                signing=body.signing,
                user_agent=client.user_agent,
                ip=client.ip,
                replacing=ends[0] if ends else None,
            )
        )
        whole = await logged_in(made.logged_in, ends, request, response, in_body=in_body)
        return EnrolledLogInBody(**dict(whole), backup_codes=list(made.backup_codes))

    @router.post("/refresh", openapi_extra=OR_WITHOUT)
    async def refresh(
        request: Request, response: Response, body: Held | None = None, _described: ByRefreshCookie = None
    ) -> RenewedBody:
        """New tokens for a refresh token: of the body, else of the cookie; they go where it came from."""
        # A page that could have the token of the cookie told in the body would have it stolen by a script of others.
        held = held_token(body)
        token = read_cookie(request.scope["headers"], REFRESH) if held is None else held
        made = None if token is None else await seal.sessions.rotate(token)
        if made is None:
            raise unauthorized()
        return RenewedBody(
            session_id=made.session_id,
            tokens=delivery.give(made.tokens, request, response, in_body=held is not None),
        )

    return router


def _is_of(session_id: str, user_id: str) -> bool:
    ids = split_session_id(session_id)
    return ids is not None and ids[0] == user_id
