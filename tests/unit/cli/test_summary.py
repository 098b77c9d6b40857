"""The last thing a run says."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.cli.record import EventLog
from flowlane.cli.summary import show_summary, user_lines
from flowlane.cli.terminal import Messages
from flowlane.cli.words import duration, path_of
from flowlane.cli.words import size as size_of
from flowlane.core.states import RunState, TaskState
from flowlane.errors import Failure
from flowlane.results import Counts, TaskResult, Times, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping


def task(name: str, state: TaskState, **more: Any) -> TaskResult:
    fields: dict[str, Any] = {
        "kind": "cpu",
        "executor": "processes",
        "attempts": 1,
        "waited": 0.0,
        "duration": 1.9,
        "worker": "pid 1",
        "failure": None,
        **more,
    }
    return TaskResult(name=name, state=state, **fields)


def show(state: RunState, tasks: list[TaskResult], quiet: bool = False, **more: Any) -> str:
    """The summary of a run with these tasks."""
    counts = Counts()
    for one in tasks:
        counts[one.state] = counts[one.state] + 1
    failures: Mapping[str, Failure] = {one.name: one.failure for one in tasks if one.failure is not None}

    def upstream(name: str) -> list[str]:
        return [next(iter(failures)), name]

    result: Any = SimpleNamespace(
        **{
            "id": "7f",
            "workflow": "etl",
            "verdicts": [],
            "name": "brisk-otter",
            "state": state,
            "duration": 12.4,
            "tasks": {one.name: one for one in tasks},
            "failures": failures,
            "counts": counts,
            "restored": 0,
            "retries": sum(one.attempts - 1 for one in tasks if one.attempts),
            "notes": [],
            "resizes": [],
            "critical_path": [("fetch", 2.0), ("parse", 7.8)],
            "times": Times({"processes": 79.0}, {"processes": 15.0, "threads": 0.1}, 0.0, 4.9, 1.0),
            "utilisation": {"processes": 0.93, "threads": 0.01},
            "slots": {"processes": 2, "threads": 32},
            "upstream": upstream,
            **more,
        }
    )
    stream = io.StringIO()
    show_summary(Messages(stream), result, log=EventLog(".flow"), quiet=quiet)
    return stream.getvalue()


def test_a_success_is_one_block_with_the_critical_path_and_where_time_went() -> None:
    tasks = [task("fetch", TaskState.SUCCEEDED), task("parse", TaskState.SUCCEEDED, attempts=3)]
    assert show(RunState.SUCCEEDED, tasks) == (
        "✔ etl  brisk-otter  12.4 s   2 succeeded · 2 retries\n"
        "  critical path 9.8 s  fetch → parse\n"
        "  time: work 79% · waiting for a cpu slot 15% · handing over 5% · engine 1%\n"
        "  slots: processes 93% of 2 · threads 1% of 32\n"
    )


def test_an_executor_of_both_kinds_is_named_itself() -> None:
    tasks = [task("a", TaskState.SUCCEEDED), task("b", TaskState.SUCCEEDED, kind="io")]
    assert "waiting for a processes slot 15%" in show(RunState.SUCCEEDED, tasks)
    tasks = [task("a", TaskState.SUCCEEDED, kind="io")]
    assert "waiting for an io slot 15%" in show(RunState.SUCCEEDED, tasks)


def test_slots_are_never_more_than_full() -> None:
    tasks = [task("a", TaskState.SUCCEEDED)]
    shown = show(RunState.SUCCEEDED, tasks, utilisation={"my\x1bown": 1.04}, slots={"my\x1bown": 3})
    assert shown.splitlines()[-1] == "  slots: my\\x1bown 100% of 3"


def test_time_lost_to_retries_is_told() -> None:
    tasks = [task("a", TaskState.SUCCEEDED, attempts=2)]
    assert "time: work 25% · retrying 75%\n" in show(
        RunState.SUCCEEDED, tasks, times=Times({"x": 1.0}, {}, 3.0, 0.0, 0.0)
    )


def test_slots_that_have_adapted_are_told() -> None:
    sentence = "asyncio 64 → 22 slots: latency 2.1x of usual"
    shown = show(RunState.SUCCEEDED, [task("a", TaskState.SUCCEEDED)], resizes=[sentence])
    assert f"  adapted  {sentence}" in shown.splitlines()


def test_quiet_is_silent_about_a_success_but_not_about_notes_and_failures() -> None:
    tasks = [task("a", TaskState.SUCCEEDED)]
    assert show(RunState.SUCCEEDED, tasks, quiet=True) == ""
    assert "! 3 lines lost" in show(RunState.SUCCEEDED, tasks, quiet=True, notes=["3 lines lost"])


def test_a_run_without_tasks_and_without_time() -> None:
    shown = show(RunState.SUCCEEDED, [], critical_path=[], times=Times({}, {}, 0.0, 0.0, 0.0))
    assert shown == "✔ etl  brisk-otter  12.4 s   no tasks\n"


def fail(message: str = "bad row 118") -> Failure:
    def inner() -> None:
        raise ValueError(message)

    try:
        inner()
    except ValueError as error:
        return Failure.of(error)
    raise AssertionError


def test_a_failure_is_last_with_its_lines_its_worker_and_what_it_stopped() -> None:
    tasks = [
        task("parse#7", TaskState.FAILED, failure=fail(), attempts=3),
        task("total", TaskState.UPSTREAM_FAILED, attempts=0),
        task("report", TaskState.UPSTREAM_FAILED, attempts=0),
    ]
    lines = show(RunState.FAILED, tasks).splitlines()
    assert lines[0] == "✗ etl  brisk-otter  failed after 12.4 s   1 failed · 2 upstream_failed · 2 retries"
    assert lines[1] == "parse#7  ValueError: bad row 118   attempt 3"
    assert "in fail" in lines[2]
    assert lines[2].rstrip().endswith("inner()")
    assert "in inner" in lines[3]
    assert lines[3].rstrip().endswith("raise ValueError(message)")
    assert lines[4:] == [
        "  ran on   processes, pid 1, 1.9 s",
        "  stopped  total, report",
        "  events   .flow/runs/7f/events.jsonl",
    ]


def test_a_failure_tells_who_ran_it_what_it_used_and_what_it_printed_last() -> None:
    lost = task(
        "parse/7",
        TaskState.FAILED,
        failure=fail(),
        attempts=2,
        worker="pid 4711",
        cpu=1.8,
        peak_rss=212_400_000,
        output="\n".join(["reading \x1b[31mred", "10%\r20%\r30%", *(f"row {n}" for n in range(11))]) + "\n\n",
    )
    lines = show(RunState.FAILED, [lost]).splitlines()
    assert "  ran on   processes, pid 4711, 1.9 s, cpu 1.8 s, peak 212 MB" in lines
    start = lines.index("  printed  … 3 more lines in .flow/runs/7f/output/parse%2F7.2.txt")
    assert lines[start + 1 : start + 11] == [f"           row {n}" for n in range(1, 11)]
    assert lines[start + 11] == "  events   .flow/runs/7f/events.jsonl"
    little = show(RunState.FAILED, [task("a", TaskState.FAILED, failure=fail(), output="a\x1b[2J\n1%\r99%\r\n")])
    assert "  printed  a\\x1b[2J\n           99%\n" in little
    assert "printed" not in show(RunState.FAILED, [task("a", TaskState.FAILED, failure=fail(), output="\n")])


def test_at_most_three_verdicts_are_told_as_hints() -> None:
    found = [Verdict(f"t{n}", "too_small", f"t{n} is\x1b too small", {}) for n in range(5)]
    tasks = [task("a", TaskState.SUCCEEDED)]
    hints = [line for line in show(RunState.SUCCEEDED, tasks, verdicts=found).splitlines() if "hint" in line]
    assert hints == [f"  hint: t{n} is\\x1b too small" for n in range(3)]
    assert "hint" not in show(RunState.SUCCEEDED, tasks, verdicts=found, notes=["x"], quiet=True)


def test_notes_that_a_hint_sums_up_are_not_told_again() -> None:
    notes = ["fetch#2 held the event loop for 1 s at a.py:1 in fetch", "other held the event loop for 1 s", "fetch x"]
    found = [Verdict("fetch", "blocks_loop", "fetch held the event loop for 1 s at a.py:1; make it", {})]
    lines = show(RunState.SUCCEEDED, [task("a", TaskState.SUCCEEDED)], notes=notes, verdicts=found).splitlines()
    assert lines[-3:] == ["  ! other held the event loop for 1 s", "  ! fetch x", f"  hint: {found[0].sentence}"]
    assert f"  ! {notes[0]}" in show(RunState.FAILED, [], notes=notes, verdicts=found, quiet=True)


def test_notes_are_cut_after_a_few() -> None:
    shown = show(RunState.SUCCEEDED, [task("a", TaskState.SUCCEEDED)], notes=[f"n{n}" for n in range(20)])
    assert "  ! n7\n  ! and 12 more notes\n" in shown


def test_pickling_is_a_part_of_the_time() -> None:
    times = Times({"x": 1.0}, {}, 0.0, 0.5, 0.5, 2.0)
    assert "time: work 25% · pickling 50% · handing over 12% · engine 12%\n" in show(
        RunState.SUCCEEDED, [task("a", TaskState.SUCCEEDED)], times=times
    )


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (3_400, "3.4 kB"), (212_400_000, "212 MB"), (2 * 10**12, "2000 GB")]
)
def test_sizes_read_as_people_say_them(size: int, text: str) -> None:
    assert size_of(size) == text


def test_an_error_of_ours_is_a_sentence_with_its_place_and_its_hint() -> None:
    failure = Failure(
        "TransportError",
        "module 'shop' does not load",
        traceback=(
            "Traceback (most recent call last):\n"
            '  File "/x/lib/site-packages/flowlane/loader.py", line 9, in _load_for\n'
            "    raise TransportError(\n"
            "flowlane.errors.TransportError: module 'shop' does not load\n"
        ),
        where="shop.py:3",
        notes=("hint: put the call elsewhere",),
    )
    lines = show(RunState.FAILED, [task("a", TaskState.FAILED, failure=failure)]).splitlines()
    assert lines[1:5] == [
        "a  TransportError: module 'shop' does not load",
        "  shop.py:3",
        "  note     hint: put the call elsewhere",
        "  ran on   processes, pid 1, 1.9 s",
    ]


def test_many_failures_stay_one_screen() -> None:
    tasks = [task(f"t{i}", TaskState.FAILED, failure=fail(f"no {i}")) for i in range(500)]
    tasks += [task(f"u{i}", TaskState.UPSTREAM_FAILED) for i in range(5000)]
    lines = show(RunState.FAILED, tasks).splitlines()
    assert len(lines) <= 15
    assert "  and 497 more: t3, t4, t5, t6, t7, t8, t9, t10, … (497)" in lines
    assert any(line.startswith("  stopped  u0, u1") for line in lines)


def test_a_message_of_many_lines_is_cut_and_made_inert() -> None:
    message = "\n".join(["first \x1b[31m", *(f"line {i}" for i in range(100))])
    shown = show(RunState.FAILED, [task("a", TaskState.FAILED, failure=fail(message))])
    assert "ValueError: first \\x1b[31m\n    line 0\n" in shown
    assert "… 96 more lines" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("state", [RunState.CANCELLED, RunState.INTERRUPTED])
def test_a_stopped_run_says_how_far_it_came(state: RunState) -> None:
    shown = show(state, [task("a", TaskState.SUCCEEDED), task("b", TaskState.CANCELLED, duration=None)])
    assert shown.startswith(f"■ etl  brisk-otter  {state} after 12.4 s   1 succeeded · 1 cancelled\n")
    assert "critical path" not in shown


def test_of_a_traceback_only_the_users_own_lines_are_shown_and_of_a_chain_the_last() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/x/other.py", line 1, in earlier\n'
        "    {}['a']\n"
        "KeyError: 'a'\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        '  File "/x/etl.py", line 41, in parse\n'
        "    rows = json.loads(line)\n"
        "           ^^^^^^^^^^^^^^^^\n"
        '  File "/x/lib/site-packages/pkg/mod.py", line 9, in deep\n'
        "    boom()\n"
        "ValueError: bad\n"
    )
    assert user_lines(Failure("ValueError", "bad", traceback=text)) == [
        ("/x/etl.py:41 in parse", "rows = json.loads(line)")
    ]
    assert user_lines(Failure("ValueError", "bad", traceback="ValueError: bad\n")) == []
    gone = 'Traceback (most recent call last):\n  File "/x/gone.py", line 2, in f\nValueError: bad\n'
    assert user_lines(Failure("ValueError", "bad", traceback=gone)) == [("/x/gone.py:2 in f", "")]
    group = "  + Exception Group Traceback (most recent call last):\n"
    group += '  |   File "/x/gone.py", line 2, in f\n  | ExceptionGroup: two (1 sub-exception)\n'
    assert user_lines(Failure("ExceptionGroup", "two", traceback=group)) == [("/x/gone.py:2 in f", "")]
    assert user_lines(Failure("ValueError", "bad", traceback="", where="/x/etl.py:3 in f")) == [
        ("/x/etl.py:3 in f", "")
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "<1 ms"),
        (0.0004, "<1 ms"),
        (0.034, "34 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (12.44, "12.4 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_path_shows_its_ends() -> None:
    assert path_of(["a", "b"]) == "a → b"
    assert path_of([f"t{i}" for i in range(100)]) == "t0 → t1 → t2 → t3 → … 92 more … → t96 → t97 → t98 → t99"
    assert path_of(["a\x1b"]) == "a\\x1b"
