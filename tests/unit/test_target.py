"""What a REDIS_URL says is understood, and what is wrong with it is said without showing it."""

import pytest

from counterseal.core.errors import ConfigurationError
from counterseal.store.target import parse_redis_url


def test_a_plain_url():
    address = parse_redis_url("redis://app:p%40ss@db.example:6400/3")
    target = address.template
    assert (address.kind, target.host, target.port, target.database, target.username) == (
        "single",
        "db.example",
        6400,
        3,
        "app",
    )
    assert target.password is not None
    assert target.password.get_secret_value() == "p@ss"
    assert not target.is_local


def test_a_unix_socket():
    target = parse_redis_url("unix:///run/valkey.sock?db=2").template
    assert (target.path, target.database, target.is_local) == ("/run/valkey.sock", 2, True)


def test_sentinels_with_their_own_password():
    address = parse_redis_url("redis+sentinel://app:secret-a@s1:1,s2/main/4?sentinel_password=secret-b")
    assert [(node.host, node.port) for node in address.nodes] == [("s1", 1), ("s2", 26379)]
    assert (address.service, address.template.database) == ("main", 4)
    assert address.nodes[0].password is not None
    assert address.nodes[0].password.get_secret_value() == "secret-b"
    assert address.template.password is not None
    assert address.template.password.get_secret_value() == "secret-a"


def test_a_cluster():
    address = parse_redis_url("redis+cluster://h1:7000,[::1]:7001")
    assert [(node.host, node.port) for node in address.nodes] == [("h1", 7000), ("::1", 7001)]
    assert address.nodes[1].is_local


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "[::1]"])
def test_loopback_is_local(host: str):
    assert parse_redis_url(f"redis://{host}:1").template.is_local


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://hush-hush@h/x", "number of a database"),
        ("redis+sentinel://u:hush-hush@h:1", "/service after"),
        ("redis+cluster://u:hush-hush@h:1,h:99999", "host:port pairs"),
        ("redis+cluster://u:hush-hush@h:1/2", "database 0 with a Cluster"),
        ("redis://u:hush-hush@h?decode_responses=true", "only the options"),
        ("rediss://u:hush-hush@h?ssl_ca_certs=/nowhere/hush-hush.pem", "readable certificate files"),
    ],
)
def test_a_fault_names_the_setting_and_what_was_expected_but_shows_nothing(url: str, expected: str):
    with pytest.raises(ConfigurationError, match=rf"^REDIS_URL: .*{expected}") as caught:
        parse_redis_url(url)
    assert "hush-hush" not in str(caught.value)


def test_neither_repr_nor_description_show_a_password():
    address = parse_redis_url("rediss://app:hush-hush@h:1/2")
    assert "hush-hush" not in repr(address)
    assert address.template.description == "rediss://h:1/2"
