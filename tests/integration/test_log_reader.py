"""The log reader is itself a judge, so it is judged: it must pass sound logs and complain about each broken one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration import log_reader
from tests.integration.log_reader import FINAL, LEGAL, complaints, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    Events = list[dict[str, Any]]

# fetch ──▶ parse ──▶ store        fetch succeeds at its second attempt
EDGES = {"fetch": [], "parse": ["fetch"], "store": ["parse"]}


class Log:
    """Writes a log of one run, a microsecond an event."""

    def __init__(self) -> None:
        self.events: Events = []
        self.now = 1_000
        self.since: dict[str, int] = {}

    def add(self, event: str, **fields: Any) -> dict[str, Any]:
        self.now += 1_000
        row = {
            "event": event, "v": 1, "level": "info", "timestamp": "2026-11-22T17:00:00.123456Z",
            "run": "0123456789ab", "run_name": "brisk-otter", "workflow": "etl", "mono_ns": self.now, **fields,
        }  # fmt: skip
        self.events.append(row)
        return row

    def step(self, task: str, source: str, target: str, reason: str, attempt: int = 1, **fields: Any) -> None:
        before = self.since.get(task)
        row = self.add(
            "task.transition", task=task, kind="io", executor="threads", worker=None, attempt=attempt, reason=reason,
        )  # fmt: skip
        row["from"], row["to"] = source, target
        row["elapsed_s"] = None if before is None else (row["mono_ns"] - before) / 1e9
        if "running" in (source, target):
            row["worker"] = "thread-1"
        row.update(fields)
        self.since[task] = row["mono_ns"]

    def attempt(self, task: str, number: int = 1) -> None:
        self.step(task, "ready", "running", "started", number)
        self.step(task, "running", "succeeded", "returned", number)


def sound() -> Events:
    log = Log()
    log.add("run.started", tasks=3)
    log.step("fetch", "pending", "ready", "upstream_done")
    log.step("fetch", "ready", "running", "started")
    log.step("fetch", "running", "retrying", "raised")
    log.step("fetch", "retrying", "ready", "backoff_elapsed", 2)
    log.attempt("fetch", 2)
    for task in ("parse", "store"):
        log.step(task, "pending", "ready", "upstream_done")
        log.attempt(task)
    log.add("run.finished", state="succeeded", counts={"succeeded": 3, "failed": 0}, error=None)
    return log.events


def failed() -> Events:
    log = Log()
    log.add("run.started", tasks=3)
    log.step("fetch", "pending", "ready", "upstream_done")
    log.step("fetch", "ready", "running", "started")
    log.step("fetch", "running", "failed", "raised", error={"type": "OSError", "message": "no", "where": None})
    for task in ("parse", "store"):
        way = ["fetch", "parse", "store"][: 2 + (task == "store")]
        log.step(task, "pending", "upstream_failed", "upstream_failed", 0, root="fetch", path=way)
    log.add("run.finished", state="failed", counts={"failed": 1, "upstream_failed": 2}, error="fetch: OSError: no")
    return log.events


def judge(events: Events) -> list[str]:
    return complaints(parse([json.dumps(event) for event in events]), EDGES)


@pytest.mark.parametrize("make", [sound, failed])
def test_a_sound_log_passes(make: Callable[[], Events]) -> None:
    assert judge(make()) == []


def find(events: Events, task: str, target: str) -> dict[str, Any]:
    return next(event for event in events if event.get("task") == task and event.get("to") == target)


def drop(events: Events, task: str, target: str) -> None:
    events.remove(find(events, task, target))


def twice(events: Events) -> None:
    row = dict(find(events, "store", "succeeded"))
    row["elapsed_s"] = 0.0
    events.insert(-1, row)


def swap_lines(events: Events) -> None:
    first, second = find(events, "parse", "ready"), find(events, "parse", "running")
    a, b = events.index(first), events.index(second)
    events[a], events[b] = second, first


def too_early(events: Events) -> None:
    done = find(events, "fetch", "succeeded")["mono_ns"]
    for event, time in zip(
        [e for e in events if e.get("task") == "parse"], (done - 900, done - 800, done + 5000), strict=True
    ):
        event["mono_ns"] = time
    find(events, "parse", "running")["elapsed_s"] = 1e-7
    find(events, "parse", "succeeded")["elapsed_s"] = 5.8e-6


def stranger(events: Events) -> None:
    for event in events:
        if event.get("task") == "store":
            event["task"] = "stroe"


def forget(events: Events) -> None:
    events[:] = [event for event in events if event.get("task") != "store"]


BROKEN: dict[str, tuple[Callable[[Events], object], str]] = {
    "a step is missing": (lambda e: drop(e, "parse", "ready"), "begins in ready, but the task is pending"),
    "a task never ends": (lambda e: drop(e, "store", "succeeded"), "its story ends in running"),
    "two final states": (twice, "comes after its final state succeeded"),
    "lines in a wrong order": (swap_lines, "begins in ready, but the task is pending"),
    "an illegal step": (
        lambda e: find(e, "parse", "ready").update(to="succeeded"), "→ succeeded (upstream_done) is no legal step"),
    "a wrong reason": (lambda e: find(e, "parse", "running").update(reason="returned"), "that this step cannot have"),
    "a state made up": (lambda e: find(e, "parse", "succeeded").update(to="done"), "is no legal step"),
    "time runs backwards": (lambda e: find(e, "parse", "succeeded").update(mono_ns=17), "goes back in time"),
    "a time that is no int": (lambda e: find(e, "parse", "running").update(mono_ns=1.5), "has the time 1.5"),
    "a wrong duration": (lambda e: find(e, "parse", "running").update(elapsed_s=3.0), "says 3.0 s have elapsed"),
    "a duration before the first": (lambda e: find(e, "parse", "ready").update(elapsed_s=0.1), "is the first, but"),
    "an attempt counted twice": (
        lambda e: [x.update(attempt=1) for x in e if x.get("task") == "fetch"], "begins attempt 1 after attempt 1"),
    "an attempt left out": (
        lambda e: [x.update(attempt=3) for x in e if x.get("attempt") == 2], "has attempt 3 after attempt 1"),
    "an attempt without retrying": (
        lambda e: find(e, "parse", "succeeded").update(attempt=2), "has attempt 2 after attempt 1"),
    "attempt 0 running": (lambda e: find(e, "parse", "running").update(attempt=0), "has attempt 0"),
    "began before its upstream": (too_early, "ns before fetch had succeeded"),
    "no worker": (lambda e: find(e, "store", "succeeded").update(worker=None), "names no worker"),
    "the executor changes": (lambda e: find(e, "store", "running").update(executor="inline"), "its executor changes"),
    "a field is missing": (lambda e: find(e, "store", "running").pop("kind"), "a transition has no kind"),
    "a task is missing": (forget, "store: not in the log"),
    "a task nobody knows": (stranger, "stroe: in the log, but no task of the workflow"),
    "no beginning": (lambda e: e.pop(0), "does not begin with its only run.started"),
    "no end": (lambda e: e.pop(), "does not end with its only run.finished"),
    "two runs": (lambda e: e[4].update(run="ffffffffffff"), "tells of 2 runs"),
    "another schema": (lambda e: e[4].update(v=2), "of schema version 2"),
    "a bad timestamp": (lambda e: e[4].update(timestamp="yesterday"), "has the timestamp 'yesterday'"),
    "a wrong number of tasks": (lambda e: e[0].update(tasks=4), "tells of 4 tasks"),
    "wrong counts": (lambda e: e[-1].update(counts={"succeeded": 2}), "run.finished counts"),
    "a wrong verdict": (lambda e: e[-1].update(state="failed"), "the run is 'failed'"),
    "events were lost": (lambda e: e.insert(5, {**e[0], "event": "log.lost", "lost": 7}), "events were lost"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_log_is_complained_about(name: str) -> None:
    break_it, said = BROKEN[name]
    events = sound()
    break_it(events)
    assert any(said in complaint for complaint in judge(events)), judge(events)


def test_a_failure_must_be_told_with_its_cause() -> None:
    events = failed()
    del find(events, "fetch", "failed")["error"]
    del find(events, "store", "upstream_failed")["root"]
    said = "\n".join(judge(events))
    assert "fetch: running → failed (raised) does not say what went wrong" in said
    assert "store: pending → upstream_failed (upstream_failed) does not say what failed" in said


def test_upstream_failed_needs_a_failure_upstream_and_running_needs_none() -> None:
    assert "store: ready although parse is upstream_failed" in "\n".join(
        judge([*failed()[:-2], *(event for event in sound() if event.get("task") == "store"), failed()[-1]])
    )
    log = Log()
    log.add("run.started", tasks=1)
    log.step("fetch", "pending", "upstream_failed", "upstream_failed", root="x", path=["x"])
    log.add("run.finished", state="failed", counts={"upstream_failed": 1})
    assert "fetch: upstream_failed although nothing upstream failed" in judge(log.events)


def test_lines_that_are_no_json_are_told() -> None:
    lines = [json.dumps(event) for event in sound()]
    lines[3:3] = ["{", "[]", '{"event": NaN}', ""]
    said = "\n".join(complaints(parse(lines)))
    assert "line 4 is not JSON" in said
    assert "line 5 is no JSON object" in said
    assert "line 6 is not JSON: NaN is no JSON" in said
    assert "line 7 is not JSON" in said


def test_an_empty_log_is_no_log() -> None:
    assert complaints(parse([])) != []


def test_no_final_state_is_ever_left_and_every_other_one_is() -> None:
    sources = {source for source, _ in LEGAL}
    targets = {target for _, target in LEGAL}
    assert sources.isdisjoint(FINAL)
    assert targets - sources == FINAL


def test_the_reader_shares_no_code_with_the_engine() -> None:
    tree = ast.parse(Path(log_reader.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in names if name.startswith("flowlane")}


WRONG = """
import asyncio, os, time
from flowlane import RetryPolicy, task, workflow

tries = {"shaky": 0}

@task.io
def fine() -> int:
    return 1

@task.io(retry=RetryPolicy(attempts=4, backoff=0.01))
def shaky(x: int) -> int:
    tries["shaky"] += 1
    if tries["shaky"] < 3:
        raise OSError("not yet")
    return x + 1

@task.io(timeout=0.05, retries=1)
async def slow(x: int) -> int:
    await asyncio.sleep(60)
    return x

@task.cpu
def bad(x: int) -> int:
    raise ValueError(f"bad {x}")

@task.cpu
def gone(x: int) -> int:
    os._exit(3)

@task.io
def after(*values: int) -> int:
    return sum(values)

@task.io
async def long(x: int) -> int:
    await asyncio.sleep(FOR)
    return x

@workflow(on_failure=POLICY)
def wrong() -> int:
    x = shaky(fine())
    last = after(after(x), long(x))
    after(after(slow(x)), bad(last))
    after(bad(x))
    after(gone(x), last)
    return last
"""

WRONG_EDGES = {
    "fine": [], "shaky": ["fine"], "after": ["shaky"], "long": ["shaky"], "after#2": ["after", "long"],
    "slow": ["shaky"], "after#3": ["slow"], "bad": ["after#2"], "after#4": ["after#3", "bad"],
    "bad#2": ["shaky"], "after#5": ["bad#2"], "gone": ["shaky"], "after#6": ["gone", "after#2"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "duration", "states"),
    [
        ("continue", 0.01, {"succeeded": 5, "failed": 2, "timed_out": 1, "crashed": 1, "upstream_failed": 4}),
        ("fail_fast", 60, None),
    ],
)
def test_the_log_of_a_run_in_which_all_goes_wrong_is_sound(
    tmp_path: Path, policy: str, duration: float, states: dict[str, int] | None
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG.replace("POLICY", repr(policy)).replace("FOR", repr(duration)), encoding="utf-8")
    # One worker process: which of several tasks a dead one is charged to is not this test's business.
    command = [sys.executable, "-m", "flowlane", "run", str(file), "--slots", "processes=1"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=50, check=False
    )
    assert done.returncode == 1, done.stderr
    (log,) = tmp_path.glob(".flow/runs/*/events.jsonl")
    story = log_reader.read(log)
    assert complaints(story, WRONG_EDGES) == []
    found = Counter(story.final_states().values())
    if states is not None:
        assert found == states
    else:
        assert found["cancelled"] > 0  # `long` was running
    attempts = [event["attempt"] for event in story.by_task()["shaky"] if event["to"] == "running"]
    assert attempts == [1, 2, 3]
