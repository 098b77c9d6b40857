"""What the verbs say of dynamic workflows: which run and task are meant, how tasks are counted, what has no executor."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Flow, Write

#: load ─▶ each[0..2] ─▶ total (a tree), _sub[0..1] (workflows); `broken` maps over what its task did not return.
DYNAMIC = """
from flowlane import task, workflow

@task.io
def load(): return [1, 2, 3]

@task.io
def nothing(): return None

@task.io
def each(x): return x

@task.io
def total(parts): return sum(parts)

@workflow
def _sub(x: int): return each(x)

@workflow
def good():
    _sub.map([1, 2])
    return total.reduce(each.map(load()), fan_in=2)

@workflow
def broken():
    return total.reduce(each.map(
        nothing()), fan_in=2)

@workflow
def partly():
    def items():
        yield 1
        raise ValueError("no more")
    return total.reduce(each.map(items()), fan_in=2)

@workflow
def filtered():
    return _sub.filter([1, 2])
"""


@pytest.fixture(autouse=True)
def _dynamic(write: Write) -> None:
    write("dynamic.py", DYNAMIC)


def test_a_source_that_is_none_is_told_with_the_line_of_the_map_by_run_why_show_and_logs(flow: Flow) -> None:
    done = flow("run", "dynamic.py:broken", "--quiet")
    says = "each.map(...) goes over the result of 'nothing', which is None and has no items"
    hint = "hint: return a list, a mapping, or any other iterable from it"
    assert f"each  ItemsError: {says}\n  dynamic.py:" in done.err
    assert hint in done.err
    assert "ran on" not in done.err, "nothing ran"
    where = re.search(r"dynamic\.py:(\d+)", done.err)
    assert where is not None
    assert "each.map(" in DYNAMIC.splitlines()[int(where.group(1)) - 1]
    why = flow("why", "each").out
    assert says in why
    assert hint in why
    assert where.group() in why
    assert says in flow("show").out
    assert says in flow("logs", "last/each").out


def test_why_takes_the_latest_run_and_needs_no_task(flow: Flow) -> None:
    flow("run", "dynamic.py:good", "--quiet")
    flow("run", "dynamic.py:broken", "--quiet")
    name: str = json.loads(flow("runs", "--json").out)["runs"][0]["name"]
    whole = flow("why")
    assert whole.code == 0
    assert whole.out.startswith(f"run {name} ended failed: 1 succeeded, 1 failed, 1 upstream_failed\neach failed ")
    assert flow("why", "last").out.splitlines()[0] == whole.out.splitlines()[0]
    assert flow("why", name).out.splitlines()[0] == whole.out.splitlines()[0]
    for words in (["each"], ["last", "each"], ["last/each"], [name, "each"], [f"{name}/each"]):
        assert flow("why", *words).out.startswith("each failed "), words
    unknown = flow("why", "eahc")
    assert (unknown.code, "'eahc' is neither a task of the latest run nor a run in the store" in unknown.err) == (
        2,
        True,
    )
    assert "did you mean 'each'?" in unknown.err
    document = json.loads(flow("why", "--json").out)
    assert (document["task"], document["facts"]["failed"]) == (None, ["each"])


def test_cancel_takes_the_latest_run(flow: Flow) -> None:
    flow("run", "dynamic.py:good", "--quiet")
    done = flow("cancel")
    assert done.code == 2
    assert "is not under way: it is succeeded" in done.err


@pytest.mark.parametrize(
    ("which", "counts"),
    [
        ("good", "9 succeeded"),  # load, each 3 times, total 3 times, _sub twice: those that became them do not count
        ("broken", "1 succeeded · 1 failed · 1 upstream_failed"),
        ("partly", "1 succeeded · 1 failed · 1 upstream_failed"),
    ],
)
def test_run_show_and_the_log_count_alike(flow: Flow, which: str, counts: str) -> None:
    summary = flow("run", f"dynamic.py:{which}").err
    told = next(line for line in summary.splitlines() if line.startswith(("✔", "✗")))
    assert told.endswith(f"   {counts}")
    shown = flow("show").out.splitlines()
    assert any(line.endswith(f": {counts}") for line in shown), shown
    told_last = json.loads(flow("logs", "--json").out.splitlines()[-1])["counts"]
    assert " · ".join(f"{count} {state}" for state, count in told_last.items()) == counts
    run = json.loads(flow("runs", "--json").out)["runs"][0]
    assert run["done"] <= run["tasks"], "all that came into being are among them"
    assert " · ".join(f"{count} {state}" for state, count in run["counts"].items()) == counts


def test_workflows_are_shown_without_an_executor(flow: Flow) -> None:
    graph = flow("graph", "dynamic.py:good").out
    assert "1 workflow" in graph.splitlines()[0]
    assert "threads 3" in graph.splitlines()[0]
    assert re.search(r"_sub\[\*\] +- +- ", graph)
    tasks = {
        task["name"]: task for task in json.loads(flow("graph", "dynamic.py:good", "--format", "json").out)["tasks"]
    }
    assert (tasks["_sub"]["kind"], tasks["_sub"]["executor"]) == (None, None)
    assert tasks["each"]["executor"] == "threads"
    flow("run", "dynamic.py:good", "--quiet")
    assert re.search(r"^_sub +succeeded .* -$", flow("show").out, re.MULTILINE)
    assert "a workflow" in flow("show", "last", "_sub").out
    shown = {task["name"]: task for task in json.loads(flow("show", "--json").out)["tasks"]}
    assert (shown["_sub"]["executor"], shown["_sub[0]"]["executor"]) == (None, None)
    assert shown["_sub[0]/each"]["executor"] == "threads"


def test_an_element_cannot_be_run_alone_and_what_can_is_told(flow: Flow) -> None:
    for option in ("--only", "--from", "--until"):
        for name, whole, again in (
            ("each[2]", "each", "--from 'each[2]' runs this again"),
            ("_sub[0]/each", "_sub", "--from '_sub[0]/each' runs this again"),
            ("_sub[*]/each", "_sub", "--from NAME runs one of its tasks again"),
            ("_s*[0]/each", "_sub", "--from NAME runs one of its tasks again"),
            ("total[1.0]", "total", "--from 'total[1.0]' runs this again"),
        ):
            done = flow("run", "dynamic.py:good", option, name)
            assert done.code == 2
            assert f"{option} {name} names what '{whole}' becomes only when it runs" in done.err
            assert f"{option} {whole} has all of it" in done.err
            assert f"flow resume RUN {again}" in done.err
    assert "did you mean" in flow("run", "dynamic.py:good", "--only", "eahc[2]").err


def test_a_workflow_has_no_filter_and_what_to_write_is_told(flow: Flow) -> None:
    done = flow("run", "dynamic.py:filtered")
    assert done.code == 2
    assert "_sub.filter(...): '_sub' is a workflow, and filter is for tasks" in done.err
    assert "at dynamic.py:" in done.err
    assert "is_good.filter(items)" in done.err
