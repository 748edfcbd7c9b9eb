"""The command policy: what is served over REST, how, and what nobody gets past it."""

from __future__ import annotations

import pytest

from counterseal.upstash import policy
from counterseal.upstash.commands import (
    COMPATIBILITY,
    Answer,
    CommandPolicy,
    Refusal,
    Route,
    Send,
    client_error,
)
from counterseal.upstash.policy import TREATMENTS, Treatment, confining_rules

UPSTREAM_LACKS = "SORT SORT_RO LCS OBJECT MSETEX DELIFEQ LOLWUT ROLE SPUBLISH XSETID"
DANGEROUS = (
    "DEBUG MODULE SHUTDOWN REPLICAOF SLAVEOF FAILOVER CLUSTER SYNC PSYNC REPLCONF MIGRATE SAVE BGSAVE BGREWRITEAOF "
    "LATENCY SLOWLOG COMMANDLOG PFDEBUG PFSELFTEST RESTORE-ASKING LASTSAVE SWAPDB MOVE"
)
SESSION = (
    "AUTH MULTI EXEC DISCARD WATCH UNWATCH HELLO RESET SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE CLIENT MONITOR "
    "SSUBSCRIBE SUNSUBSCRIBE QUIT ASKING READONLY READWRITE"
)


@pytest.fixture
def commands() -> CommandPolicy:
    return CommandPolicy(database=3, reserved="cs:")


def refused(commands: CommandPolicy, *arguments: str | bytes) -> str:
    step = commands.step(list(arguments))
    assert isinstance(step, Refusal), f"{arguments} is not refused: {step}"
    return step.text


def test_every_command_stands_in_one_group_and_in_capitals() -> None:
    groups = [
        policy.SENT_AS_IT_IS, policy.WAITING, policy.WAITING_IF_ASKED, policy.SESSION, set(policy.OWN_TREATMENT),
    ]  # fmt: skip
    assert sum(map(len, groups)) == len(TREATMENTS)
    assert all(name == name.upper() for name in TREATMENTS)
    assert policy.SUBCOMMANDS.keys() <= policy.OWN_TREATMENT.keys()


@pytest.mark.parametrize("name", ["GET", "get", "Get", "zRaNgE", "HSETEX", "substr"])
def test_a_listed_command_is_sent_as_it_is_in_any_letter_case(commands: CommandPolicy, name: str) -> None:
    assert commands.step([name, "k"]) is None


@pytest.mark.parametrize("name", (DANGEROUS + " " + UPSTREAM_LACKS).split())
def test_what_is_not_listed_is_not_available(commands: CommandPolicy, name: str) -> None:
    for spelled in (name, name.lower(), name.title()):
        assert refused(commands, spelled, "x").startswith(
            f"ERR Command is not available: '{spelled}'. See https://"
        )


@pytest.mark.parametrize("name", SESSION.split())
def test_commands_about_the_connection_are_refused_by_name(commands: CommandPolicy, name: str) -> None:
    expected = f'ERR Command "{name}" is not allowed in REST or it has a special context path'
    for spelled in (name, name.lower(), name.title()):
        assert refused(commands, spelled) == expected


@pytest.mark.parametrize(
    "name",
    ["", " ", "GET ", " GET", "GET\x00", "\x00GET", "GET\r\nFLUSHALL", "MULTI\x00", "EXEC ", "flushall\t", "\u017fet",
     "GET\u200b", "SELECT 1", "ÿ", "*1\r\n$4\r\nEXEC\r\n"],
)  # fmt: skip
def test_a_name_with_anything_around_it_is_no_command(commands: CommandPolicy, name: str) -> None:
    assert refused(commands, name).startswith("ERR Command is not available: ")


def test_a_long_name_is_not_repeated_whole(commands: CommandPolicy) -> None:
    assert len(refused(commands, "x" * 100_000)) < 400


@pytest.mark.parametrize("name", sorted(policy.WAITING))
def test_a_command_that_waits_runs_where_it_cannot(commands: CommandPolicy, name: str) -> None:
    step = commands.step([name.lower(), "k", "0"])
    assert isinstance(step, Send)
    assert step.route is Route.IN_TRANSACTION


def test_reading_a_stream_waits_only_when_it_asks_to(commands: CommandPolicy) -> None:
    assert commands.step(["XREAD", "STREAMS", "s", "0"]) is None
    for block in ("BLOCK", "block", b"Block"):
        step = commands.step(["xread", block, "0", "STREAMS", "s", "$"])
        assert isinstance(step, Send)
        assert step.route is Route.IN_TRANSACTION


@pytest.mark.parametrize(
    "arguments",
    [("SCRIPT", "DEBUG", "YES"), ("SCRIPT", "SHOW", "x"), ("FUNCTION", "RESTORE", "x"), ("FUNCTION", "DUMP"),
     ("MEMORY", "DOCTOR"), ("MEMORY", "PURGE"), ("ACL", "SETUSER", "x"), ("ACL", "LIST"), ("ACL", "WHOAMI"),
     ("PUBSUB", "SHARDCHANNELS"), ("CONFIG", "REWRITE"), ("CONFIG", "RESETSTAT"), ("CONFIG",)],
)  # fmt: skip
def test_a_subcommand_that_is_not_listed_is_not_available(
    commands: CommandPolicy, arguments: tuple[str, ...]
) -> None:
    assert refused(commands, *arguments).startswith("ERR Command is not available: ")
    assert refused(commands, *map(str.lower, arguments)).startswith("ERR Command is not available: ")


def test_a_listed_subcommand_is_sent(commands: CommandPolicy) -> None:
    for arguments in (
        ["script", "exists", "x"],
        ["FUNCTION", "LIST"],
        ["memory", "USAGE", "k"],
        ["ACL", "cat"],
    ):
        step = commands.step(list(arguments))
        assert step is None or (isinstance(step, Send) and list(step.arguments) == arguments)


def test_config_knows_one_parameter(commands: CommandPolicy) -> None:
    assert commands.step(["CONFIG", "GET", "*"]) == Answer([])
    assert commands.step(["CONFIG", "GET", "dir"]) == Answer([])
    assert commands.step(["config", "get", "dir", "Notify-Keyspace-Events"]) == Send(
        ["CONFIG", "GET", "notify-keyspace-events"], Route.ADMIN
    )
    assert commands.step(["CONFIG", "SET", "notify-keyspace-events", "KEA"]) == Send(
        ["CONFIG", "SET", "notify-keyspace-events", "KEA"], Route.ADMIN
    )
    for pairs in (
        ["dir", "/"],
        ["notify-keyspace-events", "K", "dir", "/"],
        ["dir", "/", "notify-keyspace-events", ""],
    ):
        assert "is available for" in refused(commands, "CONFIG", "SET", *pairs)


def test_there_is_one_logical_database(commands: CommandPolicy) -> None:
    assert commands.step(["select", "0"]) == Answer(b"OK")
    assert commands.step(["SELECT", b"0"]) == Answer(b"OK")
    for index in ("1", "3", "-1", "00", "0 ", "x", ""):
        assert refused(commands, "SELECT", index) == "ERR DB index is out of range"
    assert "wrong number" in refused(commands, "SELECT")


def test_flushall_empties_the_own_database_only(commands: CommandPolicy) -> None:
    assert commands.step(["flushall"]) == Send(["FLUSHDB"])
    assert commands.step(["FLUSHALL", "ASYNC"]) == Send(["FLUSHDB", "ASYNC"])


def test_copy_stays_in_the_database(commands: CommandPolicy) -> None:
    assert commands.step(["COPY", "a", "b"]) is None
    assert commands.step(["COPY", "a", "b", "REPLACE"]) is None
    assert commands.step(["COPY", "a", "b", "db", "0", "REPLACE"]) == Send(["COPY", "a", "b", "REPLACE"])
    assert commands.step(["COPY", "DB", "0"]) is None, "a key may be called DB"
    for options in (["DB", "3"], ["REPLACE", "Db", "1"], ["DB"], [b"DB", b"00"]):
        assert refused(commands, "COPY", "a", "b", *options) == "ERR DB index is out of range"


def test_copy_becomes_a_script_where_the_command_is_taken_away() -> None:
    commands = CommandPolicy(may_copy=False)
    step = commands.step(["COPY", "a", "b", "REPLACE"])
    assert isinstance(step, Send)
    assert (step.arguments[0], step.arguments[2:]) == ("EVAL", [2, "a", "b", 1])
    assert refused(commands, "COPY", "a", "b", "NONSENSE") == "ERR syntax error"


def test_command_answers_nothing_and_info_shows_this_database_as_the_first(commands: CommandPolicy) -> None:
    assert commands.step(["COMMAND", "DOCS"]) == Answer([])
    step = commands.step(["INFO"])
    assert isinstance(step, Send)
    assert step.route is Route.ADMIN
    assert step.arguments == ["INFO", "server", "clients", "memory", "stats", "cluster", "keyspace"]
    assert step.finish is not None
    text = b"# Server\r\nredis_version:7.2.4\r\nexecutable:/a/b\r\n# Keyspace\r\ndb0:keys=9\r\ndb3:keys=1,expires=0\r\n"
    assert step.finish(text) == b"# Server\r\nredis_version:7.2.4\r\n# Keyspace\r\ndb0:keys=1,expires=0\r\n"
    assert commands.step(["INFO", "replication"]) == Answer(b"")
    partly = commands.step(["info", "Replication", "MEMORY"])
    assert isinstance(partly, Send)
    assert partly.arguments == ["INFO", "memory"]


def test_reserved_channels_are_neither_written_to_nor_listed(commands: CommandPolicy) -> None:
    assert commands.step(["PUBLISH", "mine", "x"]) is None
    assert refused(commands, "PUBLISH", "cs:jobs", "x").startswith("NOPERM ")
    assert refused(commands, "publish", b"cs:jobs", "x").startswith("NOPERM ")
    step = commands.step(["pubsub", "channels"])
    assert isinstance(step, Send)
    assert step.finish is not None
    assert step.finish([b"mine", b"cs:jobs"]) == [b"mine"]
    assert CommandPolicy().step(["PUBLISH", "cs:jobs", "x"]) is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("NOSCRIPT No matching script.", "NOSCRIPT No matching script. Please use EVAL."),
        ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT No matching script. Please use EVAL."),
        (
            "NOPERM User counterseal-rest-3 has no permissions to run the 'config|get' command",
            "NOPERM this user has no permissions to run the 'config|get' command or its subcommand",
        ),
        (
            "ERR unknown command 'xdelex', with args beginning with: 'k' ",
            f"ERR Command is not available: 'xdelex'. See {COMPATIBILITY} for details",
        ),
        (
            "ERR Can not execute a script with write flag using *_ro command.",
            "ERR Error running script: READONLY Write commands are not allowed from read-only scripts",
        ),
        ("WRONGTYPE Operation against a key", "WRONGTYPE Operation against a key"),
    ],
)
def test_errors_are_told_in_the_words_that_clients_expect(said: str, told: str) -> None:
    assert client_error(said) == told


def test_the_confining_rules_open_what_is_served_and_nothing_else() -> None:
    known = frozenset(TREATMENTS) | {"SORT", "DEBUG", "SWAPDB", "SUBSCRIBE", "SCRIPT|LOAD", "SCRIPT|DEBUG"}
    rules = confining_rules(known)
    assert rules[0] == "-@all"
    opened = {rule.removeprefix("+").partition("|")[0].upper() for rule in rules[1:]}
    assert opened <= frozenset(TREATMENTS)
    assert opened.isdisjoint(
        {"CONFIG", "INFO", "COMMAND", "SELECT", "COPY", "FLUSHALL", "MONITOR", "WATCH", "RESET"}
    )
    assert {"GET", "EVAL", "SCRIPT", "MULTI", "EXEC", "SUBSCRIBE", "WAIT", "XREAD"} <= opened
    assert "+script|load" in rules
    assert "+script|debug" not in rules
    assert "+script" not in rules
    assert "+client" not in rules


def test_only_the_commands_that_a_server_knows_are_named_to_it() -> None:
    assert "+hgetdel" not in confining_rules(frozenset({"GET"}))
    assert "+get" in confining_rules(frozenset({"GET"}))


def test_every_treatment_is_used() -> None:
    assert set(TREATMENTS.values()) == set(Treatment)
