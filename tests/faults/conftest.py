"""Real faults, real processes: what the fault tests share.

After every test nothing may be left: no process, thread, descriptor, or shared memory of this process's tree.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane import Engine, RunFailed, Workflow
from flowlane.loader import load_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from flowlane.results import RunResult

METHODS = ["nursery", "spawn"] if sys.platform == "linux" else ["spawn"]


def children() -> set[int]:
    """Processes below this one, the resource trackers of multiprocessing and loky left out."""
    found: set[int] = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def descriptors() -> dict[str, str]:
    """Open descriptors of this process → what they are."""
    found: dict[str, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return {fd: what for fd, what in found.items() if "/proc/" not in what}


def shared_memory() -> set[str]:
    """What of ours has a name there: nothing ever should. (Other programs use it too, so only our names count.)"""
    return {name for name in os.listdir("/dev/shm") if "flowlane" in name} if os.path.isdir("/dev/shm") else set()


def left_over(
    threads: set[int | None], processes: set[int], fds: dict[str, str], shm: set[str], patience: float = 20.0
) -> list[str]:
    """What is there now and was not before, after waiting for it to go."""
    deadline = time.monotonic() + patience
    while True:
        gc.collect()
        left = [f"thread {t.name}" for t in threading.enumerate() if t.ident not in threads]
        left += [f"process {pid}" for pid in children() - processes]
        left += [f"descriptor {fd} {what}" for fd, what in descriptors().items() if fds.get(fd) != what]
        left += [f"shared memory {name}" for name in shared_memory() - shm]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    threads, processes = {t.ident for t in threading.enumerate()}, children()
    fds, shm = descriptors(), shared_memory()
    yield
    assert left_over(threads, processes, fds, shm) == []


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
