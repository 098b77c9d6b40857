"""The engine among faulty plug-ins, late starters and awkward values: nobody waits for ever, and no slot is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from flowlane import Engine, EngineClosed, FlowError, RunState, SettingsError, TaskState, task, workflow
from flowlane.handle import LiveRun, RunHandle
from flowlane.runtime.ports import SUCCEEDED, Capabilities, Job, Report
from flowlane_plugins.executors.futures import FuturesExecutor


class Stub:
    """An executor that does nothing at all."""

    capabilities = Capabilities(accepts=frozenset({"sync"}), default_slots=1)

    async def open(self, deliver: Any) -> None: ...

    def submit(self, jobs: Sequence[Job]) -> None: ...

    def interrupt(self, refs: Sequence[int], grace: float) -> None: ...

    async def close(self, grace: float) -> None: ...


class Refuses(Stub):
    def submit(self, jobs: Sequence[Job]) -> None:
        raise RuntimeError("submit is broken")


class NeverOpens(Stub):
    async def open(self, deliver: Any) -> None:
        await asyncio.Event().wait()


@task.io
async def one() -> int:
    return 1


@task.io
async def waits() -> None:
    await asyncio.Event().wait()


@task.io(executor="stub")
def stubbed(x: int) -> None: ...


@workflow
def holding() -> None:
    #  waits            holds a slot when the run dies
    #  one ─▶ stubbed   whose executor raises
    waits()
    stubbed(one())


@workflow
def single() -> Any:
    return one()


async def test_a_run_that_dies_of_a_plug_in_gives_its_slots_back() -> None:
    async with Engine(executors={"stub": Refuses()}, slots={"asyncio": 2}) as engine:
        for _ in range(3):
            async with asyncio.timeout(10):
                result = await engine.start(holding).wait()
            assert result.state is RunState.FAILED
            with pytest.raises(RuntimeError, match="submit is broken"):
                result.check()
            assert result.counts == {TaskState.SUCCEEDED: 1, TaskState.CANCELLED: 2}
        assert all(lane.in_use == 0 for lane in engine._dispatcher._lanes.values())
        async with asyncio.timeout(10):
            assert (await engine.start(single)).value == 1


async def test_an_executor_that_never_opens_does_not_hold_up_the_end() -> None:
    async with asyncio.timeout(10):
        async with Engine(executors={"stub": NeverOpens()}) as engine:
            handle = engine.start(holding)
            await asyncio.sleep(0.01)
            handle.cancel()
            assert (await handle.wait()).state is RunState.CANCELLED


class OpensLate(Stub):
    """Fails to open the first time, after `delay` seconds."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.opened = 0

    async def open(self, deliver: Any) -> None:
        self.opened += 1
        attempt = self.opened
        await asyncio.sleep(self.delay)
        if attempt == 1:
            raise OSError(f"not open after {self.delay}")
        self.deliver = deliver

    def submit(self, jobs: Sequence[Job]) -> None:
        now = time.monotonic_ns()
        self.deliver([Report(job.ref, SUCCEEDED, now, now, 1) for job in jobs])


@task.io(executor="late")
def later() -> int: ...


@workflow
def both() -> None:
    stubbed(1)
    later()


@workflow
def only_later() -> Any:
    return later()


async def test_each_run_hears_of_its_own_openings_only() -> None:
    late = OpensLate(0.02)
    async with Engine(executors={"stub": OpensLate(0.0), "late": late}) as engine:
        with pytest.raises(OSError, match=r"not open after 0\.0"):
            await engine.start(both)
        await asyncio.sleep(0.04)  # the other one fails when nobody waits for it any more
        assert (await engine.start(only_later)).value == 1
    assert late.opened == 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
async def test_a_host_whose_tasks_are_eager() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    try:
        async with Engine() as engine:
            assert (await engine.start(single)).value == 1
            assert (await engine.start(single)).value == 1
    finally:
        asyncio.get_running_loop().set_task_factory(None)


class NeverCloses(OpensLate):
    async def close(self, grace: float) -> None:
        await asyncio.Event().wait()


async def test_an_executor_that_never_closes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlane.runtime.dispatcher._CLOSING", 0.01)
    late = NeverCloses(0.0)
    late.opened = 1
    async with asyncio.timeout(10):
        with pytest.raises(FlowError, match="executor 'late' has not closed"):
            async with Engine(executors={"late": late}, grace=0.01) as engine:
                await engine.start(only_later)


async def test_a_failed_run_keeps_no_values() -> None:
    class Big:
        pass

    alive: list[weakref.ref[Big]] = []

    @task.io
    async def make() -> Big:
        big = Big()
        alive.append(weakref.ref(big))
        return big

    @task.io
    async def fails() -> None:
        raise ValueError("no")

    @workflow
    def etl() -> Any:
        return [make(), fails()]

    async with Engine() as engine:
        result = await engine.start(etl).wait()
        assert result.state is RunState.FAILED
        await asyncio.sleep(0)
        gc.collect()
        assert alive[0]() is None


class Picky(NamedTuple):
    x: Any


class PickyToo(Picky):
    @classmethod
    def _make(cls, items: Any) -> Any:
        (x,) = items
        if x == 1:
            raise ValueError("not 1")
        return super()._make([x])


@workflow
def picky() -> Any:
    return PickyToo(one())


async def test_a_value_that_cannot_be_put_together_is_told_to_who_waits() -> None:
    async with Engine() as engine:
        handle = engine.start(picky)
        async with asyncio.timeout(10):
            with pytest.raises(ValueError, match="not 1"):
                await handle
        assert handle.state is RunState.FAILED


@pytest.mark.parametrize("slots", [0, -1, 2.5, True, "3"])
def test_a_wrong_number_of_slots_is_told_by_start(slots: Any) -> None:
    with Engine(slots={"asyncio": slots}) as engine, pytest.raises(SettingsError, match="slots of 'asyncio'"):
        engine.start(single)


async def test_a_job_that_its_pool_takes_back_is_not_called_late() -> None:
    release = threading.Event()

    @task.io(executor="pool")
    def blocks() -> None:
        release.wait(10)

    @workflow
    def two() -> None:
        blocks()
        blocks()

    pool = ThreadPoolExecutor(1)
    async with Engine(executors={"pool": FuturesExecutor(pool, slots=2)}) as engine:
        handle = engine.start(two)
        while not pool._work_queue.qsize():  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
        pool.shutdown(wait=False, cancel_futures=True)
        release.set()
        result = await handle.wait()
    assert result.failures["blocks#2"].type == "CancelledError"


async def test_a_retried_error_does_not_keep_its_arguments_alive() -> None:
    class Big:
        pass

    alive: list[weakref.ref[Big]] = []

    @task.io
    async def make() -> Big:
        big = Big()
        alive.append(weakref.ref(big))
        return big

    @task.io(retries=1)
    async def use(big: Big, tries: list[int]) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")
        return 1

    @workflow
    def etl() -> int:
        return use(make(), [])

    async with Engine() as engine:
        program = engine.compile(etl.bind())
        result = await engine.launch(program, keep_history=False).wait()
        assert result.retries == 1
        await asyncio.sleep(0)
        gc.collect()
        assert alive[0]() is None


async def test_the_last_steps_come_before_the_end_whenever_they_come() -> None:
    async with Engine() as engine:
        handle = engine.start(single)
        await handle
    ended = handle._run

    class Racing(list[Any]):
        """Grows just after somebody has looked how long it is, as another thread may make it."""

        def __len__(self) -> int:
            length = super().__len__()
            if not length:
                self.extend(ended.steps or [])
                run.outcome = ended.outcome
            return length

    run = LiveRun(ended.workflow, keep_history=True)
    run.info, run.steps = ended.info, Racing()
    names = [event["event"] async for event in RunHandle[Any](run, lambda call: call(), lambda: True).events()]
    assert names == ["run.started", *["task.transition"] * 3, "run.finished"]


def test_a_start_that_comes_too_late_for_the_loop_is_told() -> None:
    with Engine() as engine:
        program = engine.compile(single.bind())
    engine._closed = False  # as a thread sees it that looked just before the end
    with pytest.raises(EngineClosed):
        engine.launch(program, keep_history=False)
    assert not engine._running


def test_plain_with_ends_what_user_code_left_on_its_loop() -> None:
    seen: list[str] = []
    kept: list[Any] = []

    async def numbers() -> Any:
        try:
            yield 1
            yield 2
        finally:
            seen.append("generator closed")

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("task cancelled")

    @task.io
    async def careless() -> None:
        generator = numbers()
        kept.extend([generator, asyncio.create_task(background())])
        await anext(generator)
        await asyncio.sleep(0)

    @workflow
    def leaves() -> None:
        careless()

    with Engine() as engine:
        engine.start(leaves).result(10)
    assert sorted(seen) == ["generator closed", "task cancelled"]


FORKED = '''
import asyncio, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # to fork beside a thread is just what is tried
from flowlane import Engine, EngineClosed, Workflow, task

@task.io
def one():
    return 1

def use(engine):
    workflow = Workflow("forked")
    return engine.start(workflow.returns(workflow.add(one.bind())))

def started(engine):
    """Whether the engine starts runs here; in a fork, where nobody would do them, it says so."""
    try:
        use(engine)
    except EngineClosed as error:
        return "fork" not in str(error)
    return True

def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

with Engine() as engine:
    assert use(engine).result().value == 1
    child = os.fork()
    if child == 0:
        sys.exit(3 if not started(engine) else 4)  # out of the block, as any program
    assert status_of(child) == 3
    assert use(engine).result().value == 1

async def main():
    async with Engine() as engine:
        assert (await use(engine)).value == 1
        child = os.fork()
        failed = child == 0 and started(engine)
    if child == 0:
        os._exit(3 if not failed else 4)  # asyncio's own loop must not be closed in a fork
    assert status_of(child) == 3

asyncio.run(main())
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_leaves_the_block_without_the_engine() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
