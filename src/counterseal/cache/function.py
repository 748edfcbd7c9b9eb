"""CachedFunction: an async function whose answers are kept in the cache of a kind."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeAlias, TypeVar, overload

from counterseal.core.errors import ConfigurationError

P = ParamSpec("P")
_Q = ParamSpec("_Q")
_T = TypeVar("_T")

Loading: TypeAlias = Callable[P, Awaitable[_T | None]]
"""The function that is decorated."""

Key: TypeAlias = Callable[..., str]
"""Makes an identifier of a function's arguments."""


class Keeping(Protocol[_T]):
    """What a decorated function needs of the cache of its kind."""

    async def get_or_load(
        self, identifier: str, loader: Callable[[str], Awaitable[_T | None]], *, tags: tuple[str, ...]
    ) -> _T | None:
        """The value, loaded when it is missing."""
        ...

    async def invalidate(self, identifier: str) -> bool:
        """Forget a value."""
        ...


class CachedFunction(Generic[P, _T]):
    """Calls go through the cache. Made by `KindCache.cached`."""

    def __init__(
        self, cache: Keeping[_T], function: Loading[P, _T], *, key: Key | None, tags: tuple[str, ...]
    ) -> None:
        self._cache = cache
        self._function = function
        self._key = key
        self._tags = tags
        functools.update_wrapper(self, function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> _T | None:
        """The function's answer, from the cache or new."""

        async def load(identifier: str) -> _T | None:
            return await self._function(*args, **kwargs)

        return await self._cache.get_or_load(self._identifier(*args, **kwargs), load, tags=self._tags)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the answer to these arguments; whether there was one. One round trip."""
        return await self._cache.invalidate(self._identifier(*args, **kwargs))

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(
        self: CachedFunction[Concatenate[Any, _Q], _T], instance: object, owner: type | None = None
    ) -> CachedFunction[_Q, _T]: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """A function of a class is one of its instances: its first argument is given."""
        if instance is None:
            return self
        key = None if self._key is None else MethodType(self._key, instance)
        function: Callable[..., Awaitable[_T | None]] = MethodType(self._function, instance)
        return CachedFunction[..., _T](self._cache, function, key=key, tags=self._tags)

    def _identifier(self, *args: P.args, **kwargs: P.kwargs) -> str:
        given: tuple[object, ...] = (*args, *kwargs.values())
        if self._key is not None:
            given = (self._key(*args, **kwargs),)
        if len(given) != 1 or not isinstance(given[0], str):
            came = ", ".join(type(each).__name__ for each in given) or "nothing"
            raise TypeError(
                f"a cached function takes an identifier as str, and {came} came; give key= to make one"
            )
        return given[0]


def decorate(
    cache: Keeping[_T], function: Loading[P, _T], *, key: Key | None, tags: tuple[str, ...]
) -> CachedFunction[P, _T]:
    """A cached function. Raises `ConfigurationError` when its arguments make no identifier."""
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError("cached: expected an async function")
    if key is None and not _takes_an_identifier(function):
        raise ConfigurationError(
            "cached: expected a function with one argument, the identifier; with others, of which self is one,"
            " key= makes one of them"
        )
    return CachedFunction(cache, function, key=key, tags=tags)


def _takes_an_identifier(function: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    return len(parameters) == 1 and (
        parameters[0].default is inspect.Parameter.empty
        and parameters[0].kind not in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    )
