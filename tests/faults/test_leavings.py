"""What a task leaves behind in its worker process: the next one does not meet it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.states import TaskState
from flowlane.loader import load_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from flowlane.results import RunResult

    Perform = Callable[..., RunResult[Any]]

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


@pytest.fixture(scope="session")
def leaving() -> ModuleType:
    return load_file(Path(__file__).with_name("leaving.py"), "_flow_leaving")


# ── children ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_child_that_comes_back_ends_as_programs_end(leaving: ModuleType, perform: Perform) -> None:
    result = perform(leaving.ends_of_children.bind(), leaving.pid.bind(), slots=1)
    assert result.value[0] == [0, 3, 1, 1]
    output = result.tasks["ends_of_children"].output or ""
    assert "some text\n" in output
    assert output.endswith("LookupError: in the child\n")


def test_children_of_values_do_not_answer(leaving: ModuleType, perform: Perform) -> None:
    result = perform(leaving.hand_on.bind(leaving.Forking(os.getpid())), leaving.pid.bind(), slots=1)
    assert result.value[0].home == os.getpid()
    assert {task.attempts for task in result.tasks.values()} == {1}


def test_a_fork_leaves_the_tasks_own_handler_alone(leaving: ModuleType, perform: Perform) -> None:
    assert perform(leaving.own_handler_after_a_fork.bind(), slots=1).value == [True]


def test_a_child_of_a_thread_ends_in_that_thread(leaving: ModuleType, perform: Perform) -> None:
    result = perform(leaving.forks_in_a_thread.bind(), leaving.pid.bind(), slots=1)
    assert result.value[0] == 0


# ── what is put back ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_that_was_not_ended_is_its_own_tasks(leaving: ModuleType, perform: Perform) -> None:
    result = perform(leaving.say.bind("one"), leaving.say.bind("two"), slots=1)
    assert [task.output for task in result.tasks.values()] == ["one", "two"]


@pytest.mark.parametrize("how", ["close_streams", "lose_streams"])
def test_streams_are_put_back(leaving: ModuleType, perform: Perform, how: str) -> None:
    result = perform(getattr(leaving, how).bind(), leaving.say.bind("hello"), leaving.pid.bind(), slots=1)
    assert result.tasks["say"].output == "hello"
    assert result.value[0] == result.value[2], "that needs no new process"


def test_umask_folder_and_blocked_signals_are_put_back(leaving: ModuleType, perform: Perform, tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    result = perform(leaving.touch.bind(str(tmp_path)), leaving.surroundings.bind(), slots=1)
    assert result.value[1] == (result.value[0], umask, os.getcwd(), 0)


def test_what_a_module_does_when_it_is_imported_costs_no_process(
    leaving: ModuleType, perform: Perform, tmp_path: Path
) -> None:
    (tmp_path / "sets_a_handler.py").write_text("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)")
    result = perform(leaving.import_what_sets_a_handler.bind(str(tmp_path)), leaving.pid.bind(), slots=1)
    assert result.value[0] == result.value[1]


# ── descriptors ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_leak_of_descriptors_fails_nobody_else(leaving: ModuleType, perform: Perform) -> None:
    import numpy

    arrays = [numpy.ones(100_000), numpy.ones(1_000_000)]
    calls = [leaving.total.bind(array) for array in arrays]
    result = perform(leaving.pid.bind(), leaving.eat_descriptors.bind(), *calls, leaving.pid.bind(), slots=1)
    assert result.value[2:4] == [100_000.0, 1_000_000.0]
    assert result.value[0] != result.value[4], "the descriptors came into a process that had no room for them"
    assert {task.attempts for task in result.tasks.values()} == {1}


def test_a_worker_without_its_socket_is_replaced(leaving: ModuleType, perform: Perform) -> None:
    calls = [leaving.pid.bind() for _ in range(3)]
    result = perform(leaving.take_the_sockets_number.bind(), *calls, slots=1)
    assert {task.state for task in result.tasks.values()} == {TaskState.SUCCEEDED}


# ── starting ──────────────────────────────────────────────────────────────────────────────────────────────────────

SCRIPT = """
import os, sys
from flowlane import Engine, Workflow

if __name__ == "__main__":
    os.rmdir(os.getcwd())
    sys.modules["__main__"].__file__ = "relative.py"
    import leaving
    workflow = Workflow("gone")
    handle = workflow.add(leaving.pid.bind())
    with Engine(options={"processes": {"start_method": sys.argv[1]}}) as engine:
        assert engine.start(workflow.returns(handle)).result(timeout=20) != os.getpid()
"""


def test_workers_start_where_the_folder_was_deleted(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = [str(Path(__file__).parent), *[path for path in sys.path if path]]
    done = subprocess.run(
        [sys.executable, str(script), method],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    if "SystemError" in done.stderr and sys.version_info[:3] == (3, 13, 0):
        pytest.skip("Python 3.13.0 cannot even import socket in a deleted folder")
    assert done.returncode == 0, done.stderr
