"""What travels between worker processes: arrays and frames, who may change them, and where their memory goes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane import Engine, Workflow
from flowlane import run as flowlane_run
from flowlane.loader import load_file
from flowlane.runtime.ports import RemoteValue

if TYPE_CHECKING:
    from types import ModuleType

numpy = pytest.importorskip("numpy", reason="numpy is not installed")


@pytest.fixture(scope="session")
def arrays() -> ModuleType:
    return load_file(Path(__file__).with_name("arrays.py"), "_flow_fault_arrays")


def run(build: Any, **options: Any) -> Any:
    async def main() -> Any:
        async with Engine(slots={"processes": 2}, options={"processes": options}) as engine:
            workflow = Workflow("values")
            return (await engine.start(workflow.returns(build(workflow)))).value

    return asyncio.run(main())


@pytest.mark.parametrize("size", [10, 10_000, 1_000_000])
def test_arrays_pass_from_worker_to_worker(arrays: ModuleType, method: str, size: int) -> None:
    def build(workflow: Workflow) -> Any:
        made = workflow.add(arrays.ramp.bind(size))
        for _ in range(4):
            made = workflow.add(arrays.plus_one.bind(made))
        return [workflow.add(arrays.total.bind(made)), made]

    total, last = run(build, start_method=method)
    expected = numpy.arange(size, dtype="f8") + 4
    assert total == expected.sum()
    assert (last == expected).all()
    last += 1  # what the caller gets is the caller's


def test_a_task_may_write_into_its_argument_and_harms_nobody(arrays: ModuleType, method: str) -> None:
    def build(workflow: Workflow) -> Any:
        made = workflow.add(arrays.ramp.bind(500_000))
        scribbled = [workflow.add(arrays.scribble.bind(made, n)) for n in range(6)]
        return [made, *scribbled]

    made, *sums = run(build, start_method=method)
    assert (made == numpy.arange(500_000)).all()
    assert sums == [float(made.sum() - made[n] - n) for n in range(6)]


def test_what_a_task_keeps_in_a_global_stays_what_it_was(arrays: ModuleType, method: str) -> None:
    def build(workflow: Workflow) -> Any:
        checks = []
        kept: Any = None
        for number in range(12):
            made = workflow.add(arrays.filled.bind(300_000, number), after=[kept] if kept is not None else [])
            kept = workflow.add(arrays.keep.bind(made))
            checks.append(kept)
        return [*checks, workflow.add(arrays.kept_are_whole.bind(), after=[kept])]

    assert (
        run(
            build,
            start_method=method,
        )[-1]
        is True
    )


def test_frames_and_mixed_values_arrive_whole(arrays: ModuleType, method: str) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")

    def build(workflow: Workflow) -> Any:
        frame = workflow.add(arrays.frame.bind(50_000))
        return [frame, workflow.add(arrays.grouped.bind(frame)), workflow.add(arrays.mixed.bind(frame))]

    frame, grouped, mixed = run(build, start_method=method)
    assert frame.shape == (50_000, 3)
    assert grouped == frame.groupby("name")["value"].sum().to_dict()
    assert mixed["frame"].equals(frame)
    assert mixed["text"] == "x" * 200_000
    assert mixed["fortran"].flags.f_contiguous


def test_values_are_not_unpickled_in_the_engine(arrays: ModuleType, method: str) -> None:
    """Its class refuses to be loaded there."""

    def build(workflow: Workflow) -> Any:
        made = workflow.add(arrays.shy.bind(os.getpid()))
        return workflow.add(arrays.look.bind(made))

    assert run(build, start_method=method) == "seen"


def test_values_for_other_executors_are_fetched(arrays: ModuleType) -> None:
    def build(workflow: Workflow) -> Any:
        made = workflow.add(arrays.ramp.bind(200_000))
        here = workflow.add(arrays.total_here.bind(made, {"again": [made]}))
        return [here, workflow.add(arrays.total.bind(here))]

    pid, total = run(build)
    assert pid[0] == os.getpid()
    assert total is None


def test_results_free_their_memory_at_their_last_use(arrays: ModuleType, method: str) -> None:
    """200 arrays of 8 MB one after the other: far more than is ever kept."""

    async def main() -> int:
        async with Engine(slots={"processes": 2}, options={"processes": {"start_method": method}}) as engine:
            most = 0
            for _ in range(4):
                workflow = Workflow("chain")
                made = workflow.add(arrays.ramp.bind(1_000_000))
                for _ in range(50):
                    made = workflow.add(arrays.plus_one.bind(made))
                handle = engine.start(workflow.returns(workflow.add(arrays.total.bind(made))))
                await handle
                shared = sum(process.memory_full_info().pss for process in psutil.Process().children(recursive=True))
                most = max(most, shared)
            return most

    assert asyncio.run(main()) < 700 * 2**20  # 1.6 GB passed


def test_arrays_of_a_dead_worker_are_still_there(arrays: ModuleType, tmp_path: Path) -> None:
    def build(workflow: Workflow) -> Any:
        made = workflow.add(arrays.ramp_by.bind(300_000))
        died = workflow.add(arrays.kill.options(retries=1).bind(made, str(tmp_path / "died")))
        return [workflow.add(arrays.total_of_pair.bind(made), after=[died])]

    assert run(build)[0] == float(numpy.arange(300_000).sum())


def test_remote_values_do_not_reach_the_caller(arrays: ModuleType) -> None:
    value = run(lambda workflow: {"a": [workflow.add(arrays.ramp.bind(100_000))]})
    assert not isinstance(value["a"][0], RemoteValue)


def test_cpu_time_is_that_of_the_body_and_not_of_what_travels(arrays: ModuleType, method: str) -> None:
    workflow = Workflow("values")
    rested = workflow.add(arrays.rest.bind(workflow.add(arrays.rows.bind(100_000)), 0.05))
    result = flowlane_run(workflow.returns(rested), options={"processes": {"start_method": method}})
    told = result.tasks["rest"]
    assert told.pickling is not None
    assert told.cpu is not None
    assert told.cpu < told.pickling / 2  # it only slept: loading and pickling its rows is nearly all that it cost
