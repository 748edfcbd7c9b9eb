"""Address: the network that a client's address lies in."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network


@lru_cache(1024)
def network_of(ip: str | None) -> str | None:
    """The /24 of an IPv4 address or the /64 of an IPv6 one, as text; None for what is no address. Never raises."""
    if not ip:
        return None
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(ip_network((address, 24 if address.version == 4 else 64), strict=False))
