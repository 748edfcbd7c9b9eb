"""Accounts: sign-up, log-in, passwords, and what an administrator does with an account."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from counterseal.accounts.account import find_account
from counterseal.accounts.administration import Administration
from counterseal.accounts.attempts import Attempts
from counterseal.accounts.authentication import Authentication
from counterseal.accounts.backing import Backing, Client
from counterseal.accounts.log_in import EnrolledLogIn, LoggedIn, TotpNeeded
from counterseal.accounts.one_time_token import remove_expired_tokens
from counterseal.accounts.password import Passwords
from counterseal.accounts.policies import COUNTED_ELSEWHERE
from counterseal.accounts.recovery import Recovery
from counterseal.accounts.refused import USER_UNKNOWN, Refused
from counterseal.accounts.sign_up import sign_up
from counterseal.accounts.totp import Totp
from counterseal.accounts.totp_enrolment import Enrolment
from counterseal.accounts.user import User, read_user, write_user
from counterseal.audit.service import Audit
from counterseal.cache.service import Cache
from counterseal.core.events import Events
from counterseal.core.keyring import Keyring
from counterseal.database.engine import Database
from counterseal.ratelimit.service import RateLimits
from counterseal.sessions.identity import is_identifier
from counterseal.sessions.service import Sessions
from counterseal.sessions.session import Revocation, Session


class Accounts:
    """The accounts of an application.

    A refusal is an answer (`Refused`), never an error. Every method raises `DatabaseUnavailable` when the database does
    not answer: nobody signs up, logs in or changes an account without it. Without Redis all of them work; limits are
    counted in the database then. `ip` must come from whom the application trusts; text that is no address is left out.
    """

    def __init__(
        self,
        database: Database,
        *,
        sessions: Sessions,
        rate_limits: RateLimits,
        keyring: Keyring,
        audit: Audit,
        events: Events,
        cache: Cache,
        now_ms: Callable[[], int],
        passwords: Passwords | None = None,
    ) -> None:
        """`passwords` has other costs than the usual ones. No input or output."""
        self._backing = Backing(
            database=database,
            sessions=sessions,
            rate_limits=rate_limits,
            passwords=passwords or Passwords(),
            audit=audit,
            events=events,
            cache=cache,
            now_ms=now_ms,
        )
        self.totp = Totp(self._backing, keyring=keyring)
        self._attempts = Attempts(database, now_ms=now_ms, policies=COUNTED_ELSEWHERE)
        self._authentication = Authentication(self._backing, totp=self.totp)
        self._recovery = Recovery(self._backing, authentication=self._authentication)
        self._administration = Administration(self._backing)

    # -- coming in -----------------------------------------------------------------------------------------------

    async def sign_up(
        self,
        *,
        email: str,
        password: str,
        full_name: str = "",
        user_agent: str | None = None,
        ip: str | None = None,
    ) -> LoggedIn | Refused:
        """Make an account and log its owner in.

        At most 10 an hour from one address. A token to verify the e-mail address goes out as the event
        `EmailVerificationRequested`. Refused as `email_invalid`, `name_invalid`, `password_too_weak`,
        `too_many_attempts` and `email_taken`. One transaction and one that reads; at most two round trips.
        """
        return await sign_up(
            self._backing,
            email=email,
            password=password,
            full_name=full_name,
            client=Client.of(ip, user_agent),
        )

    async def log_in(
        self,
        *,
        email: str,
        password: str,
        user_agent: str | None = None,
        ip: str | None = None,
        remember: bool = False,
        replacing: str | None = None,
    ) -> LoggedIn | TotpNeeded | Refused:
        """Log somebody in by password; or half, when a TOTP code is needed as well.

        An unknown address, a deleted account and a wrong password are one answer, `invalid_credentials`, after the same
        work. The fifth wrong password in a row locks the address for 30 minutes (`locked`), whether or not it has an
        account. At most 10 passwords a minute are tried for one address, and right ones do not count
        (`too_many_attempts`). `account_suspended` is told only to those who know the password. `remember` asks for a
        longer session, which is given where the settings and the domain allow it. A hash that was made with other costs
        is made anew. `replacing` is the id of a session of this user that ends with the log-in, such as the one that
        the browser had before: it takes no place of another device, and lives on when the log-in fails.

        One transaction and at most three that read; at most eight round trips.
        """
        return await self._authentication.log_in(
            email=email,
            password=password,
            client=Client.of(ip, user_agent),
            remember=remember,
            replacing=replacing,
        )

    async def finish_log_in(
        self,
        *,
        ticket: str,
        code: str,
        user_agent: str | None = None,
        ip: str | None = None,
        replacing: str | None = None,
    ) -> LoggedIn | Refused:
        """The second half: a TOTP code, or a backup code.

        A ticket is good for 5 minutes and for one session. A wrong code does not use it up: what limits those is said
        at `Totp.verify`, whose refusals are handed on. Refused as `ticket_invalid` (unknown, used, expired, and after a
        change of the password), `locked` and `account_suspended` besides. `replacing` is as at `log_in`.

        Two transactions and one that reads besides those of `Totp.verify`; at most seven round trips besides its own.
        """
        return await self._authentication.finish_log_in(
            ticket=ticket, code=code, client=Client.of(ip, user_agent), replacing=replacing
        )

    async def set_up_totp(self, *, ticket: str) -> Enrolment | Refused:
        """Begin to set up a second factor in the middle of a log-in, for who has none and needs one (`TotpNeeded`).

        So nobody is locked out whose domain asks for one. Refused as `ticket_invalid`, `locked`, `account_suspended`,
        and as `totp_required` where a factor is enabled. One round trip; one transaction and one that reads.
        """
        return await self._authentication.set_up_totp(ticket=ticket)

    async def confirm_totp(
        self,
        *,
        ticket: str,
        code: str,
        signing: bool = True,
        user_agent: str | None = None,
        ip: str | None = None,
        replacing: str | None = None,
    ) -> EnrolledLogIn | Refused:
        """Enable what was set up by its first code, and log in; the user's other sessions end.

        A code is asked for at log-ins from now on, and for `signing` where that is chosen. Refused as `set_up_totp`,
        and as `totp_not_set_up`, `code_invalid` and `too_many_attempts`; a wrong code does not use the ticket up.
        `replacing` is as at `log_in`. Three transactions and at most three that read; at most twelve round trips.
        """
        return await self._authentication.confirm_totp(
            ticket=ticket, code=code, signing=signing, client=Client.of(ip, user_agent), replacing=replacing
        )

    # -- passwords and addresses ---------------------------------------------------------------------------------

    async def change_password(self, session: Session, *, current: str, new: str) -> LoggedIn | Refused:
        """Set another password. The user's other sessions end, and this one gets new tokens.

        The log-in must be at most ten minutes old, and is not renewed by it. The current password is asked for as
        well; a wrong one counts as at `log_in`. Half-finished log-ins and links to reset the password are worth nothing
        afterwards. Refused as `session_ended`, `fresh_login_needed`, `password_too_weak` and as `log_in` refuses. Two
        transactions and at most three that read; at most eight round trips.
        """
        return await self._recovery.change_password(session, current=current, new=new)

    async def request_password_reset(
        self, *, email: str, user_agent: str | None = None, ip: str | None = None
    ) -> None:
        """Emit `PasswordResetRequested` with a token for whoever has this address.

        An address that nobody has gets the same answer after the same work, and so does one for which five mails were
        asked within an hour: then there is no event. One transaction; one round trip.
        """
        await self._recovery.request_password_reset(email=email, client=Client.of(ip, user_agent))

    async def reset_password(
        self, *, token: str, new: str, user_agent: str | None = None, ip: str | None = None
    ) -> Refused | None:
        """Set another password by the token of a mail. Every session of the user ends, and so does a lock.

        A token is good for 24 hours and once; the others of this user are worth nothing afterwards. Whoever has it
        reads the mail of that address, so the address counts as verified. Nobody is logged in by it, and TOTP stays as
        it is. Refused as `token_invalid` and `password_too_weak`. One transaction and one that reads; at most five
        round trips.
        """
        return await self._recovery.reset_password(token=token, new=new, client=Client.of(ip, user_agent))

    async def request_email_verification(self, user_id: str) -> Refused | None:
        """Emit `EmailVerificationRequested` with a new token, unless the address is verified.

        Refused as `user_unknown` and `too_many_attempts`: five mails an hour, password resets among them. One
        transaction and one that reads; one round trip.
        """
        if not is_identifier(user_id):
            return USER_UNKNOWN
        return await self._recovery.request_email_verification(user_id)

    async def verify_email(self, *, token: str) -> User | Refused:
        """Note that an address belongs to its user. Refused as `token_invalid`. One transaction; one round trip."""
        return await self._recovery.verify_email(token=token)

    # -- users ---------------------------------------------------------------------------------------------------

    async def user(self, user_id: str) -> User | None:
        """A profile, out of the cache or the database; None for an unknown or deleted user.

        It may be 15 minutes old when Redis could not be told of a change: decide nothing by its `status`. One round
        trip; at most eight and a transaction that reads when it is not in the cache.
        """
        if not is_identifier(user_id):
            return None
        profile = await self._backing.cache.user_profiles.get_or_load(user_id, self._load)
        if profile is None:
            return None
        try:
            return read_user(profile)
        except (KeyError, TypeError, ValueError):  # kept by another release
            return await self._find(user_id)

    async def suspend(self, user_id: str, *, by: str, why: str = "") -> Revocation | Refused:
        """Let nobody log in to an account, and end its sessions, in one transaction.

        `by` is the id of the administrator, or a name for one without an account. Whether somebody may do this the
        caller has to know. Refused as `user_unknown` and `status_conflict`. One transaction; at most five round trips.
        """
        return await self._administration.suspend(user_id, by=by, why=why)

    async def restore(self, user_id: str, *, by: str, why: str = "") -> Refused | None:
        """Lift a suspension. Sessions that it ended stay ended.

        Refused as `suspend`. One transaction; one round trip.
        """
        return await self._administration.restore(user_id, by=by, why=why)

    async def delete(self, user_id: str, *, by: str, why: str = "") -> Revocation | Refused:
        """Close an account for good: sessions, password, TOTP and tokens are gone, in one transaction.

        The row stays, because documents and the audit log name it, and with it the address: nobody can sign up with it
        again. Refused as `suspend`. One transaction; at most five round trips.
        """
        return await self._administration.delete(user_id, by=by, why=why)

    async def cleanup_expired(self, limit: int = 1000) -> int:
        """Remove tokens that expired a day ago, and attempts that count no more; how many. Two transactions."""
        async with self._backing.database.begin() as connection:
            tokens = await remove_expired_tokens(connection, now=self._backing.now(), limit=limit)
        return tokens + await self._attempts.cleanup_expired(limit)

    async def _load(self, user_id: str) -> dict[str, Any] | None:
        user = await self._find(user_id)
        return None if user is None else write_user(user)

    async def _find(self, user_id: str) -> User | None:
        async with self._backing.database.read() as connection:
            account = await find_account(connection, user_id=user_id)
        return None if account is None else account.user
