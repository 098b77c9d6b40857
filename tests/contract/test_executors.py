"""What every executor promises, over those that ship with flowlane. See ``flowlane.testing.executors``.

Those for clusters are in ``test_clusters``.
"""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.testing.executors import ExecutorContract, children, left_over
from flowlane_plugins.executors.asyncio_ import AsyncioExecutor
from flowlane_plugins.executors.futures import FuturesExecutor
from flowlane_plugins.executors.inline import InlineExecutor
from flowlane_plugins.executors.processes import ProcessesExecutor
from flowlane_plugins.executors.threads import ThreadsExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowlane.runtime.ports import Executor


class TestAsyncio(ExecutorContract):
    @pytest.fixture
    def make(self) -> Callable[[], Executor]:
        return AsyncioExecutor


class TestInline(ExecutorContract):
    @pytest.fixture
    def make(self) -> Callable[[], Executor]:
        return InlineExecutor


class TestThreads(ExecutorContract):
    reopens = False  # its own threads are gone

    @pytest.fixture
    def make(self) -> Callable[[], Executor]:
        return lambda: ThreadsExecutor(2)


class TestProcesses(ExecutorContract):
    @pytest.fixture
    def make(self) -> Callable[[], Executor]:
        return lambda: ProcessesExecutor(2)

    def test_claims_to_kill(self) -> None:
        assert ProcessesExecutor(2).capabilities.hard_kill


class _Pooled(ExecutorContract):
    """`futures` over a pool of the host's, which outlives the executors that borrow it."""

    shared = True
    survives = False  # one dead worker breaks the pool for good

    @staticmethod
    def pool_of_its_own() -> Any:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls) -> Iterator[Any]:
        threads, processes = {t.ident for t in threading.enumerate()}, children()
        pool = cls.pool_of_its_own()
        yield pool
        pool.shutdown(wait=True)
        del pool
        assert left_over(threads, processes) == []

    @pytest.fixture
    def make(self, pool: Any, request: pytest.FixtureRequest) -> Callable[[], Executor]:
        if request.function.__name__ == "test_a_worker_that_dies_costs_its_job_one_attempt":
            return lambda: FuturesExecutor(self.pool_of_its_own(), own=True)
        return lambda: FuturesExecutor(pool)


class TestFuturesOverThreads(_Pooled):
    @staticmethod
    def pool_of_its_own() -> Any:
        return ThreadPoolExecutor(2)


class TestFuturesOverProcesses(_Pooled):
    @staticmethod
    def pool_of_its_own() -> Any:
        return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


class TestFuturesOverLoky(_Pooled):
    @staticmethod
    def pool_of_its_own() -> Any:
        loky = pytest.importorskip("loky", reason="loky is not installed")
        return loky.ProcessPoolExecutor(2)
