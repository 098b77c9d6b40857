"""JSON lines: the fast path against the real chain, and files that misbehave.

The two write the same bytes but for one thing: the fast path spells seconds with nine decimals. `respelt` undoes that.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flowlane.core.states import RULES
from flowlane.errors import Failure
from flowlane.runtime.encode import encode
from flowlane.runtime.events import SHAPES, History
from flowlane.runtime.ports import FAILED, SUCCEEDED, Report, RunOutcome, Sink
from flowlane_plugins.sinks import structured
from flowlane_plugins.sinks.lines import LineRenderer
from flowlane_plugins.sinks.structured import JsonLinesSink

# Seeded; a slow machine is no failure.
CALM = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DONE = RunOutcome("succeeded", 5_000_100_000_000, {"succeeded": 1})


def as_is(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return event


def play(sink: JsonLinesSink, run: Any, chunks: list[Any]) -> None:
    sink.open(run)
    for chunk in chunks:
        sink.write(chunk)
    sink.close(run, DONE)


_SECONDS = re.compile(r'("(?:elapsed|cpu|pickling)_s":)([0-9]+\.[0-9]{9})(?=[,}])')


def respelt(text: str) -> str:
    """Lines of the fast path with their seconds as ``repr`` writes the floats that a reader of them gets."""
    return _SECONDS.sub(lambda found: f"{found[1]}{float(found[2])!r}", text)


def encoded(chunk: Any) -> str:
    return "".join([encode(event) + "\n" for event in chunk.events()])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


# ── fast and slow are one ─────────────────────────────────────────────────────────────────────────────────────────


@CALM
@given(data=st.data())
def test_the_fast_path_writes_the_events(kit: Any, data: st.DataObject) -> None:
    story = data.draw(kit.stories())
    renderer = LineRenderer(story.run)
    for chunk in story.chunks():
        assert respelt(renderer.render(chunk)) == encoded(chunk)


@CALM
@given(data=st.data())
def test_the_fast_path_writes_what_structlog_writes(
    kit: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    story = data.draw(kit.stories())
    folder = tmp_path_factory.mktemp("logs")
    fast, slow = JsonLinesSink(folder / "fast"), JsonLinesSink(folder / "slow", processors=[as_is])
    assert (fast.fast, slow.fast) == (True, False)
    play(fast, story.run, story.chunks())
    play(slow, story.run, story.chunks())
    assert respelt((folder / "fast").read_text(encoding="ascii")) == (folder / "slow").read_text(encoding="ascii")
    assert not fast.take_faults() + slow.take_faults()


@pytest.mark.parametrize("code", range(len(RULES)))
@pytest.mark.parametrize("shape", ["no report", "plain", "cpu", "failure", "failure and cpu"])
def test_each_kind_of_transition(kit: Any, code: int, shape: str) -> None:
    failure = Failure("ValueError", "no", traceback="", where=None) if "failure" in shape else None
    report = Report(1, FAILED, failure=failure, worker="loop", cpu=1_500 if "cpu" in shape else -1)
    reports = {} if shape == "no report" else {(0, attempt): report for attempt in (1, 2, 255)}
    rows = [
        (0, 1, kit.READY, kit.MONO - 77),
        (0, 1, code, kit.MONO),
        (0, 2, code, kit.MONO + 1),
        (0, 255, code, kit.MONO),
    ]
    chunk = History(kit.info()).chunk(rows, reports)
    text = LineRenderer(kit.info()).render(chunk)
    assert respelt(text) == encoded(chunk)
    assert ("ValueError" in text) == (failure is not None and SHAPES[code].blamed)


@CALM
@given(
    waited=st.sampled_from([-5, 0, 1, 999_999_999, 10**9, 3_700_000_123, 10**17]) | st.integers(0, 2 * 10**9),
    worked=st.sampled_from([-5_000, -5, 0, 1, 999_999_999, 10**9, 3_700_000_123]) | st.integers(0, 2 * 10**9),
    phase=st.integers(0, 10**9 - 1),
)
def test_a_start_and_the_success_behind_it(kit: Any, waited: int, worked: int, phase: int) -> None:
    """Such pairs are written in one go where both rows are of the second that the templates are for."""
    ready = kit.MONO + phase
    rows = [(element, 1, kit.READY, ready) for element in range(3)]
    for element in range(3):  # the first brings the templates of its second, the others find them
        began = ready + waited + 70 * element
        rows += [(element, 1, kit.STARTED, began), (element, 1, kit.RETURNED, began + worked)]
    reports = {(element, 1): Report(1, SUCCEEDED, worker="pid 1", cpu=7) for element in range(3)}
    chunk = History(kit.info()).chunk(rows, reports)
    assert respelt(LineRenderer(kit.info()).render(chunk)) == encoded(chunk)


@pytest.mark.parametrize("lost", [False, True], ids=["", "after a loss"])
@pytest.mark.parametrize(
    ("element", "attempt", "change"),
    [
        (0, 1, "running succeeded returned"),
        (1, 1, "running succeeded returned"),
        (0, 2, "running succeeded returned"),
        (0, 1, "running failed raised"),
        (0, 1, "running timed_out attempt_timeout"),
        (1, 1, "ready running started"),
    ],
)
def test_a_start_and_whatever_comes_behind_it(kit: Any, element: int, attempt: int, change: str, lost: bool) -> None:
    report = Report(1, FAILED, worker="loop", failure=Failure("ValueError", "no", traceback="", where=None))
    rows = [(0, 1, kit.STARTED, kit.MONO + 3), (element, attempt, kit.code(change), kit.MONO + 8)]
    history, renderer = History(kit.info()), LineRenderer(kit.info())
    if lost:
        history.lost(3, kit.MONO)
    else:
        history.follow([(each, 1, kit.READY, kit.MONO) for each in range(3)])
    for reports in ({}, {(0, 1): report}, {(0, 1): report, (element, attempt): report}):
        chunk = history.chunk(rows, reports)
        assert respelt(renderer.render(chunk)) == encoded(chunk)
    first = history.chunk(rows[:1], {(0, 1): report})  # and nothing behind it, in its chunk
    assert respelt(renderer.render(first)) == encoded(first)


@pytest.mark.parametrize("failed", [False, True])
def test_whatever_an_executor_measured(kit: Any, failed: bool) -> None:
    failure = Failure("TimeoutError", "in time after all", traceback="", where=None) if failed else None
    history, renderer = History(kit.info()), LineRenderer(kit.info())
    rows, _ = kit.simple(kit.info())
    for figures in itertools.product([-1, 0, 999_999_999, 10**9], repeat=5):
        report = Report(1, SUCCEEDED, 0, 0, None, failure, "pid 1", *figures)
        chunk = history.chunk(rows[1:], {(0, 1): report})
        assert respelt(renderer.render(chunk)) == encoded(chunk)


@CALM
@given(ns=st.integers(0, 10**12) | st.integers(0, 10**6) | st.integers(2**53 - 2, 2**60))
@example(ns=9_010_438_239_376_255)  # the nearest float to its decimals is not what the event holds
def test_seconds_are_the_floats_of_the_events(kit: Any, ns: int) -> None:
    rows = [(0, 1, kit.READY, kit.MONO), (0, 1, kit.STARTED, kit.MONO + ns)]
    line = LineRenderer(kit.info()).render(History(kit.info()).chunk(rows, {})).splitlines()[1]
    assert json.loads(line)["elapsed_s"] == ns / 1e9
    if ns < 2**53:
        assert line.endswith(f'"elapsed_s":{ns // 10**9}.{ns % 10**9:09d}}}')


def test_caches_are_bounded_and_forgetting_changes_nothing(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlane_plugins.sinks.lines._TASKS_KEPT", 3)
    monkeypatch.setattr("flowlane_plugins.sinks.lines._WORKERS_KEPT", 3)
    run = kit.info([f"t{n}" for n in range(20)])
    renderer, history = LineRenderer(run), History(run)
    for element in range(20):
        rows, reports = kit.simple(run, element)
        reports[element, 1].worker = f"pid {element}"
        chunk = history.chunk(rows, reports)
        assert respelt(renderer.render(chunk)) == encoded(chunk)
    assert len(renderer._tasks) <= 4
    assert len(renderer._workers) <= 5


def test_a_foreign_chunk(kit: Any) -> None:
    failure = Failure("ValueError", "no", traceback="", where=None)
    rows = [(n, 1, kit.code("running failed raised"), kit.MONO) for n in range(3)]
    real = History(kit.info()).chunk(rows, {(1, 1): Report(1, FAILED, failure=failure)})

    class Foreign:
        run, transitions, elapsed, reports = real.run, real.transitions, real.elapsed, real.reports

        def events(self) -> Iterator[dict[str, Any]]:
            return real.events()

    assert LineRenderer(kit.info()).render(Foreign()) == LineRenderer(kit.info()).render(real)


def test_the_fast_path_needs_no_structlog(tmp_path: Path) -> None:
    program = (
        "import sys; from flowlane_plugins.sinks.structured import JsonLinesSink, LoggingSink\n"
        "import flowlane.runtime.journal, flowlane_plugins.sinks.console, flowlane_plugins.sinks.progress\n"
        "JsonLinesSink('x'), LoggingSink()\n"
        "print([name for name in ('structlog', 'rich', 'networkx', 'pydantic', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


# ── processors ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_processors_change_add_and_drop(kit: Any, tmp_path: Path) -> None:
    def only_ends(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event["event"] == "task.transition" and event["to"] != "succeeded":
            raise structlog.DropEvent
        return {**event, "host": "h1", "event": event["event"].upper(), "method": method}

    sink = JsonLinesSink(tmp_path / "log", processors=[structlog.stdlib.filter_by_level, only_ends])
    play(sink, kit.info(), [History(kit.info()).chunk(*kit.simple(kit.info()))])
    assert [(e["event"], e["host"], e["method"]) for e in lines(tmp_path / "log")] == [
        ("RUN.STARTED", "h1", "info"),
        ("TASK.TRANSITION", "h1", "info"),
        ("RUN.FINISHED", "h1", "info"),
    ]
    assert sink.take_faults() == []


@pytest.mark.parametrize("error", [ValueError("no\x1b"), SystemExit(2), RecursionError()])
def test_a_processor_that_raises_is_told_once_and_its_events_are_kept(
    kit: Any, tmp_path: Path, error: BaseException
) -> None:
    def touchy(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event.get("to") == "running":
            event.clear()  # what it did before it raised must not show
            raise error
        return event

    sink = JsonLinesSink(tmp_path / "log", processors=[touchy])
    history = History(kit.info())
    play(sink, kit.info(), [history.chunk(*kit.simple(kit.info(), n)) for n in range(3)])
    plain = JsonLinesSink(tmp_path / "plain")
    history = History(kit.info())
    play(plain, kit.info(), [history.chunk(*kit.simple(kit.info(), n)) for n in range(3)])
    assert (tmp_path / "log").read_text() == respelt((tmp_path / "plain").read_text())
    (fault,) = sink.take_faults()
    assert type(error).__name__ in fault
    assert sink.take_faults() == []


@pytest.mark.parametrize("result", [None, "text", 3, b"x", ("a", {})])
def test_a_chain_that_ends_in_no_event_is_told_and_the_event_is_kept(kit: Any, tmp_path: Path, result: Any) -> None:
    sink = JsonLinesSink(tmp_path / "log", processors=[lambda *_: result])
    play(sink, kit.info(), [])
    assert [event["event"] for event in lines(tmp_path / "log")] == ["run.started", "run.finished"]
    assert "leave a renderer out" in sink.take_faults()[0]


def test_hostile_values_of_a_processor_cannot_break_a_line(kit: Any, tmp_path: Path) -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    def poison(_logger: Any, _method: str, event: dict[Any, Any]) -> dict[Any, Any]:
        event |= {"nan": float("nan"), (1, 2): 3, "self": event, "bad": Bad(), "esc": "\x1b\n\udc80", "b": b"\xff"}
        return event

    sink = JsonLinesSink(tmp_path / "log", processors=[poison])
    play(sink, kit.info(), [History(kit.info()).chunk(*kit.simple(kit.info()))])
    events = lines(tmp_path / "log")
    assert len(events) == 5
    assert all(event["nan"] == "NaN" and event["self"] == "<circular>" for event in events)
    assert sink.take_faults() == []


def test_the_hosts_structlog_configuration_is_neither_used_nor_changed(kit: Any, tmp_path: Path) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the host's processor was called")

    before = structlog.get_config()
    try:
        structlog.configure(processors=[refuse], cache_logger_on_first_use=True)
        configured = structlog.get_config()
        sink = JsonLinesSink(tmp_path / "log", processors=[as_is])
        play(sink, kit.info(), [])
        assert structlog.get_config() == configured
    finally:
        structlog.configure(**before)
    assert len(lines(tmp_path / "log")) == 2


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_a_sink() -> None:
    assert isinstance(JsonLinesSink("x"), Sink)


def test_the_file_is_private_and_appended_to(kit: Any, tmp_path: Path) -> None:
    path = tmp_path / "log"
    old = os.umask(0)
    try:
        play(JsonLinesSink(path), kit.info(), [])
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    play(JsonLinesSink(str(path)), kit.info(), [])
    assert len(lines(path)) == 4


def test_runs_share_a_sink(kit: Any, tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "log")
    one, two = kit.info(id="1"), kit.info(id="2")
    first, second = History(one), History(two)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    sink.open(one)
    sink.open(two)
    sink.write(first.chunk(*kit.simple(one)))
    sink.close(one, DONE)
    sink.write(second.chunk(*kit.simple(two)))
    sink.close(two, DONE)
    sink.close(two, DONE)  # once too often
    assert [event["run"] for event in lines(tmp_path / "log")] == list("1211112222")
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_one_write_a_chunk(kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.write
    monkeypatch.setattr(structured.os, "write", lambda fd, data: calls.append(len(data)) or real(fd, data))
    sink = JsonLinesSink(tmp_path / "log")
    play(sink, kit.info(), [History(kit.info()).chunk(*kit.simple(kit.info()))])
    assert len(calls) == 3


def test_a_path_that_cannot_be_opened_raises(kit: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JsonLinesSink(tmp_path / "missing" / "log").open(kit.info())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_device_drops_counts_and_is_told_once(kit: Any) -> None:
    sink = JsonLinesSink("/dev/full")
    history = History(kit.info())
    play(sink, kit.info(), [history.chunk(*kit.simple(kit.info(), n)) for n in range(3)])
    assert sink.lost == 2 + 3 * 3
    first, last = sink.take_faults()
    assert first == "/dev/full: No space left on device; events are dropped until it can be written again"
    assert last == "11 events are missing in /dev/full"


@CALM
@given(room=st.lists(st.integers(0, 2_500), min_size=1, max_size=5))
def test_a_disk_that_fills_up_and_empties_again(
    kit: Any, room: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each number is what fits before the disk is full once; whatever happens, whole lines and a true count remain."""
    path = tmp_path_factory.mktemp("logs") / "log"
    left = list(room)
    real = os.write

    def write(fd: int, data: Any) -> int:
        if not left:
            return real(fd, data)
        if len(data) <= left[0]:
            left[0] -= len(data)
            return real(fd, data)
        if left[0] == 0:
            left.pop(0)
            raise OSError(errno.ENOSPC, "full")
        part = left[0]
        left[0] = 0
        return real(fd, bytes(data)[:part])

    sink = JsonLinesSink(path)
    history = History(kit.info())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structured.os, "write", write)
        play(sink, kit.info(), [history.chunk(*kit.simple(kit.info(), n % 3)) for n in range(12)])
    events = lines(path)
    losses = [event["lost"] for event in events if event["event"] == "log.lost"]
    written = len(events) - len(losses)
    assert written + sink.lost == 2 + 12 * 3
    assert sum(losses) + sink._gap == sink.lost
    assert bool(sink.take_faults()) == bool(sink.lost)


def test_what_cannot_be_taken_back_costs_one_torn_line(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, iter(["part", "full"])

    def write(fd: int, data: Any) -> int:
        match next(calls, None):
            case "part":
                return real(fd, bytes(data)[:10])
            case "full":
                raise OSError(errno.ENOSPC, "full")
            case _:
                return real(fd, data)

    monkeypatch.setattr(structured.os, "write", write)
    monkeypatch.setattr(structured.os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError("no")))
    sink = JsonLinesSink(tmp_path / "log")
    play(sink, kit.info(), [])
    torn, *rest = (tmp_path / "log").read_text().splitlines()
    assert torn == '{"event":"'
    assert [json.loads(line)["event"] for line in rest] == ["log.lost", "run.finished"]
