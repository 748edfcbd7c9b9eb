"""Ports: free ones on loopback, outside the range from which the system takes ports for outgoing connections.

A client that keeps dialling the port of a dead server can, inside that range, be given the same port as its own and
connect to itself; the server could then never come back.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 11_000
_given: set[int] = set()


def free_port() -> int:
    """A port nobody listens on. It is not given twice in one run, so a stopped server can come back to its own."""
    highest = int(_RANGE_FILE.read_text().split()[0]) if _RANGE_FILE.exists() else 32_768
    for _ in range(1000):
        port = random.randrange(_LOWEST, highest)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError(f"no free port between {_LOWEST} and {highest} on 127.0.0.1")
