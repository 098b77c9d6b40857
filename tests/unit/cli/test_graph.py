"""``flow graph`` in its four forms, and ``flow executors``."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import TYPE_CHECKING

import pytest

from flowlane.runtime.registry import BUILTIN, EXTRAS

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Flow, Write

#   list ──▶ fetch   ──▶ merge ╌╌▶ notify
#      └───▶ fetch#2 ──────▲
FILE = """
from flowlane import task, workflow

@task.io(name="list")
def list_(): raise AssertionError("ran")

@task.io
async def fetch(x, i): raise AssertionError("ran")

@task.cpu
def merge(xs): raise AssertionError("ran")

@task.io
def notify(): raise AssertionError("ran")

@workflow
def etl(n: int = 2):
    print("chatter of the body")
    names = list_()
    merged = merge([fetch(names, i) for i in range(n)])
    notify.options(after=[merged])()
    return merged
"""


def test_text_shows_levels_and_what_each_task_waits_for(write: Write, flow: Flow) -> None:
    write("etl.py", FILE)
    done = flow("graph", "etl.py")
    assert done.code == 0
    assert done.out == (
        "etl · 5 tasks (io 4, cpu 1) · 5 edges · asyncio 2, processes 1, threads 2\n"
        "1\n"
        "  list     io   threads\n"
        "2\n"
        "  fetch    io   asyncio    ← list\n"
        "  fetch#2  io   asyncio    ← list\n"
        "3\n"
        "  merge    cpu  processes  ← fetch, fetch#2\n"
        "4\n"
        "  notify   io   threads    ← merge\n"
    )
    assert done.err == "chatter of the body\n"


def test_json_is_versioned_and_tells_values_from_order(write: Write, flow: Flow) -> None:
    write("etl.py", FILE)
    graph = json.loads(flow("graph", "etl.py", "--format", "json", "-p", "n=1", "--route", "cpu=threads").out)
    assert graph["version"] == 1
    assert graph["workflow"] == "etl"
    assert {"name": "merge", "kind": "cpu", "executor": "threads"} in graph["tasks"]
    assert graph["edges"] == [
        {"from": "list", "to": "fetch", "kind": "value"},
        {"from": "fetch", "to": "merge", "kind": "value"},
        {"from": "merge", "to": "notify", "kind": "order"},
    ]


def test_mermaid_and_dot_name_every_task_and_draw_order_dashed(write: Write, flow: Flow) -> None:
    write("etl.py", FILE)
    mermaid = flow("graph", "etl.py", "--format", "mermaid").out
    assert mermaid.startswith("flowchart TD\n")
    assert len(re.findall(r"-->", mermaid)) == 4
    assert len(re.findall(r"-\.->", mermaid)) == 1
    assert '"fetch#35;2"' in mermaid  # '#' begins an entity in Mermaid
    dot = flow("graph", "etl.py", "--format", "dot").out
    assert dot.startswith('digraph "etl" {\n')
    assert dot.endswith("}\n")
    assert dot.count("->") == 5
    assert dot.count("[style=dashed]") == 1
    assert 'label="fetch#2"' in dot


@pytest.mark.parametrize("form", ["text", "mermaid", "dot", "json"])
def test_a_graph_without_tasks(write: Write, flow: Flow, form: str) -> None:
    write("etl.py", "from flowlane import workflow\n@workflow\ndef etl():\n    return 1\n")
    done = flow("graph", "etl.py", "--format", form)
    assert done.code == 0
    assert done.out.endswith("\n")


def test_quotes_in_names_do_not_break_the_forms(write: Write, flow: Flow) -> None:
    write(
        "etl.py",
        """
        from flowlane import task, workflow
        @task.io(name='say "hi" <b> \\\\n')
        def odd(): ...
        @workflow
        def etl():
            return odd()
        """,
    )
    assert 'label="say \\"hi\\" <b> \\\\n"' in flow("graph", "etl.py", "--format", "dot").out
    assert '["say #quot;hi#quot; #lt;b> ' in flow("graph", "etl.py", "--format", "mermaid").out
    assert json.loads(flow("graph", "etl.py", "--format", "json").out)["tasks"][0]["name"] == 'say "hi" <b> \\n'


def test_check_counts_without_running(write: Write, flow: Flow) -> None:
    write("etl.py", FILE)
    done = flow("check", "etl.py")
    assert (done.code, done.out) == (0, "")
    assert "✔ etl  5 tasks (io 4, cpu 1) · 5 edges · asyncio 2, processes 1, threads 2\n" in done.err


def test_executors_lists_all_and_as_json(flow: Flow) -> None:
    done = flow("executors")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == ["executor", *sorted(BUILTIN)]
    assert re.search(r"^futures +- +- +needs an instance: Engine\(executors=\{\.\.\.\}\)$", done.out, re.MULTILINE)
    listed = json.loads(flow("executors", "--json").out)
    assert listed["version"] == 1
    by_name = {row["name"]: row for row in listed["executors"]}
    assert by_name["asyncio"]["accepts"] == ["async"]
    assert by_name["threads"]["slots"] == 32
    assert by_name["futures"] == {
        "name": "futures",
        "origin": "built in",
        "needs": "an instance: Engine(executors={...})",
    }


@pytest.mark.parametrize("name", EXTRAS)
def test_executors_tells_how_to_get_what_is_missing(flow: Flow, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, EXTRAS[name])
    done = flow("executors")
    command = re.escape(f"pip install 'flowlane[{name}]'")
    assert re.search(rf"^{name} +- +- +not installed: {command}$", done.out, re.MULTILINE)
    rows = {row["name"]: row for row in json.loads(flow("executors", "--json").out)["executors"]}
    assert rows[name] == {"name": name, "origin": "built in", "install": f"pip install 'flowlane[{name}]'"}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_route_to_what_is_missing_tells_how_to_get_it(
    write: Write, flow: Flow, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without(monkeypatch, EXTRAS[name])
    write("etl.py", FILE)
    done = flow("check", "etl.py", "--route", f"cpu={name}")
    assert done.code == 2
    assert f"executor '{name}' needs the package '{EXTRAS[name]}', which is not installed" in done.err
    assert f"hint: pip install 'flowlane[{name}]'" in done.err


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if `package` were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == package else find(name, *of))


def test_executors_shows_the_slots_that_settings_give(write: Write, flow: Flow) -> None:
    write("pyproject.toml", "[tool.flow.slots]\nthreads = 5\n")
    listed = json.loads(flow("executors", "--json").out)
    assert {row["name"]: row.get("slots") for row in listed["executors"]}["threads"] == 5
