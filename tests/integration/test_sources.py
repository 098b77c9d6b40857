"""What maps go over, where it is user code: it never runs on the event loop, however its items are put together."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from flowlane import Engine, Skip, product, run, task, workflow, zipped

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


class Slow:
    """An iterable that takes its time to begin."""

    def __init__(self) -> None:
        self.asked, self.may_begin = threading.Event(), threading.Event()
        self.began = False

    def __iter__(self) -> Iterator[int]:
        self.asked.set()
        assert self.may_begin.wait(30)
        return self._items()

    def _items(self) -> Iterator[int]:
        self.began = True
        yield 1


async def test_a_source_that_comes_when_its_map_was_stopped_is_not_looked_at() -> None:
    """inner: one.map(slow)   stopped while a thread asks `slow` for an iterator
    other                     goes on meanwhile"""
    slow, end = Slow(), asyncio.Event()

    @workflow(retry_budget=0)  # so that it is a task of its own
    def inner() -> Any:
        return one.map(slow)

    @task.io
    async def other() -> None:
        await end.wait()

    @workflow
    def w() -> Any:
        return [inner(), other()]

    wrong: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: wrong.append(context))
    async with Engine() as engine:
        handle = engine.start(w)
        await asyncio.to_thread(slow.asked.wait, 30)
        handle.cancel_tasks("inner")
        slow.may_begin.set()
        for thread in threading.enumerate():
            if thread.name == "flowlane-source":
                await asyncio.to_thread(thread.join, 30)
        await asyncio.sleep(0)
        end.set()
        result = await handle.wait()
    assert {name: str(each.state) for name, each in result.tasks.items()} == {
        "inner": "cancelled",
        "other": "succeeded",
        "inner/one": "cancelled",
    }
    assert (wrong, slow.began) == ([], False)


@pytest.mark.parametrize("way", ["all of it", "one is enough", "one of those that go on is enough"])
def test_what_a_map_went_over_is_let_go_when_it_has_ended(way: str) -> None:
    """things ─▶ use.map ─▶ (go_on.map ─▶) look   the others of a map that had enough are told to stop, and do"""

    class Thing:
        pass

    seen: list[weakref.ref[Thing]] = []

    def thing() -> Thing:
        made = Thing()
        seen.append(weakref.ref(made))
        return made

    @task.io
    async def things() -> list[Thing]:
        return [thing(), thing()]

    @task.io
    async def beside() -> Thing:
        return thing()

    first = iter([True])

    @task.io
    async def use(item: Thing, other: Thing) -> int:
        if way != "all of it" and not next(first, False):
            await asyncio.Event().wait()
        return 1

    @task.io
    async def go_on(one: int) -> int:
        return one

    @task.io
    async def look(ones: list[int]) -> list[bool]:
        for _ in range(10):  # turns of the loop, for those that were told to stop
            await asyncio.sleep(0)
        gc.collect()
        return [ref() is not None for ref in seen]

    @workflow
    def w() -> Any:
        if way == "one is enough":
            return look(use.options(enough=1).map(things(), beside()))
        used = use.map(things(), beside())
        return look(used if way == "all of it" else go_on.options(enough=1).map(used))

    assert run(w).value == [False, False, False]


class Item:
    """Counts those that are there."""

    there: ClassVar[set[int]] = set()

    def __init__(self, number: int) -> None:
        self.number = number
        self.there.add(number)

    def __del__(self) -> None:
        self.there.discard(self.number)


@task.io
async def skip(item: Item) -> int:
    raise Skip(f"{item.number}")


@task.io
async def look_at(item: Item) -> int:
    return item.number


@workflow
def looking(item: Item) -> int:
    return look_at(item)


@pytest.mark.parametrize("way", ["skips", "workflows"])
def test_an_item_of_an_iterator_goes_with_its_element_however_that_ends(way: str) -> None:
    """items ─▶ skip.map, looking.map   four under way at a time: no more of the items are there, of forty"""
    most = 0

    def items() -> Iterator[Item]:
        nonlocal most
        for number in range(40):
            yield Item(number)
            most = max(most, len(Item.there))

    @workflow
    def w() -> Any:
        return (skip if way == "skips" else looking).options(in_flight=4).map(items())

    Item.there.clear()
    run(w)
    assert most <= 8  # those that are pulled while others end


@task.io
async def queue() -> deque[int]:
    return deque([1, 2, 3])


@task.io
def sync_one(a: int) -> int:
    return a


@task.io
def refuse(a: int) -> int:
    raise ValueError(a)


def test_batches_are_had_of_sequences_that_have_no_slices() -> None:
    @workflow
    def w() -> Any:
        return sync_one.options(batch=2).map(queue())

    assert run(w).value == [1, 2, 3]


@pytest.mark.parametrize("way", ["to its end", "enough of it", "in batches", "beside another"])
def test_one_thread_reads_a_generator_and_closes_it(way: str) -> None:
    """Also where not all of its items are wanted: what it does at its end is the user's code, too."""
    threads: list[int] = []

    def numbers() -> Iterator[int]:
        try:
            for number in range(50):
                threads.append(threading.get_ident())
                yield number
        finally:
            threads.append(threading.get_ident())

    @workflow(on_failure="fail_fast")
    def reading() -> Any:
        if way == "in batches":
            return refuse.options(batch=2, in_flight=2).map(numbers())
        if way == "beside another":
            return pair.options(in_flight=2, enough=5).starmap(zipped(numbers(), range(50)))
        return one.options(in_flight=2, **({"enough": 5} if way == "enough of it" else {})).map(numbers())

    stopped = way == "in batches"
    assert run(reading.bind(), check=False).state == ("failed" if stopped else "succeeded")
    deadline = time.monotonic() + 20
    while any(each.name == "flowlane-source" for each in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(threads) == 51 if way == "to its end" else 3 <= len(threads) < 51
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


@task.io
async def fails_once(values: list[int], tries: list[int]) -> int:
    tries.append(1)
    if len(tries) == 1:
        raise ValueError("not yet")
    return sum(values)


@workflow
def summing(items: Any, tries: list[int]) -> int:
    return fails_once(one.map(items), tries)


def test_a_second_try_over_an_iterator_that_the_first_has_read_says_so() -> None:
    items, tries = iter([1, 2, 3]), list[int]()

    @workflow
    def outer() -> int:
        return summing.options(retries=1)(items, tries)

    failures = run(outer.bind(), check=False).failures
    assert "goes over an iterator that another use or an earlier try of its workflow has read" in {
        name: failure.message for name, failure in failures.items()
    }.get("summing/one", "")
