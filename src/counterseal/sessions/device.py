"""Device: what a user agent is called among the devices of a user. It is what the client says, and proves nothing."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from counterseal.sessions.address import network_of
from counterseal.sessions.session import Session

LONGEST_USER_AGENT: Final = 512
UNKNOWN: Final = "Unknown device"

_FAMILIES: Final = (
    # The first that is found counts: most browsers name those that they descend from as well.
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("OPiOS/", "Opera"),
    ("Opera", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("YaBrowser/", "Yandex"),
    ("Vivaldi/", "Vivaldi"),
    ("DuckDuckGo/", "DuckDuckGo"),
    ("FxiOS/", "Firefox"),
    ("Firefox/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("HeadlessChrome/", "Chrome"),
    ("Chromium/", "Chromium"),
    ("Chrome/", "Chrome"),
    ("MSIE ", "Internet Explorer"),
    ("Trident/", "Internet Explorer"),
    ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("CrOS", "ChromeOS"),
    ("Macintosh", "Mac"),
    ("Mac OS X", "Mac"),
    ("Linux", "Linux"),
    ("FreeBSD", "FreeBSD"),
    ("OpenBSD", "OpenBSD"),
)
_PROGRAM: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,31})(?:/|$)")
_CONTROL: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+"
)


def clean_user_agent(text: str | None) -> str | None:
    """A user agent as it is kept: at most 512 characters, none of which is a control character; None for nothing.

    Characters that turn the direction of text, or are no characters (lone surrogates), are taken out too.
    """
    if not text:
        return None
    return _CONTROL.sub(" ", text[: 2 * LONGEST_USER_AGENT]).strip()[:LONGEST_USER_AGENT] or None


@lru_cache(1024)
def device_family(user_agent: str | None) -> str:
    """The browser or program, as `Firefox` or `curl`, whatever its version and system. Never raises."""
    text = clean_user_agent(user_agent)
    if text is None:
        return UNKNOWN
    for sign, family in _FAMILIES:
        if sign in text:
            return family
    program = _PROGRAM.match(text)
    return program[1] if program is not None and program[1] != "Mozilla" else UNKNOWN


def device_name(user_agent: str | None) -> str:
    """What to call a device, as `Firefox on Linux`, `Safari on iPhone` or `curl`. Never raises."""
    family = device_family(user_agent)
    text = clean_user_agent(user_agent) or ""
    for sign, system in _SYSTEMS:
        if sign in text:
            return f"Browser on {system}" if family == UNKNOWN else f"{family} on {system}"
    return family


def is_elsewhere(session: Session, user_agent: str | None, ip: str | None) -> bool:
    """Whether a session is used by another browser and from another network than it was begun or stepped up with.

    One of the two changes by itself: a browser is updated and a laptop carried. What is not known is no change.
    """
    before, after = device_family(session.user_agent), device_family(user_agent)
    was, is_now = network_of(session.ip), network_of(ip)
    return UNKNOWN not in (before, after) and before != after and None not in (was, is_now) and was != is_now
