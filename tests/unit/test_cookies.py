"""Cookies of sessions: the lines that are written, and what is read of the lines that come."""

from __future__ import annotations

from datetime import timedelta

import pytest

from counterseal.web.cookies import (
    ACCESS,
    REFRESH,
    SIGNER,
    access_cookie,
    cleared_cookies,
    has_our_cookie,
    read_cookie,
    refresh_cookie,
)

TOKEN = "v1.alice.s-1.AbC_123-xyz~%2E"


def fields(*lines: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"example.com"), *((b"cookie", line) for line in lines)]


def parts(line: str) -> tuple[str, set[str]]:
    pair, *attributes = line.split("; ")
    return pair, set(attributes)


def test_the_access_cookie_goes_everywhere_and_no_script_reads_it() -> None:
    pair, attributes = parts(access_cookie("a.b.c"))
    assert pair == "__Host-cs_at=a.b.c"
    assert attributes == {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"}


def test_the_refresh_cookie_goes_to_the_routes_of_log_in_alone_and_lives_as_long_as_the_session() -> None:
    pair, attributes = parts(refresh_cookie(TOKEN, timedelta(days=7, milliseconds=-1)))
    assert pair == f"__Secure-cs_rt={TOKEN}"
    assert attributes == {"Path=/api/auth", "Max-Age=604799", "Secure", "HttpOnly", "SameSite=Strict"}


@pytest.mark.parametrize(
    ("below", "path"),
    [
        ("/counterseal", "/counterseal/api/auth"),
        ("/counterseal/", "/counterseal/api/auth"),
        ("/a b/\u00e9", "/a%20b/%C3%A9/api/auth"),
        ("/x; Domain=evil.example", "/x%3B%20Domain=evil.example/api/auth"),
        ("/x\r\nSet-Cookie: y=z", "/x%0D%0ASet-Cookie:%20y=z/api/auth"),
    ],
)
def test_below_a_path_the_refresh_cookie_goes_to_the_routes_there_and_is_cleared_there(
    below: str, path: str
) -> None:
    for line in (
        refresh_cookie(TOKEN, timedelta(days=7), below=below),
        cleared_cookies(below=below)[1],
    ):
        found = [each for each in line.split("; ") if each.startswith(("Path=", "Domain="))]
        assert found == [f"Path={path}"]
        assert line.isprintable()


def test_a_session_that_is_over_leaves_no_cookie() -> None:
    assert "Max-Age=0" in parts(refresh_cookie(TOKEN, timedelta(seconds=-5)))[1]


def test_clearing_has_a_line_for_each_cookie_with_the_attributes_that_a_browser_compares() -> None:
    access, refresh = cleared_cookies()
    assert parts(access) == (
        "__Host-cs_at=",
        {"Path=/", "Max-Age=0", "Secure", "HttpOnly", "SameSite=Lax"},
    )
    assert parts(refresh) == (
        "__Secure-cs_rt=",
        {"Path=/api/auth", "Max-Age=0", "Secure", "HttpOnly", "SameSite=Strict"},
    )


@pytest.mark.parametrize("value", ["a;b", "a b", "a\r\nSet-Cookie: x=y", "a,b", 'a"b', "a\\b", "é", "a\0"])
def test_a_value_that_would_end_a_cookie_or_a_line_is_never_written(value: str) -> None:
    with pytest.raises(ValueError, match="fits a cookie") as refusal:
        access_cookie(value)
    assert value not in str(refusal.value)


def test_a_line_of_4096_bytes_is_never_written() -> None:
    room = 4095 - len(access_cookie(""))
    assert len(access_cookie("a" * room)) == 4095
    with pytest.raises(ValueError, match="fits a cookie"):
        access_cookie("a" * (room + 1))


@pytest.mark.parametrize(
    "lines",
    [
        [f"{REFRESH}={TOKEN}".encode()],
        [f"a=b; {REFRESH}={TOKEN}; c=d".encode()],
        [f"a=b;{REFRESH}={TOKEN};c".encode()],
        [f" {REFRESH} = {TOKEN} ".encode()],
        [b"a=b", f"{REFRESH}={TOKEN}".encode()],
        [f"{REFRESH}={TOKEN}; {REFRESH}={TOKEN}".encode()],
        [f"{REFRESH}={TOKEN}".encode(), f"{REFRESH}={TOKEN}".encode()],
        [b"broken", b"=", b";;;", f"x{REFRESH}=no; {REFRESH}={TOKEN}".encode()],
    ],
)
def test_a_cookie_is_found_in_whichever_line_it_is_in(lines: list[bytes]) -> None:
    assert read_cookie(fields(*lines), REFRESH) == TOKEN


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b""],
        [b"a=b"],
        [REFRESH.encode()],
        [f"{REFRESH}=".encode()],
        [f"{REFRESH.lower()}x={TOKEN}".encode()],
        [f"{REFRESH.upper()}={TOKEN}".encode()],
        [f"{REFRESH}={TOKEN}; {REFRESH}=other".encode()],
        [f"{REFRESH}={TOKEN}; {REFRESH}=".encode()],
        [f"{REFRESH}={TOKEN}".encode(), f"{REFRESH}=other".encode()],
        [f"{REFRESH}={TOKEN}".encode(), f"a=b; {REFRESH}".encode()],
        [f'{REFRESH}="{TOKEN}"'.encode()],
        [f"{REFRESH}={TOKEN}\x00".encode()],
        [f"{REFRESH}={TOKEN}\x7f".encode()],
        [f"{REFRESH}=a\tb".encode()],
        [f"{REFRESH}=a b".encode()],
        [f"{REFRESH}=a,b".encode()],
        [REFRESH.encode() + b"=\xff\xfe"],
        [f"{REFRESH}={'a' * 4096}".encode()],
        [f"{REFRESH}={'a' * 1_000_000}".encode()],
    ],
)
def test_what_is_absent_ambiguous_or_never_written_so_is_no_cookie(lines: list[bytes]) -> None:
    assert read_cookie(fields(*lines), REFRESH) is None


def test_the_name_of_the_header_is_read_in_any_case() -> None:
    assert read_cookie([(b"Cookie", f"{ACCESS}=x".encode())], ACCESS) == "x"
    assert read_cookie([(b"cookies", f"{ACCESS}=x".encode())], ACCESS) is None


@pytest.mark.parametrize("name", [ACCESS, REFRESH, SIGNER])
def test_any_of_our_cookies_is_noticed_whatever_it_holds(name: str) -> None:
    for value in ("", "=", "=x", "=a; other=b", '="\x00"'):
        assert has_our_cookie(fields(b"a=b", f"c=d; {name}{value}".encode()))


def test_cookies_of_others_are_not_ours() -> None:
    assert not has_our_cookie(fields(b"cs_at=x; __Host-cs_attic=y; sessionid=z"))
    assert not has_our_cookie([])
