"""Bodies: what the routes of `/api/auth` take and give, as JSON. Unknown members are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from counterseal.accounts.user import User
from counterseal.sessions.identity import is_identifier


def _identifier(text: str) -> str:
    if text.isprintable() and is_identifier(text):
        return text
    raise ValueError("expected 1 to 128 bytes of UTF-8 without control characters")


Address = Annotated[str, Field(max_length=320)]
Name = Annotated[str, Field(max_length=400)]
RequestId = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_identifier)]
Password = Annotated[SecretStr, Field(max_length=1024)]
"""Room for more than is taken: what may be an address, a name or a password, `accounts` says."""
Code = Annotated[SecretStr, Field(min_length=1, max_length=64)]
Token = Annotated[SecretStr, Field(min_length=1, max_length=512)]
Delivery = Literal["cookies", "body"]


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class SignUp(_Taken):
    """A new account. `tokens` says where the tokens go: browsers want cookies, other programs the body."""

    email: Address
    password: Password
    full_name: Name = ""
    tokens: Delivery = "cookies"


class LogIn(_Taken):
    """E-mail and password. `remember` asks for a longer session, where the application allows it."""

    email: Address
    password: Password
    remember: bool = False
    tokens: Delivery = "cookies"


class SecondStep(_Taken):
    """The ticket of a log-in that wants a second factor, and its code or a backup code."""

    ticket: Token
    code: Code
    tokens: Delivery = "cookies"


class TicketGiven(_Taken):
    """The ticket of a log-in whose user has to set up a second factor."""

    ticket: Token


class EnrollingStep(_Taken):
    """The ticket of a log-in, the first code of what was set up with it, and whether signatures ask for one."""

    ticket: Token
    code: Code
    signing: bool = True
    tokens: Delivery = "cookies"


class Held(_Taken):
    """A refresh token, of a program that keeps it by itself. Browsers have it in a cookie and send no body."""

    refresh_token: SecretStr | None = None


class CodeGiven(_Taken):
    """A code of the second factor, or a backup code."""

    code: Code


class Confirmation(_Taken):
    """The first code of a second factor that was set up, and what it is to be asked for."""

    code: Code
    login: bool = True
    signing: bool = True


class Verification(_Taken):
    """A code shown within a session. For a signature `request_id` names what is to be signed.

    `refresh_token` is of a program that keeps its tokens by itself, and wants both replaced.
    """

    code: Code
    context: Literal["login", "signing", "both"]
    request_id: RequestId | None = None
    refresh_token: SecretStr | None = None

    @model_validator(mode="after")
    def _names_what_is_signed(self) -> Self:
        if self.context == "signing" and self.request_id is None:
            raise ValueError("expected request_id: a code for no request signs none")
        return self


class Forgotten(_Taken):
    """Whose password is forgotten."""

    email: Address


class TokenGiven(_Taken):
    """A token that came by mail."""

    token: Token


class Reset(_Taken):
    """A new password, with the token that came by mail."""

    token: Token
    new_password: Password


class PasswordChange(_Taken):
    """A new password, with the one that it replaces."""

    current_password: Password
    new_password: Password


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class UserBody(_Given):
    """A user as they see themselves."""

    id: str
    email: str
    full_name: str
    email_verified: bool

    @classmethod
    def of(cls, user: User) -> Self:
        """These members of a user and no others."""
        return cls(id=user.id, email=user.email, full_name=user.full_name, email_verified=user.email_verified)


class TokensBody(_Given):
    """A pair of tokens."""

    access_token: str = Field(repr=False)
    refresh_token: str = Field(repr=False)
    access_expires_at: datetime
    refresh_expires_at: datetime


class NewAccessBody(_Given):
    """A new access token. `refresh_token` is null where the one that the client has stays what it is."""

    access_token: str = Field(repr=False)
    refresh_token: str | None = Field(repr=False)
    access_expires_at: datetime
    refresh_expires_at: datetime | None


class LoggedInBody(_Given):
    """Somebody is logged in. `tokens` is null where they are in cookies."""

    status: Literal["logged_in"] = "logged_in"
    user: UserBody
    session_id: str
    tokens: TokensBody | None


class EnrolledLogInBody(LoggedInBody):
    """Somebody has set up a second factor and is logged in. The backup codes are shown this once."""

    backup_codes: list[str] = Field(repr=False)


class TotpNeededBody(_Given):
    """The password was right, and a second factor is wanted: see `POST /api/auth/totp/log-in`.

    Who is not `enrolled` has none yet: see `POST /api/auth/totp/log-in/set-up`.
    """

    status: Literal["totp_needed"] = "totp_needed"
    ticket: str = Field(repr=False)
    expires_at: datetime
    enrolled: bool


class RenewedBody(_Given):
    """A session has new tokens. `tokens` is null where they are in cookies, or the session has ended meanwhile."""

    session_id: str
    tokens: TokensBody | None


class SessionBody(_Given):
    """The session of whoever asks."""

    session_id: str
    profile: str
    amr: list[str]
    device: str
    created_at: datetime
    authenticated_at: datetime
    last_used_at: datetime
    expires_at: datetime
    idle_expires_at: datetime


class MeBody(_Given):
    """Whoever asks."""

    user: UserBody
    session: SessionBody


class DeviceBody(_Given):
    """A live session in the list of its user."""

    session_id: str
    device: str
    user_agent: str | None
    ip: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    current: bool


class DevicesBody(_Given):
    """The live sessions of a user, the latest used first."""

    sessions: list[DeviceBody]


class EndedBody(_Given):
    """How many sessions were ended. `pending`: the record will have it once the database is back."""

    ended: int
    pending: bool


class TotpBody(_Given):
    """The second factor of a user. `pending` waits for its first code; `stopped` had too many wrong ones in a row."""

    login_enabled: bool
    signing_enabled: bool
    pending: bool
    stopped: bool
    backup_codes_left: int


class EnrolmentBody(_Given):
    """A second factor that waits for its first code."""

    secret: str = Field(repr=False)
    uri: str = Field(repr=False)
    qr_svg: str = Field(repr=False)


class BackupCodesBody(_Given):
    """Backup codes, which are shown this once. `tokens` is null where there are no new ones, or in cookies."""

    backup_codes: list[str] = Field(repr=False)
    tokens: TokensBody | None


class StepUpBody(_Given):
    """A second factor that was shown. `tokens` is null where they are in cookies."""

    context: str
    request_id: str | None
    method: str
    verified_at: datetime
    tokens: NewAccessBody | None
