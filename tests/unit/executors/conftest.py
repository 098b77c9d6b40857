"""The corpus, loaded by path; and jobs made of its functions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane.loader import address_of, load_file
from flowlane.runtime.ports import STARTED, Job, Report, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType


@pytest.fixture(scope="session")
def shapes() -> ModuleType:
    return load_file(Path(__file__).with_name("shapes.py"), "_flow_shapes")


@pytest.fixture
def job() -> Callable[..., Job]:
    refs = itertools.count(1)

    def make(fn: Any, *args: Any, **kwargs: Any) -> Job:
        target = Target(fn.__name__, fn, False, address_of(fn))
        return Job(next(refs), target, args, kwargs, run="run-1", task=f"{fn.__name__}#1", attempt=1)

    return make


class Inbox:
    """Takes an executor's reports and waits for them."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def deliver(self, reports: Sequence[Report]) -> None:
        self.reports.extend(reports)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    def started(self, ref: int) -> bool:
        return any(r.ref == ref and r.kind == STARTED for r in list(self.reports))

    def final(self, ref: int) -> Report | None:
        found = [r for r in list(self.reports) if r.ref == ref and r.kind != STARTED]
        assert len(found) <= 1, f"more than one final report: {found}"
        return found[0] if found else None

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self._news.clear()
                if not true():
                    await self._news.wait()

    async def finals(self, *jobs: Job) -> list[Report]:
        await self.until(lambda: all(self.final(job.ref) for job in jobs))
        return [report for job in jobs if (report := self.final(job.ref))]

    async def begun(self, *jobs: Job) -> None:
        await self.until(lambda: all(self.started(job.ref) for job in jobs))


@pytest.fixture
async def inbox() -> Inbox:
    return Inbox()


def children() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            # multiprocessing's own tracker belongs to the host's process, and stays
            if child.status() != psutil.STATUS_ZOMBIE and not any("resource_tracker" in a for a in child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails when the test leaves a child process or a thread behind."""
    threads, before = {t.ident for t in threading.enumerate()}, {child.pid for child in children()}
    yield
    deadline = time.monotonic() + 20
    while True:
        left = [t.name for t in threading.enumerate() if t.ident not in threads]
        left += [f"process {child.pid}" for child in children() if child.pid not in before]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert left == []
