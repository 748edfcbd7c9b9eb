"""Named: the sessions that the tokens of a request name, whatever has become of them."""

from __future__ import annotations

from starlette.requests import Request

from counterseal.sessions.refresh_token import parse_refresh_token, was_issued
from counterseal.web.auth.bodies import Held
from counterseal.web.caller import Carrier, caller_of
from counterseal.web.cookies import REFRESH, read_cookie


def held_token(body: Held | None) -> str | None:
    """The refresh token of a body; None where the cookie is meant."""
    token = None if body is None else body.refresh_token
    return None if token is None else token.get_secret_value()


def named_sessions(request: Request, *, held: str | None = None, of_cookies: bool = False) -> set[str]:
    """The ids of these sessions; with `of_cookies` only of tokens in cookies. No round trip.

    A refresh token that was replaced long ago still names its session: whoever has it may end it.
    """
    caller = caller_of(request.scope)
    refresh = parse_refresh_token(read_cookie(request.scope["headers"], REFRESH) if held is None else held)
    claims = caller.claims if not of_cookies or caller.carrier is Carrier.COOKIE else None
    found: set[str] = set()
    if refresh is not None and was_issued(refresh, caller.seal.keyring):
        found.add(refresh.session_id)
    return found if claims is None else {*found, claims.session_id}
