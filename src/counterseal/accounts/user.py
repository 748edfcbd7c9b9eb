"""User: who has an account, as an application sees them. Nothing secret is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, select

from counterseal.database.tables import users


class Status(StrEnum):
    """Whether somebody may log in."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class User:
    """A profile. `domain` is the part of `email` after the `@`; times are aware and in UTC.

    It may be 15 minutes old where it came from the cache, so no decision is made by its `status`.
    """

    id: str
    email: str
    full_name: str
    domain: str
    status: Status
    is_admin: bool
    email_verified_at: datetime | None
    avatar_url: str | None
    locale: str
    timezone: str
    account_type: str
    corporate_role: str | None
    plan: str
    created_at: datetime

    @property
    def email_verified(self) -> bool:
        """Whether a token that was sent to the address came back."""
        return self.email_verified_at is not None


COLUMNS: Final = (
    "id",
    "email",
    "full_name",
    "domain",
    "status",
    "is_admin",
    "email_verified_at",
    "avatar_url",
    "locale",
    "timezone",
    "account_type",
    "corporate_role",
    "plan",
    "created_at",
)


def select_user(*more: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
    """A query for the columns of a profile, and `more`."""
    columns: list[ColumnElement[Any]] = [users.c[name] for name in COLUMNS]
    return select(*columns, *more)


def user_of(row: Mapping[Any, Any]) -> User:
    """A profile out of a row of `select_user`, as a mapping."""
    values: dict[str, Any] = {name: row[name] for name in COLUMNS}
    values["status"] = Status(values["status"])
    return User(**values)


def write_user(user: User) -> dict[str, Any]:
    """A profile as the JSON object that is cached."""
    verified = user.email_verified_at
    return {
        **asdict(user),
        "status": user.status.value,
        "email_verified_at": None if verified is None else verified.isoformat(),
        "created_at": user.created_at.isoformat(),
    }


def read_user(written: Mapping[str, Any]) -> User:
    """The profile that `write_user` wrote. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    verified = written["email_verified_at"]
    return user_of(
        {
            **written,
            "email_verified_at": None if verified is None else datetime.fromisoformat(verified),
            "created_at": datetime.fromisoformat(written["created_at"]),
        }
    )
