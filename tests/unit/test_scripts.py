"""A Lua file is called by the names in its header, and a header that lacks something is refused."""

import pytest

from counterseal.store.scripts import parse_script

GOOD = """-- enqueue: puts a job
--   where a worker can see it
-- keys: record ready
-- args: id now_ms fields...
-- returns: 1
-- ttl: record by ttl_ms
return 1
"""


def test_keys_and_arguments_are_bound_in_the_order_of_the_header():
    script = parse_script("enqueue", GOOD)
    count, bound = script.bind({"now_ms": 5, "ready": "r", "fields": ["a", "b"], "id": "7", "record": "k"})
    assert (count, bound) == (2, ["k", "r", "7", 5, "a", "b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"record": "k", "ready": "r", "id": 1, "now_ms": 2}, "needs the argument fields"),
        ({"record": "k", "ready": "r", "id": 1, "now_ms": 2, "fields": [], "x": 1}, "no argument named x"),
        ({"record": "k", "ready": "r", "id": 1, "now_ms": 2, "fields": "text"}, "a sequence as fields"),
        ({"record": ["k"], "ready": "r", "id": 1, "now_ms": 2, "fields": []}, "one value as record"),
    ],
)
def test_a_wrong_call_fails_like_a_python_call(arguments: dict, message: str):
    with pytest.raises(TypeError, match=message):
        parse_script("enqueue", GOOD).bind(arguments)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("return 1", "no line for keys, args, returns, ttl"),
        (GOOD.replace("-- ttl: record by ttl_ms\n", ""), "no line for ttl"),
        (GOOD.replace("record ready", "record... ready"), r"record\.\.\. must be the last"),
        (GOOD.replace("record ready", "Record"), "is not a name"),
        (GOOD.replace("-- args: id", "-- args: record"), "stands twice"),
    ],
)
def test_a_header_that_lacks_something_is_refused_by_name(source: str, message: str):
    with pytest.raises(ValueError, match=rf"enqueue\.lua: .*{message}"):
        parse_script("enqueue", source)
