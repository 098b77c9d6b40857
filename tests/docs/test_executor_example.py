"""The executor in docs/writing-an-executor.md keeps the rules that the page states."""

from __future__ import annotations

import threading
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, RunState, Task, TaskState, Workflow, task
from flowlane.runtime.ports import Executor
from flowlane.testing.executors import ExecutorContract

from .pages import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

release = threading.Event()


@task.io
def thread_name() -> str:
    return threading.current_thread().name


@task.io
def leaves() -> None:
    raise SystemExit(3)


@task.io(timeout=0.05)
def hangs() -> None:
    release.wait(20)


@task.io
def waits() -> None:
    release.wait(20)


@pytest.fixture
def example() -> Iterator[Any]:
    (block,) = [block for block in blocks("docs/writing-an-executor.md") if block.mark == "file: one_thread.py"]
    module = ModuleType("one_thread")
    exec(compile(block.text, "one_thread.py", "exec"), module.__dict__)
    release.clear()
    yield module.OneThreadExecutor
    release.set()
    deadline = time.monotonic() + 20
    while any(thread.name == "example" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread of the example is left over"
        time.sleep(0.005)


def graph(*tasks: Task[[], Any, Any]) -> Workflow:
    """One node for each, which wait for nothing."""
    flow = Workflow("example")
    for each in tasks:
        flow.add(each.bind())
    return flow


def engine(executor: Executor, grace: float = 0.05) -> Engine:
    return Engine(executors={"mine": executor}, routes={"*": "mine"}, slots={"mine": 3}, grace=grace)


def test_it_is_an_executor_and_runs_everything_in_one_thread(example: Any) -> None:
    executor = example("example")
    assert isinstance(executor, Executor)
    with engine(executor) as running:
        result = running.start(graph(*[thread_name] * 20)).result(20)
    assert set(result.value.values()) == {"example"}
    assert {each.executor for each in result.tasks.values()} == {"mine"}


def test_a_task_that_wants_to_leave_fails_alone(example: Any) -> None:
    with engine(example("example")) as running:
        handle = running.start(graph(leaves, thread_name))
        with pytest.raises(Exception, match="SystemExit: 3"):
            handle.result(20)
        result = running.start(graph(thread_name)).result(20)
    assert result.state is RunState.SUCCEEDED


async def test_a_task_that_does_not_stop_is_given_up_and_the_next_one_runs(example: Any) -> None:
    async with engine(example("example")) as running:
        result = await running.start(graph(hangs, thread_name)).wait()
    states = {name: each.state for name, each in result.tasks.items()}
    assert states == {"hangs": TaskState.TIMED_OUT, "thread_name": TaskState.SUCCEEDED}


async def test_cancelling_takes_back_what_waits_and_gives_up_what_runs(example: Any) -> None:
    async with engine(example("example")) as running:
        handle = running.start(graph(waits, thread_name, thread_name))
        async for event in handle.events():
            if event.get("to") == "running":
                break
        handle.cancel()
        result = await handle.wait()
    assert result.state is RunState.CANCELLED
    assert result.counts == {TaskState.CANCELLED: 3}


async def test_leaving_the_engine_waits_for_what_runs(example: Any) -> None:
    async with engine(example("example"), grace=20) as running:
        handle = running.start(graph(waits))
        threading.Timer(0.05, release.set).start()
    assert handle.state is RunState.SUCCEEDED


class TestContract(ExecutorContract):
    """The suite that the page tells authors to run."""

    reopens = False  # its thread's queue has ended

    @pytest.fixture
    def make(self, example: Any) -> Any:
        return lambda: example("example")
