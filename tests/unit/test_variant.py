"""Keys of kept responses: what may differ is apart, whatever it looks like, and what can't differ is together."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote_plus

from hypothesis import given
from hypothesis import strategies as st

from counterseal.web.variant import headers_of, path_tag, query_names, sorted_query, variant_key

TEXT = st.text(max_size=12)
NAMES = st.sampled_from(["a", "b", "%61", "a b", "a+b", "", "ä", "a&b", "a=b"])
PAIRS = st.lists(st.tuples(NAMES, st.text("ab&=+% ", max_size=3)), max_size=6)


def asked(path: str = "/", query: bytes = b"", **scope: Any) -> dict[str, Any]:
    raw = path.encode("utf-8", "surrogatepass")
    return {"scheme": "http", "path": path, "raw_path": raw, "query_string": query, "headers": [], **scope}


def key(scope: dict[str, Any], headers: dict[str, str] | None = None, **given: Any) -> str:
    facts = {"tenant": "", "vary": (), "user": None, "authorised": False, **given}
    return variant_key(scope, headers or {}, **facts)


def written(pairs: list[tuple[str, str]]) -> bytes:
    return "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in pairs).encode()


def seen_by_handler(query: bytes) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return found


@given(PAIRS, st.randoms(use_true_random=False))
def test_queries_with_one_key_are_the_same_to_a_handler(pairs: list[tuple[str, str]], random: Any) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, other = written(pairs), written(shuffled)
    if sorted_query(one) == sorted_query(other):
        assert seen_by_handler(one) == seen_by_handler(other)
    if seen_by_handler(one) == seen_by_handler(other):
        assert sorted_query(one) == sorted_query(other)


def test_names_that_differ_only_in_their_encoding_keep_their_order() -> None:
    assert sorted_query(b"%61=1&a=2") != sorted_query(b"a=2&%61=1")
    assert sorted_query(b"b=1&a=2&&") == sorted_query(b"a=2&b=1") == ["a=2", "b=1"]


@given(PAIRS)
def test_the_names_of_a_query_are_those_that_a_handler_sees(pairs: list[tuple[str, str]]) -> None:
    query = written(pairs)
    assert query_names(query) == seen_by_handler(query).keys()


def test_a_name_in_another_encoding_is_the_same_name() -> None:
    assert query_names(b"p%61ge=1&&page=2&page&a+b=1") == {"page", "a b"}
    assert query_names(b"") == query_names(b"&") == frozenset()


Facts = tuple[str, str, str, str | None, str | None, bool]


@given(
    *(st.tuples(TEXT, TEXT, TEXT, st.none() | TEXT, st.none() | TEXT, st.booleans()) for _ in range(2)),
)
def test_two_requests_share_a_key_only_when_all_of_it_is_equal(one: Facts, other: Facts) -> None:
    def of(facts: Facts) -> str:
        tenant, path, query, header, user, authorised = facts
        headers = {} if header is None else {"accept": header}
        scope = asked(path, query.encode())
        return key(scope, headers, tenant=tenant, vary={"accept"}, user=user, authorised=authorised)

    def settled(facts: Facts) -> tuple[object, ...]:
        return (*facts[:2], sorted_query(facts[2].encode()), *facts[3:])

    assert (of(one) == of(other)) is (settled(one) == settled(other))


def test_parts_do_not_run_into_one_another() -> None:
    assert key(asked("/a"), tenant="b") != key(asked("/ab"), tenant="")
    assert key(asked("/"), user="ada") != key(asked("/"), tenant="ada")
    assert key(asked("/"), {"a": "1"}, vary=["a", "b"]) != key(asked("/"), {"b": "1"}, vary=["a", "b"])
    assert key(asked("/"), {}, vary=["a"]) != key(asked("/"), {"a": ""}, vary=["a"])
    assert key(asked("/")) != key(asked("/", scheme="https"))


def test_paths_that_are_decoded_alike_are_apart() -> None:
    assert key(asked("/a/b", raw_path=b"/a/b")) != key(asked("/a/b", raw_path=b"/a%2Fb"))
    assert path_tag("page", "/a/b") == path_tag("page", "/a/b")


def test_a_key_is_a_whole_digest_however_long_the_path_is() -> None:
    one, other = key(asked("/" + "x" * 100_000 + "1")), key(asked("/" + "x" * 100_000 + "2"))
    assert (len(one), one == other) == (64, False)


def test_lines_of_one_header_are_joined() -> None:
    lines = [(b"Accept", b" a "), (b"accept", b"b"), (b"x", b"\xe9")]
    assert headers_of(asked(headers=lines)) == {"accept": "a, b", "x": "é"}


@given(st.sets(TEXT, max_size=50))
def test_tags_of_paths_are_bounded(paths: set[str]) -> None:
    assert all(len(path_tag("page", path)) == len("page:path:") + 4 for path in paths)
