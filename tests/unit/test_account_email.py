"""Addresses of accounts: one spelling for each, and nothing that can't be one."""

from __future__ import annotations

import pytest

from counterseal.core.email import counted_as, domain_of, normal_email


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.Lovelace@EXAMPLE.com", "ada.lovelace@example.com"),
        ("  ada@example.com ", "ada@example.com"),
        ("jose\u0301@example.com", "jos\u00e9@example.com"),
        ("JOS\u00c9@example.com", "jos\u00e9@example.com"),
        ("\u0130@example.com", "i\u0307@example.com"),
        ("a+b@sub.example.co", "a+b@sub.example.co"),
        ("a" * 242 + "@example.com", "a" * 242 + "@example.com"),
        ("ada@b\u00fccher.example", "ada@xn--bcher-kva.example"),
        ("Ada@B\u00dcCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@bu\u0308cher.example", "ada@xn--bcher-kva.example"),
        ("ada@XN--Bcher-KVA.example", "ada@xn--bcher-kva.example"),
        ("ada@b\u00fccher\u3002example", "ada@xn--bcher-kva.example"),
        ("ada@\uff45xample.com", "ada@example.com"),
        ("ada@fa\u00df.example", "ada@xn--fa-hia.example"),
        ("ada@fass.example", "ada@fass.example"),
        ("\u00e9@b\u00fccher.example", "\u00e9@xn--bcher-kva.example"),
        ("ada@my_host.example", "ada@my_host.example"),
    ],
)
def test_an_address_has_one_spelling(text: str, normal: str) -> None:
    assert normal_email(text) == normal
    assert normal_email(normal) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@@example.com",
        "ada@b@example.com",
        "ada lovelace@example.com",
        "ada@exam\nple.com",
        "ada\x00@example.com",
        "ada\u202e@example.com",
        "ada\ud800@example.com",
        "ada@.example.com",
        "ada@example.com.",
        "ada@\U0001f4a9.example",
        "ada@-\u00e9.example",
        "ada@\u00e9..example",
        "ada@\u00e9.",
        "ada@\u3002\u00e9",
        "ada@" + "\u00e9" * 64 + ".example",
        "a" * 243 + "@example.com",
        "\u00e9" * 122 + "@example.com",
        "a@" * 100_000,
        None,
        7,
        b"ada@example.com",
    ],
)
def test_what_can_be_no_address_is_none(text: object) -> None:
    assert normal_email(text) is None


def test_the_domain_is_what_follows_the_at_sign() -> None:
    assert domain_of("ada@sub.example.com") == "sub.example.com"


def test_attempts_are_counted_under_a_name_that_does_not_tell_the_address() -> None:
    name = counted_as("ada@example.com")
    assert name == counted_as("ada@example.com") != counted_as("bob@example.com")
    assert "ada" not in name
    assert len(name) == 32
