"""Keyring: the secret keys that sign tokens and encrypt, newest first, and what is derived from each for one purpose.

A key itself signs and encrypts nothing: every purpose has its own, derived by HKDF-SHA256 (RFC 5869). What an older key
signed or sealed is still understood while that key is in the ring, so keys are rotated by putting a new one before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from counterseal.core.errors import ConfigurationError, SealBroken
from counterseal.core.settings import MINIMUM_KEY_BYTES, parse_secret_keys

NAME: Final = "COUNTERSEAL_SECRET_KEYS"
NONCE_BYTES: Final = 12

_LONGEST_FILE_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Sealed:
    """Encrypted bytes: which key they need, and nonce (12 bytes) with AES-256-GCM ciphertext."""

    key_id: str
    data: bytes = field(repr=False)


class Keyring:
    """The secret keys of one configuration. `open()` it before use; the constructor does no input or output.

    `secret_keys` is what `COUNTERSEAL_SECRET_KEYS` holds. Without it the keys are kept in `file`, which the first
    `open()` makes: for development. Raises `ConfigurationError` for keys that are malformed.
    """

    def __init__(self, secret_keys: SecretStr | None, *, file: Path | None = None) -> None:
        self._file = file
        self._keys: dict[str, bytes] = {}
        self._derived: dict[tuple[str, str], bytes] = {}
        self._ciphers: dict[tuple[str, str], AESGCM] = {}
        if secret_keys is not None:
            try:
                self._keys = parse_secret_keys(secret_keys.get_secret_value())
            except ValueError as fault:
                raise ConfigurationError(f"{NAME}: {fault}") from None

    async def open(self) -> None:
        """Read the keys from the file where none were given; make the file when there is none. Safe to call twice.

        The file is for its owner alone, and appears whole: processes that start together get the same key. Raises
        `ConfigurationError` when the file can't be used, or when there are neither keys nor a file.
        """
        if self._keys:
            return
        if self._file is None:
            raise ConfigurationError(
                f"{NAME}: expected kid:base64, with a key of at least {MINIMUM_KEY_BYTES} bytes; it is missing"
            )
        self._keys = await asyncio.to_thread(_read_or_make, self._file)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, newest first; none before `open()` has read them."""
        return tuple(self._keys)

    def derive(self, purpose: str, key_id: str | None = None) -> bytes:
        """32 bytes for one purpose, from the newest key or from the one with this id. No round trip.

        Raises `SealBroken` for an id that is not in the ring.
        """
        chosen = key_id if key_id is not None else self._newest()
        found = self._derived.get((purpose, chosen))
        if found is None:
            key = self._keys.get(chosen)
            if key is None:
                raise SealBroken("no key of the ring has the id that was asked for")
            found = HKDF(SHA256(), 32, salt=None, info=f"counterseal {purpose}".encode()).derive(key)
            self._derived[purpose, chosen] = found
        return found

    def seal(self, purpose: str, data: bytes, *, bound_to: str) -> Sealed:
        """Encrypt by the newest key. Only who names the same purpose and `bound_to` gets it back. No round trip."""
        key_id = self._newest()
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Sealed(key_id, nonce + self._cipher(purpose, key_id).encrypt(nonce, data, _bytes(bound_to)))

    def unseal(self, purpose: str, sealed: Sealed, *, bound_to: str) -> bytes:
        """What was sealed for this purpose and `bound_to`. No round trip.

        Raises `SealBroken` when anything differs: the key, the purpose, `bound_to`, or one bit of the data.
        """
        cipher = self._cipher(purpose, sealed.key_id)
        nonce, ciphertext = sealed.data[:NONCE_BYTES], sealed.data[NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, ciphertext, _bytes(bound_to))
        except (InvalidTag, ValueError):
            raise SealBroken("what was sealed can't be read: it was changed, or is somebody else's") from None

    def _newest(self) -> str:
        for key_id in self._keys:
            return key_id
        raise ConfigurationError(f"{NAME}: expected keys; the ring is not open")

    def _cipher(self, purpose: str, key_id: str) -> AESGCM:
        found = self._ciphers.get((purpose, key_id))
        if found is None:
            found = self._ciphers[purpose, key_id] = AESGCM(self.derive(purpose, key_id))
        return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read_or_make(file: Path) -> dict[str, bytes]:
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(file)
        _make(file)
        return _read(file)
    except OSError:
        # Neither cause nor context: an error of the file system may quote what it met.
        raise ConfigurationError(
            f"COUNTERSEAL_DATA_DIR: expected a folder that may be written to, in which {file} can be read;"
            f" mend its rights, or set {NAME}"
        ) from None


def _read(file: Path) -> dict[str, bytes]:
    # Whoever put a pipe there would otherwise hold up the start for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(
                f"{file}: expected a file of secret keys; it is something else: move it away"
            )
        if status.st_mode & 0o077:
            raise ConfigurationError(
                f"{file}: expected a file that its owner alone may read; others may: chmod 600, or, when others"
                " have read it, move it away, and a new key is made (what the old one signed or sealed is lost)"
            )
        content = opened.read(_LONGEST_FILE_BYTES)
    try:
        return parse_secret_keys(content.decode("ascii", "replace").strip())
    except ValueError as refusal:
        fault = str(refusal)
    raise ConfigurationError(
        f"{file}: {fault}; restore it from a copy, or move it away, and a new key is made"
        " (what the old one signed or sealed is lost)"
    )


def _make(file: Path) -> None:
    """Put a new key there, unless another process is first."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = base64.b64encode(secrets.token_bytes(MINIMUM_KEY_BYTES)).decode()
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(f"dev-{secrets.token_hex(4)}:{key}\n".encode())
            opened.flush()
            os.fsync(descriptor)
        # A link, unlike a renaming, never takes the place of a file that is already there.
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
