"""TOTP code: secrets, codes and their steps (RFC 6238), and the QR code by which an authenticator learns a secret.

160-bit secrets, SHA-1, 6 digits, 30 s: what every authenticator understands.
"""

from __future__ import annotations

import base64
import hmac
import io
import re
import secrets
from typing import Final

import segno
from pyotp.totp import TOTP

DIGITS: Final = 6
STEP_MS: Final = 30_000
WINDOW: Final = 1
"""How many steps a clock may be off, either way."""

_SECRET_BYTES: Final = 20
_LONGEST_TYPED: Final = 64
_CODE: Final = re.compile(rf"[0-9]{{{DIGITS}}}")


def new_totp_secret() -> str:
    """160 random bits in base32: 32 characters."""
    return base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def step_at(now_ms: int) -> int:
    """The number of the 30 seconds that this time lies in."""
    return now_ms // STEP_MS


def typed_code(text: object) -> str | None:
    """A code as somebody typed it, spaces left out; None for what can be none. Never raises."""
    if not isinstance(text, str) or len(text) > _LONGEST_TYPED:
        return None
    code = "".join(text.split())
    return code if _CODE.fullmatch(code) else None


def matching_step(secret: str, code: str, *, now_ms: int) -> int | None:
    """The latest step within the window whose code this is; None when it is none of theirs.

    Every step is compared, and each in constant time.
    """
    totp = TOTP(secret, digits=DIGITS, interval=STEP_MS // 1000)
    now, found = step_at(now_ms), None
    for step in range(max(now - WINDOW, 0), now + WINDOW + 1):
        if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode()):
            found = step
    return found


def provisioning_uri(secret: str, *, account: str, issuer: str) -> str:
    """The `otpauth:` URI of a secret. It holds the secret."""
    return TOTP(secret, digits=DIGITS, interval=STEP_MS // 1000).provisioning_uri(
        name=account, issuer_name=issuer
    )


def qr_svg(uri: str) -> str:
    """A QR code as one `<svg>` element: black on a white ground of its own, with the quiet zone of four modules.

    It refers to nothing and has neither style nor script, so it may stand in a page under the strictest policy, dark
    pages too. Its size is the page's to give.
    """
    written = io.BytesIO()
    segno.make(uri, error="m", micro=False).save(
        written,
        kind="svg",
        dark="#000",
        light="#fff",
        border=4,
        xmldecl=False,
        svgclass=None,
        lineclass=None,
        omitsize=True,
        nl=False,
    )
    return written.getvalue().decode()
