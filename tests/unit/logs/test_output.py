"""What tasks print, and notes about them, on the way through journal and sinks."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from flowlane.core.adaptive import Decision
from flowlane.runtime import journal as journals
from flowlane.runtime.adapting import Resized
from flowlane.runtime.events import History, outputs
from flowlane.runtime.journal import Journal
from flowlane.runtime.ports import NEVER, NOTED, SUCCEEDED, Report, RunOutcome
from flowlane_plugins.sinks.console import ConsoleSink, printed
from flowlane_plugins.sinks.lines import LineRenderer
from flowlane_plugins.sinks.progress import ProgressSink
from flowlane_plugins.sinks.structured import _sentence

DONE = RunOutcome("succeeded", 5_000_100_000_000, {"succeeded": 1})


def spoken(kit: Any, text: str, run: Any = None) -> Any:
    """A chunk of one task that printed `text`, its start in a chunk before with the same report."""
    run = run or kit.info()
    rows, reports = kit.simple(run)
    for report in reports.values():
        report.output = text
    history = History(run)
    return history.chunk(rows[:2], reports), history.chunk(rows[2:], reports)


def test_output_is_told_once_where_its_attempt_ends(kit: Any) -> None:
    before, end = spoken(kit, "hello\n")
    assert list(outputs(before)) == []
    ((index, report),) = outputs(end)
    assert (index, report.output) == (0, "hello\n")
    assert list(outputs(spoken(kit, "")[1])) == []


def test_lines_of_a_task_stand_before_its_end(kit: Any) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    for chunk in spoken(kit, "one\n  two\x1b[2J\ttab\n10%\r50%\r100%\r\n\nlast\n\n"):
        sink.write(chunk)
    lines = stream.getvalue().splitlines()
    assert lines[2:7] == [
        "fetch │ one",
        "fetch │   two\\x1b[2J   tab",
        "fetch │ 100%",
        "fetch │ ",
        "fetch │ last",
    ]
    assert "running → succeeded" in lines[7]
    assert len(lines) == 8


def test_an_ascii_stream_gets_an_ascii_bar(kit: Any) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    sink = ConsoleSink(stream)
    for chunk in spoken(kit, "snö\n"):
        sink.write(chunk)
    assert b"fetch | sn\\xf6\n" in raw.getvalue()


def test_names_are_inert_as_well() -> None:
    assert printed("a\x1b\n", "x") == "a\\x1b\\n │ x\n"


def test_json_on_stderr_stays_json(kit: Any) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(stream, format="json")
    chunks = spoken(kit, "hello\n")
    sink.open(chunks[0].run)
    for chunk in chunks:
        sink.write(chunk)
    assert "hello" not in stream.getvalue()


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_output_appears_above_the_live_view(kit: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Tty()
    sink = ProgressSink(stream, clock=lambda: kit.MONO)
    chunks = spoken(kit, f"one\x1b[2J\n{'wide ' * 30}\n")
    sink.open(chunks[0].run)
    for chunk in chunks:
        sink.write(chunk)
    shown = stream.getvalue()
    sink.close(chunks[0].run, DONE)
    assert "fetch │ one\\x1b[2J\n" in shown.replace("\r\n", "\n")
    assert f"fetch │ {'wide ' * 30}".rstrip() in shown  # the terminal wraps, we do not
    assert "\x1b[2J" not in shown
    sink.write(chunks[1])  # after the end: nothing to draw on, no fault
    assert sink.take_faults() == []


def test_a_note_is_an_event_of_its_own(kit: Any) -> None:
    run = kit.info()
    report = Report(1, NOTED, ended=kit.MONO + 10**9, worker="loop", note="held the event loop\x1b for 1 s")
    chunk = History(run).noted(1, 2, report)
    (event,) = chunk.events()
    assert event == {
        "event": "task.noted",
        "v": 1,
        "level": "warning",
        "timestamp": "2026-11-22T17:00:01.000000Z",
        "run": run.id,
        "run_name": run.name,
        "workflow": run.workflow,
        "mono_ns": kit.MONO + 10**9,
        "task": "parse",
        "kind": "io",
        "executor": "asyncio",
        "worker": "loop",
        "attempt": 2,
        "note": "held the event loop\x1b for 1 s",
    }
    assert chunk.reports == {(1, 2): report}
    assert LineRenderer(run).render(chunk).startswith('{"event":"task.noted","v":1,')
    stream = io.StringIO()
    ConsoleSink(stream).write(chunk)
    assert stream.getvalue() == "     1.000  parse  held the event loop\\x1b for 1 s\n"
    assert _sentence(event) == "etl brisk-otter parse held the event loop\\x1b for 1 s"


def test_output_that_waits_for_slow_sinks_is_bounded_and_counted(kit: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(journals, "OUTPUT_LIMIT", 100)
    go, run = threading.Event(), kit.info()
    heard: list[str] = []

    class Slow:
        def open(self, run: Any) -> None:
            go.wait(10)

        def write(self, chunk: Any) -> None:
            heard.extend(report.output or "" for _, report in outputs(chunk))

        def close(self, run: Any, outcome: Any) -> None: ...

    journal = Journal([Slow()])
    journal.start(run)
    admitted = 0
    for element in range(3):
        rows, reports = kit.simple(run, element)
        for report in reports.values():
            if journal.admit(run.id, 60):
                admitted += 1
                report.output = "x" * 60
        journal.append(run.id, rows, reports)
    assert admitted == 1
    go.set()
    journal.finish(run.id, DONE).result(10)
    assert heard == ["x" * 60]
    assert journal.notes(run.id) == ["journal: the output of 2 attempts was left out: the sinks were too slow"]
    assert journal._output_in == journal._output_out
    journal.close(10)


def test_output_of_dropped_steps_is_not_waited_for(kit: Any) -> None:
    run = kit.info()
    go = threading.Event()

    class Slow:
        def open(self, run: Any) -> None:
            go.wait(10)

        def write(self, chunk: Any) -> None: ...

        def close(self, run: Any, outcome: Any) -> None: ...

    journal = Journal([Slow()], limit=0)
    journal.start(run)
    for element in range(2):
        rows, _ = kit.simple(run, element)
        assert journal.admit(run.id, 5)
        report = Report(1, SUCCEEDED, 1, NEVER, output="12345")
        journal.append(run.id, rows, {(element, 1): report})
    go.set()
    journal.finish(run.id, DONE).result(10)
    journal.close(10)
    assert journal._output_in == journal._output_out == 5


@pytest.mark.parametrize(("kind", "who"), [("lane", "asyncio"), ("limit", "limit asyncio")])
def test_a_change_of_slots_is_an_event_of_its_own(kit: Any, kind: Any, who: str) -> None:
    run = kit.info()
    decision = Decision(
        at=kit.MONO + 10**9, slots=22, before=64, reason="latency 2.1x of usual", latency_ns=210_000_000,
        usual_ns=100_000_000, errors=0.25, lag_ns=2_000_000, samples=256, in_use=60,
    )  # fmt: skip
    report = Report(0, NOTED, ended=decision.at, value=Resized(kind, "asyncio", decision))
    chunk = History(run).noted(-1, 0, report)
    (event,) = chunk.events()
    assert event == {
        "event": "lane.resized",
        "v": 1,
        "level": "info",
        "timestamp": "2026-11-22T17:00:01.000000Z",
        "run": run.id,
        "run_name": run.name,
        "workflow": run.workflow,
        "mono_ns": kit.MONO + 10**9,
        "lane": "asyncio" if kind == "lane" else None,
        "limit": "asyncio" if kind == "limit" else None,
        "before": 64,
        "slots": 22,
        "note": "latency 2.1x of usual",
        "latency_s": 0.21,
        "usual_s": 0.1,
        "errors": 0.25,
        "lag_s": 0.002,
        "samples": 256,
        "in_use": 60,
    }
    assert not chunk.reports  # it is about no attempt
    assert LineRenderer(run).render(chunk).startswith('{"event":"lane.resized","v":1,')
    stream = io.StringIO()
    ConsoleSink(stream).write(chunk)
    assert stream.getvalue() == f"     1.000  {who}  64 → 22 slots  latency 2.1x of usual\n"
    assert _sentence(event) == "etl brisk-otter asyncio 64 → 22 slots: latency 2.1x of usual"
