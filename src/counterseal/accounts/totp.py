"""TOTP: the second factor of an account, what an application uses of it."""

from __future__ import annotations

import logging
from typing import Any

from counterseal.accounts.backing import Backing, Client
from counterseal.accounts.refused import Refused
from counterseal.accounts.totp_config import find_config, forget_failures
from counterseal.accounts.totp_enrolment import BackupCodes, Disabled, Enrolling, Enrolment
from counterseal.accounts.totp_guesses import Guesses
from counterseal.accounts.totp_policy import TotpState, find_policy, find_state, forget_state, read_state
from counterseal.accounts.totp_verification import SteppedUp, Verification, Verified
from counterseal.core.keyring import Keyring
from counterseal.sessions.session import Context, Session

logger = logging.getLogger(__name__)


class Totp:
    """The second factors of users. `issuer` is what authenticators call the application.

    A code is used up in the database, in the transaction of what it is shown for: however many show it at once, it is
    good once. Every method raises `DatabaseUnavailable` when the database does not answer, and works without Redis;
    limits are counted in the database then. A secret whose key has left the ring raises `SealBroken`.
    """

    def __init__(self, backing: Backing, *, keyring: Keyring, issuer: str = "counterseal") -> None:
        """No input or output."""
        guesses = Guesses(backing)
        self._backing = backing
        self._verification = Verification(backing, keyring=keyring, guesses=guesses)
        self.enrolling = Enrolling(
            backing, keyring=keyring, guesses=guesses, verification=self._verification, issuer=issuer
        )
        """For log-ins in whose middle a factor is set up; others call the methods below."""

    # -- showing a code ------------------------------------------------------------------------------------------

    async def verify(
        self, user_id: str, code: str, *, context: Context, address: str | None = None
    ) -> Verified | Refused:
        """Take a code of the authenticator or a backup code, and use it up.

        5 wrong ones in 5 minutes and 20 a day are taken of a user for log-in, and as many for signing, and 30 in 5
        minutes from an `address` (`too_many_attempts`). 100 wrong ones in a row stop the factor (`totp_stopped`) until
        `restart`. A wrong, used, foreign or malformed code and a user without a second factor are one answer,
        `code_invalid`. A wrong backup code costs as many hashes as codes are left.

        At most three round trips; one transaction that reads and one that writes.
        """
        return await self._verification.verify(user_id, code, context=Context(context), address=address)

    async def step_up(
        self,
        session: Session,
        code: str,
        *,
        context: Context,
        request_id: str | None = None,
        address: str | None = None,
        refresh_token: str | None = None,
        user_agent: str | None = None,
        ip: str | None = None,
    ) -> SteppedUp | Refused:
        """Take a code as `verify`, note in the session what it was shown for, and give it a new access token.

        Only a code that was shown for a request (text of 1 to 128 bytes) authorises its signature, and one for signing
        alone is no log-in. One for log-in notes `user_agent` and `ip`, from where the session is used from now on.
        `refresh_token` is that of the session, where the caller has it: then it is replaced as `Sessions.rotate` does,
        and the answer has the pair. Without it the refresh token stays what it is, so that nobody has a dead one.

        Refused as `verify`, and as `session_ended`. Raises `ConfigurationError` for what can't be a request. At most
        four round trips, one transaction that reads and one that writes; besides, those of `Sessions.rotate`.
        """
        return await self._verification.step_up(
            session,
            code,
            context=Context(context),
            request_id=request_id,
            address=address,
            refresh_token=refresh_token,
            client=Client.of(ip, user_agent),
        )

    # -- setting up ----------------------------------------------------------------------------------------------

    async def set_up(self, session: Session) -> Enrolment | Refused:
        """Make a secret that counts once `confirm` got a code of it. One that is enabled goes on as it is.

        The log-in must be at most ten minutes old, and where a factor is enabled it must have been shown within this
        session. Refused as `session_ended`, `fresh_login_needed` and `totp_required`. At most three round trips; one
        transaction that reads and one that writes.
        """
        return await self.enrolling.set_up(session)

    async def confirm(
        self, session: Session, code: str, *, login: bool = True, signing: bool = True
    ) -> BackupCodes | Refused:
        """Enable what was set up, by a code of it, and make ten backup codes. What was enabled before is replaced.

        `login` and `signing`: what a code is asked for from now on. The user's other sessions end, and this one gets
        new tokens. Refused as `set_up`, and as `totp_context_missing`, `totp_not_set_up`, `code_invalid` and
        `too_many_attempts`. At most nine round trips; two transactions that read and two that write.
        """
        return await self.enrolling.confirm(session, code, login=login, signing=signing)

    async def disable(self, session: Session, code: str) -> Disabled | Refused:
        """Take the second factor away, by one of its codes or a backup code.

        The log-in must be at most ten minutes old. The user's other sessions end, and this one gets new tokens. Refused
        as `verify`, and as `session_ended`, `fresh_login_needed`, `totp_not_enabled`, and `totp_enforced` where the
        domain asks for a second factor. At most nine round trips; three transactions that read and two that write.
        """
        return await self.enrolling.disable(session, code)

    async def new_backup_codes(self, session: Session, code: str) -> BackupCodes | Refused:
        """Ten new backup codes in place of all the old ones, by a code of the authenticator.

        Refused as `verify`, and as `session_ended` and `totp_not_enabled`. At most six round trips; three transactions
        that read and one that writes.
        """
        return await self.enrolling.new_backup_codes(session, code)

    # -- policy --------------------------------------------------------------------------------------------------

    async def needed(self, user_id: str, context: Context) -> bool:
        """Whether a code is to be asked for: the user wants it, or the domain and its days of grace are over.

        An exemption that has not expired takes both back. The database is asked, never the cache; when it can't tell,
        for whatever reason, a code is needed. No round trip; one transaction that reads. Never raises.
        """
        try:
            async with self._backing.database.read() as connection:
                policy = await find_policy(connection, user_id, now=self._backing.now())
            return policy.needs(Context(context))
        except Exception as fault:  # noqa: BLE001 - whatever it is, nobody gets in by it
            logger.warning("a TOTP policy can't be read, so a code is needed (%s)", type(fault).__name__)
            return True

    async def enrolled(self, user_id: str) -> bool:
        """Whether a user has a factor that is enabled, by the database; what it can't tell counts as yes.

        No round trip; one transaction that reads. Never raises.
        """
        try:
            async with self._backing.database.read() as connection:
                return await find_config(connection, user_id, "enabled") is not None
        except Exception as fault:  # noqa: BLE001 - setting one up is refused elsewhere, by the row itself
            logger.warning("whether a second factor is enabled can't be read (%s)", type(fault).__name__)
            return True

    async def state(self, user_id: str) -> TotpState:
        """What may be shown of a second factor; 30 minutes old at most, where Redis could not be told of a change.

        Decide nothing by it: `needed` does. One round trip; at most eight and a transaction that reads when it is not
        in the cache.
        """

        async def load(identifier: str) -> dict[str, Any]:
            async with self._backing.database.read() as connection:
                return await find_state(connection, identifier, now=self._backing.now())

        written = await self._backing.cache.totp_configs.get_or_load(user_id, load)
        try:
            return read_state(written or {}, now=self._backing.now())
        except (KeyError, TypeError, ValueError):  # kept by another release
            return read_state(await load(user_id), now=self._backing.now())

    # -- for administrators --------------------------------------------------------------------------------------

    async def restart(self, user_id: str, *, by: str) -> bool:
        """Take codes again after 100 wrong ones in a row; whether they were refused. One transaction; one round trip.

        For after it was verified who the user is, which the caller has to know. `by` is who verified it.
        """
        async with self._backing.database.begin() as connection:
            restarted = await forget_failures(connection, user_id)
            if restarted:
                await self._backing.note(connection, "mfa.restarted", user_id=user_id, body={"by": by})
        await forget_state(self._backing, user_id)
        return restarted

    async def remove(self, user_id: str, *, by: str) -> bool:
        """Take away the second factor of a user whose authenticator is lost; whether there was one.

        All sessions of the user end. For after it was verified who the user is, as `restart`. One transaction; at most
        five round trips.
        """
        return await self.enrolling.remove(user_id, by=by)
