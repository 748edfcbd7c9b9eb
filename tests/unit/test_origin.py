"""The origin of an unsafe request: which pages may have a browser send one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from counterseal.core.errors import ConfigurationError
from counterseal.web.origin import Origins

COOKIE = {"cookie": "a=b; __Host-cs_at=x"}


def asked(
    headers: Mapping[str, str | list[str]],
    *,
    public_url: str | None = None,
    more: tuple[str, ...] = (),
    scheme: str = "http",
    host: str | None = "sign.example",
) -> bool:
    lines = {**({} if host is None else {"host": host}), **headers}
    fields = [
        (name.encode(), value.encode("latin-1"))
        for name, values in lines.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return Origins(public_url, more).allow({"type": "http", "scheme": scheme, "headers": fields})


@pytest.mark.parametrize("site", ["same-origin", "none"])
@pytest.mark.parametrize("origin", [None, "null", "http://sign.example", "https://proxied.example"])
def test_what_the_browser_calls_its_own_site_passes(site: str, origin: str | None) -> None:
    headers = {"sec-fetch-site": site, **({} if origin is None else {"origin": origin})}
    assert asked(headers)
    assert asked({**headers, **COOKIE})


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "SAME-ORIGIN", "same-origin, cross-site"])
def test_what_it_calls_another_site_is_refused(site: str) -> None:
    for headers in ({}, COOKIE):
        assert not asked({"sec-fetch-site": site, **headers})
        assert not asked({"sec-fetch-site": site, "origin": "https://evil.example", **headers})
        assert not asked({"sec-fetch-site": site, "origin": "null", **headers})
        assert not asked({"sec-fetch-site": site, "origin": "http://sign.example", **headers})


def test_two_words_of_a_browser_that_differ_are_refused() -> None:
    assert not asked({"sec-fetch-site": ["same-origin", "cross-site"], **COOKIE})
    assert not asked({"origin": ["http://sign.example", "http://evil.example"], **COOKIE})


@pytest.mark.parametrize(
    ("origin", "scheme", "host", "passes"),
    [
        ("http://sign.example", "http", "sign.example", True),
        ("http://sign.example:80", "http", "sign.example", True),
        ("http://sign.example", "http", "sign.example:80", True),
        ("HTTP://SIGN.example", "http", "Sign.Example", True),
        ("http://127.0.0.1:8787", "http", "127.0.0.1:8787", True),
        ("http://[::1]:8787", "http", "[::1]:8787", True),
        ("https://sign.example", "https", "sign.example", True),
        ("https://sign.example", "wss", "sign.example", True),
        ("https://sign.example", "http", "sign.example", True),  # a proxy ends TLS
        ("http://sign.example", "https", "sign.example", False),
        ("http://sign.example:8080", "http", "sign.example", False),
        ("http://sign.example", "http", "sign.example:8080", False),
        ("http://evil.example", "http", "sign.example", False),
        ("http://sign.example.evil.example", "http", "sign.example", False),
        ("http://xsign.example", "http", "sign.example", False),
        ("http://sign.example@evil.example", "http", "sign.example", False),
        ("http://evil.example/sign.example", "http", "sign.example", False),
        ("null", "http", "null", False),
        ("", "http", "sign.example", False),
        ("sign.example", "http", "sign.example", False),
        ("http://", "http", "", False),
        ("http://sign.example:port", "http", "sign.example", False),
        ("http://sign.example:99999", "http", "sign.example:99999", False),
        ("http://[", "http", "[", False),
        ("file://sign.example", "http", "sign.example", False),
        ("http://" + "a" * 5000, "http", "a" * 5000, False),
        ("http://sign.\u00e9xample", "http", "sign.example", False),
    ],
)
def test_without_fetch_metadata_the_origin_must_be_the_host(
    origin: str, scheme: str, host: str, passes: bool
) -> None:
    for headers in ({}, COOKIE):
        assert asked({"origin": origin, **headers}, scheme=scheme, host=host) is passes


def test_without_a_host_no_origin_is_known() -> None:
    assert not asked({"origin": "http://sign.example"}, host=None)
    assert not asked({"origin": "http://sign.example", "host": ["sign.example", "evil.example"]})


def test_a_public_url_takes_the_place_of_the_host() -> None:
    public = "https://sign.example/below"
    assert asked({"origin": "https://sign.example", **COOKIE}, public_url=public, host="inner:8787")
    assert not asked({"origin": "http://inner:8787", **COOKIE}, public_url=public, host="inner:8787")
    assert not asked({"origin": "http://sign.example", **COOKIE}, public_url=public)


def test_origins_that_the_application_names_may_send_whatever_the_browser_calls_them() -> None:
    more = ("https://app.example", "http://127.0.0.1:3000/")
    for origin in ("https://app.example", "https://app.example:443", "http://127.0.0.1:3000"):
        for site in ("cross-site", "same-site"):
            assert asked({"origin": origin, "sec-fetch-site": site, **COOKIE}, more=more)
        assert asked({"origin": origin, **COOKIE}, more=more)
    assert not asked({"origin": "https://other.example", "sec-fetch-site": "cross-site"}, more=more)


@pytest.mark.parametrize(
    "text", ["app.example", "*", "null", "ftp://app.example", "https://app.example/path", "https://"]
)
def test_what_is_no_origin_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match="origins: expected a scheme and a host"):
        Origins(None, [text])


def test_no_browser_and_no_cookie_of_ours_passes() -> None:
    assert asked({})
    assert asked({"cookie": "theme=dark"})
    assert asked({"authorization": "Basic eDp5"})


@pytest.mark.parametrize(
    "cookie", ["__Host-cs_at=x", "__Secure-cs_rt=x", "a=b; __Host-cs_sg=", "__Host-cs_at"]
)
def test_a_cookie_of_ours_needs_to_say_where_it_comes_from(cookie: str) -> None:
    assert not asked({"cookie": cookie})
    assert not asked({"cookie": cookie, "authorization": "Bearer x"})
    assert asked({"cookie": cookie, "origin": "http://sign.example"})


def test_a_bearer_token_without_cookies_passes_from_anywhere() -> None:
    headers = {"authorization": "bearer x", "origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert asked(headers)
    assert not asked({**headers, **COOKIE})
    assert not asked({**headers, "authorization": "Basic eDp5"})  # which a browser adds by itself
