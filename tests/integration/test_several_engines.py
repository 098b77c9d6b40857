"""Several engines in one process: on one loop, on loops of their own, in plain threads, and inside each other's tasks.

Each test leaves no thread, process, descriptor or shared memory.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane import Engine, EngineClosed, RunFailed, RunState, UsageError, Workflow, arun, run, task, workflow

from ..leftovers import nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


@task.io
async def number(n: int) -> int:
    await asyncio.sleep(0)
    return n


@task.io
def where(n: int) -> tuple[int, int]:
    return n, threading.get_ident()


@task.cpu
def square(n: int) -> tuple[int, int]:
    return n * n, os.getpid()


@workflow
def squares(n: int = 3) -> list[tuple[int, int]]:
    return [square(number(i)) for i in range(n)]


def values(pairs: list[tuple[int, int]]) -> list[int]:
    return [value for value, _ in pairs]


# ── side by side ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_engines_on_one_loop_share_nothing() -> None:
    """Slots, workers and failures are each engine's own."""
    async with Engine(slots={"processes": 1}) as one, Engine(slots={"processes": 2}) as other:
        results = await asyncio.gather(*[engine.start(squares, 4) for engine in (one, other, one, other)])
        assert [values(result.value) for result in results] == [[0, 1, 4, 9]] * 4
        pids = [{pid for _, pid in result.value} for result in results]
        assert pids[0] == pids[2] and len(pids[0]) == 1
        assert not (pids[0] | pids[2]) & (pids[1] | pids[3])
        assert os.getpid() not in set().union(*pids)
        assert one.runs == other.runs == {}
    assert one.runs == {}


async def test_closing_one_engine_cancels_nothing_of_another() -> None:
    async with Engine() as survivor:
        handle = survivor.start(squares, 5)
        with suppress(KeyError):
            async with Engine() as other:
                lost = other.start(endless)
                raise KeyError("mine")
        assert lost.state is RunState.CANCELLED
        assert values((await handle).value) == [0, 1, 4, 9, 16]


@task.io
async def forever() -> None:
    await asyncio.Event().wait()


@workflow
def endless() -> None:
    forever()


def plain(n: int) -> list[int]:
    with Engine(slots={"processes": 1}) as engine:
        return values(engine.start(squares, n).result(40).value)


def with_run(n: int) -> list[int]:
    return values(run(squares.bind(n), slots={"processes": 1}).value)


def with_a_loop(n: int) -> list[int]:
    async def main() -> list[int]:
        async with Engine(slots={"processes": 1}) as engine:
            return values((await engine.start(squares, n)).value)

    return asyncio.run(main())


def test_engines_in_threads_each_with_a_loop_of_its_own() -> None:
    found: dict[tuple[str, int], list[int]] = {}

    def keep(way: Callable[[int], list[int]], n: int) -> None:
        found[way.__name__, n] = way(n)

    threads = [threading.Thread(target=keep, args=(way, n)) for way in (plain, with_run, with_a_loop) for n in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    ways = [way.__name__ for way in (plain, with_run, with_a_loop)]
    assert found == {(way, n): [i * i for i in range(n)] for way in ways for n in (2, 3)}


def test_one_engine_is_used_by_many_plain_threads() -> None:
    found: dict[int, list[int]] = {}
    seen: dict[int, list[str]] = {}
    with Engine(slots={"processes": 2}) as engine:

        def use(n: int) -> None:
            handle = engine.start(squares, n)

            async def watch() -> list[str]:
                return [event["event"] async for event in handle.events()]

            seen[n] = asyncio.run(watch())  # on a loop of this thread's
            found[n] = values(handle.result(40).value)

        threads = [threading.Thread(target=use, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    assert found == {n: [i * i for i in range(n)] for n in range(6)}
    assert all(events[0] == "run.started" and events[-1] == "run.finished" for events in seen.values())


async def test_a_sync_engine_in_async_code_has_a_loop_of_its_own() -> None:
    with Engine() as engine:
        handle = engine.start(squares, 3)
        assert values((await handle).value) == [0, 1, 4]  # awaited on this loop, run on the other
        assert values(engine.start(squares, 2).result(40).value) == [0, 1]  # blocks this loop, and ends all the same
    with pytest.raises(EngineClosed):
        engine.start(squares)


# ── inside each other ─────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def nested_in_a_coroutine(n: int) -> list[int]:
    return values((await arun(squares, n)).value)


@task.io
def nested_in_a_thread(n: int) -> list[int]:
    return values(run(squares, n).value)


@task.io
def nested_engine_in_a_thread(n: int) -> list[int]:
    with Engine(slots={"processes": 1}) as engine:
        return values(engine.start(squares, n).result(40).value)


@task.cpu
def nested_in_a_worker(n: int) -> tuple[list[int], bool]:
    pairs = run(squares, n).value
    return values(pairs), os.getpid() not in {pid for _, pid in pairs}


def test_a_run_in_a_task_of_another_engine_s_run() -> None:
    #   nested_in_a_coroutine   nested_in_a_thread   nested_engine_in_a_thread   nested_in_a_worker
    flow = Workflow("outer")
    tasks: list[Any] = [nested_in_a_coroutine, nested_in_a_thread, nested_engine_in_a_thread, nested_in_a_worker]
    for each in tasks:
        flow.add(each.bind(3))
    assert run(flow, slots={"processes": 1}).value == {
        "nested_in_a_coroutine": [0, 1, 4],
        "nested_in_a_thread": [0, 1, 4],
        "nested_engine_in_a_thread": [0, 1, 4],
        "nested_in_a_worker": ([0, 1, 4], True),
    }


def test_a_task_may_start_a_run_on_the_engine_that_runs_it() -> None:
    @task.io
    async def inner() -> list[int]:
        return values((await engine.start(squares, 3)).value)

    @task.io
    def inner_thread() -> list[int]:
        return values(engine.start(squares, 2).result(40).value)

    @workflow
    def outer() -> list[list[int]]:
        return [inner(), inner_thread()]

    with Engine(slots={"processes": 1}) as engine:
        assert engine.start(outer).result(40).value == [[0, 1, 4], [0, 1]]


@task.io
async def blocks_the_loop() -> None:
    run(squares)


@workflow
def blocking() -> None:
    blocks_the_loop()


def test_run_in_a_coroutine_says_what_to_do() -> None:
    with pytest.raises(RunFailed, match=r"run\(\) was called inside a running event loop") as failed:
        run(blocking)
    cause = failed.value.__cause__
    assert isinstance(cause, UsageError) and cause.hint == "use `await arun(...)` there"


@task.cpu
def spins() -> None:
    while True:
        pass


@workflow
def spinning() -> None:
    spins()


@task.io
async def nested_spinning() -> None:
    await arun(spinning)


@task.cpu
def nested_spinning_worker() -> None:
    run(spinning)


@pytest.mark.parametrize("outer", [nested_spinning, nested_spinning_worker])
async def test_cancelling_the_outer_run_ends_the_inner_one_and_its_workers(outer: Any) -> None:
    """The inner worker is a grandchild, or its child."""
    flow = Workflow("outer")
    flow.add(outer.bind())
    deep = 2 if outer is nested_spinning else 4  # a nursery and a worker for each engine
    async with Engine(slots={"processes": 1}) as engine:
        handle = engine.start(flow)
        while len(psutil.Process().children(recursive=True)) < deep:
            await asyncio.sleep(0.01)
        handle.cancel()
        assert (await handle.wait()).state is RunState.CANCELLED


def test_names_may_be_asked_for_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """inner.map: more workflows than names of such are kept at a time."""
    monkeypatch.setattr("flowlane.runtime.roster._OWNERS_KEPT", 4)

    @workflow
    def inner(n: int) -> Any:
        return number(number(n))

    @workflow
    def outer() -> Any:
        return inner.map(range(50))

    names = run(outer)._record.names
    expected = {names[element]: element for element in range(len(names))}
    assert len(expected) == len(names) == 1 + 3 * 50
    wrong: list[object] = []

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(2_000):
                element = draw.randrange(len(names))
                if expected[names[element]] != element:
                    wrong.append(element)
        except KeyError as error:
            wrong.append(error)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert wrong == []
