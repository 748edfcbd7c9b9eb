"""Password: what may be one, and how it is kept (argon2id)."""

from __future__ import annotations

import asyncio
import base64
import secrets
import unicodedata
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from counterseal.accounts.refused import Refused

SHORTEST: Final = 8
LONGEST: Final = 256
"""Characters. A longer password is refused and never cut."""

MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
LANES: Final = 1
"""Argon2id as OWASP's Password Storage Cheat Sheet has it."""

AT_ONCE: Final = 2
"""Each hash takes a core for some 20 ms and 19 MiB, so a crowd of them is let in two by two."""

_COMMON: Final = frozenset(
    """
    00000000 11111111 12341234 123123123 12345678 123456789 1234567890 0123456789 12345678910 123456abc
    87654321 987654321 1q2w3e4r 1q2w3e4r5t 1qaz2wsx 1qaz2wsx3edc 147258369 123qweasd a1b2c3d4 aa123456 aa12345678
    abc12345 abc123456 abcd1234 abcdefgh abcdefghi administrator admin123 admin1234 asdfasdf asdfghjk asdfghjkl
    asdf1234 baseball basketball changeme changeme123 computer counterseal dragon123 football iloveyou iloveyou1
    jennifer letmein1 letmein123 liverpool manchester michelle monkey123 p@ssw0rd p@ssword passw0rd password
    password! password1 password12 password123 password1234 princess princess1 q1w2e3r4 q1w2e3r4t5 qazwsxedc
    qwer1234 qwerasdf qwerty12 qwerty123 qwerty1234 qwertyui qwertyuiop qwertz123 starwars sunshine sunshine1
    superman superman1 test1234 testtest trustno1 welcome1 welcome123 whatever zaq12wsx zxcvbnm1 zxcvbnm123
    """.split()  # noqa: SIM905
)


def weakness(password: str, *, email: str) -> Refused | None:
    """Why a password may not be chosen; None when it may.

    8 to 256 characters, whichever they are (NIST SP 800-63B has no rules of composition): not the address, what stands
    before its `@`, one character again and again, nor one of the most common.
    """
    text = _prepared(password)
    if text is None:
        return _weak("A password is text; this is none.")
    if len(text) < SHORTEST:
        return _weak(f"A password has at least {SHORTEST} characters.")
    if len(text) > LONGEST or len(password) > LONGEST:
        return _weak(f"A password has at most {LONGEST} characters.")
    folded = text.casefold()
    if folded in {email.casefold(), email.partition("@")[0].casefold()}:
        return _weak("A password may not be the e-mail address.")
    if folded in _COMMON or len(set(folded)) == 1:
        return _weak("This password is one of the first that somebody would try.")
    return None


class Passwords:
    """Makes and verifies hashes in threads, `at_once` of them at a time. It has no state but the queue.

    A database whose hashes were made with other costs keeps working: each is made anew when its owner logs in.
    """

    def __init__(
        self,
        *,
        memory_kib: int = MEMORY_KIB,
        passes: int = PASSES,
        lanes: int = LANES,
        at_once: int = AT_ONCE,
    ) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=lanes)
        self._room = asyncio.Semaphore(at_once)
        # No password is known for it: both parts are random. Costs are read from it, as from a real one.
        salt, tag = (base64.b64encode(secrets.token_bytes(n)).rstrip(b"=").decode() for n in (16, 32))
        self._nobody = f"$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${salt}${tag}"

    async def hash(self, password: str) -> str:
        """A hash to keep, with its salt and costs. Raises `ValueError` for what `weakness` calls no password."""
        text = _prepared(password)
        if text is None:
            raise ValueError("a password is text")
        async with self._room:
            return await asyncio.to_thread(self._hasher.hash, text)

    async def verify(self, kept: str | None, password: str) -> bool:
        """Whether it is the password of a hash. Without one, as for an unknown user, False takes as long."""
        text = _prepared(password) if len(password) <= LONGEST else None
        async with self._room:
            right = await asyncio.to_thread(self._verify, kept or self._nobody, text or "")
        return right and kept is not None and text is not None

    def is_outdated(self, kept: str) -> bool:
        """Whether a hash was made with other costs than are used now."""
        try:
            return self._hasher.check_needs_rehash(kept)
        except InvalidHashError:
            return True

    def _verify(self, kept: str, text: str) -> bool:
        try:
            return self._hasher.verify(kept, text)
        except (VerificationError, InvalidHashError):
            return False


def _prepared(password: object) -> str | None:
    """A password in the one form in which it is hashed: the same on every keyboard (NFKC). None for no text."""
    if not isinstance(password, str):
        return None
    try:
        password.encode()
    except UnicodeEncodeError:
        return None
    return unicodedata.normalize("NFKC", password)


def _weak(detail: str) -> Refused:
    return Refused("password_too_weak", detail)
