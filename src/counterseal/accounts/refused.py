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

CODE_INVALID: Final = Refused("code_invalid", "This code is wrong or has been used.")
FRESH_LOGIN_NEEDED: Final = Refused(
    "fresh_login_needed", "This needs a log-in within the last ten minutes. Log in again."
)
TOTP_STOPPED: Final = Refused(
    "totp_stopped", "Too many codes in a row were wrong. Ask an administrator to verify who you are."
)
TOTP_REQUIRED: Final = Refused("totp_required", "This needs a code of your second factor first.")
TOTP_NOT_SET_UP: Final = Refused("totp_not_set_up", "No second factor waits for its first code.")
TOTP_NOT_ENABLED: Final = Refused("totp_not_enabled", "This account has no second factor.")
TOTP_ENFORCED: Final = Refused("totp_enforced", "Your organisation asks for a second factor.")
TOTP_CONTEXT_MISSING: Final = Refused(
    "totp_context_missing", "Choose what a code is asked for: log-in, signing, or both."
)


def locked(retry_after: timedelta) -> Refused:
    """Too many wrong passwords in a row. An address without an account is locked alike."""
    return Refused("locked", "Too many wrong passwords. Wait, or reset the password.", retry_after)


def too_many_attempts(retry_after: timedelta | None) -> Refused:
    """A limit is reached."""
    return Refused("too_many_attempts", "Too many attempts. Wait before the next one.", retry_after)
