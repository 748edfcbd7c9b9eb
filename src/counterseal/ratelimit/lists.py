"""Lists: whom to deny and whom to exempt, by identifier, by address and by network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from types import MappingProxyType
from typing import Final, TypeAlias

from counterseal.core.errors import ConfigurationError
from counterseal.ratelimit.decision import Reason
from counterseal.ratelimit.identifier import checked_text

_Network: TypeAlias = IPv4Network | IPv6Network
_LONGEST_ADDRESS: Final = 64
_MAPPED_BITS: Final = 96
_MOST_PARSED: Final = 8192

_MEANT_AS_NETWORK: Final = re.compile(
    r"""\s* (?: \d{1,3} (?: \.(?:\d{1,3}|\*) ){3} (?: $ | [/\-,*\s] )     # 10.0.0.256, 10.0.0.1-10.0.0.9, 10.0.*.*
              | [\d.]* \. [\d.]* / [\d.]* \s* $                           # 10.0/33
              | [\da-f:.]* : [\da-f:.]* (?: / \d+ | - [\da-f:.]+ ) \s* $  # 2001:db8::/129, ::1-::9
              | [\da-f:.]* :: [\da-f:.]* \s* $ )                          # 2001:db8:::1
    """,
    re.VERBOSE | re.IGNORECASE,
)


def canonical(who: str) -> str:
    """Who is listed, spelled in the one way in which it is kept: a network or an address as the standard spells it.

    Anything else is an identifier as it is. Raises `ConfigurationError` for what is not text of 1 to 1024 bytes, for
    text that looks like an address or a network and is none, and for a network that has bits beside its prefix:
    whether it is meant or the one address is not guessed.
    """
    place = _place(checked_text("who", who))
    if place is None:
        if _MEANT_AS_NETWORK.match(who[: 2 * _LONGEST_ADDRESS]):
            raise ConfigurationError(
                f"who: expected an identifier, an address, or a network as 10.0.0.0/8; came: {who}"
            )
        return who
    version, shift, number = place
    if shift == 0:
        return str(IPv4Address(number) if version == 4 else IPv6Address(number))
    interface = ip_interface(who)
    network = interface.network
    if interface.ip != network.network_address:
        raise ConfigurationError(f"who: expected a network without further bits, as {network}; came: {who}")
    return str(IPv4Network((number, 32 - shift)) if version == 4 else network)


class Lists:
    """What is listed now. Looking somebody up costs the same however much is listed."""

    def __init__(self, entries: Iterable[tuple[str, Reason]] = ()) -> None:
        """`entries` are canonical. Who is both denied and exempt, by whatever network, is denied."""
        self._entries: dict[str, Reason] = {}
        self._networks: dict[tuple[int, int], dict[int, Reason]] = {}
        for who, reason in entries:
            self.add(who, reason)

    @property
    def entries(self) -> Mapping[str, Reason]:
        """Everybody who is listed."""
        return MappingProxyType(self._entries)

    def add(self, who: str, reason: Reason) -> None:
        """List somebody, who is given canonically."""
        self._entries[who] = reason
        if (place := _place(who)) is not None:
            version, shift, number = place
            self._networks.setdefault((version, shift), {})[number >> shift] = reason

    def remove(self, who: str) -> None:
        """Take somebody off."""
        if self._entries.pop(who, None) is not None and (place := _place(who)) is not None:
            version, shift, number = place
            of_length = self._networks[version, shift]
            del of_length[number >> shift]
            if not of_length:
                del self._networks[version, shift]

    def find(self, who: str) -> Reason | None:
        """`DENIED` or `EXEMPT` when this identifier, address or network (as a whole) is listed, else None."""
        found = self._entries.get(who)
        if found is Reason.DENIED or not self._networks:
            return found
        place = _place(who)
        if place is None:
            return found
        own_version, own_shift, number = place
        for (version, shift), of_length in self._networks.items():
            if version == own_version and shift >= own_shift:
                reason = of_length.get(number >> shift)
                if reason is Reason.DENIED:
                    return reason
                found = reason or found
        return found


def _place(text: str) -> tuple[int, int, int] | None:
    """The version of an address or a network, how many of its bits are free, and its number; None for other text."""
    return None if len(text) > _LONGEST_ADDRESS else _parsed(text)


@lru_cache(maxsize=_MOST_PARSED)
def _parsed(text: str) -> tuple[int, int, int] | None:
    # Whoever comes often is looked up at every request, and reading an address takes longer than all the rest.
    network = _network(text)
    if network is None:
        return None
    return network.version, network.max_prefixlen - network.prefixlen, int(network.network_address)


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
