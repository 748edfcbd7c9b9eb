"""The leak check names a key that nobody lets live for ever, in every database and on every primary."""

from __future__ import annotations

import pytest

from counterseal.store.keys import Keys
from support.cluster import Cluster
from support.leaks import find_leaks
from support.runs import prepare_run
from support.servers import Server

pytest_plugins = ["pytester"]


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A run of pytest of its own, with this kit."""
    return prepare_run(pytester)


@pytest.mark.leaves_keys("they are what is looked for")
def test_lasting_keys_are_found_in_every_database(valkey: Server) -> None:
    valkey.execute("SET", "cs:cache:x:{1}", 1)
    valkey.execute("SET", "cs:short", 1, "PX", 60_000)
    valkey.execute("SELECT", 3)
    valkey.execute("SET", "cs:short", 1, "PX", 60_000)
    valkey.execute("SET", b"cs:\xff", 1)
    valkey.execute("SELECT", 0)
    assert find_leaks(valkey.client) == ["db0 cs:cache:x:{1}", r"db3 cs:\xff"]
    assert valkey.execute("GET", "cs:cache:x:{1}") == b"1"


@pytest.mark.leaves_keys("they are what is looked for")
def test_a_key_is_allowed_only_by_a_pattern_that_matches_all_of_it(valkey: Server) -> None:
    for key in ("cs:queue:ready", "cs:queue:ready:more", "a:cs:queue:ready"):
        valkey.execute("SET", key, 1)
    assert find_leaks(valkey.client, allowed=["x", "cs:[a-z]+:ready"]) == [
        "db0 a:cs:queue:ready",
        "db0 cs:queue:ready:more",
    ]
    assert find_leaks(valkey.client, allowed=[".*"]) == []


def test_the_keys_that_keys_py_lists_may_stay(valkey: Server) -> None:
    valkey.execute("ZADD", f"{Keys().jobs_prefix('mail')}:running", 1, "job")
    assert find_leaks(valkey.client) == []
    assert find_leaks(valkey.client, allowed=[]) == [f"db0 {Keys().jobs_prefix('mail')}:running"]


@pytest.mark.leaves_keys("they are what is looked for")
def test_none_of_many_keys_is_missed(valkey: Server) -> None:
    valkey.client.pipeline([("SET", f"cs:{number}", 1) for number in range(5000)])
    assert len(find_leaks(valkey.client)) == 5000


@pytest.mark.leaves_keys("they are what is looked for")
def test_every_primary_of_a_cluster_is_looked_at(cluster: Cluster) -> None:
    for number in range(30):
        cluster.owner(cluster.slot_of(f"cs:{number}")).execute("SET", f"cs:{number}", 1)
    found = [leak for node in cluster.primaries() for leak in find_leaks(node.client)]
    assert len(found) == 30


def test_a_test_that_leaks_fails_and_the_key_is_named(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        import pytest

        def test_leaks(valkey):
            valkey.execute("SET", "cs:leaked", 1)

        def test_is_clean_again(valkey):
            assert valkey.execute("DBSIZE") == 0

        def test_leaks_on_its_own_server(servers):
            servers().execute("SET", "cs:own", 1)

        def test_leaks_although_frozen(servers):
            server = servers()
            server.execute("SET", "cs:frozen", 1)
            server.freeze()

        @pytest.mark.leaves_keys("as an example")
        def test_says_why(valkey):
            valkey.execute("SET", "cs:leaked", 1)

        @pytest.mark.leaves_keys
        def test_does_not_say_why(valkey):
            pass
    """)
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=6, errors=4)
    result.stdout.fnmatch_lines_random(
        [
            "*ERROR at teardown of test_leaks _*",
            "*without a TTL: db0 cs:leaked.*",
            "*ERROR at teardown of test_leaks_on_its_own_server*",
            "*without a TTL: db0 cs:own.*",
            "*without a TTL: db0 cs:frozen.*",
            "*ERROR at teardown of test_does_not_say_why*",
            "*leaves_keys needs a reason*",
        ]
    )


def test_many_leaks_are_counted_not_listed(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        def test_leaks(valkey):
            for number in range(15):
                valkey.execute("SET", f"cs:{number}", 1)
    """)
    result = inner.runpytest_inprocess()
    result.stdout.fnmatch_lines(["*db0 cs:0, *and 5 more*"])


def test_killed_and_frozen_shared_servers_are_back_for_the_next_test(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        def test_kills(valkey):
            valkey.kill()

        def test_freezes(valkey):
            assert valkey.execute("PING") == b"PONG"
            valkey.freeze()

        def test_uses(valkey):
            assert valkey.execute("PING") == b"PONG"
    """)
    inner.runpytest_inprocess().assert_outcomes(passed=3)
