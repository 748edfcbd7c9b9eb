"""What RFC 9111 lets a cache store, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterseal.web.freshness import (
    Refusal,
    directives,
    lifetime_s,
    never_stale,
    refusal,
    seconds,
    varying,
)

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
LATER = "Tue, 24 Nov 2026 09:10:00 GMT"


def control(*lines: str) -> list[tuple[str, str]]:
    return [("cache-control", line) for line in lines]


def refused(
    *headers: tuple[str, str],
    status: int = 200,
    vary: tuple[str, ...] = (),
    personal: bool = False,
    authorised: bool = False,
) -> Refusal | None:
    return refusal(
        status,
        list(headers),
        statuses={200},
        vary=vary,
        personal=personal,
        authorised=authorised,
        now=NOW,
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["max-age=60"], {"max-age": "60"}),
        (["Max-Age = 60 , PUBLIC"], {"max-age": "60", "public": ""}),
        (['max-age="60"'], {"max-age": "60"}),
        (['private="x, no-store", public'], {"private": "x, no-store", "public": ""}),
        (['no-cache="a\\"b, no-store"'], {"no-cache": 'a\\"b, no-store'}),
        (["max-age=60", "max-age=5"], {"max-age": "5"}),
        (["max-age=60, max-age=nonsense"], {"max-age": "nonsense"}),
        (["", ",,"], {}),
        (["no-store;no-cache"], {"no-store": "", "no-cache": ""}),
    ],
)
def test_directives_are_read_as_they_are_written(lines: list[str], expected: dict[str, str]) -> None:
    assert directives(control(*lines)) == expected


@given(st.text(max_size=60))
def test_no_cache_control_whatever_stands_there_breaks_the_reader(line: str) -> None:
    found = directives(control(line))
    assert all(name == name.lower() for name in found)
    assert lifetime_s(control(line), NOW) is None or found.keys() & {"max-age", "s-maxage"}


@given(
    st.sampled_from(["no-store", "private", "no-cache"]),
    st.lists(
        st.sampled_from(
            ["public", "max-age=60", "s-maxage=9", 'x="no-store"', "immutable", 'community="UCI"']
        ),
        max_size=4,
    ),
    st.integers(0, 4),
)
def test_a_prohibition_holds_wherever_it_stands(name: str, others: list[str], at: int) -> None:
    others.insert(at, name.upper())
    assert refused(*control(", ".join(others))) == Refusal(name)
    assert refused(*control(*others)) == Refusal(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60", 60), ("0", 0), ("", 0), ("-1", 0), ("1.5", 0), ("٣", 0), ("9" * 19, 2**31), ("9" * 30, 0)],
)
def test_seconds_that_are_none_are_zero(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        (control("public"), None),
        (control("max-age=60"), 60),
        (control("s-maxage=5, max-age=60"), 5),
        (control("max-age=60, s-maxage=90"), 90),
        ([*control("max-age=60"), ("age", "45")], 15),
        ([*control("max-age=60"), ("expires", LATER)], 60),
        ([("expires", LATER)], 600),
        ([("expires", LATER), ("date", "Tue, 24 Nov 2026 09:09:00 GMT")], 60),
        ([("expires", LATER), ("age", "100")], 500),
        ([("expires", "0")], 0),
        ([("expires", "Mon, 23 Nov 2026 09:00:00 GMT")], -86_400),
        ([("expires", "Tue, 24 Nov 2026 09:10:00")], 600),
    ],
)
def test_a_response_lives_as_long_as_it_says(headers: list[tuple[str, str]], expected: int | None) -> None:
    assert lifetime_s(headers, NOW) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        (control("public, max-age=60"), None),
        ([("content-type", "text/html"), ("etag", '"a"')], None),
        ([("set-cookie", "a=b")], Refusal.SET_COOKIE),
        (control("no-store"), Refusal.NO_STORE),
        (control("private"), Refusal.PRIVATE),
        (control('private="x-user"'), Refusal.PRIVATE),
        (control("no-cache"), Refusal.NO_CACHE),
        (control('no-cache="x-user"'), Refusal.NO_CACHE),
        ([("pragma", "no-cache")], Refusal.NO_CACHE),
        ([("pragma", "no-cache"), *control("max-age=5")], None),
        (control("max-age=0"), Refusal.EXPIRED),
        (control("max-age=60, s-maxage=0"), Refusal.EXPIRED),
        (control("max-age=soon"), Refusal.EXPIRED),
        ([("expires", "never")], Refusal.EXPIRED),
        ([("vary", "*")], Refusal.VARY),
        ([("vary", "Accept-Language")], Refusal.VARY),
        ([("vary", "Cookie")], Refusal.VARY),
        ([("content-range", "bytes 0-1/2")], Refusal.PARTIAL),
    ],
)
def test_what_must_not_be_stored_is_refused_with_its_reason(
    headers: list[tuple[str, str]], expected: Refusal | None
) -> None:
    assert refused(*headers) == expected


def test_only_declared_statuses_are_stored() -> None:
    assert refused(status=404) == Refusal.STATUS
    assert refused(status=206) == Refusal.STATUS
    assert refused(status=503) == Refusal.SERVER_ERROR


def test_only_what_may_be_otherwise_next_time_passes() -> None:
    assert {reason for reason in Refusal if reason.passes} == {
        Refusal.SERVER_ERROR,
        Refusal.PARTIAL,
        Refusal.FAILED,
    }


def test_vary_is_stored_when_all_of_it_is_declared() -> None:
    several = [("vary", "Accept-Language, ACCEPT"), ("vary", "accept-encoding,")]
    assert varying(several) == {"accept-language", "accept", "accept-encoding"}
    assert refused(*several, vary=("accept", "accept-encoding", "accept-language")) is None
    assert refused(*several, vary=("accept", "accept-language")) == Refusal.VARY
    assert refused(("vary", "accept, *"), vary=("accept",)) == Refusal.VARY


def test_a_cache_for_each_user_stores_what_is_private_but_not_what_is_not_to_be_stored() -> None:
    assert refused(*control("private, max-age=60"), personal=True) is None
    assert refused(("vary", "Cookie, Authorization"), personal=True) is None
    assert refused(*control("private, no-store"), personal=True) == Refusal.NO_STORE
    assert refused(("vary", "Accept"), personal=True) == Refusal.VARY
    assert refused(("set-cookie", "a=b"), personal=True) == Refusal.SET_COOKIE


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Refusal.AUTHORIZATION),
        ("max-age=60", Refusal.AUTHORIZATION),
        ("public", None),
        ("s-maxage=60", None),
        ("max-age=60, must-revalidate", None),
        ("public, private", Refusal.PRIVATE),
    ],
)
def test_an_authorised_response_is_stored_only_when_it_says_that_others_may_have_it(
    line: str, expected: Refusal | None
) -> None:
    assert refused(*control(line), authorised=True) == expected


def test_must_revalidate_forbids_every_stale_use() -> None:
    assert never_stale(control("max-age=60, must-revalidate"))
    assert never_stale(control("proxy-revalidate"))
    assert not never_stale(control("max-age=60"))


@given(st.integers(-10_000, 10_000), st.integers(0, 10_000))
def test_expires_and_max_age_say_the_same(offset: int, age: int) -> None:
    moment = datetime.fromtimestamp(NOW.timestamp() + offset, UTC)
    expires = [("expires", format_datetime(moment, usegmt=True)), ("age", str(age))]
    assert lifetime_s(expires, NOW) == offset - age
