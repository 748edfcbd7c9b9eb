"""Certificates: an authority of the tests, and server certificates that a client must take or refuse."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias

import trustme

Flavour: TypeAlias = Literal["good", "expired", "wrong_host"]
"""`good` is for `localhost` and 127.0.0.1, `expired` was, `wrong_host` is for another name."""


class Authority:
    """A certificate authority of its own, its certificate kept in a file."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        """What a client has to trust."""
        self._authority.cert_pem.write_to_path(str(self.ca_file))

    def server_context(self, flavour: Flavour) -> ssl.SSLContext:
        """A TLS context for a server with a new certificate of this flavour."""
        names = ("elsewhere.example",) if flavour == "wrong_host" else ("localhost", "127.0.0.1")
        now = datetime.now(UTC)
        if flavour == "expired":
            issued = self._authority.issue_cert(
                *names, not_before=now - timedelta(days=30), not_after=now - timedelta(days=1)
            )
        else:
            issued = self._authority.issue_cert(*names)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued.configure_cert(context)
        return context
