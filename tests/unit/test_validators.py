"""Entity tags and conditional requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterseal.web.validators import entity_tags, is_entity_tag, not_modified, strong_entity_tag

MONDAY = "Mon, 23 Nov 2026 09:00:00 GMT"
TUESDAY = "Tue, 24 Nov 2026 09:00:00 GMT"


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ('"a"', ['"a"']),
        ('W/"a"', ['W/"a"']),
        ('"a", W/"b" ,"c"', ['"a"', 'W/"b"', '"c"']),
        ('"a,b", "c"', ['"a,b"', '"c"']),
        (',, "a",', ['"a"']),
        ('""', ['""']),
        ("a", []),
        ('"a" "b"', []),
        ('"a", b, "c"', ['"a"']),
        ('w/"a"', []),
        ("", []),
    ],
)
def test_a_list_of_entity_tags_is_read_as_it_is_written(text: str, tags: list[str]) -> None:
    assert entity_tags(text) == tags


@given(
    st.lists(
        st.tuples(st.booleans(), st.text(st.characters(min_codepoint=0x23, max_codepoint=0x7E), max_size=8))
    )
)
def test_every_tag_of_a_list_is_found_whatever_stands_in_it(tags: list[tuple[bool, str]]) -> None:
    written = [f'{"W/" if weak else ""}"{text}"' for weak, text in tags]
    assert entity_tags(", ".join(written)) == written
    assert all(is_entity_tag(tag) for tag in written)


@pytest.mark.parametrize(
    ("condition", "etag", "expected"),
    [
        ('"a"', '"a"', True),
        ('W/"a"', '"a"', True),
        ('"a"', 'W/"a"', True),
        ('W/"a"', 'W/"a"', True),
        ('"b", "a"', '"a"', True),
        ("*", '"a"', True),
        (" * ", '"a"', True),
        ('"b"', '"a"', False),
        ('"a', '"a"', False),
        ('"A"', '"a"', False),
        ('"x*"', '"a"', False),
    ],
)
def test_if_none_match_is_compared_weakly(condition: str, etag: str, expected: bool) -> None:
    assert not_modified({"if-none-match": condition}, etag=etag, last_modified=None) is expected


def test_if_modified_since_counts_only_without_if_none_match() -> None:
    assert not_modified({"if-modified-since": TUESDAY}, etag='"a"', last_modified=MONDAY)
    assert not_modified({"if-modified-since": MONDAY}, etag='"a"', last_modified=MONDAY)
    assert not not_modified({"if-modified-since": MONDAY}, etag='"a"', last_modified=TUESDAY)
    both = {"if-modified-since": TUESDAY, "if-none-match": '"b"'}
    assert not not_modified(both, etag='"a"', last_modified=MONDAY)


def test_dates_that_are_none_never_make_304() -> None:
    assert not not_modified({"if-modified-since": "yesterday"}, etag='"a"', last_modified=MONDAY)
    assert not not_modified({"if-modified-since": TUESDAY}, etag='"a"', last_modified=None)
    assert not not_modified({}, etag='"a"', last_modified=MONDAY)


def test_bodies_that_differ_in_a_byte_have_different_strong_tags() -> None:
    one, other = strong_entity_tag(b"a" * 1000), strong_entity_tag(b"a" * 999 + b"b")
    assert one != other
    assert is_entity_tag(one)
    assert len(one) == 64 + 2
