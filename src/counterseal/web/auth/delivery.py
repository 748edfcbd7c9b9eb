"""Delivery: how tokens get to a client. Browsers have them in cookies, which no script can read; others in the body."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response

from counterseal.accounts.totp_verification import SteppedUp
from counterseal.app import Counterseal
from counterseal.sessions.session import Tokens
from counterseal.web.auth.bodies import NewAccessBody, TokensBody
from counterseal.web.cookies import access_cookie, cleared_cookies, refresh_cookie


class Delivery:
    """The two ways, by the clock of a `Counterseal`. No round trip."""

    def __init__(self, seal: Counterseal) -> None:
        self._now_ms = seal.store.now_ms

    def give(
        self, tokens: Tokens, request: Request, response: Response, *, in_body: bool
    ) -> TokensBody | None:
        """What the body says of new tokens: themselves, or None once they are in cookies of the response.

        Never both: a program that keeps them by itself would send cookies along from then on.
        """
        if in_body:
            return TokensBody(
                access_token=tokens.access_token,
                refresh_token=tokens.refresh_token,
                access_expires_at=tokens.access_expires_at,
                refresh_expires_at=tokens.refresh_expires_at,
            )
        left = tokens.refresh_expires_at - datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        set_cookies(
            response,
            access_cookie(tokens.access_token),
            refresh_cookie(tokens.refresh_token, left, below=_mounted_at(request)),
        )
        return None

    def give_stepped_up(
        self, made: SteppedUp, request: Request, response: Response, *, in_body: bool
    ) -> NewAccessBody | None:
        """As `give`, of a step-up, which has a refresh token only where one came along."""
        pair = made.tokens
        if in_body:
            return NewAccessBody(
                access_token=made.access_token,
                refresh_token=None if pair is None else pair.refresh_token,
                access_expires_at=made.access_expires_at,
                refresh_expires_at=None if pair is None else pair.refresh_expires_at,
            )
        if pair is not None:
            self.give(pair, request, response, in_body=False)
        else:
            set_cookies(response, access_cookie(made.access_token))
        return None


def clear_tokens(request: Request, response: Response) -> None:
    """Have a browser forget its tokens."""
    set_cookies(response, *cleared_cookies(below=_mounted_at(request)))


def set_cookies(response: Response, *lines: str) -> None:
    """A header line for each."""
    headers: MutableHeaders = response.headers
    for line in lines:
        headers.append("Set-Cookie", line)


def _mounted_at(request: Request) -> str:
    """The path below which a browser has these routes."""
    return request.scope.get("root_path", "")
