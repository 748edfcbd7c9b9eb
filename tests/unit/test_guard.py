"""Commands that would change a shared connection, or make everybody wait, are refused before they are sent."""

import pytest

from counterseal.core.errors import CommandError
from counterseal.store.guard import check, check_queued


@pytest.mark.parametrize(
    "command",
    [
        ("SELECT", 1),
        ("select", 1),
        (b"SeLeCt", 1),
        ("MULTI",),
        ("EXEC",),
        ("SUBSCRIBE", "c"),
        ("HELLO", 3),
        ("CLIENT", "REPLY", "OFF"),
        ("client", "tracking", "on"),
        ("MONITOR",),
        ("RESET",),
        ("SCRIPT", "DEBUG", "YES"),
        ("WATCH", "k"),
    ],
)
def test_what_changes_the_connection_is_refused_alone_and_in_a_transaction(command: tuple):
    for refuse in (check, check_queued):
        with pytest.raises(CommandError, match="changes the connection"):
            refuse(command)


@pytest.mark.parametrize(
    "command",
    [("BLPOP", "k", 0), (b"brpop", "k", 0), ("XREAD", "BLOCK", 5, "STREAMS", "s", "$"), ("WAIT", 1, 0)],
)
def test_what_waits_on_the_server_is_refused_alone_but_not_in_a_transaction(command: tuple):
    with pytest.raises(CommandError, match="waits on the server"):
        check(command)
    check_queued(command)


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "SELECT"),
        ("XREAD", "STREAMS", "block", "0"),
        ("XREADGROUP", "GROUP", "block", "c", "STREAMS", "s", ">"),
        ("CLIENT", "ID"),
        ("A" * 10_000,),
        (7,),
    ],
)
def test_everything_else_passes(command: tuple):
    check(command)
    check_queued(command)
