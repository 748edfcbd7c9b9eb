"""Shape: how the values of a kind become JSON text, and come back equal and of their type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import msgspec.inspect

from counterseal.cache.kind import Kind
from counterseal.core.codec import from_text, from_text_as, to_text
from counterseal.core.errors import CodecError, ConfigurationError, ValueTooLarge

_T = TypeVar("_T")

NOTHING: Final = b"null"
"""The text that stands for None: looked for, and not there."""

UNDECODED: Final = (msgspec.MsgspecError, ValueError, RecursionError, TypeError)

_SCALARS: Final = (
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.TimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeDeltaType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
)


class Shape(Generic[_T]):
    """Writes and reads the values of one kind. Every error names the kind or the key, and the path in the value.

    Raises `ConfigurationError` when msgspec can't decode the kind's type.
    """

    def __init__(self, kind: Kind[_T]) -> None:
        self._kind = kind
        self.immutable: bool = kind.type is not None and _is_immutable(kind.type)
        """Whether one object may be handed to every caller, because nobody can change it."""
        expected: Any = dict[str, Any] if kind.type is None else kind.type
        self.decode: Callable[[bytes], _T] = _decoder(kind.name, expected)
        """The value of most texts, straight away. Where it raises one of `UNDECODED`, `read` has the last word."""
        self.read: Callable[[bytes, str], _T | None] = self._reader()
        """The value of a text, and the key to name when it can't be read: `CodecError`."""

    def write(self, value: _T | None) -> bytes:
        """The JSON text of a value, as `text` makes it. Raises `ValueTooLarge` when the kind takes none so long."""
        text = self.text(value)
        if len(text) > self._kind.max_value_bytes:
            raise ValueTooLarge(
                f"{self._kind.name} takes values of at most {self._kind.max_value_bytes} bytes of JSON; this one"
                f" has {len(text)}",
                path="$",
            )
        return text

    def text(self, value: _T | None) -> bytes:
        """The JSON text of a value, however long.

        Raises `CodecError` naming the kind when it is not what the kind takes, would not come back equal, or has a
        member that the kind refuses.
        """
        if value is None:
            return NOTHING
        try:
            text = self._typed_text(value) if self._kind.type is not None else self._object_text(value)
        except CodecError as fault:
            reason = str(fault).removesuffix(f" at {fault.path}")
            raise CodecError(f"{self._kind.name}: {reason}", path=fault.path) from fault
        if self._kind.refused:
            self._check_members(msgspec.json.decode(text), "$")
        return text

    def _object_text(self, value: _T) -> bytes:
        if type(value) is not dict:
            raise CodecError(f"an object is expected, and a {type(value).__name__} came", path="$")
        return to_text(cast("object", value))

    def _typed_text(self, value: _T) -> bytes:
        """The text of a typed value, read back at once: what would not come back equal is refused now."""
        try:
            text = msgspec.json.encode(value)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as fault:
            raise CodecError("the value holds something that is not JSON", path=_place(value, "$")) from fault
        try:
            back = self.read(text, "")
        except CodecError as fault:
            reason = str(fault).partition(": ")[2] or str(fault)
            raise CodecError(
                f"a {type(value).__name__} would not come back: {reason.partition(' at ')[0]}",
                path=fault.path or "$",
            ) from fault
        if back != value or type(back) is not type(value):
            raise CodecError(f"a {type(value).__name__} would not come back equal", path="$")
        return text

    def _reader(self) -> Callable[[bytes, str], _T | None]:
        kind = self._kind
        expected = kind.type
        if expected is None:

            def read_object(text: bytes, key: str) -> _T | None:
                value = from_text(text, key=key)
                if value.__class__ is dict or value is None:
                    return cast("_T | None", value)
                raise CodecError(f"a stored value of {kind.name} is not an object", key=key)

            return read_object

        def read_typed(text: bytes, key: str) -> _T | None:
            try:
                return None if text == NOTHING else from_text_as(text, expected, key=key)
            except TypeError as fault:  # a list in a set, and the like
                raise CodecError(f"a stored value of {kind.name} can't be read: {fault}", key=key) from fault

        return read_typed

    def _check_members(self, value: object, path: str) -> None:
        if isinstance(value, dict):
            for name, member in cast("dict[str, object]", value).items():
                if name in self._kind.refused:
                    raise CodecError(f"{self._kind.name} never holds a member named {name}", path=path)
                self._check_members(member, f"{path}.{name}")
        elif isinstance(value, list):
            for index, item in enumerate(cast("list[object]", value)):
                self._check_members(item, f"{path}[{index}]")


def _decoder(name: str, expected: Any) -> Callable[[bytes], Any]:
    try:
        return msgspec.json.Decoder(expected).decode
    except TypeError as fault:
        raise ConfigurationError(
            f"Kind {name}: type: expected a type that msgspec decodes; came: {expected!r} ({fault})"
        ) from fault


def _place(value: object, path: str) -> str:
    """Where in a value the part lies that can't be written."""
    for step, part in _parts(value):
        try:
            msgspec.json.encode(part)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            return _place(part, f"{path}{step}") if len(path) < 100 else path
    return path


def _parts(value: object) -> list[tuple[str, object]]:
    if isinstance(value, msgspec.Struct):
        return [(f".{name}", getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return [(f".{name}", part) for name, part in cast("dict[object, object]", value).items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(cast("list[object]", value))]
    return []


def _is_immutable(kind: Any) -> bool:
    try:
        return _holds_still(msgspec.inspect.type_info(kind), set())
    except TypeError:
        return False  # msgspec does not know it: it says so when a value is written


def _holds_still(info: msgspec.inspect.Type, seen: set[Any]) -> bool:
    if isinstance(info, _SCALARS):
        return True
    match info:
        case msgspec.inspect.UnionType(types=types) | msgspec.inspect.TupleType(item_types=types):
            return all(_holds_still(part, seen) for part in types)
        case msgspec.inspect.VarTupleType(item_type=part) | msgspec.inspect.FrozenSetType(item_type=part):
            return _holds_still(part, seen)
        case msgspec.inspect.NamedTupleType(cls=cls, fields=fields):
            frozen = True
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            frozen = bool(cls.__struct_config__.frozen)
        case msgspec.inspect.DataclassType(cls=cls, fields=fields):
            frozen = bool(cast("Any", cls).__dataclass_params__.frozen)
        case _:
            return False
    if cls in seen:
        return True
    seen.add(cls)
    return frozen and all(_holds_still(field.type, seen) for field in fields)
