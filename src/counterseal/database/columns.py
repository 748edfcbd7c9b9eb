"""Columns: the types of the durable record, alike on PostgreSQL and on SQLite."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, DateTime, Integer, LargeBinary, Text, TypeDecorator, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from counterseal.core.codec import JsonValue, from_text, to_text

Bytes: Final = LargeBinary
BigInt: Final = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows only for this very type

__all__ = ["BigInt", "Bytes", "Json", "Ts", "Uuid", "json_text", "json_value"]


class Ts(TypeDecorator[datetime]):
    """A moment: an aware datetime, in UTC when it is read.

    PostgreSQL keeps it as `timestamptz`; SQLite as text of fixed width with microseconds and `Z`, so that text order
    is the order in time. Raises `ValueError` for a datetime without a time zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("expected a datetime with a time zone")
        moment = value if value.tzinfo is UTC else value.astimezone(UTC)
        if dialect.name != "sqlite":
            return moment
        return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        moment: datetime = value
        return moment.astimezone(UTC)


class Json(TypeDecorator[Any]):
    """A JSON value, exact: what comes back equals what was given. `None` is SQL's NULL.

    PostgreSQL keeps it as `jsonb`, SQLite as text. Raises `CodecError` for a value that is not JSON.
    """

    impl = JSONB(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else JSONB(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return json_text(value) if dialect.name == "sqlite" and value is not None else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return json_value(value) if dialect.name == "sqlite" and value is not None else value


def json_text(value: object) -> str:
    """What is kept of a JSON value. Raises `CodecError` for what is none."""
    return to_text(value).decode()


def json_value(text: str) -> JsonValue:
    """The value of a text that was kept. Raises `CodecError` for what is none."""
    return from_text(text.encode(), key="")
