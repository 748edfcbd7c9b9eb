"""The client's address against everything a client can put before what trusted proxies write."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Scope

from counterseal.core.settings import ProxyHeader
from counterseal.web.address import client_address, limited_as

tricky = st.sampled_from(
    [
        '"',
        "\\",
        '\\"',
        ",",
        ";",
        "=",
        "for=",
        "for=6.6.6.6",
        'for="',
        'host="',
        'for="[2001:db8::666]:80"',
        "6.6.6.6",
        "unknown",
        "[",
        "]",
        " ",
    ]
)
characters = st.characters(min_codepoint=0, max_codepoint=255)
forged = st.lists(tricky | st.text(characters, max_size=6), max_size=12).map("".join)
addresses = st.ip_addresses()
hosts = st.text(characters, max_size=10)


def shown(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def entry(address: IPv4Address | IPv6Address) -> str:
    return f"[{address}]:443" if isinstance(address, IPv6Address) else str(address)


def element(address: IPv4Address | IPv6Address, host: str) -> str:
    """As a proxy writes it, with a host that came from the client, quoted as RFC 7239 says."""
    quoted = host.replace("\\", "\\\\").replace('"', '\\"')
    return f'host="{quoted}";for="{entry(address)}";proto=https'


def scope_of(header: ProxyHeader, lines: list[str]) -> Scope:
    name = header.value.encode()
    return {"client": ("192.0.2.1", 1), "headers": [(name, line.encode("latin-1")) for line in lines]}


@settings(max_examples=300)
@given(header=st.sampled_from(ProxyHeader), forged=st.lists(forged, max_size=3))
def test_without_trusted_proxies_no_header_changes_the_answer(header: ProxyHeader, forged: list[str]):
    assert client_address(scope_of(header, forged), 0, header=header) == "192.0.2.1"


@settings(max_examples=500)
@given(
    header=st.sampled_from(ProxyHeader),
    forged=st.lists(forged, max_size=3),
    added=st.lists(st.tuples(addresses, hosts), min_size=1, max_size=3),
    same_line=st.booleans(),
)
@example(ProxyHeader.FORWARDED, ['for=6.6.6.6;x="'], [(IPv4Address("203.0.113.1"), ';z="')], True)
@example(ProxyHeader.FORWARDED, ['for="\\'], [(IPv4Address("203.0.113.1"), "")], True)
def test_whatever_a_client_prepends_the_outermost_trusted_proxy_is_believed(
    header: ProxyHeader,
    forged: list[str],
    added: list[tuple[IPv4Address | IPv6Address, str]],
    same_line: bool,
):
    if header is ProxyHeader.FORWARDED:
        genuine = ", ".join(element(address, host) for address, host in added)
    else:
        genuine = ", ".join(entry(address) for address, _ in added)
    lines = [*forged, genuine]
    if forged and same_line:
        lines[-2:] = [f"{lines[-2]}, {genuine}"]
    seen = client_address(scope_of(header, lines), len(added), header=header)
    assert seen == shown(added[0][0])


@settings(max_examples=300)
@given(header=st.sampled_from(ProxyHeader), lines=st.lists(forged, max_size=4), trusted=st.integers(0, 5))
def test_every_header_gives_an_address_and_never_an_error(
    header: ProxyHeader, lines: list[str], trusted: int
):
    seen = client_address(scope_of(header, lines), trusted, header=header)
    assert limited_as(limited_as(seen)) == limited_as(seen)
    assert seen == client_address(scope_of(ProxyHeader.X_FORWARDED_FOR, [seen]), 1)


@settings(max_examples=200)
@given(address=st.ip_addresses(v=6), other=st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_64_are_limited_as_one(address: IPv6Address, other: int):
    neighbour = IPv6Address(int(address) >> 64 << 64 | other)
    if address.ipv4_mapped is None and neighbour.ipv4_mapped is None:
        assert limited_as(str(address)) == limited_as(str(neighbour))
