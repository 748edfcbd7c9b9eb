"""The client's address: from the peer, from what trusted proxies wrote, and never from what a client wrote."""

from __future__ import annotations

import tracemalloc

import pytest
from starlette.types import Scope

from counterseal.core.settings import ProxyHeader, Settings
from counterseal.web.address import NO_ADDRESS, client_address, limited_as

FORWARDED = ProxyHeader.FORWARDED


def request_from(
    peer: str | None, *, x_forwarded_for: tuple[str, ...] = (), forwarded: tuple[str, ...] = ()
) -> Scope:
    """What a server says of a request whose header lines are these."""
    lines = [(b"x-forwarded-for", line.encode("latin-1")) for line in x_forwarded_for]
    lines += [(b"forwarded", line.encode("latin-1")) for line in forwarded]
    return {"type": "http", "client": (peer, 4711) if peer is not None else None, "headers": lines}


def by_x_forwarded_for(trusted: int, *lines: str, peer: str | None = "192.0.2.1") -> str:
    return client_address(request_from(peer, x_forwarded_for=lines), trusted)


def by_forwarded(trusted: int, *lines: str, peer: str | None = "192.0.2.1") -> str:
    return client_address(request_from(peer, forwarded=lines), trusted, header=FORWARDED)


@pytest.mark.parametrize("header", ProxyHeader)
def test_without_trusted_proxies_the_peer_is_the_client_whatever_the_headers_say(header: ProxyHeader):
    scope = request_from("192.0.2.1", x_forwarded_for=("203.0.113.9",), forwarded=("for=203.0.113.9",))
    assert client_address(scope, header=header) == "192.0.2.1"
    assert client_address(scope, 0, header=header) == "192.0.2.1"


def test_proxies_are_counted_from_the_right_over_all_lines():
    lines = ("198.51.100.1, 203.0.113.1", "203.0.113.2 ,\t203.0.113.3")
    assert [by_x_forwarded_for(trusted, *lines) for trusted in range(5)] == [
        "192.0.2.1",
        "203.0.113.3",
        "203.0.113.2",
        "203.0.113.1",
        "198.51.100.1",
    ]
    lines = (
        "for=198.51.100.1, for=203.0.113.1",
        "for=203.0.113.2;proto=https , For=203.0.113.3;by=192.0.2.1",
    )
    assert [by_forwarded(trusted, *lines) for trusted in range(5)] == [
        "192.0.2.1",
        "203.0.113.3",
        "203.0.113.2",
        "203.0.113.1",
        "198.51.100.1",
    ]


def test_fewer_entries_than_proxies_give_the_outermost_one_there_is():
    assert by_x_forwarded_for(3, "203.0.113.1, 203.0.113.2") == "203.0.113.1"
    assert by_forwarded(3, "for=203.0.113.1, for=203.0.113.2") == "203.0.113.1"
    assert by_x_forwarded_for(2) == by_forwarded(2) == "192.0.2.1"
    assert by_x_forwarded_for(2, "") == by_forwarded(2, "") == "192.0.2.1"


@pytest.mark.parametrize(
    "entry",
    [
        "unknown",
        "_hidden",
        "_gazonk:80",
        "",
        "localhost",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.007",
        "203.0.113.7:http",
        "[203.0.113.7]x",
        "[2001:db8::1",
        "2001:db8:::1",
        "for=203.0.113.7",
        "203.0.113.7 198.51.100.1",
        "\xff\x00",
    ],
)
def test_an_entry_that_names_no_address_gives_the_last_one_that_was_vouched_for(entry: str):
    assert by_x_forwarded_for(1, entry) == "192.0.2.1"
    assert by_x_forwarded_for(2, f"{entry}, 203.0.113.2") == "203.0.113.2"
    assert by_x_forwarded_for(3, f"198.51.100.1, {entry}, 203.0.113.2") == "203.0.113.2"
    assert by_forwarded(2, f'for="{entry}", for=203.0.113.2') == "203.0.113.2"


@pytest.mark.parametrize(
    "element",
    [
        "by=203.0.113.7",
        "203.0.113.7",
        "for",
        "for=",
        "for=203.0.113.7;for=198.51.100.1",
        "for = 203.0.113.7",
        'for="203.0.113.7',
        'for="203.0.113.7"x',
        "for=203.0.113.7 proto=https",
        "=203.0.113.7",
        "for=2001:db8::1",
        "for=[2001:db8::1]",
    ],
)
def test_a_malformed_element_of_forwarded_names_nobody(element: str):
    assert by_forwarded(1, element) == "192.0.2.1"


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:cb00:7107]:80", "203.0.113.7"),
    ],
)
def test_an_address_has_one_text_however_it_was_written(entry: str, address: str):
    assert by_x_forwarded_for(1, entry) == address
    assert by_forwarded(1, f'for="{entry}"') == address


@pytest.mark.parametrize(
    "element",
    [
        'for="[2001:db8::1]:4711"',
        'FOR="\\[2001:db8::1]"',
        'by=_me;for="[2001:db8::1]";proto=http',
        'host="a, for=198.51.100.1"; for="[2001:db8::1]" ',
        'host="a\\", for=198.51.100.1";for="[2001:db8::1]"',
        'host="\\\\";for="[2001:db8::1]";',
    ],
)
def test_forwarded_may_quote_and_hold_more_than_the_address(element: str):
    assert by_forwarded(1, element) == "2001:db8::1"
    assert by_forwarded(2, f"for=198.51.100.7, {element}") == "198.51.100.7"


@pytest.mark.parametrize("opened", ['for="', 'for=198.51.100.1;host="', '"', 'for="a\\', 'x="\\"', '","'])
def test_a_quote_that_a_client_leaves_open_hides_nothing_that_proxies_add(opened: str):
    added = 'for=203.0.113.1, for="203.0.113.2";host=""'
    assert by_forwarded(1, f"{opened}, {added}") == "203.0.113.2"
    assert by_forwarded(2, f"{opened}, {added}") == "203.0.113.1"
    assert by_forwarded(2, opened, added) == "203.0.113.1"


def test_the_header_that_the_proxies_do_not_write_is_never_read():
    both = request_from("192.0.2.1", x_forwarded_for=("203.0.113.1",), forwarded=("for=198.51.100.1",))
    assert client_address(both, 1) == "203.0.113.1"
    assert client_address(both, 1, header=FORWARDED) == "198.51.100.1"
    assert client_address(request_from("192.0.2.1", forwarded=("for=198.51.100.1",)), 1) == "192.0.2.1"
    alone = request_from("192.0.2.1", x_forwarded_for=("198.51.100.1",))
    assert client_address(alone, 1, header=FORWARDED) == "192.0.2.1"


def test_header_names_may_have_capitals():
    scope: Scope = {"client": ("192.0.2.1", 1), "headers": [(b"X-Forwarded-For", b"203.0.113.1")]}
    assert client_address(scope, 1) == "203.0.113.1"


@pytest.mark.parametrize("peer", [None, "", "testclient", "/run/app.sock"])
def test_a_peer_without_an_address_is_one_client_unless_a_trusted_proxy_names_it(peer: str | None):
    assert by_x_forwarded_for(0, "203.0.113.1", peer=peer) == NO_ADDRESS
    assert by_x_forwarded_for(1, peer=peer) == NO_ADDRESS
    assert by_x_forwarded_for(1, "unknown", peer=peer) == NO_ADDRESS
    assert by_x_forwarded_for(1, "198.51.100.1, 203.0.113.1", peer=peer) == "203.0.113.1"


def test_the_peer_too_is_ipv4_where_it_stands_for_ipv4():
    assert by_x_forwarded_for(0, peer="::ffff:203.0.113.7") == "203.0.113.7"


@pytest.mark.parametrize(
    ("address", "limited"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.7"),
        (NO_ADDRESS, NO_ADDRESS),
    ],
)
def test_ipv6_is_limited_by_its_64_and_ipv4_by_itself(address: str, limited: str):
    assert limited_as(address) == limited


@pytest.mark.parametrize("header", ProxyHeader)
def test_what_is_too_long_for_an_address_names_nobody_and_is_not_kept(header: ProxyHeader):
    def entry(number: int) -> bytes:
        text = f"[2001:db8::1%{number}{'z' * 20_000}]"
        return (f'for="{text}"' if header is FORWARDED else text).encode()

    def ask(number: int) -> str:
        scope: Scope = {
            "client": ("192.0.2.1", 1),
            "headers": [(header.value.encode("ascii"), entry(number))],
        }
        return client_address(scope, 1, header=header)

    ask(0)
    tracemalloc.start()
    try:
        assert {ask(number) for number in range(1, 200)} == {"192.0.2.1"}
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000


def test_the_longest_address_with_its_zone_and_port_is_one():
    longest = "[2001:0db8:1111:2222:3333:4444:255.255.255.255%enp0s31f6]:65535"
    assert len(longest) == 63
    assert by_x_forwarded_for(1, f"  {longest} {' ' * 70}") == "2001:db8:1111:2222:3333:4444:ffff:ffff"


def test_the_same_header_of_another_peer_or_number_of_proxies_is_read_anew():
    lines = ("198.51.100.1, unknown, 203.0.113.2",)
    assert [by_x_forwarded_for(trusted, *lines, peer="192.0.2.9") for trusted in (1, 2, 3)] == [
        "203.0.113.2"
    ] * 3
    lines = ("198.51.100.1, 203.0.113.2", "unknown")
    assert [by_x_forwarded_for(1, *lines, peer=peer) for peer in ("192.0.2.1", "192.0.2.2")] == [
        "192.0.2.1",
        "192.0.2.2",
    ]


def test_by_default_no_proxy_is_trusted():
    web = Settings.load({}).web
    assert (web.trusted_proxies, web.proxy_header) == (0, ProxyHeader.X_FORWARDED_FOR)
    given = {"COUNTERSEAL_TRUSTED_PROXIES": "2", "COUNTERSEAL_PROXY_HEADER": "forwarded"}
    assert (Settings.load(given).web.trusted_proxies, Settings.load(given).web.proxy_header) == (2, FORWARDED)
