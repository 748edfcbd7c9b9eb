"""What may be declared: limits, policies, lists. And what a process remembers by itself, which is bounded."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterseal import ratelimit
from counterseal.core.errors import ConfigurationError, UnknownName
from counterseal.ratelimit.decision import Decision, Reason
from counterseal.ratelimit.limit import Algorithm, Limit
from counterseal.ratelimit.lists import Lists, _parsed, canonical
from counterseal.ratelimit.local import MOST_SUBJECTS, Subject, Subjects, Window
from counterseal.ratelimit.policy import POLICIES, Elsewhere, Policy, WithoutRedis
from counterseal.ratelimit.rules import Rules, limits_field, list_field, write_limits, write_listed
from counterseal.ratelimit.scripts import charge_of
from counterseal.ratelimit.service import RateLimits
from counterseal.store.keys import Keys
from counterseal.store.route import FixedRoute
from counterseal.store.target import parse_redis_url
from counterseal.store.valkey import NativeStore
from support.ratelimits import Model

MS = timedelta(milliseconds=1)
MINUTE = timedelta(minutes=1)
NETWORKS = (
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "192.0.2.0/25",
    "2001:db8::/32",
    "2001:db8:1::/64",
    "::1",
    "ada",
)


def test_the_seven_limiters_have_their_limits_and_what_they_do_without_redis() -> None:
    told = [
        (policy.name, policy.limits[0].count, policy.limits[0].per // MINUTE, policy.without_redis)
        for policy in POLICIES
    ]
    assert told == [
        ("api", 100, 1, WithoutRedis.OPEN),
        ("auth", 10, 1, WithoutRedis.CLOSED),
        ("corporate_admin", 50, 1, WithoutRedis.OPEN),
        ("email", 20, 60, WithoutRedis.OPEN),
        ("pdf_generation", 5, 1, WithoutRedis.OPEN),
        ("totp", 5, 5, WithoutRedis.CLOSED),
        ("verification", 30, 1, WithoutRedis.OPEN),
    ]
    assert all([limit.algorithm for limit in policy.limits] == ["sliding_window"] for policy in POLICIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, MINUTE), "limit.count: expected a whole number of at least 1; came: 0"),
        ((-3, MINUTE), "limit.count: expected a whole number of at least 1; came: -3"),
        ((1.5, MINUTE), "limit.count: expected a whole number of at least 1; came: 1.5"),
        ((True, MINUTE), "limit.count: expected a whole number of at least 1; came: True"),
        ((1, timedelta(0)), "limit.per: expected whole milliseconds, from 1 ms to 366 days; came: 0:00:00"),
        (
            (1, -MINUTE),
            "limit.per: expected whole milliseconds, from 1 ms to 366 days; came: -1 day, 23:59:00",
        ),
        (
            (1, timedelta(days=367)),
            "limit.per: expected whole milliseconds, from 1 ms to 366 days; came: 367 days",
        ),
        ((1, timedelta(microseconds=1500)), "limit.per: expected whole milliseconds"),
        ((1, 60), "limit.per: expected a timedelta; came: int"),
        ((1, MINUTE, "leaky"), "limit.algorithm: expected one of fixed_window, .*; came: 'leaky'"),
        ((1, MINUTE, Algorithm.FIXED_WINDOW, 2), "limit.burst: expected none for fixed_window; came: 2"),
        ((1, MINUTE, Algorithm.GCRA, 0), "limit.burst: expected a whole number of at least 1; came: 0"),
        ((2**52, MINUTE), "limit.count: expected at most 75059993789 for this period"),
        ((1, MINUTE, Algorithm.GCRA, 2**52), "limit.burst: expected at most 75059993789 for this period"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_with_field_expectation_and_value(
    arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Limit(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", (Limit(1, MINUTE),)), "policy.name: expected 1 to 64 letters"),
        (("a:b", (Limit(1, MINUTE),)), "policy.name: expected 1 to 64 letters.*; came: 'a:b'"),
        (("a", ()), "policy.limits: expected one Limit or several; came: none"),
        (("a", ("5/min",)), "policy.limits: expected one Limit or several; came: str"),
        (
            ("a", (Limit(1, MINUTE), Limit(2, 2 * MINUTE, Algorithm.GCRA))),
            "expected one algorithm .*sliding_window, gcra",
        ),
        (
            ("a", (Limit(1, MINUTE), Limit(2, MINUTE))),
            "expected a different period for each; came: 0:01:00, 0:01:00",
        ),
        (
            ("a", (Limit(1, MINUTE),), "ajar"),
            "policy.without_redis: expected open, closed or an Elsewhere; came: 'ajar'",
        ),
        (
            ("a", (Limit(1, MINUTE),), WithoutRedis.OPEN, {"": (Limit(1, MINUTE),)}),
            "policy.plans: expected the name",
        ),
        (
            ("a", (Limit(1, MINUTE),), WithoutRedis.OPEN, {"x" * 1025: (Limit(1, MINUTE),)}),
            "policy.plans: expected text of 1 to 1024 bytes; came: 1025 bytes",
        ),
        (
            ("a", (Limit(1, MINUTE),), WithoutRedis.OPEN, {"gold": ()}),
            r"policy.plans\['gold'\]: expected one Limit",
        ),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_field_expectation_and_value(
    arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Policy(*arguments)


def test_one_limit_needs_no_tuple_and_a_policy_can_not_be_changed_afterwards() -> None:
    plans = {"gold": Limit(2, MINUTE)}
    policy = Policy("a", Limit(1, MINUTE), plans=plans)  # type: ignore[arg-type]
    plans["silver"] = Limit(3, MINUTE)
    assert policy.limits == (Limit(1, MINUTE),)
    assert dict(policy.plans) == {"gold": (Limit(2, MINUTE),)}


def test_services_refuse_names_given_twice_and_a_number_of_processes_below_one() -> None:
    unopened = NativeStore(FixedRoute(parse_redis_url("redis://127.0.0.1:1/0").template))
    with pytest.raises(ConfigurationError, match="policies: expected each name once; came twice: a"):
        RateLimits(unopened, keys=Keys(), policies=[Policy("a", (Limit(1, MINUTE),))] * 2)
    with pytest.raises(ConfigurationError, match="processes: expected a whole number of at least 1; came: 0"):
        RateLimits(unopened, keys=Keys(), processes=0)
    with pytest.raises(UnknownName, match=r"no limiter is named 'b'; the limiters are api, .*, a"):
        RateLimits(unopened, keys=Keys(), policies=[Policy("a", (Limit(1, MINUTE),))]).limiter("b")


@given(
    entries=st.dictionaries(st.sampled_from(NETWORKS), st.sampled_from((Reason.DENIED, Reason.EXEMPT))),
    who=st.sampled_from(
        ("10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.127", "192.0.2.128", "2001:db8:1::7", "::1", "ada")
    ),
)
def test_who_is_listed_is_who_lies_in_a_listed_network_and_deny_goes_first(
    entries: dict[str, Reason], who: str
) -> None:
    def covers(entry: str) -> bool:
        if "ada" in (entry, who):
            return entry == who
        network = ip_network(entry)
        return ip_address(who).version == network.version and ip_address(who) in network

    found = {reason for entry, reason in entries.items() if covers(entry)}
    expected = Reason.DENIED if Reason.DENIED in found else Reason.EXEMPT if found else None
    assert Lists((canonical(entry), reason) for entry, reason in entries.items()).find(who) is expected


@pytest.mark.parametrize(
    ("who", "kept"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1/32", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("2001:db8:0:1::/64", "2001:db8:0:1::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("user/8", "user/8"),
        ("1.2.3", "1.2.3"),
        ("10.0.0.1:ada", "10.0.0.1:ada"),
        ("2001:db8", "2001:db8"),
        ("ada@10.0.0.256", "ada@10.0.0.256"),
        ("a.b:c", "a.b:c"),
    ],
)
def test_an_address_is_kept_in_one_spelling_and_an_identifier_as_it_is(who: str, kept: str) -> None:
    assert canonical(who) == kept
    assert Lists([(kept, Reason.DENIED)]).find(who) is Reason.DENIED


@pytest.mark.parametrize(
    "who",
    [
        "10.0.0.256",
        "10.0.0.0/33",
        "10.0.0.1-10.0.0.9",
        "10.0.0.1, 10.0.0.2",
        "10.0.*.*",
        "10.0/16",
        "10.0.0.0/255.0.255.0",
        " 10.0.0.1",
        "10.0.0.1 ",
        "2001:db8::/129",
        "2001:db8:::1",
        "::1-::9",
    ],
)
def test_what_looks_like_a_network_and_is_none_is_refused(who: str) -> None:
    """It would be kept as an identifier that nobody has, and whoever wrote it would think that it is listed."""
    with pytest.raises(ConfigurationError, match=f"who: expected .*network.*; came: {re.escape(who)}"):
        canonical(who)


@pytest.mark.parametrize("who", ["", "\ud800", 7, None, "x" * 1025, "é" * 513])
def test_what_is_no_text_that_an_identifier_may_be_can_not_be_listed(who: Any) -> None:
    with pytest.raises(ConfigurationError, match="who: expected text of 1 to 1024 bytes"):
        canonical(who)


def test_an_address_that_comes_again_is_not_read_again_and_what_is_too_long_is_not_remembered() -> None:
    lists = Lists([("10.0.0.0/8", Reason.DENIED)])
    who = "10.200.100.50"
    assert lists.find(who) is Reason.DENIED
    before = _parsed.cache_info()
    assert lists.find(who) is Reason.DENIED
    assert lists.find("." * 65) is None
    after = _parsed.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)
    assert after.maxsize is not None


def test_somebody_taken_off_a_list_leaves_the_others_of_the_same_network_listed() -> None:
    entries = {
        "10.0.0.0/8": Reason.DENIED,
        "11.0.0.0/8": Reason.EXEMPT,
        "10.0.0.1": Reason.EXEMPT,
        "ada": Reason.DENIED,
    }
    lists = Lists(entries.items())
    lists.remove("10.0.0.0/8")
    lists.remove("ada")
    lists.remove("nobody")
    assert [lists.find(who) for who in ("10.0.0.1", "10.0.0.2", "11.0.0.1", "ada")] == [
        Reason.EXEMPT,
        None,
        Reason.EXEMPT,
        None,
    ]
    assert dict(lists.entries) == {"11.0.0.0/8": Reason.EXEMPT, "10.0.0.1": Reason.EXEMPT}
    lists.remove("11.0.0.0/8")
    lists.remove("10.0.0.1")
    assert lists._networks == {}


@given(st.lists(st.tuples(st.integers(0, 250), st.integers(1, 3)), max_size=40), st.integers(1, 9))
def test_a_local_window_decides_as_the_model_of_the_sliding_window_does(
    steps: list[tuple[int, int]], count: int
) -> None:
    window, model, now = Window(100), Model(Limit(count, 100 * MS)), 1_800_000_000_000
    for pause, cost in steps:
        now += pause
        wait, remaining, reset = window.judge(now, cost, count)
        assert remaining == max(0, int(model.room(now) // 1))
        assert (wait == 0) == (model.room(now) >= cost)
        if wait and cost <= count:
            assert model.room(now + wait) >= cost > model.room(now + wait - 1)
        assert model.used(reset) == 0
        assert reset == now or model.used(reset - 1) > 0
        if not wait:
            window.charge(now, cost)
            model.charge(now, cost)


def test_a_clock_that_was_set_back_gives_nobody_a_new_local_window() -> None:
    window = Window(1000)
    window.charge(10_000, 5)
    assert window.judge(9_000, 1, 5)[0] > 0
    window.charge(9_000, 1)
    assert window.judge(10_001, 1, 6)[0] > 0


def test_what_a_process_remembers_is_bounded_and_who_comes_often_stays() -> None:
    subjects = Subjects(10)
    regular = subject("regular")
    subjects.keep("regular", regular)
    for number in range(1000):
        subjects.keep(f"u{number}", subject(f"u{number}"))
        found = subjects.find("regular")
        assert found is regular
        subjects.keep("regular", found)
        assert len(subjects) <= 10
    for number in range(100):
        subjects.keep(f"v{number}", subject(f"v{number}"))
        subjects.age()
        assert len(subjects) <= 10
    assert subjects.find("u1") is None
    assert MOST_SUBJECTS == 10_000


def test_blocks_of_one_identifier_are_bounded_however_many_costs_were_refused() -> None:
    refusal = Decision(False, 1, 0, datetime.now(UTC), MINUTE, Reason.LIMITED)
    one = subject("ada")
    for cost in range(1, 1000):
        one.block(cost, 1, 2, refusal)
        assert one.blocks[cost] == (2, 2, refusal)
        assert len(one.blocks) <= 16
    one.lift()
    assert one.blocks == {}
    one.block(1, 1_000, 3_600_000, refusal)
    assert one.blocks[1] == (11_000, 3_600_000, refusal)


def subject(identifier: str) -> Subject:
    limits = (Limit(5, MINUTE),)
    return Subject(limits, charge_of(Keys(), "api", limits, identifier), fixed=None, version=0, warm=True)


def test_the_own_limits_go_before_the_plans_and_these_before_everybodys() -> None:
    policy = Policy("api", (Limit(1, MINUTE),), plans={"gold": (Limit(2, MINUTE),)})
    rules = Rules()
    own, plan, every = (Limit(30, MINUTE, Algorithm.GCRA, 2),), (Limit(20, MINUTE),), (Limit(10, MINUTE),)
    entries: dict[str, bytes] = {}

    def hold() -> list[tuple[Limit, ...]]:
        rules.update(entries)
        return [
            rules.limits(policy, "a:b}", None),
            rules.limits(policy, "a:b}", "gold"),
            rules.limits(policy, "c", "gold"),
        ]

    assert hold() == [policy.limits, policy.plans["gold"], policy.plans["gold"]]
    entries[limits_field("api")] = write_limits(every)
    assert hold() == [every, policy.plans["gold"], policy.plans["gold"]]
    entries[limits_field("api", plan="gold")] = write_limits(plan)
    assert hold() == [every, plan, plan]
    entries[limits_field("api", identifier="a:b}")] = write_limits(own)
    assert hold() == [own, own, plan]
    assert rules.every_limit(policy, "a:b}") == {*own, *plan, *every, *policy.limits, *policy.plans["gold"]}
    entries[list_field("a:b}")] = write_listed(Reason.EXEMPT)
    rules.update(entries)
    assert rules.listed("a:b}") is Reason.EXEMPT
    assert rules.lists == {"a:b}": Reason.EXEMPT}
    assert rules.knows_plan(Policy("api", (Limit(1, MINUTE),)), "gold")
    del entries[limits_field("api", identifier="a:b}")]
    assert hold() == [every, plan, plan]
    entries.clear()
    assert hold() == [policy.limits, policy.plans["gold"], policy.plans["gold"]]
    assert rules.listed("a:b}") is None
    assert not rules.knows_plan(Policy("api", (Limit(1, MINUTE),)), "gold")


def test_of_many_rules_only_those_that_have_changed_are_read_again() -> None:
    class Watched(Rules):
        def _take(self, field: str, value: bytes) -> None:
            taken.append(field)
            super()._take(field, value)

    taken: list[str] = []
    rules = Watched()
    entries = {list_field(f"10.0.{number}.1"): write_listed(Reason.DENIED) for number in range(200)}
    rules.update(entries)
    assert len(taken) == 200
    taken.clear()
    entries[list_field("10.0.7.1")] = write_listed(Reason.EXEMPT)
    entries[list_field("ada")] = write_listed(Reason.DENIED)
    del entries[list_field("10.0.9.1")]
    rules.update(dict(entries))
    assert sorted(taken) == [list_field("10.0.7.1"), list_field("ada")]
    assert [rules.listed(who) for who in ("10.0.7.1", "10.0.8.1", "10.0.9.1", "ada")] == [
        Reason.EXEMPT,
        Reason.DENIED,
        None,
        Reason.DENIED,
    ]


def test_a_rule_that_can_not_be_read_takes_the_place_of_the_one_before_it_until_it_can() -> None:
    policy, rules, field = Policy("api", (Limit(1, MINUTE),)), Rules(), limits_field("api")
    found: list[int] = []
    for value in (write_limits([Limit(2, MINUTE)]), b"9:[]", write_limits([Limit(3, MINUTE)])):
        rules.update({field: value, "limits:%61pi": write_limits([Limit(9, MINUTE)])})
        found.append(rules.limits(policy, None, None)[0].count)
    assert found == [2, 1, 3]


def test_a_share_of_a_limit_with_a_burst_is_a_share_of_what_can_be_had_at_once() -> None:
    limits = (Limit(100, MINUTE, Algorithm.GCRA, burst=6),)
    one = Subject(limits, charge_of(Keys(), "api", limits, "ada"), fixed=None, version=0, warm=True)
    assert one.judge(0, 1, 2)[1] == 3
    limits = (Limit(6, MINUTE, Algorithm.GCRA, burst=100),)
    one = Subject(limits, charge_of(Keys(), "api", limits, "ada"), fixed=None, version=0, warm=True)
    assert one.judge(0, 1, 2)[1] == 3


def test_what_counts_elsewhere_has_to_charge_and_to_refund() -> None:
    class Ledger:
        async def charge(self, name: str, identifier: str, cost: int) -> Decision | None: ...

        async def refund(self, name: str, identifier: str, cost: int) -> bool: ...

    async def function(name: str, identifier: str, cost: int) -> Decision | None: ...

    unopened = NativeStore(FixedRoute(parse_redis_url("redis://127.0.0.1:1/0").template))
    assert isinstance(Ledger(), Elsewhere)
    assert Policy("a", (Limit(1, MINUTE),), Ledger()).without_redis
    with pytest.raises(
        ConfigurationError, match=r"policy\.without_redis: expected open, closed or an Elsewhere"
    ):
        Policy("a", (Limit(1, MINUTE),), function)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match=r"elsewhere\['auth'\]: expected an Elsewhere; came: <function"
    ):
        RateLimits(unopened, keys=Keys(), elsewhere={"auth": function})  # type: ignore[dict-item]


def test_what_an_application_declares_and_is_told_is_at_one_place() -> None:
    assert ratelimit.__all__ == [
        "Algorithm",
        "Decision",
        "Elsewhere",
        "Limit",
        "Policy",
        "Reason",
        "WithoutRedis",
    ]
    assert [ratelimit.Limit, ratelimit.Decision, ratelimit.Elsewhere] == [Limit, Decision, Elsewhere]
