"""flow cache: ls, rm, explain."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.states import Reason, TaskState
from flowlane.storage.port import CacheRow

from .histories import begin, constant, end, row

if TYPE_CHECKING:
    from flowlane_plugins.stores.sqlite import SqliteStore

    from .conftest import Flow, Write

CACHED = """
from flowlane import task, workflow

@task.io(cache=True)
def double(n: int) -> int:
    return 2 * n

@task.io(cache=True)
def square(n: int) -> int:
    return n * n

@task.io
def add(a: int, b: int) -> int:
    return a + b

@workflow
def sums(n: int = 3):
    return add(double(n), square(n))
"""


@pytest.fixture
def ran(flow: Flow, write: Write) -> None:
    """Two runs: the second finds what the first made."""
    write("sums.py", CACHED)
    for _ in range(2):
        assert flow("run", "sums.py", "--quiet").code == 0


def entries(flow: Flow, *argv: str) -> list[dict[str, Any]]:
    document = json.loads(flow("cache", "ls", *argv, "--json").out)
    assert document["v"] == 1
    found: list[dict[str, Any]] = document["entries"]
    return found


def test_entries_are_listed_with_task_age_size_and_run(flow: Flow, ran: None) -> None:
    done = flow("cache", "ls")
    head, *lines = constant(done.out).splitlines()
    assert head.split() == ["task", "size", "hits", "made", "expires", "run"]
    assert sorted(line.split()[0] for line in lines) == ["double", "square"]
    assert " never " in lines[0]
    assert done.err == "2 entries, 130 B\n"
    found = entries(flow, "double")
    assert [entry["task"] for entry in found] == ["double"]
    assert found[0]["bytes"] == 65
    assert found[0]["expires"] is None
    first = json.loads(flow("runs", "--json").out)["runs"][1]
    assert found[0]["run"] == first["id"]


def test_an_unknown_task_is_told_with_the_nearest(flow: Flow, ran: None) -> None:
    for argv in (("ls", "doubl"), ("rm", "doubl")):
        done = flow("cache", *argv)
        assert (done.code, done.out) == (2, "")
        assert done.err == "error: the cache has no result of a task 'doubl'\n  hint: did you mean 'double'?\n"


def test_entries_are_removed_by_task_run_or_all(flow: Flow, ran: None) -> None:
    done = flow("cache", "rm", "double")
    assert (done.code, done.out, done.err) == (0, "", "removed 1 entry, 65 B: double\n")
    assert [entry["task"] for entry in entries(flow)] == ["square"]
    assert flow("cache", "rm", "--run", "last").err == "removed 0 entries, 0 B\n"  # the last run made nothing
    first = json.loads(flow("runs", "--json").out)["runs"][1]["name"]
    document = json.loads(flow("cache", "rm", "--run", first, "--json").out)
    assert (document["v"], [entry["task"] for entry in document["removed"]]) == (1, ["square"])
    assert entries(flow) == []
    assert flow("cache", "ls").err == "the cache is empty\n"
    assert flow("cache", "rm", "--all").code == 0


def test_what_is_removed_is_made_anew_and_runs_keep_their_results(flow: Flow, ran: None) -> None:
    flow("cache", "rm", "--all")
    assert json.loads(flow("show", "last", "double", "--json").out)["result"]["text"] == "6"
    assert flow("run", "sums.py", "--quiet").code == 0
    assert "ran for" in flow("why", "last", "double").out


def test_expired_entries_are_removed_alone(flow: Flow, store: SqliteStore) -> None:
    lease = begin(store, 1, ["a", "b", "c"])
    now = time.time_ns()
    rows = [row(n, TaskState.SUCCEEDED, Reason.RETURNED, value=n, lease=lease, secret=store.secret) for n in range(3)]
    cached = [
        CacheRow(bytes([n]) * 32, name, "{}", now, expires, n, 1)
        for n, (name, expires) in enumerate([("a", 0), ("b", now - 1), ("c", now + 10**12)])
    ]
    store.write(lease, rows, cached)
    end(store, lease)
    out = flow("cache", "ls").out
    assert [line.split()[0] for line in out.splitlines() if line.split()[-2] == "expired"] == ["b"]
    assert flow("cache", "rm", "--expired").err == "removed 1 entry, 65 B: b\n"
    assert [entry["task"] for entry in entries(flow)] == ["c", "a"]


@pytest.mark.parametrize("argv", [(), ("rm",), ("what",), ("ls", "--what"), ("explain", "last")])
def test_half_a_command_says_what_is_missing(flow: Flow, argv: tuple[str, ...]) -> None:
    done = flow("cache", *argv)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "hint: " in done.err
    assert "Traceback" not in done.err


def explained(flow: Flow, task: str) -> list[str]:
    done = flow("cache", "explain", "last", task)
    assert (done.code, done.err) == (0, "")
    document = json.loads(flow("cache", "explain", "last", task, "--json").out)
    assert document["v"] == 1
    return [document["cache"], *constant(done.out).splitlines()]


def test_hits_misses_and_what_nothing_tells_of_are_explained(flow: Flow, ran: None) -> None:
    assert explained(flow, "double") == [
        "hit",
        "double was taken from the cache: its inputs and its code were the same",
        "run NAME (ID) made it DATE, AGO",
    ]
    assert explained(flow, "add")[0] == "unknown"
    assert flow("run", "sums.py", "--quiet", "-p", "n=4").code == 0
    assert explained(flow, "double") == [
        "miss",
        "double: it was not in the cache: most like it is the entry of run NAME (ID), and input 'n' is another",
    ]
    flow("cache", "rm", "--all")
    assert explained(flow, "double")[0] == "unknown"


def test_what_did_not_succeed_is_not_looked_for(flow: Flow, store: SqliteStore) -> None:
    begin(store, 1)
    assert explained(flow, "a") == ["unknown", "a is ready: only results are cached"]


def test_hostile_names_are_inert(flow: Flow, store: SqliteStore) -> None:
    evil = "\x1b[31m\r\u202e"
    lease = begin(store, 1, [evil], name="plain")
    store.write(
        lease,
        [row(0, TaskState.SUCCEEDED, Reason.RETURNED, value=1, lease=lease, secret=store.secret)],
        [
            CacheRow(
                b"k" * 32, evil, json.dumps({"version": evil, "code": {evil: evil}, "inputs": {evil: evil}}), 1, 0, 0, 1
            )
        ],
    )
    end(store, lease)
    for argv in (("ls",), ("ls", "--json"), ("explain", "last", evil), ("rm", "--all", "--json")):
        done = flow("cache", *argv)
        assert done.code == 0
        assert not {"\x1b", "\r", "\u202e"} & set(done.out + done.err)


def test_damaged_parts_of_a_key_explain_nothing_and_break_nothing(flow: Flow, write: Write, store: SqliteStore) -> None:
    lease = begin(store, 1, ["double"])
    rows = [row(0, TaskState.SUCCEEDED, Reason.RETURNED, value=1, lease=lease, secret=store.secret)]
    store.write(lease, rows, [CacheRow(b"k" * 32, "double", "nonsense", time.time_ns(), 0, 0, 1)])
    end(store, lease)
    write("sums.py", CACHED)
    assert flow("plan", "sums.py").code == 0
    assert explained(flow, "double")[0] == "miss"
