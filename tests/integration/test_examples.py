"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.program import environment

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_quickstart_shows_every_service_at_work(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, EXAMPLES / "quickstart.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        "cache: {'name': 'Ada Lovelace'}",
        "cache, after invalidate: None",
        "session: curl",
        "session, after revoke: None",
        "worker: mail to ada@example.com, attempt 1",
        "job: completed",
        "analytics: Today(views=1, signatures=0, requests=1, users=1)",
        "healthy: True",
    ]


ASK = """
from fastapi.testclient import TestClient
from own_application import app
with TestClient(app) as client:
    assert client.get("/profiles/ada").status_code == 404
    assert client.put("/profiles/ada", params={"name": "Ada"}).status_code == 200
    assert client.get("/profiles/ada").json() == {"name": "Ada"}
    assert client.get("/counterseal/api/health/redis").json()["status"] == "healthy"
    assert client.get("/profiles/ada").headers["X-RateLimit-Limit"] == "100"
    mails = [client.post("/profiles/ada/mail").status_code for _ in range(21)]
    assert mails == [200] * 20 + [429]
    first, again = client.get("/prices"), client.get("/prices")
    assert first.json() == again.json() == {"envelope": 2, "seal": 5}
    assert "hit" in again.headers["Cache-Status"]
    assert client.get("/prices", headers={"If-None-Match": again.headers["ETag"]}).status_code == 304
    assert client.get("/me").status_code == 401
    made = client.post(
        "/counterseal/api/auth/sign-up",
        json={"email": "ada@example.com", "password": "a clear night in May", "tokens": "body"},
        headers={"User-Agent": "curl/8.14.1"},
    ).json()
    me = client.get("/me", headers={"Authorization": "Bearer " + made["tokens"]["access_token"]}).json()
    assert me == {"user": made["session_id"].partition(".")[0], "device": "curl"}
"""


@pytest.mark.parametrize("position", [0, 1], ids=["services", "jobs"])
def test_the_programs_of_the_readme_run(tmp_path: Path, position: int) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(programs) == 2
    ended = subprocess.run(
        [sys.executable, "-c", programs[position]],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    if position == 1:
        assert ended.stdout == "Ada, document 7 waits for you\n"
        return
    assert ended.stdout.startswith("{'name': 'Ada Lovelace'}\n{'title': 'Document 7'}\nTrue 99 20")
    assert ended.stdout.endswith("Today(views=1, signatures=0, requests=1, users=1)\n")


def test_the_first_job_of_the_page_on_jobs_runs(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs/jobs.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "Hello, Ada\n")


def test_an_application_of_ones_own_has_the_services_and_their_health(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
