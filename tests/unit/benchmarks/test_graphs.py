"""The graphs that the benchmarks run: Task Bench's patterns as the paper defines them, and four shapes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE = Path(__file__).parents[4] / "shared" / "dags" / "taskbench_ref.py"

NAMES = ("trivial", "stencil_1d", "fft", "nearest")


@pytest.fixture
def reference() -> Any:
    """An implementation of its own, held equal to the original program's lists."""
    if not REFERENCE.exists():
        pytest.skip("the independent implementation of the patterns is not there: ../shared/dags/taskbench_ref.py")
    spec = importlib.util.spec_from_file_location("_taskbench_ref", REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("width", "steps", "radix"), [(1, 3, 5), (2, 40, 5), (5, 12, 1), (8, 16, 3), (16, 100, 5), (17, 9, 4), (64, 32, 5)]
)
def test_the_patterns_are_those_of_task_bench(
    script: Callable[[str], Any], reference: Any, name: str, width: int, steps: int, radix: int
) -> None:
    edges = script("graphs").pattern(name, width, steps, radix)
    expected = reference.graph(name, width, steps, radix=radix)
    assert {divmod(node, width): [divmod(up, width) for up in ups] for node, ups in enumerate(edges)} == expected


def test_the_patterns_at_a_glance(script: Callable[[str], Any]) -> None:
    """
    width 8, what point 3 reads:   0 1 2 3 4 5 6 7
        stencil_1d                     x x x
        nearest, radix 5             x x x x x
        fft, step 1: stride 1          x x x
             step 2: stride 2        x   x   x
             step 3: stride 4              x       x      (-1 is outside)
             step 4: stride 1          x x x
    """
    points = script("graphs").points
    assert points("trivial", 1, 3, 8) == ()
    assert points("stencil_1d", 1, 3, 8) == [2, 3, 4]
    assert points("nearest", 1, 3, 8) == [1, 2, 3, 4, 5]
    assert points("nearest", 1, 3, 8, radix=2) == [2, 3]
    assert [points("fft", step, 3, 8) for step in (1, 2, 3, 4)] == [[2, 3, 4], [1, 3, 5], [3, 7], [2, 3, 4]]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_timestep_waits_for_nobody(script: Callable[[str], Any], name: str) -> None:
    edges = script("graphs").pattern(name, 6, 2)
    assert len(edges) == 12
    assert edges[:6] == [[]] * 6


def test_a_pattern_or_shape_that_does_not_exist(script: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="no pattern 'butterfly'; there are trivial, stencil_1d, fft, nearest"):
        script("graphs").pattern("butterfly", 2, 2)
    with pytest.raises(ValueError, match="no shape 'ring'; there are wide, chain, layers, tree"):
        script("graphs").shape("ring", 4)


def test_the_shapes(script: Callable[[str], Any]) -> None:
    shape = script("graphs").shape
    assert shape("wide", 3) == [[], [], []]
    assert shape("chain", 3) == [[], [0], [1]]
    # width 4: task 4 is under 0, so it reads 3, 0 and 1
    assert shape("layers", 6, width=4) == [[], [], [], [], [3, 0, 1], [0, 1, 2]]
    # 0─┐
    # 1─┴5─┐
    # 2─┐  │
    # 3─┴6─┴7─┐
    # 4───────┴8
    assert shape("tree", 9) == [[], [], [], [], [], [0, 1], [2, 3], [5, 6], [7, 4]]


@pytest.mark.parametrize("name", ["wide", "chain", "layers", "tree"])
@pytest.mark.parametrize("size", [1, 2, 7, 100, 257])
def test_upstreams_come_first(script: Callable[[str], Any], name: str, size: int) -> None:
    edges = script("graphs").shape(name, size)
    assert size - 1 <= len(edges) <= size + 1
    assert all(0 <= up < node for node, ups in enumerate(edges) for up in ups)
