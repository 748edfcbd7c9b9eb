"""Refused: the answer to somebody who may not do what they asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done, and why.

    `code` is what a program compares, `detail` a sentence for people without a secret in it, and `retry_after` the time
    after which the same call may be answered otherwise; None when time changes nothing.
    """

    code: str
    detail: str
    retry_after: timedelta | None = None


INVALID_CREDENTIALS: Final = Refused("invalid_credentials", "The e-mail address or the password is wrong.")
"""For an unknown address as well: which of the two it was is not told."""

WRONG_PASSWORD: Final = Refused("invalid_credentials", "The password is wrong.")
EMAIL_INVALID: Final = Refused("email_invalid", "This is no e-mail address.")
EMAIL_TAKEN: Final = Refused("email_taken", "There is an account with this e-mail address.")
NAME_INVALID: Final = Refused("name_invalid", "A name has at most 200 characters and no control characters.")
TICKET_INVALID: Final = Refused("ticket_invalid", "This log-in has ended. Begin again with the password.")
TOKEN_INVALID: Final = Refused("token_invalid", "This link has been used or has expired.")
SESSION_ENDED: Final = Refused("session_ended", "This session has ended.")
SUSPENDED: Final = Refused("account_suspended", "This account is suspended.")
USER_UNKNOWN: Final = Refused("user_unknown", "There is no such user.")
STATUS_CONFLICT: Final = Refused(
    "status_conflict", "The account is not in a state in which this can be done."
)


def locked(retry_after: timedelta) -> Refused:
    """Too many wrong passwords in a row. An address without an account is locked alike."""
    return Refused("locked", "Too many wrong passwords. Wait, or reset the password.", retry_after)


def too_many_attempts(retry_after: timedelta | None) -> Refused:
    """A limit is reached."""
    return Refused("too_many_attempts", "Too many attempts. Wait before the next one.", retry_after)
