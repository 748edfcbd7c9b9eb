"""Settings: every fault at once, each in a sentence that names the setting and shows nothing of its value."""

from datetime import timedelta
from pathlib import Path

import pytest

from counterseal.core.errors import ConfigurationError
from counterseal.core.settings import Environment, Settings

HUSH = "hush-hush-hush-hush"


def faults(variables: dict[str, str], **overrides: object) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(variables, **overrides)
    assert HUSH not in str(caught.value)
    return caught.value.faults


def test_nothing_is_needed():
    settings = Settings.load({})
    assert (settings.environment, settings.namespace, settings.redis.url) == (
        Environment.DEVELOPMENT,
        "cs",
        None,
    )


def test_every_fault_is_told_at_once_and_by_name():
    found = faults(
        {
            "REDIS_URL": f"http://u:{HUSH}@h",
            "COUNTERSEAL_PROCESSES": "many",
            "COUNTERSEAL_GRACE": "soon",
            "COUNTERSEAL_CACHE_TTL_DOCUMENT": "0",
            "COUNTERSEAL_REST_TOKN": HUSH,
        }
    )
    assert [fault.partition(":")[0] for fault in found] == [
        "COUNTERSEAL_REST_TOKN",
        "REDIS_URL",
        "COUNTERSEAL_GRACE",
        "COUNTERSEAL_PROCESSES",
        "COUNTERSEAL_CACHE_TTL_DOCUMENT",
    ]
    assert "did you mean COUNTERSEAL_REST_TOKEN?" in found[0]
    assert all("expected" in fault and "came" in fault for fault in found[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "redis://h:99999"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://[::1"),
        ("REDIS_URL", "unix://"),
        ("UPSTASH_REDIS_REST_URL", f"https://user:{HUSH}@h"),
        ("COUNTERSEAL_TSA_URL", "ftp://h"),
        ("DATABASE_URL", f"mysql://u:{HUSH}@h/d"),
        ("SMTP_URL", "h:25"),
        ("COUNTERSEAL_GRACE", "9" * 30 + "d"),
        ("COUNTERSEAL_GRACE", "-1"),
        ("COUNTERSEAL_ENV", "staging"),
        ("COUNTERSEAL_NAMESPACE", "a:b"),
        ("COUNTERSEAL_ADMIN_KEY", "short"),
        ("COUNTERSEAL_SECRET_KEYS", f"{HUSH}"),
        ("COUNTERSEAL_SECRET_KEYS", "k1:c2hvcnQ="),
        ("COUNTERSEAL_SECRET_KEYS", "k1:not base64"),
        ("COUNTERSEAL_MAX_REPLY_BYTES", "1"),
        ("COUNTERSEAL_ALLOW_EMBEDDED", "perhaps"),
        ("COUNTERSEAL_JOBS_CARRIER", "pigeon"),
        ("COUNTERSEAL_REST_DATABASE", "16"),
    ],
)
def test_a_malformed_value_is_one_sentence_with_the_name_of_its_setting(name: str, value: str):
    given = {name: value}
    if name == "UPSTASH_REDIS_REST_URL":
        given["UPSTASH_REDIS_REST_TOKEN"] = HUSH
    (fault,) = faults(given)
    assert fault.startswith(f"{name}: expected ")
    assert "; came: " in fault


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("1", timedelta(seconds=1)),
        ("0.25", timedelta(milliseconds=250)),
        ("250ms", timedelta(milliseconds=250)),
        ("15 min", timedelta(minutes=15)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(weeks=1)),
    ],
)
def test_durations_are_seconds_or_have_a_unit(text: str, duration: timedelta):
    assert Settings.load({"COUNTERSEAL_GRACE": text}).web.grace == duration


def test_half_of_the_upstash_pair_is_a_fault():
    (fault,) = faults({"UPSTASH_REDIS_REST_URL": "https://h"})
    assert fault.startswith("UPSTASH_REDIS_REST_TOKEN: expected together with UPSTASH_REDIS_REST_URL")


def test_production_needs_its_secret_keys_and_a_redis_and_is_told_both():
    keys, redis = faults({"COUNTERSEAL_ENV": "production"})
    assert keys.startswith("COUNTERSEAL_SECRET_KEYS: ")
    assert redis.startswith("REDIS_URL: ")
    assert "UPSTASH_REDIS_REST_URL" in redis
    assert "COUNTERSEAL_ALLOW_EMBEDDED" in redis


@pytest.mark.parametrize(
    "redis",
    [
        {"COUNTERSEAL_ALLOW_EMBEDDED": "true"},
        {"REDIS_URL": "redis://127.0.0.1"},
        {"UPSTASH_REDIS_REST_URL": "https://example.org", "UPSTASH_REDIS_REST_TOKEN": "t"},
    ],
)
def test_production_starts_with_its_keys_and_any_redis_or_the_embedded_one_by_name(redis: dict[str, str]):
    key = "k2:" + "A" * 43 + "="
    Settings.load({"COUNTERSEAL_ENV": "production", "COUNTERSEAL_SECRET_KEYS": key, **redis})


@pytest.mark.parametrize("environment", ["development", "test"])
def test_elsewhere_neither_is_needed(environment: str):
    Settings.load({"COUNTERSEAL_ENV": environment})


@pytest.mark.parametrize("key", ["k1:" + "A" * 40, "k2:" + "A" * 43 + "=,k1:" + "A" * 40, "k1:"])
def test_production_takes_no_key_of_less_than_32_bytes(key: str):
    (fault,) = faults(
        {
            "COUNTERSEAL_ENV": "production",
            "COUNTERSEAL_SECRET_KEYS": key,
            "COUNTERSEAL_ALLOW_EMBEDDED": "true",
        }
    )
    assert fault.startswith("COUNTERSEAL_SECRET_KEYS: expected keys of at least 32 bytes")


def test_sessions_last_as_long_as_decided_unless_the_settings_say_otherwise():
    sessions = Settings.load({}).sessions
    assert (sessions.absolute, sessions.idle) == (timedelta(days=7), timedelta(hours=24))
    assert (sessions.refresh_grace, sessions.access_ttl) == (timedelta(seconds=10), timedelta(minutes=10))
    assert (sessions.remember, sessions.max_per_user) == (False, 5)
    given = {"COUNTERSEAL_SESSION_REMEMBER": "true", "COUNTERSEAL_SESSION_MAX": "20"}
    changed = Settings.load({**given, "COUNTERSEAL_SESSION_ABSOLUTE": "8h"}).sessions
    assert (changed.remember, changed.max_per_user, changed.absolute) == (True, 20, timedelta(hours=8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COUNTERSEAL_SESSION_ABSOLUTE", "31d"),
        ("COUNTERSEAL_SESSION_IDLE", "0"),
        ("COUNTERSEAL_SESSION_REMEMBER", "perhaps"),
        ("COUNTERSEAL_SESSION_MAX", "0"),
        ("COUNTERSEAL_SESSION_MAX", "21"),
        ("COUNTERSEAL_REFRESH_GRACE", "31s"),
        ("COUNTERSEAL_ACCESS_TTL", "11min"),
    ],
)
def test_a_session_setting_outside_its_bounds_is_a_fault(name: str, value: str):
    (fault,) = faults({name: value})
    assert fault.startswith(f"{name}: expected")


def test_qstash_as_the_carrier_needs_what_it_needs():
    assert len(faults({"COUNTERSEAL_JOBS_CARRIER": "qstash"})) == 4


def test_qstash_as_the_carrier_is_refused_together_with_a_number_of_replicas():
    found = faults({"COUNTERSEAL_JOBS_CARRIER": "qstash", "COUNTERSEAL_MIN_REPLICAS": "1"})
    assert [fault.partition(":")[0] for fault in found][-1] == "COUNTERSEAL_MIN_REPLICAS"
    assert len(found) == 5


def test_what_the_command_line_says_wins_over_the_environment():
    variables = {"COUNTERSEAL_DATA_DIR": "from-the-environment"}
    assert Settings.load(variables, data_dir=Path("flag")).data_dir == Path("flag")
    assert Settings.load(variables, data_dir=None).data_dir == Path("from-the-environment")


def test_the_environment_wins_over_the_file_and_empty_means_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(
        "COUNTERSEAL_NAMESPACE=file\nCOUNTERSEAL_PROCESSES=3\nREDIS_URL=redis://u:a${HOME}b@h\n"
    )
    monkeypatch.setenv("COUNTERSEAL_NAMESPACE", "environment")
    monkeypatch.setenv("COUNTERSEAL_TSA_URL", "")
    settings = Settings.load()
    assert (settings.namespace, settings.processes, settings.tsa_url) == ("environment", 3, None)
    assert settings.redis.url is not None
    assert settings.redis.url.get_secret_value() == "redis://u:a${HOME}b@h"


def test_a_file_that_is_no_text_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes(b"COUNTERSEAL_NAMESPACE=\xff\n")
    with pytest.raises(ConfigurationError, match=r"^\.env: expected UTF-8"):
        Settings.load()


def test_a_line_of_the_file_that_is_no_setting_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(f"# a comment\nexport COUNTERSEAL_PROCESSES=2\nREDIS_URL redis://u:{HUSH}@h\n")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert caught.value.faults == (".env: expected NAME=value in line 3; came: something else",)


def test_no_secret_is_in_a_repr():
    variables = {
        "REDIS_URL": f"redis://u:{HUSH}@h",
        "UPSTASH_REDIS_REST_URL": "https://h",
        "UPSTASH_REDIS_REST_TOKEN": HUSH,
        "DATABASE_URL": f"postgresql://u:{HUSH}@h/d",
        "SMTP_URL": f"smtp://u:{HUSH}@h",
        "QSTASH_TOKEN": HUSH,
        "QSTASH_CURRENT_SIGNING_KEY": HUSH,
        "QSTASH_NEXT_SIGNING_KEY": HUSH,
        "COUNTERSEAL_ADMIN_KEY": HUSH,
        "COUNTERSEAL_REST_TOKEN": HUSH,
        "COUNTERSEAL_SECRET_KEYS": "k1:" + "A" * 43 + "=",
    }
    settings = Settings.load(variables)
    shown = repr(settings) + str(settings) + repr(settings.redis) + str(settings.model_dump())
    assert HUSH not in shown
    assert "A" * 43 not in shown


def test_settings_built_by_hand_take_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    assert Settings().redis.url is None
