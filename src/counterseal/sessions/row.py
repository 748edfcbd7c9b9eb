"""Row: what the database says of one session. It is the authority."""

from __future__ import annotations

import msgspec

from counterseal.sessions.identity import session_id_of
from counterseal.sessions.session import Facts, Session, StepUp


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `user_sessions` with what is known of its user and of everybody's epoch. Times in ms since 1970."""

    user_id: str
    part: str
    revoked: bool
    version: int
    token_hash: bytes
    previous_hash: bytes | None
    rotated_ms: int
    successor: bytes | None
    last_used_ms: int
    facts: Facts
    user_active: bool
    user_epoch: int
    current_global_epoch: int
    step_ups: tuple[StepUp, ...] = ()

    def has_ended(self, now_ms: int, *, used_ms: int = 0) -> bool:
        """Whether it is over, for whatever reason. `used_ms` is when Redis says that it was used last."""
        facts = self.facts
        return (
            self.revoked
            or not self.user_active
            or facts.epoch < self.user_epoch
            or facts.global_epoch < self.current_global_epoch
            or now_ms >= facts.absolute_ms
            or now_ms >= max(self.last_used_ms, used_ms) + facts.idle_ms
        )

    def session(self, *, last_used_ms: int, checked_ms: int) -> Session:
        """The session that it is a record of."""
        return Session(
            session_id_of(self.user_id, self.part),
            self.user_id,
            self.facts,
            self.version,
            max(last_used_ms, self.last_used_ms),
            checked_ms,
            self.step_ups,
        )
