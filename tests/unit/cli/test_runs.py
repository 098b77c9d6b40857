"""flow runs: the history, its states, and that it is quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from flowlane.core.states import Reason, RunState, TaskState

from .histories import ETL, begin, end, row

if TYPE_CHECKING:
    from flowlane_plugins.stores.sqlite import SqliteStore

    from .conftest import Flow, Write

HISTORY = ("runs", "show", "logs", "why last a", "cache ls", "cache rm --all", "cache explain last a")


def test_runs_are_listed_the_latest_first_with_what_they_did(flow: Flow, write: Write) -> None:
    write("etl.py", ETL)
    assert flow("run", "etl.py", "--quiet").code == 0
    assert flow("run", "etl.py", "--quiet", "-p", 'names=["bad"]').code == 1
    done = flow("runs")
    assert (done.code, done.err) == (0, "")
    head, failed, succeeded = done.out.splitlines()
    assert head.split() == ["run", "id", "workflow", "state", "tasks", "took", "started"]
    assert failed.split()[2:5] == ["etl", "failed", "1/4"]
    assert succeeded.split()[2:5] == ["etl", "succeeded", "6/6"]
    assert failed.endswith("just now")


def test_the_document_has_every_field_and_a_version(flow: Flow, write: Write) -> None:
    write("etl.py", ETL)
    flow("run", "etl.py", "--quiet", "-p", 'names=["bad"]')
    document = json.loads(flow("runs", "--json").out)
    assert document["v"] == 1
    (run,) = document["runs"]
    assert (run["workflow"], run["state"], run["tasks"], run["done"]) == ("etl", "failed", 4, 1)
    assert run["counts"] == {"succeeded": 1, "failed": 1, "upstream_failed": 2}
    assert run["error"] == "parse: ValueError: a bad row"
    assert run["duration_s"] > 0
    assert run["created"].endswith("Z")


def test_runs_are_chosen_by_workflow_and_state(flow: Flow, store: SqliteStore) -> None:
    for number, (workflow, state) in enumerate(
        [("a", "succeeded"), ("a", "failed"), ("b", "failed"), ("b", "cancelled")]
    ):
        end(store, begin(store, number, workflow=workflow), RunState(state))

    def found(*options: str) -> list[str]:
        return [run["id"][-1] for run in json.loads(flow("runs", "--json", *options).out)["runs"]]

    assert found() == ["3", "2", "1", "0"]
    assert found("--workflow", "a") == ["1", "0"]
    assert found("--state", "failed") == ["2", "1"]
    assert found("--state", "failed", "--workflow", "b") == ["2"]
    assert found("--limit", "2") == ["3", "2"]
    assert found("--limit", "1", "--state", "failed") == ["2"]
    assert found("--workflow", "c") == []


def test_what_is_left_out_is_told_on_stderr(flow: Flow, store: SqliteStore) -> None:
    for number in range(21):
        end(store, begin(store, number))
    done = flow("runs")
    assert len(done.out.splitlines()) == 1 + 20
    assert "--limit 0" in done.err
    done = flow("runs", "--limit", "0")
    assert (len(done.out.splitlines()), done.err) == (1 + 21, "")


def test_a_run_whose_process_is_gone_is_stopped_and_one_that_is_owned_runs(flow: Flow, store: SqliteStore) -> None:
    gone = begin(store, 1)
    store.write(gone, [row(0, TaskState.RUNNING, Reason.STARTED)])
    store.close()  # as if the process had died
    store.open()
    begin(store, 2)
    states = {run["id"][-1]: run["state"] for run in json.loads(flow("runs", "--json").out)["runs"]}
    assert states == {"1": "stopped", "2": "running"}
    assert [run["id"][-1] for run in json.loads(flow("runs", "--json", "--state", "stopped").out)["runs"]] == ["1"]
    assert [run["id"][-1] for run in json.loads(flow("runs", "--json", "--state", "running").out)["runs"]] == ["2"]


def test_a_run_whose_process_was_killed_is_stopped(flow: Flow, write: Write, environ: dict[str, str]) -> None:
    write(
        "long.py",
        """
        import os, signal
        from flowlane import task, workflow

        @task.io(executor="inline")
        def last_word() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        @workflow
        def long():
            return last_word()
        """,
    )
    done = subprocess.run([sys.executable, "-m", "flowlane", "run", "long.py"], env=environ, timeout=50, check=False)
    assert done.returncode == -9
    assert flow("runs").out.splitlines()[1].split()[2:4] == ["long", "stopped"]
    assert "is gone" in flow("show").out


@pytest.mark.parametrize("line", HISTORY)
def test_an_empty_store_is_no_error_where_nothing_is_asked_for(flow: Flow, store: SqliteStore, line: str) -> None:
    done = flow(*line.split())
    assert done.out == ""
    if line.startswith(("runs", "cache ls", "cache rm")):
        assert done.code == 0
    else:
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "there is no last run" in done.err


@pytest.mark.parametrize("line", HISTORY)
def test_without_a_store_every_verb_says_so_and_makes_nothing(flow: Flow, line: str) -> None:
    done = flow(*line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[0] == "error: nothing is recorded here: there is no .flow/flow.db"
    assert os.listdir() == []


def test_hostile_names_are_inert(flow: Flow, store: SqliteStore) -> None:
    hostile = "\x1b[31m\r\n\u202eevil"
    end(store, begin(store, 1, name=hostile, workflow=hostile), RunState.FAILED, f"{hostile}: {hostile}")
    for options in ((), ("--json",)):
        out = flow("runs", *options).out
        assert not {"\x1b", "\r", "\u202e"} & set(out)
    assert len(flow("runs").out.splitlines()) == 2
    assert json.loads(flow("runs", "--json").out)["runs"][0]["name"] == hostile


def test_a_thousand_runs_are_listed_whole(flow: Flow, store: SqliteStore) -> None:
    for number in range(1000):
        lease = begin(store, number, started=time.time_ns() - number)
        store.write(lease, [row(0, TaskState.SUCCEEDED, Reason.RETURNED)])
        end(store, lease)
    assert len(json.loads(flow("runs", "--json", "--limit", "0").out)["runs"]) == 1000
    assert len(flow("runs", "--limit", "0").out.splitlines()) == 1001


@pytest.mark.parametrize("argv", [["runs"], ["show"], ["show", "last", "a"], ["why", "last", "a"], ["cache", "ls"]])
def test_looking_back_imports_none_of_the_heavy_libraries(
    store: SqliteStore, environ: dict[str, str], argv: list[str]
) -> None:
    lease = begin(store, 1)
    store.write(lease, [row(0, TaskState.SUCCEEDED, Reason.RETURNED, value=1, lease=lease, secret=store.secret)])
    end(store, lease)
    code = (
        f"import sys; from flowlane.cli.main import main; main({argv!r});"
        "heavy = {'asyncio', 'networkx', 'pydantic', 'pydantic_core', 'structlog', 'rich', 'cloudpickle', 'psutil'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
