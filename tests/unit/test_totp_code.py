"""TOTP codes: the numbers of RFC 6238, a window of one step either way, and what is typed and shown."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyotp.totp import TOTP

from counterseal.accounts.totp_code import (
    matching_step,
    new_totp_secret,
    provisioning_uri,
    qr_svg,
    step_at,
    typed_code,
)

RFC = base64.b32encode(b"12345678901234567890").decode()
# RFC 6238, appendix B, of whose eight digits the last six are ours.
VECTORS = [
    (59, "287082"),
    (1111111109, "081804"),
    (1111111111, "050471"),
    (1234567890, "005924"),
    (2000000000, "279037"),
    (20000000000, "353130"),
]


@pytest.mark.parametrize(("seconds", "code"), VECTORS)
def test_codes_are_those_of_the_standard(seconds: int, code: str):
    assert matching_step(RFC, code, now_ms=seconds * 1000) == seconds // 30 == step_at(seconds * 1000)


def test_a_code_is_good_one_step_before_and_after_its_own_and_no_longer():
    step = 50_000_000
    code = TOTP(RFC).generate_otp(step)
    found = {off: matching_step(RFC, code, now_ms=(step + off) * 30_000) for off in range(-3, 4)}
    assert found == {-3: None, -2: None, -1: step, 0: step, 1: step, 2: None, 3: None}
    assert matching_step(RFC, code, now_ms=(step + 2) * 30_000 - 1) == step
    assert matching_step(RFC, code, now_ms=(step - 1) * 30_000 - 1) is None


def test_of_two_steps_with_one_code_the_later_is_meant(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TOTP, "generate_otp", lambda self, step: "123456" if step % 2 else "000000")
    assert matching_step(RFC, "123456", now_ms=100 * 30_000) == 101


def test_the_first_moments_of_time_are_no_error():
    assert matching_step(RFC, TOTP(RFC).generate_otp(0), now_ms=0) == 0


def test_secrets_have_160_bits_and_never_come_twice():
    made = {new_totp_secret() for _ in range(200)}
    assert len(made) == 200
    assert all(len(base64.b32decode(secret)) == 20 for secret in made)


@given(st.text() | st.binary() | st.integers() | st.none())
@example("123 456")
@example(" 123456\n")
@example("\u0661\u0662\u0663\u0664\u0665\u0666")
@example("12345\uff16")
@example("1234567")
@example("1" * 2**20)
@example("123456\x00")
def test_a_typed_code_is_six_ascii_digits_or_nothing(text: object):
    code = typed_code(text)
    assert code is None or re.fullmatch("[0-9]{6}", code)
    assert code is None or (isinstance(text, str) and "".join(text.split()) == code)


def test_spaces_in_a_typed_code_do_not_matter():
    assert typed_code(" 123 456 ") == "123456"
    assert typed_code("12345") is None


def test_the_uri_is_what_authenticators_read():
    uri = provisioning_uri(RFC, account="ada+a:b@example.com", issuer="Acme & Söhne")
    parts = urlsplit(uri)
    said = parse_qs(parts.query)
    assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
    assert unquote(parts.path) == "/Acme & Söhne:ada+a:b@example.com"
    assert said["secret"] == [RFC]
    assert said["issuer"] == ["Acme & Söhne"]


def test_the_qr_code_is_one_svg_that_a_strict_policy_lets_through():
    svg = qr_svg(provisioning_uri(RFC, account="ada@example.com", issuer="counterseal"))
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names == {"svg", "path"}
    attributes = {name for element in root.iter() for name in element.attrib}
    assert attributes <= {"viewBox", "d", "fill", "stroke", "transform"}
    assert "href" not in svg
    assert "url(" not in svg
    assert svg.count("http") == 1  # the name of SVG itself


def test_the_qr_code_brings_a_white_ground_and_a_quiet_zone_so_that_dark_pages_can_show_it():
    svg = qr_svg(provisioning_uri(RFC, account="ada@example.com", issuer="counterseal"))
    root = ET.fromstring(svg)
    side = int(root.attrib["viewBox"].split()[2])
    ground, modules = list(root)
    assert ground.attrib == {"fill": "#fff", "d": f"M0 0h{side}v{side}h-{side}z"}
    assert modules.attrib["stroke"] == "#000"
    assert modules.attrib["d"].startswith("M4 4.5h7")  # the first corner mark, four modules in
    assert (side - 8 - 17) % 4 == 0
