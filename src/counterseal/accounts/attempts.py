"""Attempts: counts in the database what is limited strictly, while Redis does not answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import case, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.errors import UnknownName
from counterseal.database.engine import Database
from counterseal.database.tables import auth_attempts
from counterseal.ratelimit.decision import Decision, Reason, instant
from counterseal.ratelimit.limit import Limit

_KEPT: Final = timedelta(days=2)
"""As long as wrong passwords count together, and longer than any window."""


class Attempts:
    """An `Elsewhere` for the limiters that must not open: the same counts for every process of one database.

    Windows are fixed, whatever the algorithm of a limit: at the end of one and the beginning of the next twice as much
    may pass, in two windows never more than twice. `policies` are the limits by the name of their limiter; those that
    were changed at run time are not known here. Limits with a burst are counted by their `count`.
    """

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int],
        policies: Mapping[str, Sequence[Limit]],
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        # Rows are locked in this order by everybody.
        self._limits = {
            name: tuple(sorted(limits, key=lambda limit: limit.per_ms)) for name, limits in policies.items()
        }

    async def charge(self, name: str, identifier: str, cost: int) -> Decision:
        """Decide, and charge `cost` to all limits of `name` or to none. One transaction.

        Raises `UnknownName` for a limiter whose limits it was not given, and `DatabaseUnavailable`.
        """
        limits, now_ms = self._limits_of(name), self._now_ms()
        try:
            async with self._database.begin() as connection:
                left = [
                    limit.count - await _raise(connection, _key(name, identifier, limit), limit, cost, now_ms)
                    for limit in limits
                ]
        except _Over as over:
            return _refusal(over.limit, cost, now_ms)
        least = min(left)
        closest = limits[left.index(least)]
        end_ms = _start_ms(closest, now_ms) + closest.per_ms
        return Decision(True, closest.count, least, instant(end_ms), None, Reason.ALLOWED, True, closest.per)

    async def refund(self, name: str, identifier: str, cost: int) -> bool:
        """Give back what was charged in the current windows; whether there was any. One transaction.

        Raises as `charge`.
        """
        limits, now_ms = self._limits_of(name), self._now_ms()
        given_back = False
        async with self._database.begin() as connection:
            for limit in limits:
                count = auth_attempts.c.count
                done = await connection.execute(
                    update(auth_attempts)
                    .where(
                        auth_attempts.c.key == _key(name, identifier, limit),
                        auth_attempts.c.window_start == instant(_start_ms(limit, now_ms)),
                        count > 0,
                    )
                    .values(count=case((count > cost, count - cost), else_=0))
                )
                given_back = given_back or done.rowcount > 0
        return given_back

    async def cleanup_expired(self, limit: int = 1000) -> int:
        """Remove windows that count no more, at most `limit`; how many there were. One transaction."""
        before = instant(self._now_ms()) - _KEPT
        key, start = auth_attempts.c.key, auth_attempts.c.window_start
        async with self._database.begin() as connection:
            rows = (await connection.execute(select(key, start).where(start < before).limit(limit))).all()
            if rows:
                # Only those that were seen, and only while they are old.
                await connection.execute(
                    delete(auth_attempts).where(tuple_(key, start).in_([(row[0], row[1]) for row in rows]))
                )
        return len(rows)

    def _limits_of(self, name: str) -> tuple[Limit, ...]:
        limits = self._limits.get(name)
        if limits is None:
            raise UnknownName(
                f"no limits of {name!r} are counted here; known are {', '.join(sorted(self._limits))}"
            )
        return limits


class _Over(Exception):
    """Leaves the transaction, so that nothing is charged."""

    def __init__(self, limit: Limit) -> None:
        super().__init__()
        self.limit = limit


def insert_attempts(connection: AsyncConnection) -> Any:
    """An INSERT of attempts that knows `on_conflict_do_update`, which SQLAlchemy spells for each database apart."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    return kind.insert(auth_attempts)


async def _raise(connection: AsyncConnection, key: str, limit: Limit, cost: int, now_ms: int) -> int:
    """The count of a window with `cost` added. Raises `_Over`, and nothing is written, when the limit has no room."""
    if cost > limit.count:
        raise _Over(limit)
    statement = insert_attempts(connection).values(
        key=key, window_start=instant(_start_ms(limit, now_ms)), count=cost
    )
    statement = statement.on_conflict_do_update(
        index_elements=["key", "window_start"],
        set_={"count": auth_attempts.c.count + cost},
        where=auth_attempts.c.count <= limit.count - cost,
    ).returning(auth_attempts.c.count)
    count = (await connection.execute(statement)).scalar_one_or_none()
    if count is None:
        raise _Over(limit)
    return count


def _refusal(limit: Limit, cost: int, now_ms: int) -> Decision:
    end_ms = _start_ms(limit, now_ms) + limit.per_ms
    wait = timedelta(milliseconds=end_ms - now_ms) if cost <= limit.count else None
    return Decision(False, limit.count, 0, instant(end_ms), wait, Reason.LIMITED, True, limit.per)


def _start_ms(limit: Limit, now_ms: int) -> int:
    return now_ms - now_ms % limit.per_ms


def _key(name: str, identifier: str, limit: Limit) -> str:
    # An identifier may be an address or as long as 1 KB.
    digest = hashlib.sha256(identifier.encode()).hexdigest()[:32]
    return f"{name}:{limit.per_ms}:{digest}"
