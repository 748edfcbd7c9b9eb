"""Refusal: what an account refuses, as a problem over HTTP.

401 is kept for requests without a live session, so that a client may take it for "log in" or "refresh" and never for
"the password was wrong", which is 400 as in OAuth (RFC 6749, 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, TypeVar

from counterseal.accounts.refused import SESSION_ENDED, Refused
from counterseal.web.problems import Problem
from counterseal.web.sessions import unauthorized

_T = TypeVar("_T")

_STATUSES: Final[Mapping[str, HTTPStatus]] = {
    "account_suspended": HTTPStatus.FORBIDDEN,
    "fresh_login_needed": HTTPStatus.FORBIDDEN,
    "totp_enforced": HTTPStatus.FORBIDDEN,
    "totp_required": HTTPStatus.FORBIDDEN,
    "totp_stopped": HTTPStatus.FORBIDDEN,
    "user_unknown": HTTPStatus.NOT_FOUND,
    "email_taken": HTTPStatus.CONFLICT,
    "status_conflict": HTTPStatus.CONFLICT,
    "totp_not_enabled": HTTPStatus.CONFLICT,
    "totp_not_set_up": HTTPStatus.CONFLICT,
    "email_invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "name_invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "totp_context_missing": HTTPStatus.UNPROCESSABLE_ENTITY,
    "password_too_weak": HTTPStatus.UNPROCESSABLE_ENTITY,
    "locked": HTTPStatus.TOO_MANY_REQUESTS,
    "too_many_attempts": HTTPStatus.TOO_MANY_REQUESTS,
}


def unless_refused(answer: _T | Refused) -> _T:
    """An answer that is none of refusal. Raises the refusal as a `Problem`."""
    if not isinstance(answer, Refused):
        return answer
    if answer.code == SESSION_ENDED.code:
        raise unauthorized()
    status = _STATUSES.get(answer.code, HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    if answer.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(answer.retry_after.total_seconds())))
    raise Problem(status, answer.code, answer.detail, headers=headers)
