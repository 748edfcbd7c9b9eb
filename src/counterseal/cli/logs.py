"""Logs: structured lines on stderr, for people in development and as JSON in production.

Everything in the process that logs, through structlog or through `logging`, comes out here.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from urllib.parse import quote, unquote, unquote_plus

import structlog
from pydantic import BaseModel, SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

from counterseal.core.settings import Environment, Settings, split_url

_QUIET = ("uvicorn", "uvicorn.error", "asyncio", "httpx", "httpcore", "aiosqlite", "alembic")
"""Loggers of libraries that are heard from `warning` on."""
_SHORTEST = 4
"""A shorter secret is no secret, and hiding it would tear holes into every line."""
_OPEN_OPTIONS = re.compile(r"ssl\w*|db|sentinel_username|application_name|connect_timeout|pgbouncer")
"""Options of URLs whose values are no secrets; what is not known may be a password under a mistyped name."""


class Masked:
    """The last processor: renders a line, then hides every configured secret in it, wherever it came from."""

    def __init__(self, render: Processor, secrets: frozenset[str]) -> None:
        self._render = render
        written = {form for secret in secrets for form in _written(secret)}
        self._secrets = sorted(written, key=len, reverse=True)

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        line = str(self._render(logger, name, event))
        for secret in self._secrets:
            line = line.replace(secret, "[secret]")
        return line


def configure_logs(settings: Settings) -> None:
    """Send every log line of the process to stderr, from `settings.log_level` on."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def secrets_of(settings: BaseModel) -> frozenset[str]:
    """Every secret in the settings: keys, tokens, URLs, and the passwords in URLs, percent-encoded or not."""
    found: set[str] = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found |= secrets_of(value)
        elif isinstance(value, SecretStr):
            text = value.get_secret_value()
            found.add(text)
            if "://" in text:
                found.update(_in_url(text))
            else:
                found.update(part.partition(":")[2] for part in text.split(","))
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST)


def _in_url(url: str) -> Iterator[str]:
    parts = split_url(url)
    passwords = [parts.password or ""]
    for option in parts.query.split("&"):
        name, _, value = option.partition("=")
        if not _OPEN_OPTIONS.fullmatch(unquote(name)):
            passwords.append(value)
    for password in passwords:
        yield from (password, unquote(password), unquote_plus(password))


def _written(secret: str) -> Iterator[str]:
    """How a secret may stand in a line: as it is, in a URL, in a repr, and each of these in JSON."""
    for form in (secret, quote(secret, safe=""), repr(secret)[1:-1], repr('"' + secret)[2:-1]):
        yield form
        yield json.dumps(form)[1:-1]


def _rendering(settings: Settings) -> list[Processor]:
    secrets = secrets_of(settings)
    if settings.environment is Environment.PRODUCTION:
        return [structlog.processors.format_exc_info, Masked(structlog.processors.JSONRenderer(), secrets)]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [Masked(console, secrets)]
