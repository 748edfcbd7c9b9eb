"""What user agents are called, how they are kept, and which network an address lies in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterseal.sessions.address import network_of
from counterseal.sessions.device import (
    LONGEST_USER_AGENT,
    clean_user_agent,
    device_family,
    device_name,
    is_elsewhere,
)
from counterseal.sessions.session import Facts, Profile, Session

MOZILLA = "Mozilla/5.0"
KIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
IPHONE = f"{MOZILLA} (iPhone; CPU iPhone OS 18_5 like Mac OS X) {APPLE}"
WINDOWS = f"{MOZILLA} (Windows NT 10.0; Win64; x64) {KIT}"


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (f"{MOZILLA} (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        (f"{IPHONE} Version/18.5 Mobile/15E148 Safari/604.1", "Safari on iPhone"),
        (f"{IPHONE} CriOS/138.0.7204.53 Mobile/15E148 Safari/604.1", "Chrome on iPhone"),
        (f"{IPHONE} FxiOS/140.0 Mobile/15E148 Safari/605.1.15", "Firefox on iPhone"),
        (
            f"{MOZILLA} (iPad; CPU OS 18_5 like Mac OS X) {APPLE} Version/18.5 Mobile/15E148 Safari/604.1",
            "Safari on iPad",
        ),
        (
            f"{MOZILLA} (Macintosh; Intel Mac OS X 10_15_7) {APPLE} Version/18.5 Safari/605.1.15",
            "Safari on Mac",
        ),
        (f"{WINDOWS} Chrome/138.0.0.0 Safari/537.36", "Chrome on Windows"),
        (f"{WINDOWS} Chrome/138.0.0.0 Safari/537.36 Edg/138.0.0.0", "Edge on Windows"),
        (f"{WINDOWS} Chrome/137.0.0.0 Safari/537.36 OPR/122.0.0.0", "Opera on Windows"),
        (
            f"{MOZILLA} (Linux; Android 10; K) {KIT} Chrome/138.0.0.0 Mobile Safari/537.36",
            "Chrome on Android",
        ),
        (
            f"{MOZILLA} (Linux; Android 10; K) {KIT} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
            "Samsung Internet on Android",
        ),
        (
            f"{MOZILLA} (X11; CrOS x86_64 14541.0.0) {KIT} Chrome/138.0.0.0 Safari/537.36",
            "Chrome on ChromeOS",
        ),
        (
            f"{MOZILLA} (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko",
            "Internet Explorer on Windows",
        ),
        (f"{MOZILLA} (Windows NT 10.0)", "Browser on Windows"),
        ("curl/8.14.1", "curl"),
        ("curl", "curl"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("okhttp/5.1.0", "okhttp"),
        (MOZILLA, "Unknown device"),
        ("<script>alert(1)</script>", "Unknown device"),
        ("/", "Unknown device"),
        ("", "Unknown device"),
        (None, "Unknown device"),
    ],
)
def test_a_device_has_a_name_that_its_user_knows(user_agent: str | None, name: str):
    assert device_name(user_agent) == name


def test_a_new_version_is_no_new_family():
    old, new = (f"{WINDOWS} Chrome/{version}.0.0.0 Safari/537.36" for version in (120, 150))
    assert device_family(old) == device_family(new) == "Chrome"


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_user_agent_has_a_name_of_bounded_length_and_is_kept_clean(text: str):
    assert 0 < len(device_name(text)) <= 64
    kept = clean_user_agent(text)
    assert kept is None or (0 < len(kept) <= LONGEST_USER_AGENT and kept == clean_user_agent(kept))
    assert kept is None or all(ord(character) > 31 and ord(character) != 127 for character in kept)
    assert kept is None or kept.encode()


def test_control_and_direction_characters_are_taken_out_and_what_is_too_long_is_cut():
    assert clean_user_agent("a\r\nSet-Cookie: b\x00\x7f\u202ec\ud800") == "a Set-Cookie: b c"
    assert clean_user_agent("x" * 100_000) == "x" * LONGEST_USER_AGENT
    assert clean_user_agent("\r\n \x00") is None
    assert clean_user_agent(None) is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("localhost", None),
        ("192.0.2", None),
        ("192.0.2.1/24", None),
        ("", None),
        (None, None),
    ],
)
def test_an_address_lies_in_its_network(address: str | None, network: str | None):
    assert network_of(address) == network


FIREFOX = f"{MOZILLA} (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
NEWER_FIREFOX = FIREFOX.replace("140", "141")
SAFARI = f"{IPHONE} Version/18.5 Mobile/15E148 Safari/604.1"
AT_HOME, NEXT_DOOR, AWAY = "192.0.2.7", "192.0.2.200", "203.0.113.7"


def session_of(user_agent: str | None, ip: str | None) -> Session:
    facts = Facts(
        profile=Profile.STANDARD,
        amr=("pwd",),
        authenticated_ms=0,
        created_ms=0,
        absolute_ms=1,
        idle_ms=1,
        epoch=0,
        global_epoch=0,
        device="",
        user_agent=user_agent,
        ip=ip,
    )
    return Session("ada.1", "ada", facts, version=1, last_used_ms=0, checked_ms=0)


@pytest.mark.parametrize(
    ("before", "after", "elsewhere"),
    [
        ((FIREFOX, AT_HOME), (SAFARI, AWAY), True),
        ((FIREFOX, AT_HOME), (SAFARI, "2001:db8::1"), True),
        ((FIREFOX, AT_HOME), ("curl/8.14.1", AWAY), True),
        ((FIREFOX, AT_HOME), (FIREFOX, AT_HOME), False),
        ((FIREFOX, AT_HOME), (FIREFOX, AWAY), False),
        ((FIREFOX, AT_HOME), (NEWER_FIREFOX, AWAY), False),
        ((FIREFOX, AT_HOME), (SAFARI, AT_HOME), False),
        ((FIREFOX, AT_HOME), (SAFARI, NEXT_DOOR), False),
        ((FIREFOX, AT_HOME), (SAFARI, f"::ffff:{NEXT_DOOR}"), False),
        ((FIREFOX, "2001:db8:1:2::3"), (SAFARI, "2001:db8:1:2:ffff::4"), False),
        ((FIREFOX, AT_HOME), (None, AWAY), False),
        ((FIREFOX, AT_HOME), (MOZILLA, AWAY), False),
        ((FIREFOX, AT_HOME), (SAFARI, None), False),
        ((FIREFOX, AT_HOME), (SAFARI, "somewhere"), False),
        ((None, AT_HOME), (SAFARI, AWAY), False),
        ((FIREFOX, None), (SAFARI, AWAY), False),
        ((None, None), (None, None), False),
    ],
)
def test_a_session_is_elsewhere_when_both_browser_and_network_have_changed(
    before: tuple[str | None, str | None], after: tuple[str | None, str | None], elsewhere: bool
):
    assert is_elsewhere(session_of(*before), *after) is elsewhere


@given(st.text() | st.none(), st.text() | st.none())
def test_whatever_a_client_says_the_answer_is_yes_or_no(user_agent: str | None, ip: str | None):
    assert is_elsewhere(session_of(FIREFOX, AT_HOME), user_agent, ip) in (True, False)
