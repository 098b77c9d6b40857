"""Dask's collections on our executors: ``flowlane.integrations.dask.get`` against Dask's own suite for schedulers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("dask", reason="dask is not installed: flowlane[dask]")

import dask
import dask.utils_test
from dask.utils_test import add, inc

from flowlane import Engine
from flowlane.integrations.dask import get

if TYPE_CHECKING:
    from collections.abc import Iterator


class TestGetOnThreads(dask.utils_test.GetFunctionTestMixin):
    get = staticmethod(partial(get, routes={"cpu": "threads"}))


class TestGetOnProcesses(dask.utils_test.GetFunctionTestMixin):
    get = staticmethod(get)

    @pytest.mark.slow  # a chain of 10,000 tasks; the class above has it too
    def test_get_stack_limit(self) -> None:
        super().test_get_stack_limit()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(routes={"cpu": "threads"}) as engine:
        yield engine


def reject(value: int) -> int:
    raise LookupError(f"no {value}")


def test_what_a_task_raises_comes_out_as_it_is(engine: Engine) -> None:
    with pytest.raises(LookupError, match="no 2"):
        get({"x": 1, "y": (inc, "x"), "z": (reject, "y")}, "z", engine=engine)


def test_keys_that_depend_on_themselves_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="depends on itself"):
        get({"x": (inc, "y"), "y": (inc, "x")}, "x", engine=engine)


def test_only_what_is_needed_runs_and_names_are_those_of_dask(engine: Engine) -> None:
    #   ("load", 0) ──▶ "sum-1" ──▶ wanted        "other": not needed
    #   ("load", 1) ───────┘
    ran: list[str] = []

    def load(n: int) -> int:
        ran.append(f"load {n}")
        return n

    graph = {
        ("load", 0): (load, 1),
        ("load", 1): (load, 2),
        "sum-1": (add, ("load", 0), ("load", 1)),
        "other": (load, 3),
    }
    assert get(graph, "sum-1", engine=engine) == 3
    assert sorted(ran) == ["load 1", "load 2"]


def test_collections_compute_on_it(engine: Engine) -> None:
    numbers = [dask.delayed(inc)(n) for n in range(10)]
    total: Any = dask.delayed(sum)(numbers)
    assert total.compute(scheduler=partial(get, engine=engine)) == 55
    assert dask.compute(total, numbers[0], scheduler=get, routes={"cpu": "inline"}) == (55, 1)


def test_arrays_compute_on_it(engine: Engine) -> None:
    array: Any = pytest.importorskip("dask.array", reason="numpy is not installed")
    data = array.arange(10_000, chunks=1_000)
    assert int((data * 2).sum().compute(scheduler=partial(get, engine=engine))) == 99_990_000
