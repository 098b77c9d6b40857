"""Maps in batches: many items in one attempt, and a value as if each had been an element."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import DefinitionError, Engine, RetryAfter, RunFailed, Skip, run, task, workflow
from flowlane.batch import Batch
from flowlane.storage.fingerprint import fingerprint
from flowlane_plugins.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is called is noted in files: a variable of this module would be part of the tasks' code."""
    monkeypatch.setenv("BATCHES", str(tmp_path))
    return tmp_path


def note(x: int) -> int:
    """How often `x` was called so far, this time included."""
    folder = Path(os.environ["BATCHES"])
    with (folder / "calls").open("a") as file:
        file.write(f"{x}\n")
    if (folder / f"bad-{x}").exists():
        raise ValueError(f"{x} is bad")
    return (folder / "calls").read_text().split().count(str(x))


def called(folder: Path) -> Counter[int]:
    """What was called since this was asked last."""
    text = (folder / "calls").read_text()
    (folder / "calls").unlink()
    return Counter(map(int, text.split()))


@task.io
def square(x: int, times: int = 1) -> int:
    note(x)
    return x * x * times


@task.cpu
def where(x: int) -> tuple[int, int]:
    return x, os.getpid()


@task.io
def add(a: int, b: int) -> int:
    return a + b


@task.io
def total(values: list[int]) -> int:
    return sum(values)


@task.io
def listed(n: int) -> list[int]:
    return list(range(n))


@task.io
def by_place() -> dict[str, int]:
    return {"us": 1, "eu": 2, "de": 3}


@pytest.mark.parametrize("size", [1, 3, 7, 8, 100])
@pytest.mark.parametrize("source", ["literal", "range", "iterator", "task"])
def test_the_value_is_that_of_single_elements(size: int, source: str, here: Path) -> None:
    @workflow
    def squares() -> list[int]:
        items: Any = {"literal": [*range(8)], "range": range(8), "iterator": iter(range(8))}.get(source)
        return square.options(batch=size).map(listed(8) if source == "task" else items)

    result = run(squares)
    assert result.value == [x * x for x in range(8)]
    assert sum(name.startswith("square[") for name in result.tasks) == -(-8 // size)
    assert called(here) == Counter(range(8))


def test_there_may_be_no_items() -> None:
    @workflow
    def nothing() -> list[int]:
        return square.options(batch=4).map(listed(0))

    assert run(nothing).value == []


@pytest.mark.parametrize("literal", [True, False])
def test_a_mapping_gives_a_mapping(literal: bool) -> None:
    @workflow
    def keyed() -> Mapping[str, int]:
        return square.options(batch=2).map({"us": 1, "eu": 2, "de": 3} if literal else by_place())

    assert run(keyed).value == {"us": 1, "eu": 4, "de": 9}


def test_other_arguments_are_the_same_for_all_items() -> None:
    @workflow
    def doubled() -> list[int]:
        return square.options(batch=3).map([1, 2, 3, 4], times=2)

    assert run(doubled).value == [2, 8, 18, 32]


def test_tuples_are_unpacked_item_by_item() -> None:
    @workflow
    def sums() -> list[int]:
        return add.options(batch=2).starmap([(1, 2), (3, 4), (5, 6)])

    assert run(sums).value == [3, 7, 11]


def test_maps_before_and_after_are_not_chained_to_it() -> None:
    """
    listed ─▶ square[0..5] ─▶ square#2[0..1] (3 items each) ─▶ square#3[0..5] ─▶ total
    """

    @workflow
    def row() -> int:
        singles = square.map(listed(6))
        batches = square.options(batch=3).map(singles)
        return total(square.map(batches))

    result = run(row)
    assert result.value == sum(x**8 for x in range(6))
    assert [name for name in result.tasks if name.startswith("square#2[")] == ["square#2[0]", "square#2[1]"]


def test_a_tree_merges_items_and_not_batches() -> None:
    @workflow
    def merged() -> int:
        return total.reduce(square.options(batch=3).map(range(10)), fan_in=2)

    assert run(merged).value == sum(x * x for x in range(10))


def test_a_batch_has_one_outcome_and_its_error_says_which_item(here: Path) -> None:
    @workflow
    def squares() -> list[int]:
        return square.options(batch=3).map(range(9))

    (here / "bad-4").touch()
    with pytest.raises(RunFailed) as caught:
        run(squares)
    failure = caught.value.failures["square[1]"]
    assert failure.message == "4 is bad"
    assert failure.notes == ("raised for item 1 of a batch of 3: 4",)
    assert called(here) == Counter({0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 6: 1, 7: 1, 8: 1})


def test_a_batch_is_tried_again_as_a_whole(here: Path) -> None:
    @task.io(retries=2)
    def moody(x: int) -> int:
        if note(x) == 1 and x == 1:
            raise RetryAfter(0)
        return x

    @workflow
    def row() -> list[int]:
        return moody.options(batch=2).map(range(4))

    assert run(row).value == [0, 1, 2, 3]
    assert called(here) == Counter({0: 2, 1: 2, 2: 1, 3: 1})


def test_an_item_of_a_batch_cannot_be_skipped() -> None:
    @task.io
    def picky(x: int) -> int:
        if x == 1:
            raise Skip("not that one")
        return x

    @workflow
    def row() -> list[int]:
        return picky.options(batch=2).map(range(4))

    with pytest.raises(RunFailed, match="item 1 of a batch of 2 raised Skip, and a batch has one outcome"):
        run(row)


async def test_a_resumed_run_repeats_the_batch_that_failed_and_no_other(here: Path) -> None:
    @workflow
    def squares() -> list[int]:
        return square.options(batch=3).map(range(9))

    async with Engine(store=MemoryStore()) as engine:
        (here / "bad-4").touch()
        assert (await engine.start(squares).wait()).state == "failed"
        called(here)
        (here / "bad-4").unlink()
        result = await engine.resume("last", squares).wait()
    assert result.value == [x * x for x in range(9)]
    assert called(here) == Counter([3, 4, 5])


async def test_another_size_of_batch_is_another_map(here: Path) -> None:
    size = 3

    @workflow
    def squares() -> list[int]:
        return square.options(batch=size).map(range(4))

    async with Engine(store=MemoryStore()) as engine:
        (here / "bad-3").touch()
        await engine.start(squares).wait()
        (here / "bad-3").unlink()
        called(here)
        size = 2
        result = await engine.resume("last", squares, accept_changes=True).wait()
    assert result.value == [0, 1, 4, 9]
    assert called(here) == Counter(range(4))


async def test_a_batch_is_cached_as_a_whole(here: Path) -> None:
    @workflow
    def squares(n: int) -> list[int]:
        return square.options(batch=2, cache=True).map(range(n))

    async with Engine(store=MemoryStore()) as engine:
        assert (await engine.start(squares, 5).wait()).value == [0, 1, 4, 9, 16]
        assert (await engine.start(squares, 6).wait()).value == [0, 1, 4, 9, 16, 25]
    assert called(here) == Counter({0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 1})


def test_batches_run_in_worker_processes() -> None:
    offset = 100  # a closure: it can only travel by value

    @task.cpu
    def shifted(x: int) -> int:
        return x + offset

    @workflow
    def row() -> Any:
        return where.options(batch=4).map(range(10)), shifted.options(batch=4).map(range(10))

    values, moved = run(row).value
    assert [x for x, _ in values] == list(range(10))
    assert os.getpid() not in {pid for _, pid in values}
    assert moved == list(range(100, 110))


def test_items_of_an_iterator_are_pulled_as_there_is_room() -> None:
    pulled: list[int] = []

    def endless() -> Iterator[int]:
        for number in range(1_000):
            pulled.append(number)
            yield number

    ahead: list[int] = []

    @task.io
    def look(x: int) -> int:
        ahead.append(len(pulled) - x)
        return x

    @workflow
    def row() -> list[int]:
        return look.options(batch=5, in_flight=20).map(endless())

    assert run(row).value == list(range(1_000))
    assert max(ahead) <= 45  # two windows


# ── what it is not for ────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def awaited(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: awaited.options(batch=2).map([1]), r"batch=2, and 'awaited' is async: .*"),
        (lambda: square.options(batch=2).filter([1]), r"batch=2, and a filter lets each item pass or not"),
        (lambda: square.options(batch=2, enough=1).map([1]), r"batch=2, and enough=1 counts items that succeed"),
        (lambda: square.options(batch=2)(1), r"batch=2, and is a single call"),
        (lambda: total.options(batch=2).reduce([1, 2, 3], fan_in=2), r"batch=2, and is a reduction"),
        (lambda: square.options(batch=0).map([1]), r"batch"),
    ],
)
def test_what_needs_each_item_by_itself_is_refused(call: Any, message: str) -> None:
    @workflow
    def body() -> Any:
        return call()

    with pytest.raises(DefinitionError, match=message):
        Engine().compile(body.bind())


def test_a_fingerprint_sees_through_a_batch() -> None:
    def one(x: int) -> int:
        return x + 1

    def two(x: int) -> int:
        return x + 2

    def alike(x: int) -> int:
        return x + 1

    alike.__qualname__ = one.__qualname__
    taken = [fingerprint(Batch(each, 0)).digest for each in (one, two)]
    assert taken[0] != taken[1]
    assert taken[0] == fingerprint(Batch(one, 0)).digest
    assert taken[0] != fingerprint(one).digest


@dataclass(frozen=True)
class Frozen(Exception):
    x: int


@task.io
def freezes(x: int) -> int:
    raise Frozen(x)


def test_an_error_that_takes_no_notes_is_told_as_it_is() -> None:
    @workflow
    def w() -> Any:
        return freezes.options(batch=2).map([1, 2, 3])

    failures = run(w.bind(), check=False).failures
    assert [failure.type.rpartition(".")[2] for failure in failures.values()] == ["Frozen", "Frozen"]
