"""The executors that the contract suite runs over, and a small engine to drive one of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest

from flowlane.loader import address_of, load_file
from flowlane.runtime.ports import NOTED, STARTED, Executor, Job, Report, Target
from flowlane_plugins.executors.asyncio_ import AsyncioExecutor
from flowlane_plugins.executors.futures import FuturesExecutor
from flowlane_plugins.executors.inline import InlineExecutor
from flowlane_plugins.executors.processes import ProcessesExecutor
from flowlane_plugins.executors.threads import ThreadsExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from types import ModuleType

EXECUTORS = ["asyncio", "threads", "inline", "processes", "futures-threads", "futures-processes", "futures-loky"]


def children() -> set[int]:
    """Child processes of this one, the resource trackers of multiprocessing and loky left out."""
    found: set[int] = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and not any("resource_tracker" in a for a in child.cmdline()):
                found.add(child.pid)
    return found


def left_over(threads: set[int | None], processes: set[int], patience: float = 20.0) -> list[str]:
    """What is there now and was not before, after waiting for it to go."""
    deadline = time.monotonic() + patience
    while True:
        left = [f"thread {t.name}" for t in threading.enumerate() if t.ident not in threads]
        left += [f"process {pid}" for pid in children() - processes]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


class Lane:
    """One executor, and what it said. Keeps at most as many jobs in it as it has slots, as the scheduler does."""

    def __init__(self, name: str, executor: Executor, cases: ModuleType) -> None:
        self.name = name
        self.executor = executor
        self.cases = cases
        self.reports: list[Report] = []
        self._refs = itertools.count(1)
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self.executor.open(self.deliver)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.executor.close(1.0)

    def deliver(self, reports: Sequence[Report]) -> None:
        self.reports.extend(reports)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    @property
    def takes_coroutines(self) -> bool:
        return "async" in self.executor.capabilities.accepts

    def job(self, case: str, *args: Any, **kwargs: Any) -> Job:
        name = f"{case}_async" if self.takes_coroutines else case
        fn = getattr(self.cases, name)
        target = Target(case, fn, self.takes_coroutines, address_of(fn))
        return Job(next(self._refs), target, args, kwargs, run="run-1", task=f"{case}#1", attempt=3)

    def finals(self, ref: int) -> list[Report]:
        return [r for r in list(self.reports) if r.ref == ref and r.kind not in (STARTED, NOTED)]

    def any_final(self, refs: Sequence[int]) -> bool:
        return any(self.finals(ref) for ref in refs)

    def starts(self, ref: int) -> list[Report]:
        return [r for r in list(self.reports) if r.ref == ref and r.kind == STARTED]

    async def until(self, true: Any, patience: float = 20.0) -> None:
        async with asyncio.timeout(patience):
            while not true():
                self._news.clear()
                if not true():
                    await self._news.wait()

    async def run(self, *jobs: Job) -> list[Report]:
        """Run jobs, as many at a time as there are slots; their final reports, in order of the jobs."""
        waiting = list(jobs)[::-1]
        out: list[int] = []
        while waiting or out:
            room = self.executor.capabilities.default_slots - len(out)
            batch = [waiting.pop() for _ in range(min(room, len(waiting)))]
            if batch:
                self.executor.submit(batch)
                out += [job.ref for job in batch]
            await self.until(partial(self.any_final, tuple(out)))
            out = [ref for ref in out if not self.finals(ref)]
        return [self.finals(job.ref)[0] for job in jobs]

    async def one(self, case: str, *args: Any, **kwargs: Any) -> Report:
        return (await self.run(self.job(case, *args, **kwargs)))[0]


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    return load_file(Path(__file__).with_name("cases.py"), "_flow_contract_cases")


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, Any]]:
    """Pools of the host's, as `futures` meets them: they outlive the executors that borrow them."""
    threads, processes = {t.ident for t in threading.enumerate()}, children()
    made: dict[str, Any] = {}
    yield made
    for pool in made.values():
        pool.shutdown(wait=True)
    made.clear()
    assert left_over(threads, processes) == []


@pytest.fixture(params=EXECUTORS)
async def lane(request: pytest.FixtureRequest, pools: dict[str, Any], cases: ModuleType) -> AsyncIterator[Lane]:
    name: str = request.param
    kind, _, pool = name.partition("-")
    if pool and pool not in pools:
        if pool == "threads":
            pools[pool] = ThreadPoolExecutor(2)
        elif pool == "processes":
            pools[pool] = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
        else:
            loky = pytest.importorskip("loky", reason="loky is not installed")
            pools[pool] = loky.ProcessPoolExecutor(2)
    executor: Executor
    threads, processes = {t.ident for t in threading.enumerate()}, children()
    match kind:
        case "asyncio":
            executor = AsyncioExecutor()
        case "threads":
            executor = ThreadsExecutor(2)
        case "inline":
            executor = InlineExecutor()
        case "processes":
            executor = ProcessesExecutor(2)
        case _:
            executor = FuturesExecutor(pools[pool])
    async with Lane(name, executor, cases) as opened:
        yield opened
    refs = {report.ref for report in opened.reports}
    for ref in refs:
        told = [report.kind for report in opened.reports if report.ref == ref]
        assert told[-1] != NOTED, f"a note on {ref} after its end"
        kinds = [kind for kind in told if kind != NOTED]
        assert kinds.count(STARTED) <= 1, f"STARTED twice for {ref}"
        assert len(kinds) - kinds.count(STARTED) == 1, f"not exactly one final report for {ref}: {kinds}"
        assert STARTED not in kinds[1:], f"STARTED after the end of {ref}"
    if not pool:
        assert left_over(threads, processes) == []
