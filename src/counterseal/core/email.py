"""Email: an address as it is kept, and as it is counted."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Final

import idna

LONGEST_EMAIL: Final = 254
"""Bytes of UTF-8, as RFC 5321 allows for a path without its angle brackets."""

_VISIBLE_ASCII: Final = re.compile(r"[!-~]+")


def normal_email(text: object) -> str | None:
    """An address in the one spelling that is kept (NFC, lower case, the domain in ASCII); None for what can't be one.

    Whether it exists only a mail can tell, so no more is asked than one `@` with something on both sides, no white
    space and no control characters, a domain that has an ASCII form (IDNA 2008, UTS 46), and at most 254 bytes.
    """
    if not isinstance(text, str) or len(text) > LONGEST_EMAIL * 2:
        return None
    email = text.strip(" ").lower()
    if not _VISIBLE_ASCII.fullmatch(email):
        # Lower case may come apart again what was composed, so it is composed last.
        email = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip(" ")).lower())
        if any(character.isspace() or unicodedata.category(character)[0] == "C" for character in email):
            return None
    local, _, written = email.partition("@")
    domain = _ascii_domain(written)
    if not local or not domain or "@" in domain or domain.startswith(".") or domain.endswith("."):
        return None
    email = f"{local}@{domain}"
    return email if len(email.encode()) <= LONGEST_EMAIL else None


def _ascii_domain(domain: str) -> str:
    """A domain as the DNS has it, so that both spellings of one are one; empty for what has no such form."""
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True, transitional=False).decode("ascii")
    except UnicodeError:
        return ""


def domain_of(email: str) -> str:
    """What follows the `@` of a normal address."""
    return email.partition("@")[2]


def counted_as(email: str) -> str:
    """The name by which attempts on an address are counted: nobody reads the address from it."""
    return hashlib.sha256(email.encode()).hexdigest()[:32]
