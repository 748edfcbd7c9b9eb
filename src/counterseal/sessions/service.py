"""Sessions: the service that an application uses.

::

    made = await seal.sessions.create(user_id="u1", email="ada@example.com", user_agent=..., ip=...)
    session = await seal.sessions.get(made.session_id)
    pair = await seal.sessions.rotate(made.refresh_token)
    await seal.sessions.revoke(made.session_id)

The database is the authority; Redis has copies, and tombstones of what has ended. A revoked session never comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from operator import itemgetter
from types import TracebackType
from typing import Final, Self

from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.background import Background, full_jitter
from counterseal.core.errors import CommandError, CountersealError, DatabaseError, StoreError
from counterseal.core.keyring import Keyring
from counterseal.core.settings import SessionSettings
from counterseal.database.direct import Transaction
from counterseal.database.engine import Database
from counterseal.database.outbox import OutboxJob
from counterseal.sessions.access_token import read_access_token
from counterseal.sessions.backing import Also, AppendAudit, AppendAudits, AuditDraft, Backing
from counterseal.sessions.copies import Copies
from counterseal.sessions.counts import SessionCounts
from counterseal.sessions.creation import Creation
from counterseal.sessions.endings import (
    EPOCH_JOB,
    EVERYBODY_JOB,
    TOMBSTONE_JOB,
    Endings,
)
from counterseal.sessions.events import SessionEvent
from counterseal.sessions.expiry import Expiry
from counterseal.sessions.identity import is_identifier, session_id_of, split_session_id
from counterseal.sessions.intake import Intake
from counterseal.sessions.lifetime import longest_ms
from counterseal.sessions.lookup import Lookup
from counterseal.sessions.outage import Outage
from counterseal.sessions.pending import Entry, Pending
from counterseal.sessions.refresh_token import parse_refresh_token
from counterseal.sessions.renewal import Renewal
from counterseal.sessions.replay import Replay
from counterseal.sessions.rotation import Rotation
from counterseal.sessions.rows import read_rows_of
from counterseal.sessions.session import (
    Context,
    Created,
    Device,
    Profile,
    Reason,
    Renewed,
    Revocation,
    Rotated,
    Session,
    StepUp,
    instant,
)
from counterseal.sessions.step_ups import StepUps
from counterseal.sessions.uses import Uses
from counterseal.store.base import Gap, Store
from counterseal.store.keys import Keys

_REFUSED_S: Final = 60.0
STEP_UP_AGE: Final = timedelta(seconds=300)

_PATIENCE_S: Final = 5.0  # whoever starts waits for longer than a request does


def _nothing(*_: object) -> None:
    return None


def _one_by_one(append: AppendAudit) -> AppendAudits:
    async def append_many(connection: Transaction, drafts: Sequence[AuditDraft]) -> None:
        for draft in sorted(drafts, key=itemgetter("stream")):
            await append(connection, **draft)

    return append_many


class Sessions:
    """Sessions of all users. Use it as `async with`: some of what it does it does in the background.

    `audit` appends to the audit log, and `audit_many` several entries at once (else `audit` does). `emit` tells of
    events, `wake` is called when the outbox has something to relay. Its jobs are `handlers`. Every call that needs the
    database raises `DatabaseUnavailable` when that is down; every call raises `StoreUnavailable` when Redis alone could
    tell and does not answer.
    """

    def __init__(
        self,
        store: Store,
        database: Database,
        *,
        keys: Keys,
        keyring: Keyring,
        settings: SessionSettings,
        audit: AppendAudit,
        audit_many: AppendAudits | None = None,
        emit: Callable[[object], None] = _nothing,
        wake: Callable[[], None] = _nothing,
    ) -> None:
        self._store = store
        self.counts = SessionCounts()
        """What this process did. No round trip."""
        self._emit = emit
        self._channel = keys.sessions_ended()
        outage = Outage(store.now_ms, self._make_good)
        pending = Pending(
            store,
            key=keys.sessions_pending(),
            apply=self._apply,
            now_ms=store.now_ms,
        )
        copies = Copies(store, keys=keys, longest_ms=longest_ms(settings), on_loss=outage.begin)
        self._backing = Backing(
            database=database,
            copies=copies,
            outage=outage,
            pending=pending,
            keyring=keyring,
            settings=settings,
            audit=audit,
            audit_many=audit_many or _one_by_one(audit),
            emit=self._tell,
            wake=wake,
            available=lambda: store.available,
            now_ms=store.now_ms,
            counts=self.counts,
        )
        self._endings = Endings(self._backing)
        self._creation = Creation(self._backing, self._endings)
        self._intake = Intake(self._backing, self._creation)
        self._uses = Uses(database, on_failure=self._backing.database_failed)
        self._lookup = Lookup(self._backing, uses=self._uses)
        self._rotation = Rotation(self._backing, self._endings, self._lookup)
        self._renewal = Renewal(self._backing)
        self._step_ups = StepUps(self._backing)
        self._expiry = Expiry(self._backing)
        self._replay = Replay(self._backing)
        self._background = Background()

    @property
    def handlers(self) -> Mapping[str, Callable[[OutboxJob], Awaitable[None]]]:
        """The jobs of the outbox that are done here, by kind."""
        return {
            TOMBSTONE_JOB: self._endings.relay_tombstones,
            EPOCH_JOB: self._endings.relay_epoch,
            EVERYBODY_JOB: self._endings.relay_everybody,
        }

    @property
    def pending_age(self) -> timedelta:
        """How long the oldest change had waited for the database when this process looked last. No round trip."""
        return timedelta(milliseconds=self._backing.pending.oldest_age_ms)

    # -- one session ---------------------------------------------------------------------------------------------

    async def create(
        self,
        *,
        user_id: str,
        email: str | None = None,
        full_name: str | None = None,
        user_agent: str | None = None,
        ip: str | None = None,
        profile: Profile = Profile.STANDARD,
        amr: Sequence[str] = ("pwd",),
        part: str | None = None,
        replacing: str | None = None,
        also: Also | None = None,
    ) -> Created:
        """Begin a session, and the user's record where there is none yet (then `email` is needed).

        The session's part of the id is `part`, or is made. The policy of the user's domain may shorten it. Who has too
        many sessions loses the least recently used, in the same transaction, in which `also` writes before. `replacing`
        is the id of a session of this user that ends with it, as by a log-out, and is not counted; one of another user
        ends not. One transaction, which log-ins at the same moment share, or two. One round trip, two when a session
        has to go, and three when one is replaced and there are too many besides.

        Raises `DatabaseUnavailable`: there is no log-in without the database. `SessionExists` when the part is taken,
        or was; `UserBlocked`; `Conflict` when the address belongs to another user; `ConfigurationError`.
        """
        login = self._creation.login(
            user_id=user_id,
            part=part,
            email=email,
            full_name=full_name,
            user_agent=user_agent,
            ip=ip,
            profile=profile,
            amr=amr,
            replacing=replacing,
        )
        return await self._creation.create(login, also, intake=self._intake.write)

    async def get(self, session_id: str, *, fresh: bool = False) -> Session | None:
        """A live session by its id; None for one that has ended, and for an id that is none. Counts as a use.

        One round trip on a hit. Once a minute, on a miss, and when `fresh`, the database is asked as well, and Redis
        told: at most two round trips, or at most three when Redis has lost what it had. Without Redis the database
        answers; without the database a copy that was checked within 5 minutes, unless `fresh`. An id authenticates
        nobody: that is for `authenticate`.
        """
        return await self._lookup.find(session_id, fresh=fresh)

    async def authenticate(self, access_token: str, *, fresh: bool = False) -> Session | None:
        """The live session that an access token is for; None for a token that is not good, whyever. Costs as `get`."""
        claims = read_access_token(access_token, self._backing.keyring, self._backing.now_ms())
        if claims is None:
            return None
        session = await self.get(claims.session_id, fresh=fresh)
        return session if session is not None and session.epoch == claims.epoch else None

    async def touch(self, session_id: str) -> bool:
        """Note that a session is used, at most once a minute; whether it is live. Costs as `get`."""
        return await self.get(session_id) is not None

    async def rotate(self, refresh_token: str) -> Rotated | None:
        """A new pair of tokens for a refresh token; None for one that is not good, whyever.

        Who comes with the same token within the grace (10 s) gets the same successor. A token that was replaced before
        that ends its session: one of two holders is not its user. The end of the session is not moved.

        One round trip and one transaction. Where Redis and the database differ, at most eight round trips. Without
        Redis the database decides; without the database Redis does, for 5 minutes after the session was checked.
        """
        presented = parse_refresh_token(refresh_token)
        return None if presented is None else await self._rotation.rotate(presented)

    async def renew(
        self,
        session_id: str,
        *,
        amr: Sequence[str] | None = None,
        user_agent: str | None = None,
        ip: str | None = None,
        also: Also | None = None,
    ) -> Renewed | None:
        """A new access token for a session that its caller has authenticated otherwise; None when it has ended.

        The refresh token stays what it is: an answer that is lost harms nobody, and a refresh at the same moment
        neither. `amr` says how the user has logged in meanwhile, `user_agent` and `ip` from where the session is used
        from now on; what is None stays. `also` writes in the same transaction. One transaction and one round trip.
        """
        ids = split_session_id(session_id)
        if ids is None:
            return None
        known = None if amr is None else tuple(amr)
        return await self._renewal.renew(*ids, amr=known, user_agent=user_agent, ip=ip, also=also)

    async def reissue(
        self,
        session_id: str,
        *,
        amr: Sequence[str] | None = None,
        authenticated: bool = False,
        also: Also | None = None,
    ) -> Rotated | None:
        """A new pair for a session that its caller has authenticated otherwise; None when it has ended.

        The refresh token before it is good for nothing from now on, as after a change of the password: who does not
        want that asks `renew`. `amr` says how the user has logged in meanwhile, `authenticated` that it was now; `also`
        writes in the same transaction. One transaction and one round trip.
        """
        ids = split_session_id(session_id)
        if ids is None:
            return None
        return await self._renewal.reissue(
            *ids, amr=None if amr is None else tuple(amr), authenticated=authenticated, also=also
        )

    async def revoke(self, session_id: str, *, reason: Reason = Reason.USER) -> Revocation:
        """End a session for good; false when there was none to end. One transaction and at most three round trips.

        Returns once the database has it. Without the database Redis keeps it, durably, until that is back: then the
        answer is `pending`. Raises when that can't be had either; it may be repeated.
        """
        ids = split_session_id(session_id)
        return Revocation(0) if ids is None else await self._endings.revoke(*ids, Reason(reason))

    # -- all sessions of a user ----------------------------------------------------------------------------------

    async def revoke_others(
        self, session_id: str, *, reason: Reason = Reason.OTHERS, also: Also | None = None
    ) -> Revocation:
        """End all sessions of a user but this one. `also` writes in the same transaction, and then needs the database.

        One transaction and at most three round trips. Raises as `revoke`.
        """
        ids = split_session_id(session_id)
        if ids is None:
            return Revocation(0)
        return await self._endings.revoke_others(*ids, Reason(reason), also)

    async def revoke_all(
        self, user_id: str, *, reason: Reason = Reason.USER, also: Also | None = None
    ) -> Revocation:
        """End all sessions of a user, and every one that is not known of, by the user's epoch.

        `also` writes in the same transaction, and then needs the database. One transaction and at most four round
        trips. Raises as `revoke`.
        """
        if not is_identifier(user_id):
            return Revocation(0)
        return await self._endings.revoke_all(user_id, Reason(reason), also)

    async def revoke_everybody(self) -> None:
        """End all sessions of everybody, within a second everywhere. One transaction and two round trips."""
        await self._endings.revoke_everybody()

    async def list(self, user_id: str, *, current: str | None = None) -> tuple[Device, ...]:
        """The live sessions of a user, the last used first, by the database. One transaction. No round trip.

        `current` is the id of the one that asks.
        """
        if not is_identifier(user_id):
            return ()
        backing = self._backing
        now_ms, accepted = backing.now_ms(), backing.pending.accepted
        try:
            async with backing.database.read() as connection:
                rows = await read_rows_of(connection, user_id)
        except DatabaseError:
            backing.database_failed()
            raise
        live = [
            row
            for row in rows
            if not row.has_ended(now_ms)
            and not backing.pending.has_ended(user_id, row.part, row.facts.created_ms, before=accepted)
        ]
        return tuple(
            Device(
                session_id=(session_id := session_id_of(user_id, row.part)),
                device=row.facts.device,
                user_agent=row.facts.user_agent,
                ip=row.facts.ip,
                created_at=instant(row.facts.created_ms),
                last_used_at=instant(row.last_used_ms),
                expires_at=instant(row.facts.absolute_ms),
                current=session_id == current,
            )
            for row in reversed(live)
        )

    # -- second factors ------------------------------------------------------------------------------------------

    async def set_totp_verified(
        self,
        session_id: str,
        context: Context,
        request_id: str | None = None,
        *,
        method: str = "totp",
        within: AsyncConnection | None = None,
    ) -> StepUp | None:
        """Note that a second factor was shown just now in a session; None when the session has ended.

        `request_id` is the request that it was shown for, text of 1 to 128 bytes; without it, it authorises no
        signature. `within` is the caller's transaction, and then there is no round trip; else there is one of its own
        and one round trip. Raises `ConfigurationError` for a request or a method that can't be one.
        """
        ids = split_session_id(session_id)
        if ids is None:
            return None
        step_up = StepUp(Context(context), request_id, method, self._backing.now_ms())
        if within is not None:
            return await self._step_ups.note(within, *ids, step_up)
        async with self._step_ups.transaction() as connection:
            noted = await self._step_ups.note(connection, *ids, step_up)
        if noted is not None:
            await self._step_ups.display(*ids)
        return noted

    async def require_step_up(
        self,
        session_id: str,
        context: Context,
        request_id: str | None = None,
        *,
        max_age: timedelta = STEP_UP_AGE,
        consume: bool = True,
        within: AsyncConnection | None = None,
    ) -> StepUp | None:
        """The second factor that allows an action now, used up by it; None when there is none: refuse.

        Good is what was shown in this session within `max_age` (at most 300 s), for this context or for both, for this
        very request, and was not used. `signing` and `both` need a request. `within` is the transaction of the action,
        which uses it up when it is committed, and then there is no round trip; else there is one of its own and one
        round trip, when something is used up.
        """
        ids = split_session_id(session_id)
        if ids is None:
            return None
        context = Context(context)
        if within is not None:
            return await self._step_ups.take(
                within, *ids, context, request_id, max_age=max_age, consume=consume
            )
        async with self._step_ups.transaction() as connection:
            taken = await self._step_ups.take(
                connection, *ids, context, request_id, max_age=max_age, consume=consume
            )
        if taken is not None and consume:
            await self._step_ups.display(*ids)
        return taken

    # -- keeping house -------------------------------------------------------------------------------------------

    async def cleanup_expired(self, limit: int = 1000) -> int:
        """End sessions whose time is over, at most `limit`, and remove what ended a week ago; how many were ended.

        Several processes may do it at once. A transaction for each 50, so that others come in between. No round trip.
        """
        return await self._expiry.clean(limit)

    async def __aenter__(self) -> Self:
        """Begin the work in the background, after what waits for the database was told to it where that can be done."""
        with suppress(CountersealError):
            await self._lookup.trust(patience_s=_PATIENCE_S)
        with suppress(CountersealError):
            await self._backing.pending.settle()
        self._background.keep("listen to ended sessions", self._listen)
        self._background.keep("tell the database of pending changes", self._backing.pending.keep_settling)
        self._background.keep("write uses of sessions", self._uses.keep_writing)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what was gathered and end the work in the background. Safe to call twice.

        At most one transaction. No round trip.
        """
        await self._intake.close()
        await self._background.close()
        await self._backing.outage.close()
        with suppress(DatabaseError):
            await self._uses.write()

    def _tell(self, event: SessionEvent) -> None:
        self.counts.events[event.name] += 1
        self._emit(event)

    async def _make_good(self, since_ms: int) -> None:
        await self._backing.pending.settle_mine()  # Redis may have lost it: it is to be replayed as well
        await self._replay.since(since_ms)

    async def _apply(self, entries: Sequence[Entry]) -> None:
        await self._endings.apply(entries)

    async def _listen(self) -> None:
        """Notice at once that Redis is gone, also while nobody asks for a session, and make good what it missed."""
        attempt = 0
        while True:
            try:
                async with self._store.subscribe(
                    self._channel, on_loss=self._backing.outage.begin
                ) as messages:
                    attempt = 0
                    async for message in messages:
                        if isinstance(message, Gap) and self._backing.outage.lasts:
                            with suppress(CountersealError):
                                await self._lookup.trust()
            except CommandError as refused:
                # A user without the channel: then an outage is noticed by whoever asks for a session.
                self._backing.copies.unavailable("subscribe", refused)
                await asyncio.sleep(_REFUSED_S)
                continue
            except StoreError:
                self._backing.outage.begin()
            attempt += 1
            await asyncio.sleep(full_jitter(attempt, longest=2.0))
