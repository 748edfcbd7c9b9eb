"""What the metrics tell of sessions."""

from __future__ import annotations

from pathlib import Path

from httpx import ASGITransport, AsyncClient

from counterseal import Counterseal, Settings
from counterseal.web import create_app
from support.servers import Server


async def test_the_metrics_count_reads_and_what_happened(valkey: Server, tmp_path: Path) -> None:
    settings = Settings.load(
        {
            "REDIS_URL": valkey.url,
            "COUNTERSEAL_DATA_DIR": str(tmp_path),
            "COUNTERSEAL_COMMAND_TIMEOUT": "5s",
        }
    )
    async with Counterseal.open(settings) as seal:
        made = await seal.sessions.create(user_id="ada", email="ada@example.com")
        await seal.sessions.get(made.session_id, fresh=True)
        await seal.sessions.get(made.session_id)
        await seal.sessions.get(made.session_id)
        await seal.sessions.revoke(made.session_id)
        transport = ASGITransport(create_app(seal))
        async with AsyncClient(transport=transport, base_url="http://counterseal") as client:
            told = (await client.get("/metrics")).text
    for line in (
        'counterseal_session_reads_total{outcome="hit"} 2.0',
        'counterseal_session_reads_total{outcome="checked"} 1.0',
        'counterseal_session_reads_total{outcome="stale"} 0.0',
        'counterseal_session_reads_total{outcome="without_redis"} 0.0',
        'counterseal_session_events_total{event="session.created"} 1.0',
        'counterseal_session_events_total{event="session.revoked"} 1.0',
        "counterseal_session_pending_seconds 0.0",
    ):
        assert line in told
