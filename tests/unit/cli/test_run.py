"""``flow run``: what lands on stdout and stderr, what is recorded, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowlane.errors import SettingsError
from flowlane.runtime import registry
from flowlane.runtime.ports import Capabilities

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Flow, Write

FILE = """
import os, sys
from flowlane import task, workflow

@task.io
def read(x):
    print("chatter of a task")
    os.write(1, b"chatter of C\\n")
    return x

@task.cpu
def work(x):
    print("chatter of a worker", flush=True)
    return x

@task.io
def fail(x):
    raise ValueError(f"bad {x}")

@workflow
def text(x: str = "plain"):
    return read(x)

@workflow
def data(n: int = 2):
    return {"rows": [read(i) for i in range(n)]}

@workflow
def nothing():
    read(1)

@workflow
def broken():
    return read(fail(3))

@workflow
def cpu():
    return work(read(1))

@workflow
def main_module():
    return read(getattr(sys.modules["__main__"], "__file__", None))
"""


@pytest.fixture(autouse=True)
def _file(write: Write) -> None:
    write("etl.py", FILE)


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (("etl.py:text",), "plain\n"),
        (("etl.py:text", "-p", "x=[1]"), "[1]\n"),
        (("etl.py:text", "-p", "x=two\nlines\n"), "two\nlines\n"),
        (("etl.py:data",), '{"rows":[0,1]}\n'),
        (("etl.py:data", "-p", "n=0"), '{"rows":[]}\n'),
        (("etl.py:nothing",), ""),
    ],
)
def test_the_value_and_nothing_else_is_on_stdout(flow: Flow, argv: tuple[str, ...], out: str) -> None:
    done = flow("run", *argv)
    assert (done.code, done.out) == (0, out)


def test_nothing_that_tasks_print_reaches_stdout_of_a_real_process(flow_process: Flow) -> None:
    done = flow_process("run", "etl.py:cpu")
    assert (done.code, done.out) == (0, "1\n"), done.err
    for words in ("chatter of a task", "chatter of C", "chatter of a worker"):
        assert words in done.err


def test_stderr_has_a_line_a_transition_and_the_summary_last(flow: Flow) -> None:
    done = flow("run", "etl.py:text")
    lines = [line for line in done.err.splitlines() if "chatter" not in line]
    assert lines[0].startswith("text · run ")
    assert [line for line in lines if "running → succeeded" in line]
    assert lines[-4].startswith("✔ text  ")
    assert lines[-3].startswith("  critical path ")
    assert lines[-2].startswith("  time: work ")
    assert re.fullmatch(r"  slots: threads \d+% of 32", lines[-1])
    assert "\x1b" not in done.err


def test_quiet_says_nothing_about_a_success_and_all_about_a_failure(flow: Flow) -> None:
    done = flow("run", "etl.py:data", "-p", "n=0", "--quiet")
    assert (done.code, done.err) == (0, "")
    done = flow("run", "etl.py:broken", "--quiet")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("✗ broken  ")
    assert "fail  ValueError: bad 3" in done.err
    assert "etl.py:18 in fail   raise ValueError" in done.err
    assert "stopped  read" in done.err


def test_json_on_stdout_is_versioned_whether_it_went_well_or_not(flow: Flow) -> None:
    done = flow("run", "etl.py:data", "--json")
    document = json.loads(done.out)
    assert document["version"] == 1
    assert document["state"] == "succeeded"
    assert document["value"] == {"rows": [0, 1]}
    assert document["run"]["workflow"] == "data"
    assert document["tasks"]["read#2"]["state"] == "succeeded"
    done = flow("run", "etl.py:broken", "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert (document["state"], document["value"]) == ("failed", None)
    assert document["tasks"]["fail"]["failure"]["type"] == "ValueError"
    assert document["tasks"]["read"]["state"] == "upstream_failed"


def test_the_json_log_format_is_json_lines_only(flow: Flow) -> None:
    done = flow("run", "etl.py:data", "-p", "n=0", "--log-format", "json")
    events = [json.loads(line) for line in done.err.splitlines()]
    assert events[0]["event"] == "run.started"
    assert events[-1]["event"] == "run.finished"


def test_every_run_is_recorded_in_a_private_folder(flow: Flow) -> None:
    for _ in range(2):
        assert flow("run", "etl.py:text").code == 0
    state = Path(".flow")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert (state / ".gitignore").read_text() == "*\n"
    logs = sorted(state.glob("runs/*/events.jsonl"))
    assert len(logs) == 2
    events = [json.loads(line) for line in logs[0].read_text().splitlines()]
    assert events[0]["event"] == "run.started"
    assert {event["run"] for event in events} == {logs[0].parent.name}


def test_a_state_directory_that_cannot_be_made_costs_the_record_not_the_run(write: Write, flow: Flow) -> None:
    write("in_the_way", "a file")
    write("pyproject.toml", '[tool.flow]\nstate_dir = "in_the_way/state"\n')
    done = flow("run", "etl.py:text")
    assert (done.code, done.out) == (0, "plain\n")
    assert "warning: nothing is recorded, and the run cannot be resumed: " in done.err
    assert "(pyproject.toml [tool.flow])" in done.err


def test_routes_and_slots_reach_the_engine(flow: Flow) -> None:
    done = flow("run", "etl.py:cpu", "--route", "*=inline", "--slots", "inline=1", "--json")
    tasks = json.loads(done.out)["tasks"]
    assert {task["executor"] for task in tasks.values()} == {"inline"}


def test_settings_are_the_defaults_of_the_command_line(
    write: Write, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("pyproject.toml", '[tool.flow.routes]\ncpu = "threads"\n"io.sync" = "inline"\n')
    monkeypatch.setenv("FLOW_ROUTES", "cpu=inline")
    tasks = json.loads(flow("run", "etl.py:cpu", "--json").out)["tasks"]
    assert (tasks["work"]["executor"], tasks["read"]["executor"]) == ("inline", "inline")
    tasks = json.loads(flow("run", "etl.py:cpu", "--json", "--route", "cpu=threads").out)["tasks"]
    assert (tasks["work"]["executor"], tasks["read"]["executor"]) == ("threads", "inline")


def test_the_command_is_hidden_from_workers_and_put_back(flow: Flow) -> None:
    before = sys.modules["__main__"]
    done = flow("run", "etl.py:main_module")
    assert (done.code, done.out) == (0, "")  # the value is None: there is no file
    assert sys.modules["__main__"] is before


def test_a_module_runs_by_its_dotted_name(write: Write, flow: Flow) -> None:
    write("pkg_run_test/__init__.py", "")
    write("pkg_run_test/part.py", "NAME = 'relative'\n")
    write(
        "pkg_run_test/etl.py",
        """
        from flowlane import task, workflow
        from .part import NAME
        @task.io
        def read():
            return NAME
        @workflow
        def etl():
            return read()
        """,
    )
    assert flow("run", "pkg_run_test.etl").out == "relative\n"


def test_no_escape_byte_where_colours_are_unwanted(flow: Flow) -> None:
    done = flow("run", "etl.py:broken")
    assert "\x1b" not in done.err + done.out
    assert os.path.isdir(".flow")


class Unopenable:
    """An executor that cannot be opened."""

    capabilities = Capabilities(accepts=frozenset({"sync", "async"}), default_slots=1)

    async def open(self, deliver: object) -> None:
        raise SettingsError("executor 'gpu' finds no device", hint="plug one in")

    def submit(self, jobs: object) -> None: ...
    def interrupt(self, refs: object, grace: float) -> None: ...
    async def close(self, grace: float) -> None: ...


def test_an_executor_that_cannot_be_opened_is_an_error_of_its_own(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUILTIN", {**registry.BUILTIN, "gpu": f"{__name__}:Unopenable"})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    done = flow("run", "etl.py:text", "--route", "io=gpu")
    assert (done.code, done.out) == (2, "")
    assert "error: executor 'gpu' finds no device" in done.err
    assert "hint: plug one in" in done.err
    assert "Traceback" not in done.err


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PARTS = """
import os
from flowlane import task, workflow

@task.io
def read(x: int) -> int:
    return x

@task.io
def double(x: int) -> int:
    if os.path.exists("broken"):
        raise ValueError("broken")
    return 2 * x

@task.io
def tell(x: int) -> int:
    return x

@workflow
def etl() -> int:
    return tell(double(read(3)))
"""


def test_a_part_by_itself(flow: Flow, write: Write) -> None:
    write("parts.py", PARTS)
    assert flow("run", "parts.py", "--only", "read", "--only", "dou*").out == '{"double":6}\n'
    assert flow("run", "parts.py", "--until", "double").out == '{"double":6}\n'
    assert flow("run", "parts.py", "--from", "read", "--until", "read").out == '{"read":3}\n'
    result = flow("run", "parts.py", "--from", "double")
    assert result.code == 2
    assert "task 'double' needs the value of 'read', which is left out" in result.err
    assert "--from read" in result.err
    assert "did you mean 'double'?" in flow("run", "parts.py", "--only", "duoble").err


def test_a_part_goes_on_as_a_part(flow: Flow, write: Write) -> None:
    write("parts.py", PARTS)
    broken = write("broken", "")
    assert flow("run", "parts.py", "--until", "double").code == 1
    os.unlink(broken)
    result = flow("resume")
    assert (result.code, result.out) == (0, '{"double":6}\n')
