"""Arrays: many rows as one array for each column, so that PostgreSQL takes them in one statement of one text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine


def unnested(name: str, types: Mapping[str, type[TypeEngine[Any]] | TypeEngine[Any]]) -> TableValuedAlias:
    """Rows that come as parameters `<name>_<column>`, each an array of this type."""
    arrays = [
        bindparam(f"{name}_{column}", type_=postgresql.ARRAY(kind, dimensions=1))
        for column, kind in types.items()
    ]
    return func.unnest(*arrays).table_valued(*types, name=name).render_derived()


def by_column(name: str, columns: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as `unnested` takes them."""
    return {f"{name}_{column}": [row[column] for row in rows] for column in columns}
