"""What maps go over, where it is user code: it never runs on the event loop, however its items are put together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import product, run, task, workflow, zipped

if TYPE_CHECKING:
    from collections.abc import Iterator


@task.io
async def where() -> str:
    return threading.current_thread().name


@task.io
async def pair(a: int, b: int) -> int:
    return 10 * a + b


@task.io
async def one(a: int) -> int:
    return a


@task.io
async def total(numbers: list[int]) -> int:
    return sum(numbers)


class Numbers:
    """An iterable that notes on which threads it is asked for its items."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.threads: set[str] = set()

    def __iter__(self) -> Iterator[int]:
        self.threads.add(threading.current_thread().name)
        for number in self.numbers:
            self.threads.add(threading.current_thread().name)
            yield number


@pytest.mark.parametrize("way", ["map", "product", "zip", "reduce"])
def test_user_code_that_makes_items_does_not_run_on_the_loop(way: str) -> None:
    numbers = Numbers(1, 2, 3)

    @workflow
    def w() -> Any:
        made: Any
        if way == "map":
            made = one.map(numbers)
        elif way == "product":
            made = pair.starmap(product(numbers, [5]))
        elif way == "zip":
            made = pair.starmap(zipped(numbers, [5, 6, 7]))
        else:
            made = total.reduce(numbers, fan_in=2)
        return [where(), made]

    loop, value = run(w).value
    assert value == {"map": [1, 2, 3], "product": [15, 25, 35], "zip": [15, 26, 37], "reduce": 6}[way]
    assert numbers.threads == {"flowlane-source"} != {loop}


def broken() -> Iterator[int]:
    yield 1
    raise ValueError("no more")


@pytest.mark.parametrize("way", ["product", "zip", "reduce"])
def test_what_such_code_raises_fails_the_map(way: str) -> None:
    @workflow
    def w() -> Any:
        if way == "reduce":
            return total.reduce(broken(), fan_in=2)
        return pair.options(name="m").starmap((product if way == "product" else zipped)(broken(), [5, 6]))

    result = run(w.bind(), check=False)
    end = result.tasks["total" if way == "reduce" else "m"]
    assert (str(result.state), str(end.state)) == ("failed", "failed")
    assert end.failure is not None
    assert end.failure.message == "no more"
