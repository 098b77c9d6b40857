"""workflows/man_index.py as a run: maps over lists that are known only at run time, a tree reduce, and a resume in the middle.

find_pages ─▶ read_page[i] ─▶ tokenise[i] ─┬─▶ invert[i] ─▶ merge, a tree ─▶ choose_queries ─┬─▶ check[q] ─▶ report
                                           └─────────────────────────────────────────────────┘
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import flowlane
from flowlane.loader import load_file, module_name_for

FILE = Path(__file__).parents[2] / "workflows" / "man_index.py"
# once for both files of tests: a second load would make its classes other ones
man: Any = sys.modules.get(module_name_for(FILE)) or load_file(FILE)

PAGES = 100


def tree(root: Path, pages: int = PAGES) -> Path:
    """Pages of made-up words, with one that is broken, one without words and one that points to another among them."""
    dice = random.Random(pages)
    words = ["".join(dice.choices("aeioulmnrst", k=dice.randint(3, 7))) for _ in range(400)]
    for section in (1, 8):
        (root / f"man{section}").mkdir(parents=True)
    for number in range(pages):
        body = "\n".join(" ".join(dice.choices(words, k=12)) for _ in range(dice.randint(1, 30)))
        section = dice.choice((1, 8))
        page = f".TH P{number} {section}\n.SH NAME\n\\fBp{number}\\fP \\- {body}\n"
        (root / f"man{section}/p{number}.{section}.gz").write_bytes(gzip.compress(page.encode(), 1))
    if pages > 2:
        (root / "man1/broken.1.gz").write_bytes(gzip.compress(b"words " * 100)[:-9])
        (root / "man1/empty.1").write_text("")
        (root / "man1/pointer.1").write_text(".so man1/empty.1\n")
    return root


def environment(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOW_")}
    return {**clean, "XDG_STATE_HOME": str(folder / "state"), "PYTHONUNBUFFERED": "1"}


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "flowlane", *argv, "--quiet"]


def finished(folder: Path, *argv: str) -> str:
    done = subprocess.run(
        command(*argv),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def transitions(folder: Path, to: str) -> list[dict[str, Any]]:
    """Of all sessions of all runs below `folder`. A last line that is not whole is left out."""
    found: list[dict[str, Any]] = []
    for log in folder.glob(".flow/runs/*/events.jsonl"):
        for line in log.read_bytes().split(b"\n")[:-1]:
            if b'"task.transition"' in line and f'"to":"{to}"'.encode() in line:
                found.append(json.loads(line))
    return found


def count_of(name: str, folder: Path) -> int:
    """How many elements of a task have succeeded, for somebody who asks all the time."""
    begins = f'"task":"{name}['.encode()
    return sum(
        begins in line and b'"to":"succeeded"' in line
        for log in folder.glob(".flow/runs/*/events.jsonl")
        for line in log.read_bytes().split(b"\n")
    )


def of(name: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a task and of its elements, ``name[3]``."""
    return [event for event in events if event["task"].partition("[")[0].partition("#")[0] == name]


@pytest.mark.parametrize("routes", [{"*": "inline"}, {"cpu": "threads"}, {}], ids=["inline", "threads", "as tagged"])
def test_a_run_gives_the_serial_report(tmp_path: Path, routes: dict[str, str]) -> None:
    root = tree(tmp_path, 40)
    bound = man.man_index.bind(roots=[root], queries=14, ask=("p1*",))
    result: Any = flowlane.run(bound, routes=routes)
    assert result.state == "succeeded"
    assert result.value == man.serial([root], queries=14, ask=("p1*",))


@pytest.mark.parametrize("pages", [0, 1, 2, 8, 9, 65], ids="{} pages".format)
def test_few_pages_or_none_are_a_run_like_others(tmp_path: Path, pages: int) -> None:
    """A map over nothing, a reduce of nothing, of one, of just one group and of one more."""
    root = tree(tmp_path, pages)
    result: Any = flowlane.run(man.man_index.bind(roots=[root], queries=3), routes={"*": "inline"})
    assert result.value == man.serial([root], queries=3)


def test_no_queries_are_no_checks(tmp_path: Path) -> None:
    root = tree(tmp_path, 9)
    result: Any = flowlane.run(man.man_index.bind(roots=[root], queries=0), routes={"*": "inline"})
    assert result.value == man.serial([root], queries=0)


@pytest.mark.timeout(110)
def test_flow_run_prints_the_serial_report_and_pages_do_not_wait_for_each_other(tmp_path: Path) -> None:
    root = tree(tmp_path / "man")
    shown = finished(tmp_path, "run", str(FILE), "-p", f'roots=["{root}"]')
    assert shown == man.serial([root]) + "\n"
    ended = transitions(tmp_path, "succeeded")
    found = len(man.find_pages.fn([root], 0))
    assert found == PAGES + 3
    for name, executor, elements in (
        ("read_page", "threads", found),
        ("tokenise", "processes", found),
        ("invert", "processes", found),
        ("check", "processes", 20),
    ):
        events = [event for event in of(name, ended) if "[" in event["task"]]
        assert len({event["task"] for event in events}) == elements, name
        assert {event["executor"] for event in events} == {executor}, name
    first_words = min(
        event["mono_ns"] for event in of("tokenise", transitions(tmp_path, "ready")) if "[" in event["task"]
    )
    last_page = max(event["mono_ns"] for event in of("read_page", ended) if "[" in event["task"])
    assert first_words < last_page


@pytest.mark.timeout(170)
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("name", ["tokenise", "merge"])
def test_a_run_killed_within_a_map_or_the_tree_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "man")
    expected = man.serial([root], queries=6) + "\n"
    enough = {"tokenise": PAGES // 3, "merge": 5}[name]
    with subprocess.Popen(
        command("run", str(FILE), "-p", f'roots=["{root}"]', "-p", "queries=6"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as engine:
        deadline = time.monotonic() + 60
        while engine.poll() is None and time.monotonic() < deadline:
            if count_of(name, tmp_path) >= enough:
                break
            time.sleep(0.01)
        engine.send_signal(signal.SIGKILL)
    before = {event["task"] for event in transitions(tmp_path, "succeeded") if event["reason"] == "returned"}
    assert len(of(name, [{"task": task} for task in before])) >= enough
    assert finished(tmp_path, "resume") == expected
    returned = [event["task"] for event in transitions(tmp_path, "succeeded") if event["reason"] == "returned"]
    again = {task for task in before if returned.count(task) > 1}
    # Pages are not stored and are read again where somebody needs them; nothing else that was done is done twice.
    assert {task for task in again if not task.startswith("read_page[")} == set()
