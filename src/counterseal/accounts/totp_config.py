"""TOTP config: the rows of a user's second factor. One is enabled, and beside it one may be pending.

The secret is encrypted by the key ring and bound to its user. Codes are used up in the database alone: the last step
that was used only grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from counterseal.core.keyring import Keyring, Sealed
from counterseal.core.tokens import uuid7
from counterseal.database.tables import totp_configs

FAILURES_THAT_STOP: Final = 100

_PURPOSE: Final = "totp secret"
_CONFIGS: Final = totp_configs.c


@dataclass(frozen=True, slots=True)
class TotpConfig:
    """A second factor as it was when it was read."""

    id: UUID
    user_id: str
    sealed: Sealed
    login_enabled: bool
    signing_enabled: bool
    failed_in_row: int

    @property
    def stopped(self) -> bool:
        """Whether so many codes were wrong in a row that none is taken any more."""
        return self.failed_in_row >= FAILURES_THAT_STOP

    def secret(self, keyring: Keyring) -> str:
        """The secret in base32. Raises `SealBroken` when its key is not in the ring."""
        return keyring.unseal(_PURPOSE, self.sealed, bound_to=self.user_id).decode()


async def find_config(
    connection: AsyncConnection, user_id: str, state: Literal["pending", "enabled"]
) -> TotpConfig | None:
    """The row of a user in this state. One query."""
    answer = await connection.execute(
        select(totp_configs).where(_CONFIGS.user_id == user_id, _CONFIGS.state == state)
    )
    row = answer.one_or_none()
    if row is None:
        return None
    return TotpConfig(
        id=row.id,
        user_id=row.user_id,
        sealed=Sealed(row.key_id, bytes(row.secret_ct)),
        login_enabled=row.login_enabled,
        signing_enabled=row.signing_enabled,
        failed_in_row=row.failed_in_row,
    )


async def put_pending(
    connection: AsyncConnection, user_id: str, secret: str, keyring: Keyring, *, now: datetime
) -> None:
    """Put a new secret in the pending row; the enabled one stays as it is. Two statements, the user's row locked."""
    await _remove(connection, user_id, "pending")
    sealed = keyring.seal(_PURPOSE, secret.encode(), bound_to=user_id)
    await connection.execute(
        insert(totp_configs).values(
            id=uuid7(int(now.timestamp() * 1000)),
            user_id=user_id,
            state="pending",
            secret_ct=sealed.data,
            key_id=sealed.key_id,
            created_at=now,
        )
    )


async def enable(
    connection: AsyncConnection, pending: TotpConfig, *, step: int, login: bool, signing: bool, now: datetime
) -> bool:
    """Put a pending row in the place of the enabled one; whether it was still pending. Two statements.

    `step` is that of the code that was shown, which is used up by it.
    """
    await _remove(connection, pending.user_id, "enabled")
    return await _change(
        connection,
        pending,
        _CONFIGS.state == "pending",
        state="enabled",
        login_enabled=login,
        signing_enabled=signing,
        last_step=step,
        failed_in_row=0,
        enabled_at=now,
        last_used_at=now,
    )


async def use_step(
    connection: AsyncConnection, config: TotpConfig, step: int, keyring: Keyring, *, now: datetime
) -> bool:
    """Use the code of a step up; whether neither it nor a later one was used before. One statement.

    However many show one code at once, one succeeds. A secret under an older key is encrypted by the newest.
    """
    values: dict[str, Any] = {}
    if config.sealed.key_id != keyring.key_ids[0]:
        sealed = keyring.seal(_PURPOSE, config.secret(keyring).encode(), bound_to=config.user_id)
        values = {"secret_ct": sealed.data, "key_id": sealed.key_id}
    return await _use(connection, config, _CONFIGS.last_step < step, last_step=step, now=now, **values)


async def use_otherwise(connection: AsyncConnection, config: TotpConfig, *, now: datetime) -> bool:
    """Note that the factor was shown by a backup code; whether it may still be used. One statement."""
    return await _use(connection, config, now=now)


async def count_failure(connection: AsyncConnection, config: TotpConfig) -> int:
    """Count a wrong code; how many there were in a row now, 0 when the factor is gone. One statement."""
    answer = await connection.execute(
        update(totp_configs)
        .where(_CONFIGS.id == config.id, _CONFIGS.state == "enabled")
        .values(failed_in_row=_CONFIGS.failed_in_row + 1)
        .returning(_CONFIGS.failed_in_row)
    )
    return answer.scalar_one_or_none() or 0


async def forget_failures(connection: AsyncConnection, user_id: str) -> bool:
    """Take codes again; whether they were refused. One statement."""
    answer = await connection.execute(
        update(totp_configs)
        .where(
            _CONFIGS.user_id == user_id,
            _CONFIGS.state == "enabled",
            _CONFIGS.failed_in_row >= FAILURES_THAT_STOP,
        )
        .values(failed_in_row=0)
        .returning(_CONFIGS.id)
    )
    return answer.one_or_none() is not None


async def remove_configs(connection: AsyncConnection, user_id: str) -> bool:
    """Forget the second factor of a user, also a pending one; whether one was enabled. Two statements."""
    await _remove(connection, user_id, "pending")
    return await _remove(connection, user_id, "enabled")


async def _remove(connection: AsyncConnection, user_id: str, state: str) -> bool:
    answer = await connection.execute(
        delete(totp_configs).where(_CONFIGS.user_id == user_id, _CONFIGS.state == state)
    )
    return answer.rowcount > 0


async def _use(
    connection: AsyncConnection, config: TotpConfig, *conditions: Any, now: datetime, **values: Any
) -> bool:
    return await _change(
        connection,
        config,
        _CONFIGS.state == "enabled",
        _CONFIGS.failed_in_row < FAILURES_THAT_STOP,
        *conditions,
        failed_in_row=0,
        last_used_at=now,
        **values,
    )


async def _change(connection: AsyncConnection, config: TotpConfig, *conditions: Any, **values: Any) -> bool:
    answer = await connection.execute(
        update(totp_configs)
        .where(_CONFIGS.id == config.id, *conditions)
        .values(**values)
        .returning(_CONFIGS.id)
    )
    return answer.one_or_none() is not None
