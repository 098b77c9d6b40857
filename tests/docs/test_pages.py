"""The README and the pages in docs/ tell the truth: their code runs, their output is real, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import flowlane

from .pages import ELSEWHERE, OWN, PAGES, ROOT, Block, anchors, blocks, commands, plain, prose, read

if TYPE_CHECKING:
    from pathlib import Path

WITH_CODE = [page for page in PAGES if page not in ELSEWHERE and blocks(page)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``flow`` and ``python3`` are those under test, and no setting comes from outside."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, command in (("flow", f'"{sys.executable}" -m flowlane'), ("python3", f'"{sys.executable}"')):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLOW_", "PYTHONWARNINGS"))}
    paths = [str(ROOT / "engine"), str(ROOT / "plugins")] if "site-packages" not in (flowlane.__file__ or "") else []
    return {
        **kept,
        "PATH": f"{tools}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [kept.get("PYTHONPATH")])]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "120",
    }


@pytest.mark.parametrize("page", WITH_CODE)
@pytest.mark.timeout(180)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    printed: str | None = None
    for block in blocks(page):
        place = f"{page}:{block.line}"
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        elif block.mark == "run":
            printed = _script(block, folder, environment, place)
        elif block.mark == "output":
            assert printed is not None, f"{place}: output of nothing"
            assert printed == block.text, place
        elif block.mark == "fragment":
            assert block.language == "python", place
            compile(block.text, place, "exec")
        elif block.mark.startswith("tested: "):
            assert page in OWN, place
        elif block.language == "console":
            _session(block, folder, environment, page)
        else:
            assert block.language != "python", f"{place}: is this block a file, to run, or a fragment?"
            assert not block.mark, f"{place}: what does {block.mark!r} mean?"


def _script(block: Block, folder: Path, environment: dict[str, str], place: str) -> str:
    compile(block.text, place, "exec")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), f"{place}\n{done.stderr}"
    return done.stdout


def _session(block: Block, folder: Path, environment: dict[str, str], page: str) -> None:
    code = 0
    for command, shown in commands(block):
        done = subprocess.run(
            ["bash", "-c", f"(exit {code}); {command}"],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", timeout=60, check=False,
        )  # fmt: skip
        code = done.returncode
        real = [plain(line) for line in done.stdout.splitlines()]
        rest = iter(real)
        for line in shown:
            assert line == "…" or line.strip() == "…" or plain(line) in rest, (
                f"{page}: `{command}` does not print, in this place:\n  {line}\nbut:\n{done.stdout}"
            )


def test_there_are_exactly_the_two_commands_that_ci_takes_out_of_the_readme() -> None:
    start = 'python3 -m venv .venv && .venv/bin/pip install -q ".[test]" && .venv/bin/'
    lines = [line for line in read("README.md").splitlines() if line.startswith("python3 -m venv .venv")]
    assert lines == [f"{start}flow run workflows/source_audit.py", f"{start}python -m pytest -q"]
    assert [b.text.splitlines() for b in blocks("README.md") if b.language == "sh"] == [lines]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        there = ((ROOT / page).parent / path).resolve() if path else (ROOT / page)
        assert there.is_relative_to(ROOT) and there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(there.relative_to(ROOT))), f"{page}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = read("docs/README.md")
    missing = [page for page in PAGES if page.startswith("docs/") and f"({page.removeprefix('docs/')})" not in index]
    assert missing == ["docs/README.md"]


def test_the_list_of_public_names_is_the_truth() -> None:
    section = re.search(r"^## Public names\n(.*?)^## ", read("docs/README.md"), re.MULTILINE | re.DOTALL)
    assert section is not None
    listed = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert sorted(listed) == sorted(set(flowlane.__all__) - {"__version__"})
    for name in listed:
        assert getattr(flowlane, name) is not None


def test_the_changelog_knows_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), re.MULTILINE)
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert project is not None
    assert versions[0] == project[1]


@pytest.mark.parametrize("page", PAGES)
def test_pages_speak_of_the_product_only(page: str) -> None:
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users)/", read(page)), "a path of somebody's machine"
