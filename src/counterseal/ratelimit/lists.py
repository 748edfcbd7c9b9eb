"""Lists: whom to deny and whom to exempt, by identifier, by address and by network."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import Final, TypeAlias

from counterseal.core.errors import ConfigurationError
from counterseal.ratelimit.decision import Reason

_Network: TypeAlias = IPv4Network | IPv6Network
_LONGEST_ADDRESS: Final = 64
_MAPPED_BITS: Final = 96


def canonical(who: str) -> str:
    """Who is listed, spelled in the one way in which it is kept: a network or an address as the standard spells it.

    Anything else is an identifier as it is. Raises `ConfigurationError` for an empty one, and for a network that has
    bits beside its prefix: whether it is meant or the one address is not guessed.
    """
    if not who:
        raise ConfigurationError("who: expected an identifier, an address or a network; came: nothing")
    network = _network(who)
    if network is None:
        return who
    if "/" in who and network.prefixlen < network.max_prefixlen:
        address = ip_interface(who).ip
        if address != ip_interface(who).network.network_address:
            raise ConfigurationError(
                f"who: expected a network without further bits, as {network}; came: {who}"
            )
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


class Lists:
    """What is listed now. Looking somebody up costs the same however much is listed."""

    def __init__(self, entries: Iterable[tuple[str, Reason]] = ()) -> None:
        """`entries` are canonical. Who is both denied and exempt, by whatever network, is denied."""
        self._identifiers: dict[str, Reason] = {}
        self._networks: dict[tuple[int, int], dict[int, Reason]] = {}
        for who, reason in entries:
            network = _network(who)
            if network is None:
                self._identifiers[who] = reason
            else:
                shift = network.max_prefixlen - network.prefixlen
                of_length = self._networks.setdefault((network.version, shift), {})
                of_length[int(network.network_address) >> shift] = reason

    def find(self, who: str) -> Reason | None:
        """`DENIED` or `EXEMPT` when this identifier, address or network (as a whole) is listed, else None."""
        found = self._identifiers.get(who)
        if found is Reason.DENIED or not self._networks:
            return found
        network = _network(who)
        if network is None:
            return found
        own_shift = network.max_prefixlen - network.prefixlen
        number = int(network.network_address)
        for (version, shift), of_length in self._networks.items():
            if version == network.version and shift >= own_shift:
                reason = of_length.get(number >> shift)
                if reason is Reason.DENIED:
                    return reason
                found = reason or found
        return found


def _network(text: str) -> _Network | None:
    """An address or a network; None when it is neither. IPv4 inside IPv6 is IPv4."""
    if len(text) > _LONGEST_ADDRESS or not ("." in text or ":" in text):
        return None
    try:
        network = ip_interface(text).network
    except ValueError:
        return None
    address = network.network_address
    if isinstance(address, IPv6Address) and address.ipv4_mapped and network.prefixlen >= _MAPPED_BITS:
        return IPv4Network((int(address.ipv4_mapped), network.prefixlen - _MAPPED_BITS))
    return network
