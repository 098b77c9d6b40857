from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.core.adaptive import Decision
from flowlane.core.states import RULES, TERMINAL, TaskState
from flowlane.errors import Failure
from flowlane.runtime.adapting import Resized
from flowlane.runtime.encode import encode
from flowlane.runtime.events import Clock, History, events_of, run_finished, run_started
from flowlane.runtime.ports import CRASHED, FAILED, NEVER, NOTED, Report, RunOutcome

# Seeded; a slow machine is no failure.
CALM = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_an_ordinary_task(kit: Any) -> None:
    history = History(kit.info())
    chunk = history.chunk(*kit.simple(history.run, 1))
    assert list(chunk.elapsed) == [NEVER, 2_000_000, 12_300_000]
    ready, started, returned = chunk.events()
    assert ready == {
        "event": "task.transition",
        "v": 1,
        "level": "info",
        "timestamp": "2026-11-22T17:00:00.000000Z",
        "run": "7f3a2c000001",
        "run_name": "brisk-otter",
        "workflow": "etl",
        "task": "parse",
        "kind": "io",
        "executor": "asyncio",
        "worker": None,
        "attempt": 1,
        "from": "pending",
        "to": "ready",
        "reason": "upstream_done",
        "mono_ns": kit.MONO,
        "elapsed_s": None,
    }
    assert (started["worker"], started["elapsed_s"], "cpu_s" in started) == ("pid 4711", 0.002, False)
    assert (returned["worker"], returned["elapsed_s"], returned["cpu_s"]) == ("pid 4711", 0.0123, 0.011)
    assert returned["timestamp"] == "2026-11-22T17:00:00.014300Z"
    assert list(ready) == list(started) == list(returned)[:-1]  # the documented order


def test_times_go_on_across_chunks_that_nobody_asked_for(kit: Any) -> None:
    history = History(kit.info())
    rows, reports = kit.simple(history.run)
    history.chunk(rows[:1], {})
    history.chunk(rows[1:2], {})
    assert list(history.chunk(rows[2:], reports).elapsed) == [12_300_000]


def test_a_chunk_stays_valid_after_the_next(kit: Any) -> None:
    history = History(kit.info())
    rows, reports = kit.simple(history.run)
    first = history.chunk(rows[:2], reports)
    history.chunk(rows[2:], reports)
    history.settle()
    assert list(first.elapsed) == [NEVER, 2_000_000]
    assert [event["to"] for event in first.events()] == ["ready", "running"]


def test_time_never_runs_backwards(kit: Any) -> None:
    history = History(kit.info())
    chunk = history.chunk([(0, 1, kit.READY, 100), (0, 1, kit.STARTED, 90)], {})
    assert list(chunk.elapsed) == [NEVER, 0]


def test_an_error_is_told_where_it_belongs_and_nowhere_else(kit: Any) -> None:
    run = kit.info()
    failure = Failure("shop.BadRow", "bad row", traceback="", where="etl.py:41 in parse")
    report = Report(1, FAILED, kit.MONO, kit.MONO, failure=failure, worker="loop", cpu=5)
    rows = [
        (0, 1, kit.READY, kit.MONO),
        (0, 1, kit.STARTED, kit.MONO),  # the final report stands in for STARTED: no error here
        (0, 1, kit.code("running retrying raised"), kit.MONO),
        (0, 1, kit.code("retrying ready backoff_elapsed"), kit.MONO),
        (0, 2, kit.STARTED, kit.MONO),
        (0, 2, kit.code("running failed raised"), kit.MONO),
    ]
    events = list(History(run).chunk(rows, {(0, 1): report, (0, 2): report}).events())
    error = {"type": "shop.BadRow", "message": "bad row", "where": "etl.py:41 in parse"}
    assert [event.get("error") for event in events] == [None, None, error, None, None, error]
    assert [event["level"] for event in events] == ["info", "info", "warning", "info", "info", "error"]
    assert [event["worker"] for event in events] == [None, "loop", "loop", None, "loop", "loop"]
    assert [event.get("cpu_s") for event in events] == [None, None, 5e-9, None, None, 5e-9]


def test_rejected_and_crashed_before_it_began(kit: Any) -> None:
    failure = Failure("TransportError", "cannot travel", traceback="")
    rows = [
        (0, 1, kit.code("ready failed rejected"), kit.MONO),
        (1, 1, kit.code("ready crashed worker_died"), kit.MONO),
    ]
    reports = {(0, 1): Report(1, FAILED, failure=failure), (1, 1): Report(2, CRASHED, failure=failure, worker="pid 1")}
    first, second = History(kit.info()).chunk(rows, reports).events()
    assert first["error"]["message"] == second["error"]["message"] == "cannot travel"
    assert (first["worker"], second["worker"]) == (None, "pid 1")
    assert first["elapsed_s"] is None  # its earlier rows were never seen


def test_a_cancelled_task_shows_no_error(kit: Any) -> None:
    failure = Failure("CancelledError", "", traceback="")
    rows = [(0, 1, kit.code("running cancelled cancel_requested"), kit.MONO)]
    (event,) = History(kit.info()).chunk(rows, {(0, 1): Report(1, FAILED, failure=failure)}).events()
    assert "error" not in event
    assert event["level"] == "info"


def test_a_huge_message_is_cut_and_a_broken_where_is_none(kit: Any) -> None:
    class Broken(Failure):
        @property
        def where(self) -> str | None:
            raise OSError("no source")

    failure = Broken("ValueError", "x" * 1_000_000)
    rows = [(0, 1, kit.code("running failed raised"), kit.MONO)]
    (event,) = History(kit.info()).chunk(rows, {(0, 1): Report(1, FAILED, failure=failure)}).events()
    assert event["error"]["message"].endswith("… (+996000 characters)")
    assert event["error"]["where"] is None


# ── what stopped what ─────────────────────────────────────────────────────────────────────────────────────────────


def stops(kit: Any, run: Any, rows: list[tuple[int, str]]) -> list[tuple[Any, Any]]:
    history = History(run)
    out: list[tuple[Any, Any]] = []
    for t, (element, change) in enumerate(rows):  # one row a chunk: causes last from chunk to chunk
        chunk = history.chunk([(element, 1, kit.code(change), kit.MONO + t)], {})
        out += [(event.get("root"), event.get("path")) for event in chunk.events()]
    return out


UPSTREAM = "pending upstream_failed upstream_failed"
RAISED = "running failed raised"


def test_the_way_from_the_failure(kit: Any) -> None:
    #   fetch ─▶ parse ─▶ load
    run = kit.info(upstreams=[(), (0,), (1,)])
    found = stops(kit, run, [(0, RAISED), (1, UPSTREAM), (2, UPSTREAM)])
    assert found == [(None, None), ("fetch", ["fetch", "parse"]), ("fetch", ["fetch", "parse", "load"])]


def test_of_several_failures_the_first_is_the_root(kit: Any) -> None:
    #   a ─┬─▶ c        b failed before a; d hears of both, through c and directly
    #   b ─┼─▶ d
    #   c ─┘
    run = kit.info(["a", "b", "c", "d"], [(), (), (0,), (1, 2)])
    found = stops(kit, run, [(1, RAISED), (0, "running timed_out attempt_timeout"), (2, UPSTREAM), (3, UPSTREAM)])
    assert found[2:] == [("a", ["a", "c"]), ("b", ["b", "d"])]


def test_an_upstream_that_succeeded_is_no_cause(kit: Any) -> None:
    run = kit.info(["a", "b", "c"], [(), (), (0, 1)])
    found = stops(kit, run, [(0, "running succeeded returned"), (1, "running crashed worker_died"), (2, UPSTREAM)])
    assert found[2] == ("b", ["b", "c"])


@pytest.mark.parametrize("length", [2, 7, 8, 9, 10, 3_000])
def test_a_long_way_is_cut_in_the_middle(kit: Any, length: int) -> None:
    names = [f"t{n}" for n in range(length)]
    run = kit.info(names, [(n - 1,) if n else () for n in range(length)])
    root, path = stops(kit, run, [(0, RAISED), *[(n, UPSTREAM) for n in range(1, length)]])[-1]
    assert root == "t0"
    assert path == (names if length <= 8 else ["t0", "…", *names[-6:]])


def test_after_a_loss_nothing_is_guessed(kit: Any) -> None:
    run = kit.info(upstreams=[(), (0,), (1,)])
    history = History(run)
    history.chunk([(0, 1, kit.READY, kit.MONO)], {})
    (lost,) = history.lost(5, kit.MONO + 7_000).events()
    assert (lost["event"], lost["lost"], lost["level"]) == ("log.lost", 5, "warning")
    assert lost["timestamp"].endswith(":00.000007Z")
    events = list(
        history.chunk([(1, 1, kit.code(UPSTREAM), kit.MONO), (0, 1, kit.STARTED, kit.MONO)], {}).events(),
    )
    assert "root" not in events[0]
    assert events[1]["elapsed_s"] is None


# ── clock, run events ─────────────────────────────────────────────────────────────────────────────────────────────


@CALM
@given(wall=st.integers(0, 253_402_300_799_999_999_999), step=st.integers(-(10**12), 10**12))
def test_dates_are_utc_microseconds_rounded_down(kit: Any, wall: int, step: int) -> None:
    clock = Clock(kit.info(wall_ns=wall, mono_ns=10**13))
    for t in (10**13, 10**13 + step, 10**13):
        second, ns = divmod(wall + t - 10**13, 10**9)
        if 0 <= second <= 253_402_300_799:
            wanted = datetime.fromtimestamp(second, UTC).replace(microsecond=ns // 1000)
            assert clock.text(t) == wanted.isoformat(timespec="microseconds").replace("+00:00", "Z")


def test_a_clock_beyond_the_calendar_still_gives_a_date(kit: Any) -> None:
    assert Clock(kit.info(wall_ns=10**30)).text(kit.MONO).startswith("1970-01-01T00:00:00.")
    assert Clock(kit.info(wall_ns=-(10**30))).text(kit.MONO).startswith("1970-01-01T00:00:00.")


def test_run_events(kit: Any) -> None:
    run = kit.info(kinds=["io", "cpu", "io"], executors=["asyncio", "processes", "threads"])
    started = run_started(run)
    assert (started["tasks"], started["kinds"], started["params"]) == (3, {"cpu": 1, "io": 2}, ["day"])
    assert "secret-value" not in encode(started)
    outcome = RunOutcome("failed", kit.MONO + 1_500_000_000, {TaskState.FAILED: 1}, "parse: ValueError: no")
    finished = json.loads(encode(run_finished(run, outcome)))
    assert (finished["level"], finished["state"], finished["duration_s"]) == ("error", "failed", 1.5)
    assert (finished["counts"], finished["error"]) == ({"failed": 1}, "parse: ValueError: no")
    assert finished["timestamp"] == "2026-11-22T17:00:01.500000Z"


@CALM
@given(data=st.data())
def test_every_legal_history_renders(kit: Any, data: st.DataObject) -> None:
    story = data.draw(kit.stories())
    for chunk in story.chunks():
        events = list(chunk.events())
        assert len(events) == (len(chunk.transitions) or 1)
        for event, row in zip(events, chunk.transitions, strict=False):
            rule = RULES[row[2]]
            assert (event["from"], event["to"], event["reason"]) == rule
            assert event["elapsed_s"] is None or event["elapsed_s"] >= 0
        codes = {row[2] for row in chunk.transitions if RULES[row[2]].target in TERMINAL}
        if chunk.transitions:
            assert list(events_of(chunk, codes)) == [
                e for e, r in zip(events, chunk.transitions, strict=True) if r[2] in codes
            ]


def test_events_of_a_foreign_chunk(kit: Any) -> None:
    real = History(kit.info()).chunk(*kit.simple(kit.info()))

    class Foreign:
        run, transitions, elapsed, reports = real.run, real.transitions, real.elapsed, real.reports
        events = staticmethod(real.events)

    assert [event["to"] for event in events_of(Foreign(), {kit.RETURNED})] == ["succeeded"]  # type: ignore[arg-type]


def test_every_field_is_documented(kit: Any) -> None:
    page = (Path(__file__).parents[3] / "docs" / "events.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    failure = Failure("ValueError", "no", traceback="", where="x")
    run = kit.info(upstreams=[(), (0,), ()])
    history = History(run)
    rows = [(0, 1, kit.code(RAISED), kit.MONO), (1, 1, kit.code(UPSTREAM), kit.MONO)]
    events = list(
        history.chunk(
            rows, {(0, 1): Report(1, FAILED, failure=failure, cpu=1, rss=1, bytes_in=1, bytes_out=1, pickling=1)}
        ).events()
    )
    events += history.noted(0, 1, Report(1, NOTED, ended=kit.MONO, note="x")).events()
    change = Resized("lane", "asyncio", Decision(kit.MONO, 2, 4, "x", 1, 1, 0.0, 0, 9, 4))
    events += history.noted(-1, 0, Report(0, NOTED, ended=kit.MONO, value=change)).events()
    events += history.lost(1, kit.MONO).events()
    events += [run_started(run), run_finished(run, RunOutcome("succeeded", kit.MONO, {}))]
    used = {field for event in events for field in event}
    assert used == documented
    for event in events:
        assert f"`{event['event']}`" in page
