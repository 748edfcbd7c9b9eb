"""The wheel: built, installed into an empty environment, started, asked for its health, and ended."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from support.program import Program

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this working copy."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "src" / "counterseal"
    files = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == files
    assert any(name.endswith(".lua") for name in inside)
    assert "counterseal/web/static/style.css" in inside


def installer(python: Path) -> list[str | Path]:
    """pip, or uv where the environment of the tests was made by it."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install"]
    return [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", python]


def run(*command: str | Path) -> None:
    """Run a command with the index and the certificates of whoever runs the tests."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_installed_wheel_starts_and_is_healthy(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    constraints = tmp_path / "constraints.txt"
    # Which versions are taken is fixed; that these are all that is needed is what the wheel itself says.
    constraints.write_text(
        "\n".join(re.findall(r"^[a-z0-9-]+==[^ ]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    )
    run(sys.executable, "-m", "venv", "--without-pip", place)
    run(*installer(place / "bin" / "python"), "-c", constraints, wheel)
    program = [str(place / "bin" / "counterseal")]
    with Program(["serve", "--port", "0", "--data-dir", "data"], folder=tmp_path, program=program) as running:
        answer = httpx.get(f"{running.url(60)}/api/health/redis", timeout=20)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "healthy"
        assert (tmp_path / "data").is_dir()
        running.send(signal.SIGTERM)
        assert running.wait() == 0
        assert "Traceback" not in running.errors
