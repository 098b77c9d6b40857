"""The threads executor where threads meet: what must hold when a worker stands between two of its steps."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flowlane.runtime.ports import (
    ABANDONED,
    FAILED,
    INTERRUPTED,
    NEVER,
    STARTED,
    SUCCEEDED,
    Job,
    Report,
    Target,
)
from flowlane_plugins.executors import threads as module
from flowlane_plugins.executors.threads import ThreadsExecutor


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 20
    while (left := [t for t in threading.enumerate() if t not in before]) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not left


class Heard(list[Report]):
    """Reports, and waiting for one."""

    async def of(self, ref: int, *kinds: int) -> Report:
        async with asyncio.timeout(10):
            while True:
                for report in tuple(self):
                    if report.ref == ref and report.kind in kinds:
                        return report
                await asyncio.sleep(0.001)


@asynccontextmanager
async def opened(executor: ThreadsExecutor) -> AsyncIterator[Heard]:
    heard = Heard()

    def deliver(reports: Sequence[Report]) -> None:
        heard.extend(reports)

    await executor.open(deliver)
    try:
        yield heard
    finally:
        await executor.close(0.1)


def job(ref: int, fn: Any, context: contextvars.Context | None = None) -> Job:
    return Job(ref, Target("t", fn, False, None), (), {}, "run", "t", 1, None, context)


@pytest.fixture
def gap(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every worker between taking a job and saying so, until it is set."""
    through = threading.Event()
    clock = module.thread_time_ns

    def held() -> int:
        through.wait(10)
        return clock()

    monkeypatch.setattr(module, "thread_time_ns", held)
    yield through
    through.set()


async def test_a_job_told_to_stop_while_a_worker_takes_it_is_given_up(gap: threading.Event) -> None:
    release = threading.Event()
    executor = ThreadsExecutor(1)
    async with opened(executor) as heard:
        executor.submit([job(1, lambda: release.wait(10))])
        while executor._jobs:
            await asyncio.sleep(0.001)
        executor.interrupt([1], 5.0)
        await asyncio.sleep(0.02)  # several looks later the worker still has not said what it does
        gap.set()
        assert (await heard.of(1, SUCCEEDED, ABANDONED, INTERRUPTED)).kind == ABANDONED
    release.set()


async def test_a_start_is_told_however_late_the_worker_says_so(gap: threading.Event) -> None:
    release = threading.Event()
    executor = ThreadsExecutor(1)
    async with opened(executor) as heard:
        executor.submit([job(1, lambda: release.wait(10))])
        await asyncio.sleep(0.03)
        gap.set()
        await heard.of(1, STARTED)
        release.set()
        await heard.of(1, SUCCEEDED)


async def test_a_queue_that_workers_empty_can_be_taken_back() -> None:
    pace = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            executor = ThreadsExecutor(300)
            async with opened(executor) as heard:
                executor.submit([job(ref, int) for ref in range(300)])
                for _ in range(2):
                    executor._start_thread()
                executor.interrupt(range(299, -1, -1), 5.0)
                for ref in range(300):
                    await heard.of(ref, SUCCEEDED, INTERRUPTED, ABANDONED)
            final = [report.ref for report in heard if report.kind != STARTED]
            assert len(final) == len(set(final))
    finally:
        sys.setswitchinterval(pace)


@pytest.mark.parametrize("to_be_had", [0, 1])
async def test_a_system_without_threads(monkeypatch: pytest.MonkeyPatch, to_be_had: int) -> None:
    start, started = threading.Thread.start, 0

    def refusing(self: threading.Thread) -> None:
        nonlocal started
        if started >= to_be_had:
            raise RuntimeError("can't start new thread")
        started += 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    executor = ThreadsExecutor(3)
    async with opened(executor) as heard:
        executor.submit([job(ref, lambda: time.sleep(0.005)) for ref in range(3)])
        for ref in range(3):
            report = await heard.of(ref, SUCCEEDED, FAILED)
            if to_be_had:
                assert report.kind == SUCCEEDED
            else:
                assert (report.kind, report.started) == (FAILED, NEVER)
                assert report.failure is not None
                assert report.failure.message == "can't start new thread"


async def test_an_idle_thread_keeps_nothing_of_its_last_job() -> None:
    class Big:
        pass

    kept: contextvars.ContextVar[Big] = contextvars.ContextVar("kept")
    alive: list[weakref.ref[Big]] = []

    def work() -> None:
        big = Big()
        alive.append(weakref.ref(big))
        kept.set(big)

    executor = ThreadsExecutor(1)
    async with opened(executor) as heard:
        executor.submit([job(1, work, contextvars.Context())])
        await heard.of(1, SUCCEEDED)
        while not executor._asleep:
            await asyncio.sleep(0.001)
        gc.collect()
        assert alive[0]() is None
