"""show, logs and why of a run whose tasks came into being while it ran."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Flow, Write

#: fetch[0..9] ─▶ parse[0..9] ─▶ total by threes, a workflow by element, keys, and a branch that is not taken.
GROWN = """
import os
from flowlane import Skip, task, workflow, when

@task.io
def fetch(x: int) -> int:
    print("fetching", x)
    if x == 7 and not os.path.exists("good"):
        raise ValueError(f"no page {x}")
    return x

@task.io
async def parse(x: int) -> int:
    if x == 2:
        raise Skip("nothing in it")
    return x + 1

@task.io
async def total(values: list[int]) -> int:
    return sum(values)

@task.io
async def never() -> bool:
    return False

@workflow
def sub(x: int) -> int:
    return parse(fetch(x))

@workflow
def grown():
    whole = total.reduce(parse.map(fetch.map(range(10))), fan_in=3)
    sub.map([5, 6])
    with when(never()):
        parse.options(name="other")(1)
    fetch.map({"eu": 1, "us": 2})
    return whole
"""


@pytest.fixture
def failed(flow: Flow, write: Write) -> str:
    write("grown.py", GROWN)
    assert flow("run", "grown.py:grown", "--quiet").code == 1
    name: str = json.loads(flow("runs", "--json").out)["runs"][0]["name"]
    return name


def test_what_came_into_being_is_folded_and_what_failed_is_listed(flow: Flow, failed: str) -> None:
    out = flow("show").out
    told = [" ".join(line.split()) for line in out.splitlines()]
    assert told[1] == "34 tasks: 27 succeeded · 1 failed · 4 upstream_failed · 2 skipped"
    for line in (
        "fetch map of 10 9 succeeded · 1 failed",
        "parse map of 10 8 succeeded · 1 upstream_failed · 1 skipped",
        "total tree of 6 merges 3 succeeded · 3 upstream_failed",
        "sub map of 2 2 succeeded",
        "fetch#2 map of 2 2 succeeded",
    ):
        assert line in told, out
    assert "fetch[7]  ValueError: no page 7" in out
    assert "fetch[3]" not in out
    everything = flow("show", "--all").out
    assert all(name in everything for name in ("fetch[3]", "fetch#2[eu]", "sub[1]/parse", "total[1.0]"))


def test_a_task_that_came_into_being_is_shown_by_its_name(flow: Flow, failed: str) -> None:
    out = flow("show", "last", "sub[1]/parse").out
    assert "part of   sub[1]" in out
    assert "inputs    sub[1]/fetch (succeeded)" in out
    assert "became    2 tasks: 2 succeeded" in flow("show", "last", "sub[1]").out
    assert flow("show", "last", "fetch[99]").code == 2


def test_json_has_every_task_and_what_it_became(flow: Flow, failed: str) -> None:
    document = json.loads(flow("show", "last", "--json").out)
    tasks = {each["name"]: each for each in document["tasks"]}
    assert tasks["fetch"]["became"] == {"what": "map of 10", "tasks": {"succeeded": 9, "failed": 1}}
    assert (tasks["fetch[7]"]["part_of"], tasks["fetch[7]"]["error"]["type"]) == ("fetch", "ValueError")
    assert {"fetch#2[us]", "total[1.1]", "sub[0]/fetch", "parse[2]", "other"} <= set(tasks)
    assert (tasks["parse[2]"]["state"], tasks["parse[2]"]["reason"]) == ("skipped", "skip_raised")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("fetch[7]", "fetch[7] failed"),
        ("fetch", "it had become 10 tasks: 9 succeeded, 1 failed"),
        ("parse[7]", "parse[7] never began, because fetch[7] failed: ValueError: no page 7"),
        ("parse[2]", "parse[2] was skipped by its own word"),
        ("other", "it stands under a condition that did not hold"),
        ("total", "total did not come to its end, because fetch[7] failed"),
        ("total[1.0]", "total[1.0] succeeded"),
        ("sub[0]", "sub[0] succeeded; it had become 2 tasks: 2 succeeded"),
        ("fetch#2[eu]", "fetch#2[eu] succeeded"),
    ],
)
def test_why(flow: Flow, failed: str, task: str, says: str) -> None:
    done = flow("why", "last", task)
    assert says in done.out, done


def test_logs_of_one_of_them(flow: Flow, failed: str) -> None:
    for words in (["last", "fetch[3]"], ["last/fetch[3]"], [f"{failed}/sub[1]/parse"]):
        out = flow("logs", *words).out
        assert "succeeded" in out
        assert all(words[-1].partition("/")[2] in line or "fetch[3]" in line for line in out.splitlines())


def test_what_is_kept_as_a_whole_is_still_known_by_name(flow: Flow, write: Write, failed: str) -> None:
    write("good", "")
    assert flow("resume", "last", "--quiet").code == 0
    assert "restored" in flow("show").out
    for task in ("sub[1]/fetch", "fetch#2[eu]"):  # nobody needed these again: the second session has none of them
        done = flow("show", "last", task)
        assert (done.code, "succeeded" in done.out) == (0, True), done
    assert "fetch[3] was not run in session 2: session 1 had finished it" in flow("why", "last", "fetch[3]").out
