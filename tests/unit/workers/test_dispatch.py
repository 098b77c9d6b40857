"""Who gets how many of the jobs that are queued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowlane.loader import Address
from flowlane.runtime.ports import Job, Report, Target
from flowlane_plugins.workers.dispatch import Dispatch
from flowlane_plugins.workers.handle import WorkerHandle
from flowlane_plugins.workers.leases import Book

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Target("abs", abs, is_async=False, address=Address("builtins", "abs", None))


class Bench:
    """A dispatch with `size` workers that have no process: what they are given stays where it was put."""

    def __init__(self, size: int) -> None:
        self.workers = {wid: WorkerHandle(wid, 0) for wid in range(1, size + 1)}
        self.book = Book()
        self.dispatch = Dispatch(self.workers, self.book, lambda: None, 4, None)
        self._refs = 0
        self.queue(1)
        flight = self.workers[1].flights.popleft()  # of one job the cost is known, so that others travel together
        self.workers[1].frames.clear()
        self.dispatch.forget(flight)
        flight.function.cost.note(1_000)

    def queue(self, count: int) -> None:
        """Queue `count` jobs and give them."""
        reports: list[Report] = []
        jobs = [Job(self._refs + number, TARGET, (-1,), {}, "run", "abs", 1) for number in range(count)]
        self._refs += count
        self.dispatch.add(jobs, reports)
        self.dispatch.give(reports)
        assert not reports

    def answer(self, wid: int, count: int) -> None:
        """Have a worker done with the first `count` of its jobs."""
        worker = self.workers[wid]
        for _ in range(count):
            flight = worker.flights.popleft()
            if flight.number >= worker.frames[0]:
                worker.frames.popleft()
            self.dispatch.forget(flight)

    @property
    def shares(self) -> list[int]:
        return [len(worker.flights) for worker in self.workers.values()]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.book.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(2)
    yield bench
    bench.close()


def test_idle_workers_get_equal_shares(bench: Bench) -> None:
    bench.queue(16)
    assert bench.shares == [8, 8]


def test_who_is_done_first_does_not_get_everything(bench: Bench) -> None:
    #  1: ........   2: ......xx   and 8 become ready: 5 for 1, and 3 behind the 2 that the other has yet to do
    bench.queue(16)
    bench.answer(1, 8)
    bench.answer(2, 6)
    bench.queue(8)
    assert bench.shares == [5, 5]
    assert [len(worker.frames) for worker in bench.workers.values()] == [1, 2]


def test_a_worker_with_much_to_do_gets_nothing_more(bench: Bench) -> None:
    bench.queue(40)
    bench.answer(1, 20)
    bench.queue(4)
    assert bench.shares == [4, 20]


def test_one_that_is_busy_for_longer_does_not_count(bench: Bench) -> None:
    bench.queue(2)
    bench.workers[2].flights[0].told = True
    bench.answer(1, 1)
    bench.queue(10)
    assert bench.shares == [10, 1]
