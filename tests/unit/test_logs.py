"""Log lines: no secret of the settings stands in them, however it is written there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest

from counterseal.cli.logs import configure_logs
from counterseal.core.settings import Settings

KEY = "k1:" + "A" * 43 + "="
AWKWARD = ['say "hello" twice', 'it\'s "both" of them', "pässwörd-ключ", "back\\slash", "100%+plus/slash"]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Leave the loggers of this process as they were found."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    levels = {logger: logger.level for logger in loggers}
    yield
    root.handlers = handlers
    root.setLevel(level)
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.setLevel(levels.get(logger, logging.NOTSET))


def fail(words: str) -> None:
    raise ValueError(words)


def logged(capsys: pytest.CaptureFixture[str], words: str, **variables: str) -> str:
    """The lines that come of these words: in the event, as an argument, in a repr, and in a traceback."""
    configure_logs(Settings.load(variables))
    logger = logging.getLogger("counterseal.tests")
    logger.warning(words)
    logger.warning("it came: %r and %r", words, f'"{words}"')
    try:
        fail(words)
    except ValueError:
        logger.exception("it failed with %s", {"words": words})
    lines = capsys.readouterr().err
    assert "it failed with" in lines
    return lines


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("secret", AWKWARD)
def test_an_awkward_token_stands_in_no_line(
    capsys: pytest.CaptureFixture[str], environment: str, secret: str
) -> None:
    lines = logged(
        capsys,
        f"before {secret} after",
        COUNTERSEAL_ENV=environment,
        COUNTERSEAL_SECRET_KEYS=KEY,
        UPSTASH_REDIS_REST_URL="https://example.org",
        UPSTASH_REDIS_REST_TOKEN=secret,
    )
    assert lines.count("before [secret] after") >= 5
    for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]):
        assert form not in lines


@pytest.mark.parametrize("password", AWKWARD)
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("REDIS_URL", "redis://user:{}@127.0.0.1/0"),
        ("REDIS_URL", "redis+sentinel://user:{}@a:1,b:2/service"),
        ("REDIS_URL", "redis+sentinel://a:1,b:2/service?sentinel_username=u&sentinel_password={}"),
        ("DATABASE_URL", "postgresql://user@127.0.0.1/d?sslmode=require&passwort={}"),
    ],
)
def test_a_password_of_a_url_stands_in_no_line_encoded_or_not(
    capsys: pytest.CaptureFixture[str], name: str, url: str, password: str
) -> None:
    for encoded in (quote(password, safe=""), quote_plus(password, safe="")):
        if encoded != quote(password, safe="") and "?" not in url:
            continue  # before the @ a plus is a plus
        for written in (password, encoded, quote(password, safe="")):
            lines = logged(capsys, f"before {written} after", **{name: url.format(encoded)})
            assert lines.count("before [secret] after") >= 5
            assert written not in lines


def test_what_is_no_secret_in_a_url_stays_readable(capsys: pytest.CaptureFixture[str]) -> None:
    url = "rediss+sentinel://a:1/service?sentinel_username=redis&ssl_ca_certs=/etc/ca.pem&sentinel_password=hunter22"
    lines = logged(capsys, "redis of service with /etc/ca.pem and hunter22", REDIS_URL=url)
    assert "redis of service with /etc/ca.pem and [secret]" in lines


def test_the_database_driver_is_quiet_when_everything_else_is_heard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs(Settings.load({"COUNTERSEAL_LOG_LEVEL": "debug"}))
    logging.getLogger("counterseal.tests").debug("heard")
    logging.getLogger("aiosqlite").debug("executing INSERT with its values")
    lines = capsys.readouterr().err
    assert "heard" in lines
    assert "INSERT" not in lines
