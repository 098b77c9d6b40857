"""flow why: a reason for every state."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.states import STATES, Reason, RunState, TaskState

from .histories import ETL, begin, constant, end, row

if TYPE_CHECKING:
    from flowlane_plugins.stores.sqlite import SqliteStore

    from .conftest import Flow, Write

ERROR = json.dumps({"worker": "thread-1", "error": {"type": "ValueError", "message": "a bad row", "notes": []}})


def why(flow: Flow, task: str, run: str = "last") -> list[str]:
    done = flow("why", run, task)
    assert (done.code, done.err) == (0, "")
    lines = constant(done.out).splitlines()
    assert [line.startswith(" ") for line in lines] == [False, *[True] * (len(lines) - 1)]
    document = facts(flow, task, run)
    assert len(document["why"]) == len(lines)
    return [line.strip() for line in lines]


def facts(flow: Flow, task: str, run: str = "last") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(flow("why", run, task, "--json").out)
    assert document["v"] == 1
    assert document["task"] == task
    return document


def test_succeeded_failed_and_upstream_failed_of_a_real_run(flow: Flow, write: Write) -> None:
    write("etl.py", ETL)
    flow("run", "etl.py", "--quiet", "-p", 'names=["a","bad"]')
    name = json.loads(flow("runs", "--json").out)["runs"][0]["name"]
    assert why(flow, "fetch") == ["fetch succeeded DATE, AGO: it ran for TIME on threads (thread-N)"]
    assert why(flow, "parse#2") == [
        "parse#2 failed DATE, AGO, at its second attempt: ValueError: a bad row (etl.py:12 in parse)",
        "it ran for TIME on threads (thread-N)",
        "it was tried 2 times (attempts before raised), with pauses of TIME; no attempt was left, or none for this error",
        f"`flow resume {name}` tries it again; `flow logs {name}/parse#2` tells more",
    ]
    assert why(flow, "report") == [
        "report never began, because parse#2 failed: ValueError: a bad row (etl.py:12 in parse)",
        "the way from it: parse#2 → total → report",
        f"`flow why {name} parse#2` tells more of parse#2",
    ]
    assert facts(flow, "report")["facts"] == {"root": "parse#2", "path": ["parse#2", "total", "report"]}


def test_a_terminal_without_unicode_gets_look_alikes(flow: Flow, write: Write, environ: dict[str, str]) -> None:
    write("etl.py", ETL)
    flow("run", "etl.py", "--quiet", "-p", 'names=["bad"]')
    ascii_only = {**environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "flowlane", "why", "last", "report"]
    done = subprocess.run(command, env=ascii_only, capture_output=True, timeout=50, check=True)
    assert b"  the way from it: parse -> total -> report\n" in done.stdout


def test_of_several_failures_the_first_is_the_root(flow: Flow, store: SqliteStore) -> None:
    r"""
    a (fails second) ─▶ c ─┐
    b (fails first) ───────┴▶ d
    """
    lease = begin(store, 1, ["a", "b", "c", "d"], upstreams=[(), (), (0,), (2, 1)])
    now = time.time_ns()
    store.write(
        lease,
        [
            row(0, TaskState.FAILED, Reason.RAISED, at=now, detail=ERROR),
            row(1, TaskState.FAILED, Reason.RAISED, at=now - 10, detail=ERROR),
            row(2, TaskState.UPSTREAM_FAILED, Reason.UPSTREAM_FAILED, attempt=0),
            row(3, TaskState.UPSTREAM_FAILED, Reason.UPSTREAM_FAILED, attempt=0),
        ],
    )
    end(store, lease, RunState.FAILED)
    assert facts(flow, "d")["facts"]["path"] == ["b", "d"]
    assert facts(flow, "c")["facts"]["path"] == ["a", "c"]


def test_a_cause_that_was_not_recorded_is_not_invented(flow: Flow, store: SqliteStore) -> None:
    lease = begin(store, 1, ["a", "b"], upstreams=[(), (0,)])
    store.write(lease, [row(1, TaskState.UPSTREAM_FAILED, Reason.UPSTREAM_FAILED, attempt=0)])
    end(store, lease, RunState.FAILED)
    assert why(flow, "b") == ["b never began, because something that it depends on did not succeed"]


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        (TaskState.TIMED_OUT, Reason.ATTEMPT_TIMEOUT, "a timed out DATE, AGO"),
        (TaskState.CRASHED, Reason.WORKER_DIED, "a crashed: its worker died DATE, AGO"),
        (TaskState.FAILED, Reason.REJECTED, "a failed DATE, AGO"),
        (TaskState.CANCELLED, Reason.CANCEL_REQUESTED, "because the run was told to stop: DATE, AGO"),
        (TaskState.CANCELLED, Reason.DRAINED, "because the run was told to begin nothing new: DATE, AGO"),
        (TaskState.CANCELLED, Reason.FAIL_FAST, "because b had failed, and this workflow stops at the first failure"),
        (TaskState.UNKNOWN, Reason.PROCESS_DIED, "nobody knows what became of a"),
    ],
)
def test_every_bad_end_has_its_words(
    flow: Flow, store: SqliteStore, state: TaskState, reason: Reason, said: str
) -> None:
    lease = begin(store, 1, ["a", "b"])
    now = time.time_ns()
    detail = ERROR if state is not TaskState.CANCELLED else None
    store.write(
        lease,
        [
            row(0, state, reason, at=now, detail=detail),
            row(1, TaskState.FAILED, Reason.RAISED, at=now - 9, detail=ERROR),
        ],
    )
    end(store, lease, RunState.INTERRUPTED, "no room")
    lines = why(flow, "a")
    assert said in lines[0]
    if reason is Reason.DRAINED:
        assert lines[1] == "the run ended interrupted: no room"
    if state is TaskState.UNKNOWN:
        assert lines[1].endswith("flow resume run-1 --rerun a")


def test_no_state_is_without_words(flow: Flow, store: SqliteStore) -> None:
    lease = begin(store, 1, [str(state) for state in STATES])
    store.write(lease, [row(n, state, Reason.STARTED, detail=ERROR) for n, state in enumerate(STATES)])
    for again in (False, True):
        for state in STATES:
            assert why(flow, str(state)), (state, again)
        if not again:
            end(store, lease, RunState.FAILED)


def test_pending_tells_what_it_waits_for_and_where_that_hangs(flow: Flow, store: SqliteStore) -> None:
    """
    a (done) ─▶ b (running) ─▶ c ─▶ d ◀─ e (ready)
    """
    lease = begin(store, 1, ["a", "b", "c", "d", "e"], upstreams=[(), (0,), (1,), (2, 4), ()])
    store.write(
        lease, [row(0, TaskState.SUCCEEDED, Reason.RETURNED), row(1, TaskState.RUNNING, Reason.STARTED, took=90)]
    )
    assert why(flow, "d") == [
        "d waits for c (pending), e (ready)",
        "all of it hangs on b (running for 1 min TIME), e (ready)",
    ]
    assert why(flow, "c") == ["c waits for b (running for 1 min TIME)"]
    assert "b has been running for 1 min TIME, on threads of process" in why(flow, "b")[0]
    assert why(flow, "e") == [
        "e waits for a slot of threads, where 1 task of this run is known to be running, or for a limit, if it has one"
    ]
    assert [each["name"] for each in facts(flow, "d")["facts"]["blockers"]] == ["b", "e"]
    store.close()
    store.open()
    assert "is gone; `flow resume run-1` goes on" in why(flow, "d")[0]
    assert "is gone: nobody saw it end" in why(flow, "b")[0]
    assert "c waited for b (was running)" in why(flow, "c")[1]


def test_a_run_whose_process_was_killed(flow: Flow, write: Write, environ: dict[str, str]) -> None:
    write(
        "killed.py",
        """
        import os, signal
        from flowlane import task, workflow

        @task.io(executor="inline", at_most_once=True)
        def pay() -> int:
            os.kill(os.getpid(), signal.SIGKILL)
            return 1

        @task.io
        def after(n: int) -> int:
            return n

        @workflow
        def killed():
            return after(pay())
        """,
    )
    subprocess.run([sys.executable, "-m", "flowlane", "run", "killed.py"], env=environ, timeout=50, check=False)
    assert "pay had begun DATE, AGO, and process" in why(flow, "pay")[0]
    assert flow("resume", "--quiet").code == 1
    lines = why(flow, "pay")
    assert lines[0] == (
        "nobody knows what became of pay: it had begun DATE when session 1 stopped; it is at_most_once, so it was not run again"
    )
    assert lines[1].endswith("--rerun pay")
    assert why(flow, "after")[0].startswith("after never began, because pay is unknown")


def test_restored_and_cached(flow: Flow, write: Write) -> None:
    write(
        "steps.py",
        """
        import os
        from flowlane import task, workflow

        @task.io(cache=True)
        def kept() -> int:
            return 1

        @task.io
        def flaky(n: int) -> int:
            if not os.path.exists("fixed"):
                raise ValueError("not yet")
            return n

        @workflow
        def steps():
            return flaky(kept())
        """,
    )
    assert flow("run", "steps.py", "--quiet").code == 1
    Path("fixed").touch()
    assert flow("resume", "--quiet").code == 0
    assert why(flow, "kept") == ["kept was not run in session 2: session 1 had finished it DATE, AGO"]
    first = json.loads(flow("runs", "--json").out)["runs"][0]
    assert flow("run", "steps.py", "--quiet").code == 0
    lines = why(flow, "kept")
    assert lines == [
        "kept was not run: a result with the same inputs and the same code was in the cache",
        "run NAME (ID) made it DATE, AGO",
    ]
    assert facts(flow, "kept")["facts"]["from"] == {"run": first["id"], "session": 1}


def test_a_miss_tells_what_is_different(flow: Flow, write: Write) -> None:
    text = """
        from flowlane import Cache, task, workflow
        FACTOR = 1

        def scaled(n: int) -> int:
            return n * FACTOR

        @task.io(cache=Cache(version="1"))
        def kept(n: int) -> int:
            return scaled(n)

        @workflow
        def steps(n: int = 1):
            return kept(n)
        """
    write("steps.py", text)
    flow("run", "steps.py", "--quiet")
    assert why(flow, "kept")[1:] == ["it was not in the cache: there was no entry of task kept before"]
    flow("run", "steps.py", "--quiet", "-p", "n=2")
    assert why(flow, "kept")[1:] == [
        "it was not in the cache: most like it is the entry of run NAME (ID), and input 'n' is another"
    ]
    write("steps.py", text.replace("FACTOR = 1", "FACTOR = 2"))
    flow("run", "steps.py", "--quiet", "-p", "n=2")
    assert why(flow, "kept")[1].endswith("and the code of 'FACTOR' changed")
    write("steps.py", text.replace("n * FACTOR", "n + FACTOR").replace('version="1"', 'version="2"'))
    flow("run", "steps.py", "--quiet", "-p", "n=2")
    (line,) = why(flow, "kept")[1:]
    assert "its declared version was '1' and is '2'" in line
    assert "the code of 'scaled' changed" in line
    assert set(facts(flow, "kept")["facts"]["miss"]["difference"]["code"]) == {"scaled"}


def test_a_result_that_could_not_be_stored_is_told(flow: Flow, write: Write) -> None:
    write(
        "steps.py",
        """
        import threading
        from flowlane import task, workflow

        @task.io
        def lock() -> object:
            return threading.Lock()

        @task.io
        def use(lock: object) -> int:
            return 1

        @workflow
        def steps():
            return use(lock())
        """,
    )
    assert flow("run", "steps.py", "--quiet").code == 0
    assert why(flow, "lock")[1].startswith("its result could not be stored, so a resume would run it again: ")
    assert "it could not be stored" in flow("show", "last", "lock").out
