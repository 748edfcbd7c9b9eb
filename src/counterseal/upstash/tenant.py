"""Tenant: a user of the server for the Redis REST server alone, kept inside one database.

The gateway checks every command that it is asked for, but a script can call others. So its connections log in as a user
who may run nothing but what the policy serves, in nothing but its database: `SELECT`, `FLUSHALL`, `SWAPDB`, `MOVE`,
`COPY ... DB` and `CONFIG` fail inside scripts as well. Valkey 9.1 has a rule for databases; older servers and Redis are
given a SELECT that takes no other index, and no COPY, which the gateway replaces by a script.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from pydantic import SecretStr

from counterseal.core.errors import CommandError, ConfigurationError
from counterseal.store.base import Store
from counterseal.upstash.policy import confining_rules

USER_PREFIX = "counterseal-rest-"
_PASSWORDS = 16
"""Passwords that are valid at once: each process that serves the database has its own, the oldest goes."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A confined user. `may_copy` is false where COPY can't be kept inside the database, and is taken away."""

    username: str
    password: SecretStr
    database: int
    may_copy: bool


async def confine(admin: Store, *, database: int, credentials: Credentials | None = None) -> Credentials:
    """Create or update the user of a database, with a new random password; give `credentials` to keep theirs.

    The user is gone when the server restarts without an ACL file: call it again with the same credentials. Other
    processes' passwords stay valid. Raises `ConfigurationError` when the server or the user of `admin` does not allow
    it. About four round trips. A Cluster and replicas keep users node by node, so this reaches one node only.
    """
    username = f"{USER_PREFIX}{database}"
    password = credentials.password if credentials else SecretStr(secrets.token_urlsafe(32))
    try:
        rules = confining_rules(await _known_commands(admin))
        stale = await _stale_passwords(admin, username)
        user = [
            *("resetkeys", "~*", "resetchannels", "&*", "clearselectors", *rules),
            *(f"!{digest}" for digest in stale),
            *("on", f">{password.get_secret_value()}"),
        ]
        may_copy = await _within_database(admin, username, user, database)
    except CommandError as error:
        raise ConfigurationError(
            f"COUNTERSEAL_REST_TOKEN: expected a Redis whose user may run ACL SETUSER, to confine /redis; "
            f"it answered {error.kind}"
        ) from error
    return Credentials(username, password, database, may_copy)


async def _within_database(admin: Store, username: str, user: list[str], database: int) -> bool:
    """Set the user with a rule for its database, else with a SELECT of it alone. Whether it may COPY."""
    try:
        await admin.command(
            "ACL", "SETUSER", username, *user, "+select", "+copy", "resetdbs", f"db={database}"
        )
    except CommandError as error:
        if "resetdbs" not in str(error):
            raise
    else:
        return True
    await admin.command("ACL", "SETUSER", username, *user, f"+select|{database}")
    return False


async def _known_commands(admin: Store) -> frozenset[str]:
    names = await admin.command("COMMAND", "LIST")
    if not isinstance(names, list):
        return frozenset()
    return frozenset(name.decode("latin-1").upper() for name in names if isinstance(name, bytes))


async def _stale_passwords(admin: Store, username: str) -> list[str]:
    """Digests of the passwords that make room for one more, the oldest first."""
    user = await admin.command("ACL", "GETUSER", username)
    if not isinstance(user, list):
        return []
    fields = dict(zip(user[::2], user[1::2], strict=True)) if len(user) % 2 == 0 else {}
    passwords = fields.get(b"passwords")
    digests = (
        [item.decode() for item in passwords if isinstance(item, bytes)]
        if isinstance(passwords, list)
        else []
    )
    return digests[: max(0, len(digests) - _PASSWORDS + 1)]
