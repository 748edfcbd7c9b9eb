"""Replay: what was revoked while Redis was away is written to it, page by page, before its copies are believed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, select, tuple_

from counterseal.database.columns import Ts
from counterseal.database.tables import user_sessions, users
from counterseal.sessions.backing import Backing
from counterseal.sessions.copies import Copies, Refused, Which
from counterseal.sessions.rows import REVOKED, read_everybody
from counterseal.sessions.session import Reason, instant

_PAGE: Final = 1000
_AT_ONCE: Final = 64
"""So many users are written at the same time: more would keep everybody else's calls waiting."""

_s = user_sessions.c
# Of what has ended by time Redis knows by itself.
_REVOKED: Final = (
    select(_s.revoked_at, _s.user_id, _s.session_id, _s.epoch, users.c.session_epoch)
    .join_from(user_sessions, users, users.c.id == _s.user_id)
    .where(
        REVOKED,
        tuple_(_s.revoked_at, _s.user_id, _s.session_id)
        > tuple_(bindparam("at", type_=Ts()), bindparam("of_user"), bindparam("of_part")),
        _s.absolute_expires_at > bindparam("now", type_=Ts()),
        _s.revoke_reason != Reason.EXPIRED.value,
    )
    .order_by(_s.revoked_at, _s.user_id, _s.session_id)
    .limit(_PAGE)
)


@dataclass(slots=True)
class _Revoked:
    """Sessions of one user, and the user's epoch where some of them are of a former one."""

    user_id: str
    parts: list[str] = field(default_factory=list[str])
    epoch: int | None = None


class Replay:
    """Writes tombstones and epochs again. Whether they have been written before makes no difference."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def since(self, since_ms: int) -> None:
        """Write what was revoked since then and could be alive in Redis. A transaction for each thousand."""
        backing = self._backing
        async with backing.database.read() as connection:
            everybody = await read_everybody(connection)
        now_ms = backing.now_ms()
        if everybody > (await backing.copies.read_global(now_ms) or 0):
            await backing.copies.raise_global(everybody, now_ms)
        after = (instant(since_ms), "", "")
        while page := await self._page(*after):
            revoked = _by_user(page)
            for first in range(0, len(revoked), _AT_ONCE):
                await asyncio.gather(*map(self._write, revoked[first : first + _AT_ONCE]))
            after = (page[-1].revoked_at, page[-1].user_id, page[-1].session_id)

    async def _page(self, at: datetime, user_id: str, part: str) -> Sequence[Any]:
        given = {"at": at, "of_user": user_id, "of_part": part, "now": instant(self._backing.now_ms())}
        async with self._backing.database.read() as connection:
            return (await connection.execute(_REVOKED, given)).all()

    async def _write(self, revoked: _Revoked) -> None:
        copies = self._backing.copies
        try:
            await self._lay(copies, revoked)
        except Refused as refused:
            # The damaged key of one user must not keep everybody from Redis; it was complained of.
            if refused.is_of_the_server:
                raise

    @staticmethod
    async def _lay(copies: Copies, revoked: _Revoked) -> None:
        if revoked.epoch is not None:
            await copies.revoke_user(revoked.user_id, Which.FORMER, at_least=revoked.epoch)
        await copies.revoke(revoked.user_id, revoked.parts)


def _by_user(page: Sequence[Any]) -> list[_Revoked]:
    found: dict[str, _Revoked] = {}
    for record in page:
        one = found.setdefault(record.user_id, _Revoked(record.user_id))
        one.parts.append(record.session_id)
        if record.epoch < record.session_epoch:
            one.epoch = record.session_epoch
    return list(found.values())
