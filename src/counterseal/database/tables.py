"""Tables: the durable record, one constant a table.

On PostgreSQL they lie in the schema `counterseal`. SQLite has no schemas: there the name of the schema and `_` stand
before the name of each table (`engine.py` sees to that). What a table means is in docs/database.md.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.sql.elements import quoted_name

from counterseal.database.columns import BigInt, Bytes, Json, Ts, Uuid

SCHEMA: Final = "counterseal"

NAMING: Final = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}

METADATA: Final = MetaData(schema=SCHEMA, naming_convention=NAMING)


class TableName(quoted_name):
    """The name of a table of ours, told apart from every other name, so that SQLite can be given its prefix."""

    __slots__ = ()


def named(name: str) -> TableName:
    """A name for `Table(...)`."""
    return TableName(name, None)


def one_of(column: str, *values: str) -> CheckConstraint:
    """A CHECK that the column holds one of these words (or NULL, where it may)."""
    words = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({words})", name=column)


users: Final = Table(
    named("users"),
    METADATA,
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False, unique=True),
    Column("full_name", Text, nullable=False),
    Column("password_hash", Text),
    Column("avatar_url", Text),
    Column("domain", Text, nullable=False),
    Column("locale", Text, nullable=False, server_default="en"),
    Column("timezone", Text, nullable=False, server_default="UTC"),
    Column("status", Text, nullable=False, server_default="active"),
    Column("suspended_at", Ts),
    Column("suspended_by", Text, ForeignKey("users.id")),
    Column("is_admin", Boolean, nullable=False, server_default=false()),
    Column("email_verified_at", Ts),
    Column("account_type", Text, nullable=False, server_default="personal"),
    Column("corporate_role", Text),
    Column("session_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("locked_until", Ts),
    Column("plan", Text, nullable=False, server_default="free"),
    Column("subscription_status", Text),
    Column("subscription_expires_at", Ts),
    Column("monthly_limit", Integer),
    Column("last_login_at", Ts),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("created_at", Ts, nullable=False),
    Column("updated_at", Ts, nullable=False),
    CheckConstraint("length(id) BETWEEN 1 AND 128", name="id"),
    one_of("status", "active", "suspended", "deleted"),
    one_of("account_type", "personal", "corporate", "enterprise"),
    one_of("corporate_role", "owner", "admin", "member"),
    Index(None, "domain", "status"),
)

user_sessions: Final = Table(
    named("user_sessions"),
    METADATA,
    Column("user_id", Text, ForeignKey("users.id"), primary_key=True),
    Column("session_id", Text, primary_key=True),
    Column("state", Text, nullable=False, server_default="active"),
    Column("profile", Text, nullable=False, server_default="standard"),
    Column("epoch", BigInteger, nullable=False),
    Column("global_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("rt_hash", Bytes, nullable=False, unique=True),
    Column("rt_prev_hash", Bytes),
    Column("rt_rotated_at", Ts),
    Column("rt_successor", Bytes),
    Column("amr", Json, nullable=False),
    Column("authenticated_at", Ts, nullable=False),
    Column("created_at", Ts, nullable=False),
    Column("last_used_at", Ts, nullable=False),
    Column("idle_seconds", Integer, nullable=False),
    Column("absolute_expires_at", Ts, nullable=False),
    Column("user_agent", Text),
    Column("ip", Text),
    Column("device_label", Text),
    Column("revoked_at", Ts),
    Column("revoke_reason", Text),
    CheckConstraint("length(session_id) BETWEEN 1 AND 128", name="session_id"),
    one_of("state", "active", "revoked"),
    one_of("profile", "standard", "remember", "aal2"),
    one_of(
        "revoke_reason",
        "logout",
        "user",
        "others",
        "admin",
        "password_change",
        "mfa_change",
        "suspended",
        "evicted",
        "reuse_detected",
        "expired",
    ),
    CheckConstraint("(state = 'revoked') = (revoked_at IS NOT NULL)", name="revoked_at"),
)
Index(
    None,
    user_sessions.c.user_id,
    user_sessions.c.last_used_at,
    postgresql_where=text("state = 'active'"),
    sqlite_where=text("state = 'active'"),
)
Index(
    None,
    user_sessions.c.idle_seconds,
    user_sessions.c.last_used_at,
    postgresql_where=text("state = 'active'"),
    sqlite_where=text("state = 'active'"),
)
Index(
    None,
    user_sessions.c.revoked_at,
    user_sessions.c.user_id,
    user_sessions.c.session_id,
    postgresql_where=text("state = 'revoked'"),
    sqlite_where=text("state = 'revoked'"),
)
Index(
    None,
    user_sessions.c.absolute_expires_at,
    postgresql_where=text("state = 'active'"),
    sqlite_where=text("state = 'active'"),
)

session_step_ups: Final = Table(
    named("session_step_ups"),
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("context", Text, nullable=False),
    Column("request_id", Text),
    Column("method", Text, nullable=False),
    Column("verified_at", Ts, nullable=False),
    Column("consumed_at", Ts),
    ForeignKeyConstraint(
        ["user_id", "session_id"], ["user_sessions.user_id", "user_sessions.session_id"], ondelete="CASCADE"
    ),
    one_of("context", "login", "both", "signing"),
    one_of("method", "totp", "backup_code"),
)
Index(
    None,
    session_step_ups.c.user_id,
    session_step_ups.c.session_id,
    session_step_ups.c.request_id,
)

totp_configs: Final = Table(
    named("totp_configs"),
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("state", Text, nullable=False),
    Column("secret_ct", Bytes, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("login_enabled", Boolean, nullable=False, server_default=false()),
    Column("signing_enabled", Boolean, nullable=False, server_default=false()),
    Column("last_step", BigInteger, nullable=False, server_default=text("0")),
    Column("failed_in_row", Integer, nullable=False, server_default=text("0")),
    Column("created_at", Ts, nullable=False),
    Column("enabled_at", Ts),
    Column("last_used_at", Ts),
    UniqueConstraint("user_id", "state"),
    one_of("state", "pending", "enabled"),
)

totp_exemptions: Final = Table(
    named("totp_exemptions"),
    METADATA,
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("context", Text, primary_key=True),
    Column("granted_by", Text, ForeignKey("users.id"), nullable=False),
    Column("expires_at", Ts, nullable=False),
    one_of("context", "login", "signing", "both"),
)

totp_backup_codes: Final = Table(
    named("totp_backup_codes"),
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("batch", Integer, nullable=False),
    Column("code_hash", Text, nullable=False),
    Column("created_at", Ts, nullable=False),
    Column("used_at", Ts),
)
Index(
    None,
    totp_backup_codes.c.user_id,
    postgresql_where=text("used_at IS NULL"),
    sqlite_where=text("used_at IS NULL"),
)

one_time_tokens: Final = Table(
    named("one_time_tokens"),
    METADATA,
    Column("token_hash", Bytes, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("data", Json),
    Column("expires_at", Ts, nullable=False),
    Column("used_at", Ts),
    one_of("purpose", "verify_email", "reset_password", "change_email", "log_in"),
    Index(None, "user_id", "purpose"),
    Index(None, "expires_at"),
)

auth_attempts: Final = Table(
    named("auth_attempts"),
    METADATA,
    Column("key", Text, primary_key=True),
    Column("window_start", Ts, primary_key=True),
    Column("count", Integer, nullable=False),
    Index(None, "window_start"),
)

domain_settings: Final = Table(
    named("domain_settings"),
    METADATA,
    Column("domain", Text, primary_key=True),
    Column("branding", Json, nullable=False, server_default="{}"),
    Column("enforce_login_totp", Boolean, nullable=False, server_default=false()),
    Column("enforce_signing_totp", Boolean, nullable=False, server_default=false()),
    Column("totp_grace_days", Integer, nullable=False, server_default=text("7")),
    Column("allowed_ip_ranges", Json, nullable=False, server_default="[]"),
    Column("session_profile", Text),
    Column("session_idle_minutes", Integer),
    Column("session_absolute_minutes", Integer),
    Column("max_sessions", Integer, nullable=False, server_default=text("5")),
    Column("retention_days", Integer, nullable=False, server_default=text("2555")),
    Column("default_expiry_days", Integer, nullable=False, server_default=text("30")),
    Column("auto_reminder_enabled", Boolean, nullable=False, server_default=true()),
    Column("reminder_days", Json, nullable=False, server_default="[3, 7, 14, 21, 28]"),
    Column("smtp_ct", Bytes),
    Column("key_id", Text),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("updated_at", Ts, nullable=False),
    one_of("session_profile", "standard", "aal2"),
    CheckConstraint("session_idle_minutes >= 1", name="session_idle_minutes"),
    CheckConstraint("session_absolute_minutes >= 1", name="session_absolute_minutes"),
    CheckConstraint("max_sessions BETWEEN 1 AND 20", name="max_sessions"),
    CheckConstraint("default_expiry_days BETWEEN 1 AND 365", name="default_expiry_days"),
    CheckConstraint("retention_days BETWEEN 2555 AND 3650", name="retention_days"),
)

outbox_jobs: Final = Table(
    named("outbox_jobs"),
    METADATA,
    Column("id", Uuid, primary_key=True),
    Column("seq", BigInteger, Identity(), nullable=False, unique=True),
    Column("aggregate", Text, nullable=False, server_default=""),
    Column("kind", Text, nullable=False),
    Column("dedupe_key", Text, nullable=False, unique=True),
    Column("payload", Json, nullable=False),
    Column("payload_version", Integer, nullable=False, server_default=text("1")),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("run_at", Ts, nullable=False),
    Column("last_error", Text),
    Column("created_at", Ts, nullable=False),
    Column("finished_at", Ts),
    one_of("state", "pending", "relayed", "done", "dead", "cancelled"),
)
Index(
    None,
    outbox_jobs.c.run_at,
    postgresql_where=text("state = 'pending'"),
    sqlite_where=text("state = 'pending'"),
)
Index(
    None,
    outbox_jobs.c.seq,
    postgresql_where=text("state = 'pending'"),
    sqlite_where=text("state = 'pending'"),
)
Index(None, outbox_jobs.c.state, outbox_jobs.c.finished_at)
Index(
    None,
    outbox_jobs.c.aggregate,
    outbox_jobs.c.seq,
    postgresql_where=text("state = 'pending'"),
    sqlite_where=text("state = 'pending'"),
)

# Without hidden row numbers: INSERT OR REPLACE could name the number of an entry and so take its place.
audit_entries: Final = Table(
    named("audit_entries"),
    METADATA,
    Column("stream", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("ts", Ts, nullable=False),
    Column("action", Text, nullable=False),
    Column("prev", Bytes, nullable=False),
    Column("hash", Bytes, nullable=False, unique=True),
    Column("body", Text, nullable=False),
    CheckConstraint("seq >= 1", name="seq"),
    Index(None, "action", "ts"),
    sqlite_with_rowid=False,
)

audit_heads: Final = Table(
    named("audit_heads"),
    METADATA,
    Column("stream", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", Bytes, nullable=False),
    sqlite_with_rowid=False,
)

audit_values: Final = Table(
    named("audit_values"),
    METADATA,
    Column("commitment", Bytes, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("salt", Bytes, nullable=False),
    Column("value", Text),
    Column("subject_id", Text),
    Column("created_at", Ts, nullable=False),
    Column("erased_at", Ts),
    one_of("kind", "name", "email", "ip", "user_agent", "location", "free_text"),
    Index(None, "subject_id"),
    sqlite_with_rowid=False,
)

audit_anchors: Final = Table(
    named("audit_anchors"),
    METADATA,
    Column("id", BigInt, Identity(), primary_key=True),
    Column("created_at", Ts, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
    Column("merkle_root", Bytes, nullable=False),
    Column("heads", Json, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("signature", Bytes, nullable=False),
    Column("timestamp_token", Bytes),
    Column("written_to", Text, nullable=False),
)

global_epochs: Final = Table(
    named("global_epochs"),
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
