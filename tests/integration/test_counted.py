"""However a run is looked at, it has as many tasks: its result, its summary, its last event, `flow runs` and `flow show`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowlane import run
from flowlane.cli.main import main
from flowlane.loader import load_file
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    Flow = Callable[..., "tuple[int, str, str]"]

#: Everything that becomes other tasks, with elements that fail, are skipped, and never run. `die` ends the process in the middle.
MIXED = """
import os
from collections.abc import Iterator
from flowlane import Call, Skip, product, task, when, workflow

@task.io
def some(count: int) -> list[int]:
    return list(range(count))

@task.io
def odd(number: int) -> int:
    if number == 2:
        raise Skip("it is even")
    if number == 3:
        raise ValueError("three")
    return number

@task.io
def add(a: int, b: int) -> int:
    return a + b

@workflow
def inner(number: int):
    return odd(add(number, 1))

@workflow
def same(number: int):
    return number

@task.io
def more(number: int) -> Call[int]:
    return inner.bind(number) if number else add.bind(0, 0)

def broken(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("torn")

@task.io
def total(numbers: list[int]) -> int:
    return sum(numbers)

@task.io(at_most_once=True)  # so what has ended before it begins is stored
def die(numbers: list[int]) -> int:
    if os.path.exists("die"):
        os._exit(7)
    return 0

@workflow
def mixed():
    numbers = some(4)
    with when(some(0)):
        total(numbers)
    tails = [
        odd.map(numbers),
        inner.map(numbers),
        same.map(numbers),
        more.map(numbers),
        more(0),
        more(5),
        total(odd.map(some(0))),
        total.reduce(odd.map(some(2)), fan_in=2),
        total.reduce(some(9), fan_in=2),
        odd.map(odd.map(broken(1))),
    ]
    waits = total([die(inner.map(some(1)))])  # so something is pending, however late the process ends
    return *tails, waits, total(odd.map(numbers))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_key: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mixed.py").write_text(textwrap.dedent(MIXED), encoding="utf-8")
    return tmp_path


@pytest.fixture
def flow(capsys: pytest.CaptureFixture[str]) -> Flow:
    def flow(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return flow


def in_words(text: str) -> dict[str, int]:
    """ "12 succeeded · 1 failed" → the numbers by state; what is told beside is left out."""
    found = re.findall(r"([\d,]+) ([a-z_]+)(?= ·|$)", text, re.MULTILINE)
    return {state: int(number.replace(",", "")) for number, state in found}


def told(flow: Flow) -> dict[str, int]:
    """What the history tells of the last run, which is the same everywhere."""
    (found,) = json.loads(flow("runs", "--json", "--limit", "1")[1])["runs"]
    counts: dict[str, int] = found["counts"]
    assert found["tasks"] == sum(counts.values())
    assert found["done"] == counts.get("succeeded", 0) + counts.get("cached", 0)
    table = flow("runs", "--limit", "1")[1].splitlines()[1]
    assert f" {found['done']}/{found['tasks']} " in table
    shown = json.loads(flow("show", "last", "--json")[1])
    assert {key: shown["run"][key] for key in ("tasks", "done", "counts")} == {
        key: found[key] for key in ("tasks", "done", "counts")
    }
    (line,) = re.findall(r"^  ([\d,]+) tasks: (.*)$", flow("show", "last")[1], re.MULTILINE)
    assert (int(line[0]), in_words(line[1])) == (found["tasks"], counts)
    return counts


def test_all_that_tell_how_many_tasks_there_were_say_the_same(flow: Flow, folder: Path) -> None:
    code, _, err = flow("run", "mixed.py:mixed")
    assert code == 1
    (summary,) = [line for line in err.splitlines() if line.startswith("✗ mixed")]
    counts = told(flow)
    assert in_words(summary.partition(" after ")[2]) == counts
    (log,) = folder.glob(".flow/runs/*/events.jsonl")
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    assert (last["event"], last["counts"]) == ("run.finished", counts)
    assert counts["failed"] >= 4 and counts["skipped"] >= 4 and counts["upstream_failed"]
    result = run(load_file("mixed.py").mixed.bind(), store=SqliteStore(".flow/flow.db"), check=False)
    assert {str(state): number for state, number in result.counts.items()} == counts
    assert told(flow) == counts


def test_a_killed_run_has_as_many_tasks_in_every_view_also_when_it_is_taken_over_or_gone_on_with(
    flow: Flow, folder: Path
) -> None:
    (folder / "die").touch()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "flowlane", "run", "mixed.py:mixed"]
    assert subprocess.run(command, env=environ, timeout=50, check=False, capture_output=True).returncode == 7
    counts = told(flow)
    assert json.loads(flow("runs", "--json")[1])["runs"][0]["state"] == "stopped"
    assert counts["pending"] and "running" in counts
    store = SqliteStore(".flow/flow.db")
    store.open()
    stored = store.find("last")
    assert sum(counts.values()) > stored.tasks and len(store.blocks(stored.id)) > 1
    store.seize(stored.id, time.time_ns())
    store.close()
    assert told(flow) == counts
    (folder / "die").unlink()
    code, _, err = flow("resume", "last", "--rerun", "die")
    assert code == 1
    (summary,) = [line for line in err.splitlines() if line.startswith("✗ mixed")]
    assert in_words(summary.partition(" after ")[2]) == told(flow)
