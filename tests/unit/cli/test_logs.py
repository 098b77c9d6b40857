"""flow logs: events read back, and what tasks printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowlane.cli.eventfile import event_of, whole_lines
from flowlane.cli.record import EventLog

from .histories import ETL, begin, end

if TYPE_CHECKING:
    from flowlane_plugins.stores.sqlite import SqliteStore

    from .conftest import Done, Flow, Write


@pytest.fixture
def ran(flow: Flow, write: Write) -> Done:
    """A run of ETL in which parse#2 failed, as `flow run` told it."""
    write("etl.py", ETL)
    return flow("run", "etl.py", "-p", 'names=["a","bad"]')


def log_path(flow: Flow) -> Path:
    return Path(EventLog(".flow").path(json.loads(flow("runs", "--json").out)["runs"][0]["id"]))


def test_events_read_as_they_did_while_the_run_was_under_way(flow: Flow, ran: Done) -> None:
    done = flow("logs")
    assert (done.code, done.err) == (0, "")
    told = [line for line in ran.err.splitlines() if not line.startswith("parsing")]
    told = told[: next(number for number, line in enumerate(told) if line.startswith("✗"))]
    *shown, last = done.out.splitlines()
    assert shown == told
    assert last.startswith("failed after ")
    assert last.endswith("parse#2: ValueError: a bad row")


def test_one_task_has_its_own_lines_only(flow: Flow, ran: Done) -> None:
    lines = flow("logs", "last/parse#2").out.splitlines()
    assert len(lines) == 6
    assert all(" parse#2  " in line for line in lines)
    done = flow("logs", "last/pars#2")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'parse#2'?" in done.err


def test_json_is_the_lines_as_they_are(flow: Flow, ran: Done) -> None:
    assert flow("logs", "--json").out == log_path(flow).read_text()
    lines = flow("logs", "last/fetch", "--json").out.splitlines()
    assert [json.loads(line)["to"] for line in lines] == ["ready", "running", "succeeded"]


def test_a_resumed_run_has_both_sessions(flow: Flow, write: Write, ran: Done) -> None:
    write("etl.py", ETL.replace('== "badbad"', '== "no"'))
    assert flow("resume", "--accept-changes", "--from", "parse#2", "--quiet").code == 0
    out = flow("logs").out
    assert out.count("etl · run ") == 2
    assert "failed after " in out
    assert out.splitlines()[-1].startswith("succeeded after ")


def test_a_torn_last_line_is_left_out(flow: Flow, ran: Done) -> None:
    before = flow("logs").out
    with log_path(flow).open("a") as file:
        file.write('{"event":"task.transition","v":1,')
    done = flow("logs")
    assert (done.code, done.out, done.err) == (0, before, "")
    assert flow("logs", "--json").code == 0


STARTED = {"event": "run.started", "mono_ns": 1, "run": "a", "run_name": "a", "workflow": "a", "kinds": {}}
MOVED = {
    "event": "task.transition", "mono_ns": 1, "task": "a", "executor": "x", "from": "ready", "to": "running",
    "reason": "started", "attempt": 1,
}  # fmt: skip
EVIL = "\x1b[31m\r\u202e"


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[1]",
        b"\xff\xfe",
        b"{}",
        b'{"event":"task.transition","mono_ns":1}',
        b"[" * 100_000,
        json.dumps({"event": EVIL, "mono_ns": 1}).encode(),
        json.dumps({"event": "log.lost", "mono_ns": 1, "lost": EVIL}).encode(),
        json.dumps({"event": "run.finished", "mono_ns": 1, "state": []}).encode(),
        json.dumps({"event": "lane.resized", "mono_ns": 1, "lane": 7, "before": 1, "slots": 2, "note": ""}).encode(),
        json.dumps({"event": "lane.resized", "mono_ns": 1, "lane": "x", "before": EVIL, "slots": 2, "note": ""}).encode(),
        json.dumps({**STARTED, "kinds": {"io": 10**12}}).encode(),
        json.dumps({**MOVED, "to": EVIL}).encode(),
        json.dumps({**MOVED, "path": 7}).encode(),
        json.dumps({**MOVED, "error": {"type": 1, "message": ""}}).encode(),
    ],
)  # fmt: skip
def test_lines_that_no_run_writes_are_left_out_and_counted(flow: Flow, ran: Done, line: bytes) -> None:
    assert event_of(line) is None
    before = flow("logs")
    with log_path(flow).open("ab") as file:
        file.write(line + b"\n")
    done = flow("logs")
    assert (done.code, done.out) == (0, before.out)
    assert done.err.startswith("1 lines of .flow")


def test_what_names_and_messages_hold_is_inert(flow: Flow, ran: Done) -> None:
    events = [
        {"event": "run.started", "mono_ns": 0, "run": "abc", "run_name": EVIL, "workflow": EVIL, "kinds": {EVIL: 1}},
        {"event": "task.transition", "mono_ns": 1, "task": EVIL, "executor": EVIL, "worker": EVIL, "from": "running",
         "to": "failed", "reason": "raised", "attempt": 1, "elapsed_s": 1.0, "error": {"type": EVIL, "message": EVIL}},
        {"event": "task.transition", "mono_ns": 1, "task": EVIL, "executor": EVIL, "worker": None, "from": "pending",
         "to": "upstream_failed", "reason": "upstream_failed", "attempt": 0, "elapsed_s": None, "path": [EVIL, EVIL]},
        {"event": "task.noted", "mono_ns": 2, "task": EVIL, "note": EVIL},
        {"event": "log.lost", "mono_ns": 2, "lost": 7},
        {"event": "lane.resized", "mono_ns": 2, "lane": EVIL, "limit": None, "before": 9, "slots": 4, "note": EVIL},
        {"event": "lane.resized", "mono_ns": 2, "lane": None, "limit": EVIL, "before": 4, "slots": 5, "note": EVIL},
        {"event": "run.finished", "mono_ns": 3, "state": "failed", "duration_s": 1, "error": EVIL},
    ]  # fmt: skip
    log_path(flow).write_text("".join(json.dumps(event) + "\n" for event in events))
    done = flow("logs")
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 8
    assert not set(EVIL) & {"\x1b", "\r", "\u202e"} & set(done.out)
    log_path(flow).write_bytes(b'{"event":"task.noted","mono_ns":2,"task":"\xe2\x80\xae","note":"x"}\n')
    done = flow("logs", "--json")  # valid JSON that is not of our making
    assert (done.out, done.err[:7]) == ("", "1 lines")


def test_a_log_without_its_beginning_is_shown(flow: Flow, ran: Done) -> None:
    path = log_path(flow)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    done = flow("logs")
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("     0.000  fetch")


def test_a_run_without_a_log_is_told(flow: Flow, store: SqliteStore) -> None:
    end(store, begin(store, 1))
    for argv in (["logs"], ["logs", "--follow"], ["logs", "--json"]):
        done = flow(*argv)
        assert (done.code, done.out) == (2, "")
        assert "run run-1 has no event log" in done.err


def test_what_tasks_printed_is_shown_by_task_and_attempt(flow: Flow, ran: Done) -> None:
    assert flow("logs", "--output").err.startswith("no output of its tasks was captured")
    log = EventLog(".flow")
    run_id = json.loads(flow("runs", "--json").out)["runs"][0]["id"]
    for task, attempt, text in (("parse", 1, "one\n"), ("parse#2", 1, "10%\r100%\n\x1b[2J\n"), ("parse#2", 2, "again")):
        path = Path(log.output_path(run_id, task, attempt))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, newline="")
    assert flow("logs", "--output").out == (
        "── parse\none\n── parse#2  attempt 1\n100%\n\\x1b[2J\n── parse#2  attempt 2\nagain\n"
    )
    assert flow("logs", "last/parse", "--output").out == "one\n"
    assert flow("logs", "--output", "--follow").code == 2


def test_worker_processes_output_is_there(flow: Flow, write: Write) -> None:
    write(
        "loud.py",
        """
        from flowlane import task, workflow

        @task.cpu
        def shout() -> None:
            print("hey")

        @workflow
        def loud():
            return shout()
        """,
    )
    assert flow("run", "loud.py", "--quiet").code == 0
    assert flow("logs", "--output").out == "── shout\nhey\n"
    assert "printed\n  hey\n" in flow("show", "last", "shout").out


# ── following ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SLOW = """
import os, sys, time
from flowlane import task, workflow

@task.io
def first() -> int:
    open("begun", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.02)
    return 1

@task.io
def second(n: int) -> int:
    return n

@workflow
def slow():
    return second(first())
"""


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 40
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_run_under_way_is_followed_to_its_end(
    flow: Flow, write: Write, environ: dict[str, str], options: tuple[str, ...]
) -> None:
    write("slow.py", SLOW)
    with subprocess.Popen([sys.executable, "-m", "flowlane", "run", "slow.py", "--quiet"], env=environ) as running:
        wait_for("begun")
        threading.Timer(0.5, Path("go").touch).start()
        done = flow("logs", "--follow", *options)
        assert running.wait(40) == 0
    assert done.code == 0
    assert "second" in done.out
    assert "succeeded" in done.out.splitlines()[-1]


def test_a_run_that_is_killed_ends_what_follows_it(flow: Flow, write: Write, environ: dict[str, str]) -> None:
    write("slow.py", SLOW)
    with subprocess.Popen([sys.executable, "-m", "flowlane", "run", "slow.py", "--quiet"], env=environ) as running:
        wait_for("begun")
        threading.Timer(0.5, running.kill).start()
        done = flow("logs", "-f")
    assert done.code == 0
    assert "ready → running" in done.out
    assert "is gone" in done.err


def test_lines_count_once_their_newline_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    more = [b"o\nthree\n", b"", b"four"]

    def wait() -> bool:
        if not more:
            return False
        with path.open("ab") as file:
            file.write(more.pop(0))
        return True

    assert list(whole_lines(str(path), wait)) == [[b"one"], [b"two", b"three"]]
    assert list(whole_lines(str(path))) == [[b"one", b"two", b"three"]]
