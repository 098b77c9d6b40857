"""Real faults, real processes: what the fault tests share.

After every test nothing may be left: no process, thread, descriptor, or shared memory of this process's tree.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, RunFailed, Workflow
from flowlane.loader import load_file

from ..leftovers import nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from flowlane.results import RunResult

METHODS = ["nursery", "spawn"] if sys.platform == "linux" else ["spawn"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(scope="session")
def tasks() -> ModuleType:
    return load_file(Path(__file__).with_name("tasks.py"), "_flow_fault_tasks")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """How workers start."""
    return request.param


@pytest.fixture
def perform(method: str) -> Callable[..., RunResult[Any]]:
    """``perform(call, call, …, slots=2, **options of the executor)``: run calls that do not depend on each other."""

    def run(*calls: Any, slots: int = 2, **options: Any) -> RunResult[Any]:
        workflow = Workflow("faults")
        handles = [workflow.add(call) for call in calls]
        with Engine(slots={"processes": slots}, options={"processes": {"start_method": method, **options}}) as engine:
            try:
                return engine.start(workflow.returns(handles)).result(timeout=50)
            except RunFailed as error:
                return error.result

    return run
