"""flow plan: what would run, and why; and that nothing does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .histories import constant

if TYPE_CHECKING:
    import pytest

    from flowlane_plugins.stores.sqlite import SqliteStore

    from .conftest import Flow, Write

CHAIN = """
from flowlane import Cache, task, workflow

FACTOR = 1

def scaled(n: int) -> int:
    return n * FACTOR

@task.io(cache=True)
def read(name: str) -> str:
    with open("ran", "a") as file:
        file.write(name)
    return name * 2

@task.io(cache=Cache(version="1", ttl=3600))
def count(text: str) -> int:
    return scaled(len(text))

@task.io
def show(number: int) -> int:
    return number

@task.io(cache=True)
def last(number: int) -> int:
    return number

@workflow
def chain(names: tuple[str, ...] = ("a", "b")):
    return [last(show(count(read(name)))) for name in names]
"""


def planned(flow: Flow, *argv: str) -> dict[str, dict[str, Any]]:
    done = flow("plan", "chain.py", "--json", *argv)
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert document["v"] == 1
    return {task["name"]: task for task in document["tasks"]}


def grounds(flow: Flow, *argv: str) -> list[str]:
    return [task["grounds"] for task in planned(flow, *argv).values()]


def test_without_a_store_everything_runs_and_nothing_is_made(flow: Flow, write: Write) -> None:
    write("chain.py", CHAIN)
    done = flow("plan", "chain.py")
    assert (done.code, done.err) == (0, "")
    assert (
        done.out
        == """\
chain · 8 tasks (io 8) · 6 edges · threads 8
task           because
read     runs  the cache has no result of it
read#2   runs  the cache has no result of it
count    runs  the cache has no result of it
count#2  runs  the cache has no result of it
show     runs  it is not declared with a cache
show#2   runs  it is not declared with a cache
last     runs  the cache has no result of it
last#2   runs  the cache has no result of it
io: 8 run, 0 cached
"""
    )
    assert os.listdir() == ["chain.py"]


def test_what_is_cached_is_followed_down_to_what_is_not_known(flow: Flow, write: Write) -> None:
    write("chain.py", CHAIN)
    assert flow("run", "chain.py", "--quiet").code == 0
    Path("ran").unlink()
    done = flow("plan", "chain.py")
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in constant(done.out).splitlines()]
    name = json.loads(flow("runs", "--json").out)["runs"][0]["name"]
    assert lines[2:] == [
        f"read cached run {name} made it AGO",
        f"read#2 cached run {name} made it AGO",
        f"count cached run {name} made it AGO",
        f"count#2 cached run {name} made it AGO",
        "show runs it is not declared with a cache",
        "show#2 runs it is not declared with a cache",
        "last runs it reads from show, which runs",
        "last#2 runs it reads from show#2, which runs",
        "io: 4 run, 4 cached",
    ]
    assert not Path("ran").exists()
    assert len(json.loads(flow("runs", "--json").out)["runs"]) == 1


def test_other_inputs_other_code_and_another_version_are_told_apart(flow: Flow, write: Write) -> None:
    write("chain.py", CHAIN)
    flow("run", "chain.py", "--quiet")
    assert grounds(flow, "-p", 'names=["c"]') == ["input_changed", "input_unknown", "not_declared", "input_unknown"]
    assert planned(flow, "-p", 'names=["c"]')["read"]["difference"]["inputs"] == ["name"]
    write("chain.py", CHAIN.replace("FACTOR = 1", "FACTOR = 2"))
    found = planned(flow)
    assert [found["read"]["grounds"], found["count"]["grounds"]] == ["cached", "code_changed"]
    assert list(found["count"]["difference"]["code"]) == ["FACTOR"]
    assert "the code of 'FACTOR' changed, since run" in flow("plan", "chain.py").out
    write("chain.py", CHAIN.replace('version="1"', 'version="2"'))
    found = planned(flow)
    assert found["count"]["grounds"] == "code_changed"
    assert found["count"]["difference"]["version"] == {"before": "1", "now": "2"}


def test_what_is_too_old_damaged_or_gone_runs(
    flow: Flow, write: Write, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("chain.py", CHAIN)
    flow("run", "chain.py", "--quiet")
    later = time.time_ns() + 3700 * 10**9
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: later)
        assert planned(flow)["count"]["grounds"] == "expired"
        assert "its result was good until 1 min ago" in flow("plan", "chain.py").out
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("another").absolute()))  # another key: nothing is believed any more
    found = planned(flow)
    assert found["read"]["grounds"] == "unreadable"
    assert found["read"]["text"]
    assert found["count"]["grounds"] == "input_unknown"
    assert not any(task["grounds"] == "cached" for task in found.values())


def test_an_argument_that_cannot_be_hashed_is_told(flow: Flow, write: Write) -> None:
    text = """
        import threading
        from flowlane import task, workflow

        @task.io(cache=True)
        def use(n: int, options: object = None) -> int:
            return n

        @workflow
        def chain(locked: bool = False):
            return use(1, {"lock": threading.Lock()} if locked else None)
        """
    write("chain.py", text)
    flow("run", "chain.py", "--quiet")
    found = planned(flow, "-p", "locked=true")["use"]
    assert (found["grounds"], found["runs"]) == ("unhashable", True)
    assert found["text"] == "options['lock'] is a _thread.lock, which cannot be hashed"


def test_many_tasks_are_told_together(flow: Flow, write: Write) -> None:
    write("chain.py", CHAIN)
    names = json.dumps([str(number) for number in range(20)])
    out = flow("plan", "chain.py", "-p", f"names={names}").out
    assert [" ".join(line.split()) for line in out.splitlines()][1:] == [
        "tasks task because",
        "20 read runs the cache has no result of it",
        "20 count runs the cache has no result of it",
        "20 show runs it is not declared with a cache",
        "20 last runs the cache has no result of it",
        "io: 80 run, 0 cached",
    ]
    assert len(flow("plan", "chain.py", "--all", "-p", f"names={names}").out.splitlines()) == 83


def test_what_is_wrong_with_the_workflow_is_told_as_by_run(flow: Flow, write: Write) -> None:
    write("chain.py", CHAIN)
    done = flow("plan", "chain.py", "-p", "name=x")
    assert (done.code, done.out) == (2, "")
    assert "hint: " in done.err
    assert flow("plan", "nothing.py").code == 2
    assert flow("plan", "chain.py", "--route", "io=nowhere").code == 2


def test_a_plan_and_the_run_after_it_agree(flow: Flow, write: Write) -> None:
    write("chain.py", CHAIN)
    flow("run", "chain.py", "--quiet", "-p", 'names=["a", "bb"]')
    write("chain.py", CHAIN.replace("return scaled(len(text))", "return scaled(len(text) + 1)"))
    argv = ("-p", 'names=["bb", "a", "ccc"]')  # of three lengths: no `last` is called as another one was in this run
    foreseen = {name for name, task in planned(flow, *argv).items() if not task["runs"]}
    result = json.loads(flow("run", "chain.py", "--quiet", "--json", *argv).out)
    cached = {name for name, task in result["tasks"].items() if task["state"] == "cached"}
    assert foreseen == cached == {"read", "read#2"}
