"""What the repository's own files promise: settings, links, targets, licence."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from counterseal.cache.kind import KINDS
from counterseal.core.settings import CACHE_TTL_PREFIX, Settings
from support.program import environment

ROOT = Path(__file__).parents[2]
_EXAMPLE = re.compile(r"^# ([A-Z][A-Z0-9_]+)=(.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TARGET = re.compile(r"^ {2}make ([a-z-]+) {2,}\S", re.MULTILINE)


def examples() -> dict[str, str]:
    """The settings of `.env.example`, each of which stands there as a comment."""
    return dict(_EXAMPLE.findall((ROOT / ".env.example").read_text()))


def documents() -> list[Path]:
    """The Markdown files that people read."""
    folders = (ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "examples").rglob("*.md"))
    return sorted(path for folder in folders for path in folder)


def test_the_example_names_every_setting_and_nothing_else() -> None:
    named = {name for name in examples() if not name.startswith(CACHE_TTL_PREFIX)}
    assert named == set(Settings.names())


def test_the_example_names_every_cache_kind_with_its_lifetime() -> None:
    given = {name: value for name, value in examples().items() if name.startswith(CACHE_TTL_PREFIX)}
    assert Settings.load(given).cache_ttl == {kind.name: kind.ttl for kind in KINDS}


def test_every_value_of_the_example_is_accepted() -> None:
    values = {name: value for name, value in examples().items() if value}
    assert len(values) > 10
    Settings.load(values)


def test_copying_the_example_changes_nothing() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_the_readme_names_every_setting() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in Settings.names() if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = [link.partition("#")[0] for link in _LINK.findall(document.read_text()) if "://" not in link]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(
        ["make"], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    ).stdout
    declared = set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(_TARGET.findall(listed)) == declared
    assert {"help", "run", "test", "quick", "check", "bench", "soak", "system-packages"} <= declared


def test_requirements_are_pinned_by_hash() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
        assert len(entries) > 30
        assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


def test_every_dependency_is_among_the_pinned_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^a-z0-9-]", dependency)[0] for dependency in project["dependencies"]}
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert wanted - pinned == set()


def test_the_licence_is_there_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_what_a_contributor_runs() -> None:
    commands = re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert commands == ["make system-packages", "make check", "make test"]
