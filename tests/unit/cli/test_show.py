"""flow show: a run, and a task of it."""

from __future__ import annotations

import datetime as dt
import json
import os
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Secret
from flowlane.cli.record import EventLog
from flowlane.core.states import Reason, RunState, TaskState
from flowlane.storage.blob import pack
from flowlane.storage.glimpse import glimpse, kind_of, shown
from flowlane.storage.payload import Codec, Payload

from .histories import ETL, begin, constant, end, row

if TYPE_CHECKING:
    from flowlane_plugins.stores.sqlite import SqliteStore

    from .conftest import Flow, Write


@pytest.fixture
def failed(flow: Flow, write: Write) -> str:
    """The name of a run of ETL in which parse#2 failed."""
    write("etl.py", ETL)
    assert flow("run", "etl.py", "--quiet", "-p", 'names=["a","bad"]').code == 1
    name: str = json.loads(flow("runs", "--json").out)["runs"][0]["name"]
    return name


def test_a_run_that_failed_ends_with_what_failed_and_what_that_stopped(flow: Flow, failed: str) -> None:
    done = flow("show")
    assert (done.code, done.err) == (0, "")
    assert constant(done.out) == constant(
        """\
✗ etl  NAME (ID)  failed after 0.1 s   DATE, AGO
  names = ('a', 'bad')
  token = secret env:API_TOKEN
  6 tasks: 3 succeeded · 1 failed · 2 upstream_failed

task     state            attempts  waited   took  executor  worker
fetch    succeeded               1  TIME  TIME  threads thread-N
parse    succeeded               1  TIME  TIME  threads thread-N
fetch#2  succeeded               1  TIME  TIME  threads thread-N
parse#2  failed                  2  TIME  TIME  threads   thread-1
total    upstream_failed         -       -      -  threads
report   upstream_failed         -       -      -  threads

parse#2  ValueError: a bad row   attempt 2
  etl.py:12 in parse   raise ValueError("a bad row")
  ran on   threads, thread-1, TIME, cpu TIME
  stopped  total, report
"""
    ).replace("failed after 0.1 s", "failed after TIME").replace(" \n", "\n")


def test_a_run_is_found_by_name_id_and_prefix(flow: Flow, failed: str) -> None:
    run_id = json.loads(flow("show", "--json").out)["run"]["id"]
    for text in (failed, run_id, run_id[:6], "last"):
        assert json.loads(flow("show", text, "--json").out)["run"]["name"] == failed
    done = flow("show", f"{failed}x")
    assert (done.code, done.out) == (2, "")
    assert f"did you mean '{failed}'?" in done.err


def test_the_document_of_a_run_has_its_parameters_sessions_and_tasks(flow: Flow, failed: str) -> None:
    document = json.loads(flow("show", "--json").out)
    assert document["v"] == 1
    assert document["params"] == {"names": "('a', 'bad')", "token": "Secret('env:API_TOKEN')"}
    (session,) = document["sessions"]
    assert (session["number"], session["tasks"], session["pid"]) == (1, 6, os.getpid())
    tasks = {task["name"]: task for task in document["tasks"]}
    assert tasks["parse#2"]["task"] == "parse"
    assert tasks["parse#2"]["attempts"] == 2
    assert tasks["parse#2"]["error"]["message"] == "a bad row"
    assert tasks["total"]["state"] == "upstream_failed"
    assert tasks["fetch"]["duration_s"] >= 0


def test_a_task_is_shown_with_attempts_error_and_output(flow: Flow, failed: str) -> None:
    run_id = json.loads(flow("runs", "--json").out)["runs"][0]["id"]
    printed = Path(EventLog(".flow").output_path(run_id, "parse#2", 2))
    printed.parent.mkdir()
    printed.write_text("parsing\r50%\rbad\x1b\nbad\n" + "more\n" * 30)
    out = constant(flow("show", "last", "parse#2").out)
    assert "parse#2 failed of etl" in out
    assert "inputs fetch#2 (succeeded)" in out
    assert "read by total" in out
    assert "1 1 retrying raised DATE" in out
    assert "1 2 failed raised DATE" in out
    assert "printed … 12 more lines in .flow/runs/" in out
    assert out.count(" more\n") == 20
    assert out.rstrip().endswith("ValueError: a bad row")
    assert 'raise ValueError("a bad row")' in out


def test_a_task_that_never_began_shows_the_way(flow: Flow, failed: str) -> None:
    assert "way parse#2 → total → report" in constant(flow("show", "last", "report").out)


def test_a_small_plain_result_is_shown_as_text(flow: Flow, failed: str) -> None:
    assert "result 'badbad'" in constant(flow("show", "last", "fetch#2").out)
    document = json.loads(flow("show", "last", "fetch#2", "--json").out)
    assert document["v"] == 1
    assert document["result"]["text"] == "'badbad'"
    assert document["result"]["codec"] == "json"
    assert document["upstreams"] == []
    assert document["downstreams"] == [{"name": "parse#2", "state": "failed"}]
    assert [attempt["attempt"] for attempt in document["attempts"]] == [1]


def test_an_unknown_task_is_told_with_the_nearest(flow: Flow, failed: str) -> None:
    done = flow("show", "last", "pars#2")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: there is no task 'pars#2' in run {failed}\n  hint: did you mean 'parse#2'?\n"


def test_a_resumed_run_shows_its_sessions_and_what_was_restored(flow: Flow, write: Write, failed: str) -> None:
    write("etl.py", ETL.replace('== "badbad"', '== "no"'))
    assert flow("resume", "--accept-changes", "--from", "parse#2", "--quiet").code == 0
    out = constant(flow("show").out)
    assert "session 1 DATE took TIME" in out
    assert "session 2 DATE took TIME" in out
    assert "6 tasks: 6 succeeded" in out
    attempts = json.loads(flow("show", "last", "parse#2", "--json").out)["attempts"]
    assert [(each["session"], each["attempt"], each["state"]) for each in attempts] == [
        (1, 1, "retrying"),
        (1, 2, "failed"),
        (2, 1, "succeeded"),
    ]


def test_an_unchanged_task_of_a_resumed_run_is_restored_and_has_its_one_attempt(flow: Flow, write: Write) -> None:
    write(
        "flaky.py",
        """
        import os
        from flowlane import task, workflow

        @task.io
        def first() -> int:
            return 1

        @task.io
        def second(n: int) -> int:
            if not os.path.exists("fixed"):
                raise ValueError("not yet")
            return n

        @workflow
        def flaky():
            return second(first())
        """,
    )
    assert flow("run", "flaky.py", "--quiet").code == 1
    Path("fixed").touch()
    assert flow("resume", "--quiet").code == 0
    out = constant(flow("show").out)
    assert "2 tasks: 2 succeeded · 1 of them restored" in out
    assert "first restored 1" in out
    attempts = json.loads(flow("show", "last", "first", "--json").out)["attempts"]
    assert [(each["session"], each["state"]) for each in attempts] == [(1, "succeeded")]


def test_many_tasks_are_folded_by_the_name_of_their_function(flow: Flow, store: SqliteStore) -> None:
    names = ["a", *[f"a#{n}" for n in range(2, 51)], "b"]
    lease = begin(store, 1, names)
    rows = [row(n, TaskState.SUCCEEDED, Reason.RETURNED, took=2) for n in range(50)]
    store.write(lease, [*rows, row(50, TaskState.FAILED, Reason.RAISED)])
    end(store, lease, RunState.FAILED, "b: failed")
    out = flow("show").out
    assert "a     succeeded     50        50  1 min 40 s    2.0 s  threads" in out
    assert "--all` lists all 51 tasks" in out
    assert "a#17" not in out
    assert "a#17" in flow("show", "last", "--all").out
    assert len(json.loads(flow("show", "--json").out)["tasks"]) == 51


def test_hostile_names_and_values_are_inert(flow: Flow, store: SqliteStore) -> None:
    evil = "\x1b[31mevil\r\n\u202e"
    lease = begin(store, 1, [evil], workflow=evil, name="plain", params={evil: evil})
    error = json.dumps(
        {"worker": evil, "error": {"type": evil, "message": evil, "where": evil, "notes": [evil], "traceback": evil}}
    )
    store.write(lease, [row(0, TaskState.FAILED, Reason.RAISED, detail=error)])
    end(store, lease, RunState.FAILED, evil)
    for argv in (
        ["show"],
        ["show", "last", evil],
        ["show", "--json"],
        ["show", "last", evil, "--json"],
        ["why", "last", evil],
    ):
        done = flow(*argv)
        assert done.code == 0
        assert not {"\x1b", "\r", "\u202e"} & set(done.out), argv
    assert json.loads(flow("show", "--json").out)["tasks"][0]["name"] == evil


def test_a_damaged_detail_hides_nothing_else(flow: Flow, store: SqliteStore) -> None:
    lease = begin(store, 1, ["a", "b", "c"])
    store.write(
        lease,
        [
            row(0, TaskState.FAILED, Reason.RAISED, detail="{"),
            row(1, TaskState.FAILED, Reason.RAISED, detail='{"error": {"type": 1, "notes": 2}, "cpu_s": "x"}'),
            row(2, TaskState.FAILED, Reason.RAISED, detail="[]"),
        ],
    )
    end(store, lease, RunState.FAILED)
    assert "3 failed" in flow("show").out
    assert flow("show", "last", "b").code == 0


def test_long_values_are_cut(flow: Flow, store: SqliteStore) -> None:
    end(store, begin(store, 1, params={"text": "x" * 100_000, "numbers": list(range(10_000))}))
    assert max(map(len, flow("show").out.splitlines())) < 1000
    assert len(flow("show", "--json").out) < 5000


class Config:
    """A class of the user's: it must not be made by looking."""

    made = 0

    def __init__(self, *args: Any) -> None:
        Config.made += 1

    def __setstate__(self, state: Any) -> None:
        Config.made += 1


def test_a_value_of_the_users_is_shown_without_its_code(flow: Flow, store: SqliteStore) -> None:
    value = Config()
    lease = begin(store, 1, ["a", "b"], params={"config": value})
    store.write(
        lease,
        [
            row(0, TaskState.SUCCEEDED, Reason.RETURNED, value=value, lease=lease, secret=store.secret),
            row(1, TaskState.SUCCEEDED, Reason.RETURNED, value=b"x" * 2_000_000, lease=lease, secret=store.secret),
        ],
    )
    end(store, lease)
    before = Config.made
    assert f"config = <{__name__}.Config>" in flow("show").out
    assert f"result {__name__}.Config as pickle, " in constant(flow("show", "last", "a").out)
    assert "result bytes as pickle, 2.0 MB" in constant(flow("show", "last", "b").out)
    assert Config.made == before


def test_a_result_that_was_tampered_with_is_told_and_not_decoded(flow: Flow, store: SqliteStore) -> None:
    lease = begin(store, 1, ["a"])
    store.write(lease, [row(0, TaskState.SUCCEEDED, Reason.RETURNED, value=1, lease=lease, secret=b"x" * 32)])
    end(store, lease)
    out = flow("show", "last", "a").out
    assert "result " in out
    assert json.loads(flow("show", "last", "a", "--json").out)["result"]["fault"]


@pytest.mark.parametrize(
    ("value", "text", "kind"),
    [
        (1, "1", "int"),
        ({"a": [1, 2]}, "{'a': [1, 2]}", "dict"),
        (dt.date(2026, 11, 21), "datetime.date(2026, 11, 21)", "date"),
        (Path("x"), "PosixPath('x')", "PosixPath"),
        (Secret("env:X"), "Secret('env:X')", "Secret"),
        ({1, 2}, "{1, 2}", "set"),
        ([Config()], f"[<{__name__}.Config>]", "list"),
        (Config, f"<{__name__}.Config>", f"{__name__}.Config"),
        (TaskState.FAILED, "<flowlane.core.states.TaskState>", "flowlane.core.states.TaskState"),
        (b"x" * 1000, "b'xxxxx", "bytes"),
    ],
)
def test_a_glimpse_shows_data_and_stands_in_for_the_rest(value: object, text: str, kind: str) -> None:
    found = glimpse(pack(value))
    assert shown(found).startswith(text)
    assert kind_of(found) == kind


def test_a_glimpse_runs_nothing() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch evil",)

    found = glimpse(Payload(Codec.PICKLE, (pickle.dumps(Evil()),)))
    assert not os.path.exists("evil")
    assert kind_of(found) == "posix.system"


def test_a_glimpse_of_nonsense_raises_value_error() -> None:
    for stream in (b"", b"\x80\x05.", b"nonsense", pickle.dumps(dt.date(2026, 1, 1))[:-5]):
        with pytest.raises(ValueError, match="cannot be shown"):
            glimpse(Payload(Codec.PICKLE, (stream,)))


def test_a_run_of_many_tasks_is_shown_in_time(flow: Flow, store: SqliteStore) -> None:
    """A chain of 5,000 that its head stopped: the ways of all are found in one walk, not in one a task."""
    count = 5_000
    lease = begin(store, 1, [f"t#{n}" for n in range(count)], upstreams=[(n - 1,) if n else () for n in range(count)])
    rows = [row(0, TaskState.FAILED, Reason.RAISED, detail='{"error":{"type":"E","message":"m"}}')]
    rows += [row(n, TaskState.UPSTREAM_FAILED, Reason.UPSTREAM_FAILED, attempt=0) for n in range(1, count)]
    store.write(lease, rows)
    end(store, lease, RunState.FAILED)
    began = time.perf_counter()
    out = flow("show").out
    assert "stopped  t#1, t#2" in out
    assert time.perf_counter() - began < 20  # quadratic would be minutes
    assert "… 4992 more …" in flow("show", "last", "t#4999").out
