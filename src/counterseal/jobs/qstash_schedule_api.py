"""QStashScheduleApi: what QStash is asked about schedules, through its official client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping
from typing import Any, Final, TypeVar, cast

import httpx
import msgspec
from pydantic import SecretStr
from qstash import AsyncQStash
from qstash.errors import QStashError
from qstash.http import BASE_URL

from counterseal.core.errors import CarrierUnavailable

T = TypeVar("T")

_TIMEOUT_S: Final = 8.0
_STATUS: Final = re.compile(r"status: ([0-9]{3})")
_ABOUT_ONE: Final = frozenset(range(400, 500)) - {401, 403, 429}


class QStashAway(CarrierUnavailable):
    """QStash does not answer, or nothing that it is asked now: so it would be for the next schedule."""


class Listed(msgspec.Struct, frozen=True, rename="camel"):
    """A schedule at QStash, as far as it is looked at."""

    schedule_id: str
    destination: str = ""
    cron: str = ""
    is_paused: bool = False


class QStashScheduleApi:
    """Each call is one request, of at most 8 s, and raises `CarrierUnavailable` when it does not go well."""

    def __init__(self, token: SecretStr | None, *, url: str | None = None) -> None:
        self._token = token
        self._url = url or BASE_URL
        self._client: AsyncQStash | None = None

    @property
    def has_token(self) -> bool:
        """Whether there is anything to ask with."""
        return self._token is not None

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        client, self._client = self._client, None
        if client is not None:
            await client.http._client.aclose()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - it has no other end

    async def create(self, identifier: str, url: str, parameters: Mapping[str, Any]) -> None:
        """Make a schedule, or all of it anew."""
        api = self._connected().schedule
        await self._asked(api.create(destination=url, schedule_id=identifier, **parameters))

    async def set_paused(self, identifier: str, *, paused: bool) -> None:
        """Pause a schedule, or have it go on."""
        api = self._connected().schedule
        await self._asked(api.pause(identifier) if paused else api.resume(identifier))

    async def delete(self, identifier: str) -> None:
        """Remove a schedule, if it is there."""
        if not identifier:
            raise ValueError("the id of a schedule is empty")  # it would mean all of them
        await self._asked(self._connected().schedule.delete(identifier), missing_ok=True)

    async def listed(self, prefix: str) -> dict[str, Listed]:
        """The schedules whose ids begin so, by id."""
        # The client's own `list` fails when anybody's schedule in the account lacks a field.
        found = await self._asked(self._connected().http.request(path="/v2/schedules", method="GET"))
        listed: dict[str, Listed] = {}
        for item in cast("list[Any]", found) if isinstance(found, list) else []:
            try:
                one = msgspec.convert(item, Listed)
            except msgspec.ValidationError:
                continue
            if one.schedule_id.startswith(prefix):
                listed[one.schedule_id] = one
        return listed

    async def _asked(self, request: Awaitable[T], *, missing_ok: bool = False) -> T | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await request
        except QStashError as fault:
            said = str(fault)[:300]
            found = _STATUS.search(said)
            status = int(found[1]) if found else 429  # the only one that the client tells otherwise
            if missing_ok and status == 404:
                return None
            kind = CarrierUnavailable if status in _ABOUT_ONE else QStashAway
            raise kind(f"QStash refused what it was told of schedules: {said}") from fault
        except (httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError, AttributeError) as fault:
            raise QStashAway(f"QStash can't be told of schedules ({type(fault).__name__})") from fault

    def _connected(self) -> AsyncQStash:
        if self._token is None:
            raise CarrierUnavailable("QSTASH_TOKEN: expected, as QStash has schedules of ours; it is missing")
        if self._client is None:
            self._client = AsyncQStash(self._token.get_secret_value(), retry=False, base_url=self._url)
        return self._client
