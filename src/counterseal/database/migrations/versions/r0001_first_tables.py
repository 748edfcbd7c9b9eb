"""The first tables: users, sessions, TOTP, the outbox, and an audit log that can only grow.

Revision: 0001, after none.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from counterseal.database.columns import BigInt, Bytes, Json, Ts, Uuid

revision = "0001"
down_revision = None

SCHEMA: Final = "counterseal"
TABLES: Final = (
    "users",
    "domain_settings",
    "one_time_tokens",
    "auth_attempts",
    "totp_configs",
    "totp_exemptions",
    "totp_backup_codes",
    "user_sessions",
    "session_step_ups",
    "global_epochs",
    "outbox_jobs",
    "audit_entries",
    "audit_heads",
    "audit_values",
    "audit_anchors",
)

# A value may be erased, together with its salt; nothing else of the log may change.
_POSTGRESQL_TRIGGERS: Final = (
    """
    CREATE FUNCTION counterseal.audit_stays() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
    BEGIN
        RAISE EXCEPTION 'the audit log can only grow' USING ERRCODE = 'restrict_violation';
    END
    $$
    """,
    *(
        f"""
        CREATE TRIGGER {table}_stays BEFORE {change} ON counterseal.{table}
        FOR EACH {level} EXECUTE FUNCTION counterseal.audit_stays()
        """
        for table, change, level in (
            ("audit_entries", "UPDATE OR DELETE", "ROW"),
            ("audit_anchors", "UPDATE OR DELETE", "ROW"),
            ("audit_heads", "DELETE", "ROW"),
            ("audit_values", "DELETE", "ROW"),
        )
    ),
    *(
        f"""
        CREATE TRIGGER {table}_is_not_emptied BEFORE TRUNCATE ON counterseal.{table}
        FOR EACH STATEMENT EXECUTE FUNCTION counterseal.audit_stays()
        """
        for table in ("audit_entries", "audit_anchors", "audit_heads", "audit_values")
    ),
    """
    CREATE TRIGGER audit_heads_goes_on BEFORE UPDATE ON counterseal.audit_heads FOR EACH ROW
    WHEN (NEW.stream <> OLD.stream OR NEW.seq < OLD.seq OR (NEW.seq = OLD.seq AND NEW.hash <> OLD.hash))
    EXECUTE FUNCTION counterseal.audit_stays()
    """,
    """
    CREATE TRIGGER audit_values_is_erased BEFORE UPDATE ON counterseal.audit_values FOR EACH ROW
    WHEN (
        NEW.value IS NOT NULL OR NEW.erased_at IS NULL OR NEW.commitment <> OLD.commitment OR NEW.kind <> OLD.kind
        OR NEW.subject_id IS DISTINCT FROM OLD.subject_id OR NEW.created_at <> OLD.created_at
    )
    EXECUTE FUNCTION counterseal.audit_stays()
    """,
)

# INSERT OR REPLACE takes a row away without asking the triggers for DELETE, so it is refused before it does.
_SQLITE_TRIGGERS: Final = tuple(
    f"""
    CREATE TRIGGER {SCHEMA}_{table}_{name} BEFORE {change} ON {SCHEMA}_{table} FOR EACH ROW {condition}
    BEGIN
        SELECT RAISE(ABORT, 'the audit log can only grow');
    END
    """
    for table, name, change, condition in (
        ("audit_entries", "stays", "UPDATE", ""),
        ("audit_entries", "remains", "DELETE", ""),
        (
            "audit_entries",
            "goes_on",
            "INSERT",
            """WHEN NEW.seq IS NOT (
                SELECT coalesce(max(seq), 0) + 1 FROM counterseal_audit_entries WHERE stream = NEW.stream
            ) OR EXISTS (SELECT 1 FROM counterseal_audit_entries WHERE hash = NEW.hash)""",
        ),
        ("audit_anchors", "stays", "UPDATE", ""),
        ("audit_anchors", "remains", "DELETE", ""),
        (
            "audit_anchors",
            "goes_on",
            "INSERT",
            "WHEN EXISTS (SELECT 1 FROM counterseal_audit_anchors WHERE id = NEW.id)",
        ),
        ("audit_heads", "remains", "DELETE", ""),
        (
            "audit_heads",
            "goes_on",
            "UPDATE",
            """WHEN NEW.stream <> OLD.stream OR NEW.seq < OLD.seq
            OR (NEW.seq = OLD.seq AND NEW.hash <> OLD.hash)""",
        ),
        ("audit_values", "remains", "DELETE", ""),
        (
            "audit_values",
            "is_erased",
            "UPDATE",
            """WHEN NEW.value IS NOT NULL OR NEW.erased_at IS NULL OR NEW.commitment <> OLD.commitment
            OR NEW.kind <> OLD.kind OR NEW.subject_id IS NOT OLD.subject_id OR NEW.created_at <> OLD.created_at""",
        ),
        (
            "audit_values",
            "is_new",
            "INSERT",
            "WHEN EXISTS (SELECT 1 FROM counterseal_audit_values WHERE commitment = NEW.commitment)",
        ),
    )
)


def upgrade() -> None:
    """Make the tables and the triggers that protect the audit log."""
    _users()
    _totp()
    _sessions()
    _outbox()
    _audit()
    sqlite = op.get_context().dialect.name == "sqlite"
    for trigger in _SQLITE_TRIGGERS if sqlite else _POSTGRESQL_TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    """Drop the tables; their triggers go with them."""
    for table in reversed(TABLES):
        op.drop_table(table, schema=SCHEMA)
    if op.get_context().dialect.name != "sqlite":
        op.execute("DROP FUNCTION counterseal.audit_stays()")


def _users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("full_name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("avatar_url", sa.Text(), nullable=True),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("locale", sa.Text(), server_default="en", nullable=False),
        sa.Column("timezone", sa.Text(), server_default="UTC", nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("suspended_at", Ts(), nullable=True),
        sa.Column("suspended_by", sa.Text(), nullable=True),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("email_verified_at", Ts(), nullable=True),
        sa.Column("account_type", sa.Text(), server_default="personal", nullable=False),
        sa.Column("corporate_role", sa.Text(), nullable=True),
        sa.Column("session_epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("locked_until", Ts(), nullable=True),
        sa.Column("plan", sa.Text(), server_default="free", nullable=False),
        sa.Column("subscription_status", sa.Text(), nullable=True),
        sa.Column("subscription_expires_at", Ts(), nullable=True),
        sa.Column("monthly_limit", sa.Integer(), nullable=True),
        sa.Column("last_login_at", Ts(), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("updated_at", Ts(), nullable=False),
        sa.CheckConstraint(
            "account_type IN ('personal', 'corporate', 'enterprise')", name=op.f("ck_users_account_type")
        ),
        sa.CheckConstraint(
            "corporate_role IN ('owner', 'admin', 'member')", name=op.f("ck_users_corporate_role")
        ),
        sa.CheckConstraint("status IN ('active', 'suspended', 'deleted')", name=op.f("ck_users_status")),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 128", name=op.f("ck_users_id")),
        sa.ForeignKeyConstraint(
            ["suspended_by"], ["counterseal.users.id"], name=op.f("fk_users_suspended_by")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_users_domain_status"), "users", ["domain", "status"], schema=SCHEMA)
    op.create_table(
        "domain_settings",
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("branding", Json(), server_default="{}", nullable=False),
        sa.Column("enforce_login_totp", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("enforce_signing_totp", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("totp_grace_days", sa.Integer(), server_default=sa.text("7"), nullable=False),
        sa.Column("allowed_ip_ranges", Json(), server_default="[]", nullable=False),
        sa.Column("session_profile", sa.Text(), nullable=True),
        sa.Column("session_idle_minutes", sa.Integer(), nullable=True),
        sa.Column("session_absolute_minutes", sa.Integer(), nullable=True),
        sa.Column("max_sessions", sa.Integer(), server_default=sa.text("5"), nullable=False),
        sa.Column("retention_days", sa.Integer(), server_default=sa.text("2555"), nullable=False),
        sa.Column("default_expiry_days", sa.Integer(), server_default=sa.text("30"), nullable=False),
        sa.Column("auto_reminder_enabled", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("reminder_days", Json(), server_default="[3, 7, 14, 21, 28]", nullable=False),
        sa.Column("smtp_ct", Bytes(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_at", Ts(), nullable=False),
        sa.CheckConstraint(
            "session_profile IN ('standard', 'aal2')", name=op.f("ck_domain_settings_session_profile")
        ),
        sa.CheckConstraint(
            "default_expiry_days BETWEEN 1 AND 365", name=op.f("ck_domain_settings_default_expiry_days")
        ),
        sa.CheckConstraint("session_idle_minutes >= 1", name=op.f("ck_domain_settings_session_idle_minutes")),
        sa.CheckConstraint(
            "session_absolute_minutes >= 1", name=op.f("ck_domain_settings_session_absolute_minutes")
        ),
        sa.CheckConstraint("max_sessions BETWEEN 1 AND 20", name=op.f("ck_domain_settings_max_sessions")),
        sa.CheckConstraint(
            "retention_days BETWEEN 2555 AND 3650", name=op.f("ck_domain_settings_retention_days")
        ),
        sa.PrimaryKeyConstraint("domain", name=op.f("pk_domain_settings")),
        schema=SCHEMA,
    )
    op.create_table(
        "one_time_tokens",
        sa.Column("token_hash", Bytes(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("data", Json(), nullable=True),
        sa.Column("expires_at", Ts(), nullable=False),
        sa.Column("used_at", Ts(), nullable=True),
        sa.CheckConstraint(
            "purpose IN ('verify_email', 'reset_password', 'change_email', 'log_in')",
            name=op.f("ck_one_time_tokens_purpose"),
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["counterseal.users.id"], name=op.f("fk_one_time_tokens_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_one_time_tokens")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_one_time_tokens_expires_at"), "one_time_tokens", ["expires_at"], schema=SCHEMA)
    op.create_index(
        op.f("ix_one_time_tokens_user_id_purpose"), "one_time_tokens", ["user_id", "purpose"], schema=SCHEMA
    )
    op.create_table(
        "auth_attempts",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("window_start", Ts(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", "window_start", name=op.f("pk_auth_attempts")),
        schema=SCHEMA,
    )
    op.create_index(op.f("ix_auth_attempts_window_start"), "auth_attempts", ["window_start"], schema=SCHEMA)


def _totp() -> None:
    op.create_table(
        "totp_configs",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("secret_ct", Bytes(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("login_enabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("signing_enabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed_in_row", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("enabled_at", Ts(), nullable=True),
        sa.Column("last_used_at", Ts(), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'enabled')", name=op.f("ck_totp_configs_state")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["counterseal.users.id"], name=op.f("fk_totp_configs_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_totp_configs")),
        sa.UniqueConstraint("user_id", "state", name=op.f("uq_totp_configs_user_id_state")),
        schema=SCHEMA,
    )
    op.create_table(
        "totp_exemptions",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("granted_by", sa.Text(), nullable=False),
        sa.Column("expires_at", Ts(), nullable=False),
        sa.CheckConstraint(
            "context IN ('login', 'signing', 'both')", name=op.f("ck_totp_exemptions_context")
        ),
        sa.ForeignKeyConstraint(
            ["granted_by"], ["counterseal.users.id"], name=op.f("fk_totp_exemptions_granted_by")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["counterseal.users.id"], name=op.f("fk_totp_exemptions_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "context", name=op.f("pk_totp_exemptions")),
        schema=SCHEMA,
    )
    op.create_table(
        "totp_backup_codes",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("code_hash", sa.Text(), nullable=False),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("used_at", Ts(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["counterseal.users.id"],
            name=op.f("fk_totp_backup_codes_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_totp_backup_codes")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_totp_backup_codes_user_id"),
        "totp_backup_codes",
        ["user_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("used_at IS NULL"),
        sqlite_where=sa.text("used_at IS NULL"),
    )


def _sessions() -> None:
    op.create_table(
        "user_sessions",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("profile", sa.Text(), server_default="standard", nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("global_epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("rt_hash", Bytes(), nullable=False),
        sa.Column("rt_prev_hash", Bytes(), nullable=True),
        sa.Column("rt_rotated_at", Ts(), nullable=True),
        sa.Column("rt_successor", Bytes(), nullable=True),
        sa.Column("amr", Json(), nullable=False),
        sa.Column("authenticated_at", Ts(), nullable=False),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("last_used_at", Ts(), nullable=False),
        sa.Column("idle_seconds", sa.Integer(), nullable=False),
        sa.Column("absolute_expires_at", Ts(), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.Column("device_label", sa.Text(), nullable=True),
        sa.Column("revoked_at", Ts(), nullable=True),
        sa.Column("revoke_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'revoked') = (revoked_at IS NOT NULL)", name=op.f("ck_user_sessions_revoked_at")
        ),
        sa.CheckConstraint(
            "profile IN ('standard', 'remember', 'aal2')", name=op.f("ck_user_sessions_profile")
        ),
        sa.CheckConstraint(
            "revoke_reason IN ('logout', 'user', 'others', 'admin', 'password_change', 'mfa_change', 'suspended',"
            " 'evicted', 'reuse_detected', 'expired')",
            name=op.f("ck_user_sessions_revoke_reason"),
        ),
        sa.CheckConstraint("state IN ('active', 'revoked')", name=op.f("ck_user_sessions_state")),
        sa.CheckConstraint("length(session_id) BETWEEN 1 AND 128", name=op.f("ck_user_sessions_session_id")),
        sa.ForeignKeyConstraint(["user_id"], ["counterseal.users.id"], name=op.f("fk_user_sessions_user_id")),
        sa.PrimaryKeyConstraint("user_id", "session_id", name=op.f("pk_user_sessions")),
        sa.UniqueConstraint("rt_hash", name=op.f("uq_user_sessions_rt_hash")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_user_sessions_absolute_expires_at"),
        "user_sessions",
        ["absolute_expires_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'active'"),
        sqlite_where=sa.text("state = 'active'"),
    )
    op.create_index(
        op.f("ix_user_sessions_idle_seconds_last_used_at"),
        "user_sessions",
        ["idle_seconds", "last_used_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'active'"),
        sqlite_where=sa.text("state = 'active'"),
    )
    op.create_index(
        op.f("ix_user_sessions_revoked_at_user_id_session_id"),
        "user_sessions",
        ["revoked_at", "user_id", "session_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'revoked'"),
        sqlite_where=sa.text("state = 'revoked'"),
    )
    op.create_index(
        op.f("ix_user_sessions_user_id_last_used_at"),
        "user_sessions",
        ["user_id", "last_used_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'active'"),
        sqlite_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "session_step_ups",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("verified_at", Ts(), nullable=False),
        sa.Column("consumed_at", Ts(), nullable=True),
        sa.CheckConstraint(
            "context IN ('login', 'both', 'signing')", name=op.f("ck_session_step_ups_context")
        ),
        sa.CheckConstraint("method IN ('totp', 'backup_code')", name=op.f("ck_session_step_ups_method")),
        sa.ForeignKeyConstraint(
            ["user_id", "session_id"],
            ["counterseal.user_sessions.user_id", "counterseal.user_sessions.session_id"],
            name=op.f("fk_session_step_ups_user_id_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session_step_ups")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_session_step_ups_user_id_session_id_request_id"),
        "session_step_ups",
        ["user_id", "session_id", "request_id"],
        schema=SCHEMA,
    )
    op.create_table(
        "global_epochs",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_global_epochs")),
        schema=SCHEMA,
    )


def _outbox() -> None:
    op.create_table(
        "outbox_jobs",
        sa.Column("id", Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("aggregate", sa.Text(), server_default="", nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("dedupe_key", sa.Text(), nullable=False),
        sa.Column("payload", Json(), nullable=False),
        sa.Column("payload_version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("run_at", Ts(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("finished_at", Ts(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'relayed', 'done', 'dead', 'cancelled')", name=op.f("ck_outbox_jobs_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_jobs")),
        sa.UniqueConstraint("dedupe_key", name=op.f("uq_outbox_jobs_dedupe_key")),
        sa.UniqueConstraint("seq", name=op.f("uq_outbox_jobs_seq")),
        schema=SCHEMA,
    )
    op.create_index(
        op.f("ix_outbox_jobs_aggregate_seq"),
        "outbox_jobs",
        ["aggregate", "seq"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        op.f("ix_outbox_jobs_run_at"),
        "outbox_jobs",
        ["run_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        op.f("ix_outbox_jobs_seq"),
        "outbox_jobs",
        ["seq"],
        schema=SCHEMA,
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        op.f("ix_outbox_jobs_state_finished_at"), "outbox_jobs", ["state", "finished_at"], schema=SCHEMA
    )


def _audit() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ts", Ts(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("prev", Bytes(), nullable=False),
        sa.Column("hash", Bytes(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.CheckConstraint("seq >= 1", name=op.f("ck_audit_entries_seq")),
        sa.PrimaryKeyConstraint("stream", "seq", name=op.f("pk_audit_entries")),
        sa.UniqueConstraint("hash", name=op.f("uq_audit_entries_hash")),
        schema=SCHEMA,
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_audit_entries_action_ts"), "audit_entries", ["action", "ts"], schema=SCHEMA)
    op.create_table(
        "audit_heads",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", Bytes(), nullable=False),
        sa.PrimaryKeyConstraint("stream", name=op.f("pk_audit_heads")),
        schema=SCHEMA,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit_values",
        sa.Column("commitment", Bytes(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("salt", Bytes(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("erased_at", Ts(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('name', 'email', 'ip', 'user_agent', 'location', 'free_text')",
            name=op.f("ck_audit_values_kind"),
        ),
        sa.PrimaryKeyConstraint("commitment", name=op.f("pk_audit_values")),
        schema=SCHEMA,
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_audit_values_subject_id"), "audit_values", ["subject_id"], schema=SCHEMA)
    op.create_table(
        "audit_anchors",
        sa.Column("id", BigInt, sa.Identity(), nullable=False),
        sa.Column("created_at", Ts(), nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("merkle_root", Bytes(), nullable=False),
        sa.Column("heads", Json(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("signature", Bytes(), nullable=False),
        sa.Column("timestamp_token", Bytes(), nullable=True),
        sa.Column("written_to", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_anchors")),
        schema=SCHEMA,
    )
