"""Jobs that need cores or memory, in real worker processes: what they get, and who pays when they take more than they may."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, Limit, MemoryExceeded, RunFailed, Workflow
from flowlane.core.states import TaskState
from flowlane.loader import load_file
from flowlane_plugins.executors.futures import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from flowlane.results import RunResult

    Perform = Callable[..., RunResult[Any]]

MB = 1_000_000
TWO_CORES = pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")


@pytest.fixture(scope="module")
def needing() -> ModuleType:
    return load_file(Path(__file__).with_name("needing.py"), "_flow_fault_needing")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, needing: ModuleType) -> None:
    for name in needing.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def in_turn(*calls: Any, method: str, slots: int = 2, **options: Any) -> RunResult[Any]:
    """Run calls one after the other."""
    workflow = Workflow("needs")
    handles: list[Any] = []
    for call in calls:
        handles.append(workflow.add(call, after=handles[-1:]))
    executor = {"start_method": method, **options}
    with Engine(slots={"processes": slots}, options={"processes": executor}) as engine:
        try:
            return engine.start(workflow.returns(handles)).result(timeout=50)
        except RunFailed as error:
            return error.result


# ── cores ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("preload", [(), ("numpy",)])
def test_a_job_with_cores_computes_in_as_many_threads_and_the_next_in_one(
    needing: ModuleType, method: str, preload: tuple[str, ...]
) -> None:
    """look → wide → look → loads numpy → wide → look, in one worker: what is loaded, and what will be."""
    calls = [
        needing.look.bind(0),
        needing.look_wide.bind(1),
        needing.look.bind(2),
        needing.loads_numpy.bind(3),
        needing.look_wide.bind(4),
        needing.look.bind(5),
    ]
    options = {"preload": preload} if method == "nursery" else {}
    rows = in_turn(*calls, method=method, **options).value
    assert len({row[0] for row in rows}) <= 2
    usual = dict.fromkeys(needing.VARIABLES) | {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    wide = dict.fromkeys(needing.VARIABLES, "2")
    for number, (_, environment, pools, _) in enumerate(rows):
        assert environment == (wide if number in (1, 4) else usual), number
        assert set(pools) <= {2 if number in (1, 4) else 1}, number


def test_libraries_that_a_wide_job_loads_are_told_of_its_cores_and_of_their_end(
    needing: ModuleType, method: str
) -> None:
    pytest.importorskip("numpy")
    (threads, _, pools), (_, _, after, loaded) = in_turn(
        needing.multiplies.bind(64), needing.look.bind(1), method=method, slots=2, max_tasks=None
    ).value
    assert threads >= 1
    assert set(pools) == {2}
    if loaded:  # the second job had the same worker
        assert set(after) == {1}


@TWO_CORES
def test_a_product_of_matrices_uses_its_cores(needing: ModuleType, method: str) -> None:
    pytest.importorskip("numpy")
    (found,) = in_turn(needing.multiplies.bind(700), method=method).value
    threads, _, pools = found
    assert set(pools) == {2}
    assert threads >= 2


def test_nothing_runs_beside_a_job_that_takes_all_cores(needing: ModuleType, perform: Perform) -> None:
    """Short jobs lie in workers in advance; a wide one still has its cores to itself."""
    calls: list[Any] = [needing.short.bind(number) for number in range(150)]
    for place in (60, 100, 140):
        calls.insert(place, needing.spans.bind(place))
    result = perform(*calls, slots=2)
    spans = list(result.value)
    wide = [spans[place] for place in (60, 100, 140)]
    for begun, ended in wide:
        beside = [span for span in spans if span != (begun, ended) and span[0] < ended and span[1] > begun]
        assert beside == []


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_takes_more_than_it_may_is_killed_and_alone_pays(
    needing: ModuleType, tasks: ModuleType, perform: Perform
) -> None:
    calls: list[Any] = [tasks.innocent.bind(number) for number in range(20)]
    calls[7:7] = [needing.takes.bind(400 << 20), needing.takes.bind(20 << 20)]
    result = perform(*calls)
    failed, kept = result.tasks["takes"], result.tasks["takes#2"]
    assert failed.state is TaskState.CRASHED
    assert failed.failure is not None
    assert failed.failure.type == "MemoryExceeded"
    assert "and may take 100 MB" in failed.failure.message
    assert failed.failure.notes == ("hint: give it more, memory=..., or have it work on less at a time",)
    error = failed.failure.exception
    assert isinstance(error, MemoryExceeded)
    assert error.limit == 100 * MB < error.peak < 420 * MB
    assert kept.state is TaskState.SUCCEEDED
    assert {task.state for name, task in result.tasks.items() if "innocent" in name} == {TaskState.SUCCEEDED}


def test_it_is_tried_again_as_often_as_its_policy_says_and_is_no_poison(needing: ModuleType, perform: Perform) -> None:
    result = perform(needing.takes_again.bind(400 << 20))
    failed = result.tasks["takes_again"]
    assert (failed.state, failed.attempts) == (TaskState.CRASHED, 3)
    assert failed.failure is not None and failed.failure.type == "MemoryExceeded"


def test_the_next_attempt_may_do_with_less(needing: ModuleType, perform: Perform, tmp_path: Path) -> None:
    result = perform(needing.takes_less_then.bind(str(tmp_path / "tried")))
    done = result.tasks["takes_less_then"]
    assert (done.state, done.attempts) == (TaskState.SUCCEEDED, 2)


def test_nobody_pays_for_what_a_task_before_left_behind(needing: ModuleType, method: str) -> None:
    calls = [needing.hoards.bind(150 << 20), needing.modest.bind(0), needing.modest.bind(1), needing.modest.bind(2)]
    result = in_turn(*calls, method=method, slots=1)
    hoarder, *others = result.value
    assert {pid for pid, _ in others} == {hoarder}
    assert {kept for _, kept in others} == {150 << 20}


def test_tasks_begin_when_there_is_memory_for_them(needing: ModuleType, method: str) -> None:
    """100 MB each, and 150 in all: one at a time."""
    workflow = Workflow("needs")
    handles = [workflow.add(needing.takes.bind(1 << 20)) for _ in range(4)]
    with Engine(slots={"processes": 2}, options={"processes": {"start_method": method}}) as engine:
        bound = workflow.returns(handles)
        handle = engine.start(bound, limits=[Limit("memory", 150)])
        result = handle.result(timeout=50)
        spans = sorted(
            (e["mono_ns"], e["to"]) for e in _events(engine, handle) if e["from"] == "running" or e["to"] == "running"
        )
    assert result.value == [1, 1, 1, 1]
    out = 0
    for _, to in spans:
        out += 1 if to == "running" else -1
        assert 0 <= out <= 1


def _events(engine: Engine, handle: Any) -> list[dict[str, Any]]:
    import asyncio

    async def read() -> list[dict[str, Any]]:
        return [event async for event in handle.events() if event["event"] == "task.transition"]

    return asyncio.run(read())


def test_where_nobody_can_be_stopped_the_run_says_so_once(needing: ModuleType) -> None:
    workflow = Workflow("needs")
    handles = [workflow.add(needing.unwatched.bind(number)) for number in range(5)]
    with Engine() as engine:
        result = engine.start(workflow.returns(handles)).result(timeout=50)
    assert result.value == list(range(5))
    (note,) = result.notes
    assert note.endswith("may take more than its memory=: threads can stop nobody, and only starts no more than fit")


def test_this_process_knows_how_much_it_holds() -> None:
    from flowlane_plugins.workers.resident import resident

    before = resident(os.getpid())
    block = b"\1" * (64 << 20)
    assert before > 0
    assert resident(os.getpid()) - before > len(block) // 2
    assert resident(2**30) == 0
