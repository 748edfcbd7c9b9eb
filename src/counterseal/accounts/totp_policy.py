"""TOTP policy: when somebody is asked for a code, and what an account shows of its second factor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.accounts.backing import Backing
from counterseal.accounts.backup_codes import count_backup_codes
from counterseal.accounts.totp_config import find_config
from counterseal.core.errors import StoreError
from counterseal.database.tables import domain_settings, totp_configs, totp_exemptions, users
from counterseal.sessions.session import Context

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TotpState:
    """The second factor of a user as it may be shown: no secret is in it.

    `stopped`: too many codes in a row were wrong. `exempt_until`: the contexts in which no code is asked for, and until
    when.
    """

    login_enabled: bool
    signing_enabled: bool
    pending: bool
    stopped: bool
    backup_codes_left: int
    exempt_until: Mapping[Context, datetime]

    @property
    def enabled(self) -> bool:
        """Whether there is a second factor that counts."""
        return self.login_enabled or self.signing_enabled


@dataclass(frozen=True, slots=True)
class TotpPolicy:
    """What decides whether a code is needed."""

    wanted: frozenset[Context]
    """What the user has enabled it for: log-in, signing."""
    enforced: frozenset[Context]
    """What the domain asks it for, now that the days of grace are over."""
    exempt: frozenset[Context]

    def needs(self, context: Context) -> bool:
        """Whether a code is needed for this. `BOTH` needs one when log-in or signing does."""
        if context is Context.BOTH:
            return self.needs(Context.LOGIN) or self.needs(Context.SIGNING)
        return context in (self.wanted | self.enforced) - self.exempt


_EVERYTHING: Final = frozenset({Context.LOGIN, Context.SIGNING})
STRICTEST: Final = TotpPolicy(_EVERYTHING, _EVERYTHING, frozenset())
"""For a user who is not known."""


async def find_policy(connection: AsyncConnection, user_id: str, *, now: datetime) -> TotpPolicy:
    """The policy for a user. Two queries."""
    found = await connection.execute(_POLICY.where(users.c.id == user_id))
    row = found.mappings().one_or_none()
    if row is None:
        return STRICTEST
    grace = row["totp_grace_days"]
    over = grace is not None and row["created_at"] + timedelta(days=grace) <= now
    exempt = await _exemptions(connection, user_id, now=now)
    return TotpPolicy(
        wanted=_contexts(row["login_enabled"], row["signing_enabled"]),
        enforced=_contexts(over and row["enforce_login_totp"], over and row["enforce_signing_totp"]),
        exempt=frozenset(exempt),
    )


async def find_state(connection: AsyncConnection, user_id: str, *, now: datetime) -> dict[str, Any]:
    """The state of a user's second factor as the JSON object that is cached. Four queries."""
    enabled = await find_config(connection, user_id, "enabled")
    exempt = await _exemptions(connection, user_id, now=now)
    return {
        "login_enabled": enabled is not None and enabled.login_enabled,
        "signing_enabled": enabled is not None and enabled.signing_enabled,
        "pending": await find_config(connection, user_id, "pending") is not None,
        "stopped": enabled is not None and enabled.stopped,
        "backup_codes_left": await count_backup_codes(connection, user_id),
        "exempt_until": {context.value: until.isoformat() for context, until in exempt.items()},
    }


def read_state(written: Mapping[str, Any], *, now: datetime) -> TotpState:
    """The state that `find_state` wrote. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    until = {
        Context(name): datetime.fromisoformat(moment)
        for name, moment in dict(written["exempt_until"]).items()
    }
    return TotpState(
        login_enabled=bool(written["login_enabled"]),
        signing_enabled=bool(written["signing_enabled"]),
        pending=bool(written["pending"]),
        stopped=bool(written["stopped"]),
        backup_codes_left=int(written["backup_codes_left"]),
        exempt_until={context: moment for context, moment in until.items() if moment > now},
    )


async def forget_state(backing: Backing, user_id: str) -> None:
    """Let nobody see the old state in the cache. One round trip.

    Without Redis that can't be done, and the old one may be shown up to 30 minutes longer: nothing is decided by it.
    """
    try:
        await backing.cache.totp_configs.invalidate(user_id)
    except StoreError as error:
        logger.warning("a changed TOTP state stays in the cache until it ends: %s", error.code)


async def _exemptions(connection: AsyncConnection, user_id: str, *, now: datetime) -> dict[Context, datetime]:
    """Until when no code is asked for, by context; one for both counts for each."""
    columns = totp_exemptions.c
    rows = await connection.execute(
        select(columns.context, columns.expires_at).where(
            columns.user_id == user_id, columns.expires_at > now
        )
    )
    until: dict[Context, datetime] = {}
    for row in rows:
        context = Context(row.context)
        for covered in _EVERYTHING if context is Context.BOTH else {context}:
            until[covered] = max(until.get(covered, row.expires_at), row.expires_at)
    return until


def _contexts(login: object, signing: object) -> frozenset[Context]:
    chosen = ((Context.LOGIN, login), (Context.SIGNING, signing))
    return frozenset(context for context, asked in chosen if asked)


_POLICY: Final = (
    select(
        users.c.created_at,
        totp_configs.c.login_enabled,
        totp_configs.c.signing_enabled,
        domain_settings.c.enforce_login_totp,
        domain_settings.c.enforce_signing_totp,
        domain_settings.c.totp_grace_days,
    )
    .join_from(
        users,
        totp_configs,
        (totp_configs.c.user_id == users.c.id) & (totp_configs.c.state == "enabled"),
        isouter=True,
    )
    .join(domain_settings, domain_settings.c.domain == users.c.domain, isouter=True)
)
