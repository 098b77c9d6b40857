"""The graphs of arrays that the benchmark sends round: what comes out proves that every step was done once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("numpy", reason="the benchmark of arrays needs numpy")


@pytest.mark.parametrize("kind", ["chain", "in-place", "fan-out"])
@pytest.mark.parametrize("length", [1, 5])
def test_what_comes_out_is_what_is_expected(script: Callable[[str], Any], kind: str, length: int) -> None:
    arrays = script("arrays")
    graph, expected, handovers = arrays.graph_of(kind, 80, length)
    seconds, value = arrays.Inline().prepare(graph)()
    assert value == expected
    assert seconds > 0
    assert expected == (0 if kind == "fan-out" else length)
    # an array is handed over wherever a task reads another's array: not a number, which only ends a fan-out
    numbers = (arrays.total, arrays.make)
    reads = [ups for (function, _), ups in zip(graph.calls, graph.upstreams, strict=True) if function not in numbers]
    assert handovers == sum(map(len, reads))


def test_a_fan_out_follows_another(script: Callable[[str], Any]) -> None:
    once = [[0]] * 8
    again = [[10]] * 8
    assert script("arrays").fan_out(80, 2).upstreams == [
        *([], *once, [1, 2, 3, 4, 5, 6, 7, 8]),
        *([9], *again, [11, 12, 13, 14, 15, 16, 17, 18]),
    ]


def test_a_wrong_value_is_no_measurement(script: Callable[[str], Any]) -> None:
    proved = script("arrays").proved
    assert proved(lambda: (3.0, 5), 5, 6)() == 0.5
    with pytest.raises(RuntimeError, match="should give 5 and gave 4"):
        proved(lambda: (3.0, 4), 5, 6)()


def test_the_floor_runs_a_graph_in_order(script: Callable[[str], Any]) -> None:
    """0 → 1 → 3, 0 → 2 → 3, through a pool that runs at once."""
    from concurrent.futures import ThreadPoolExecutor

    contenders = script("contenders")
    order: list[int] = []

    def step(number: int, *ups: int) -> int:
        order.append(number)
        return number + sum(ups)

    graph = contenders.Graph([(step, (n,)) for n in (1, 10, 100, 1000)], [[], [0], [0], [1, 2]])
    with ThreadPoolExecutor(1) as pool:
        assert contenders.feed(pool.submit, graph) == 1000 + (10 + 1) + (100 + 1)
    assert order == [1, 10, 100, 1000]
