"""Kinds are refused by field, expectation and what came; those of an application join the five, or take their place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from counterseal.cache.kind import DOCUMENTS, KINDS, LONGEST_TTL, TOTP_CONFIGS, Kind, configured, is_ttl
from counterseal.core.errors import ConfigurationError

HOUR = timedelta(hours=1)
DAYS = "from 0 ms to 7 days"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"ttl": timedelta(0)}, "Kind team: ttl: expected a timedelta from 1 ms to 7 days; came: 0:00:00"),
        ({"ttl": timedelta(-1)}, "Kind team: ttl: expected a timedelta from 1 ms to 7 days; came: -1 day"),
        (
            {"ttl": LONGEST_TTL + timedelta(microseconds=1)},
            "Kind team: ttl: .*; came: 7 days, 0:00:00.000001",
        ),
        ({"ttl": 60}, "Kind team: ttl: expected a timedelta from 1 ms to 7 days; came: 60"),
        ({"ttl": None}, "Kind team: ttl: .*; came: None"),
        ({"negative_ttl": timedelta(0)}, "Kind team: negative_ttl: .* from 1 ms to 7 days; came: 0:00:00"),
        (
            {"stale_while_revalidate": timedelta(8)},
            f"Kind team: stale_while_revalidate: .* {DAYS}; came: 8 days",
        ),
        ({"stale_if_error": timedelta(-1)}, f"Kind team: stale_if_error: .* {DAYS}; came: -1 day"),
        ({"near": timedelta(0)}, "Kind team: near: .* from 1 ms to 7 days; came: 0:00:00"),
        ({"near": True}, "Kind team: near: .*; came: True"),
        (
            {"max_value_bytes": 0},
            "Kind team: max_value_bytes: expected a whole number of at least 1; came: 0",
        ),
        ({"max_value_bytes": "1"}, "Kind team: max_value_bytes: .*; came: '1'"),
        ({"owner": "team"}, "Kind team: owner: expected 'user', 'domain' or None; came: 'team'"),
        ({"refused": "secret"}, "Kind team: refused: expected a frozenset of names; came: 'secret'"),
        ({"name": "Team"}, "Kind.name: expected up to 64 small letters, digits and '_'; came: 'Team'"),
        ({"name": ""}, "Kind.name: .*; came: ''"),
        ({"name": "a:b"}, "Kind.name: .*; came: 'a:b'"),
        ({"name": "a" * 65}, "Kind.name: .*"),
        ({"name": "team\n"}, "Kind.name: .*"),
        ({"name": 1}, "Kind.name: .*; came: 1"),
    ],
)
def test_a_kind_that_makes_no_sense_is_refused_by_field_and_value(
    options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{fault}"):
        Kind(**{"name": "team", "ttl": HOUR, **options})


def test_the_edges_of_what_a_kind_may_be_are_taken() -> None:
    day = timedelta(days=7)
    Kind("a", timedelta(milliseconds=1), near=timedelta(milliseconds=1), max_value_bytes=1, negative_ttl=None)
    Kind("a" * 64, day, stale_while_revalidate=day, stale_if_error=day, near=day, negative_ttl=day)
    assert [is_ttl(ttl) for ttl in (timedelta(0), timedelta(milliseconds=1), day, day * 2)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_an_applications_kinds_come_after_the_five_and_lifetimes_are_those_of_the_settings() -> None:
    team, page = Kind("team", HOUR), Kind("page", HOUR)
    found = configured([team, page], {"team": 2 * HOUR, "document": 3 * HOUR})
    assert list(found) == [*(kind.name for kind in KINDS), "team", "page"]
    assert found["page"] == page
    assert (found["team"].ttl, found["document"].ttl) == (2 * HOUR, 3 * HOUR)
    assert DOCUMENTS.ttl == timedelta(minutes=5)


def test_a_kind_in_the_place_of_one_of_the_five_refuses_what_that_one_refuses() -> None:
    own = Kind("totp_config", HOUR, refused=frozenset({"pin"}), near=HOUR)
    found = configured([own], {})["totp_config"]
    assert found.refused == TOTP_CONFIGS.refused | {"pin"}
    assert (found.near, found.ttl) == (HOUR, HOUR)
    assert list(configured([own], {})) == [kind.name for kind in KINDS]


def test_every_fault_of_a_configuration_is_told_at_once() -> None:
    team = Kind("team", HOUR)
    known = sorted(["team", *(kind.name for kind in KINDS)])
    with pytest.raises(ConfigurationError) as fault:
        configured([team, team], {"documet": HOUR, "team": timedelta(0), "document": timedelta(8)})
    assert sorted(fault.value.faults) == [
        "COUNTERSEAL_CACHE_TTL_DOCUMENT: expected a duration from 1ms to 7d",
        f"COUNTERSEAL_CACHE_TTL_DOCUMET: no cache kind has this name; the kinds are {', '.join(known)}",
        "COUNTERSEAL_CACHE_TTL_TEAM: expected a duration from 1ms to 7d",
        "the cache kind team is declared twice",
    ]
