"""Maps on a real Dask cluster and on a real Ray one: in batches, and over results that are there."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, RetryAfter, RunFailed, Skip, task, workflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.timeout(120)

LARGE = 6_000  # bytes: more than what travels with the record of a task


@pytest.fixture(scope="module")
def dask() -> Iterator[dict[str, Any]]:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield {"address": cluster.scheduler_address}


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, Any]]:
    ray = pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",  # and not any cluster that it finds on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    yield {}
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(params=["dask", "ray"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What an Engine is to be made with, so that what computes runs on the cluster."""
    name = request.param
    return {"routes": {"cpu": name}, "options": {name: request.getfixturevalue(name)}}


def note(x: int, folder: Path) -> int:
    """How often `x` was called so far, this time included."""
    with (folder / f"called-{x}").open("a") as file:
        file.write("x")
    if (folder / f"bad-{x}").exists():
        raise ValueError(f"{x} is bad")
    return (folder / f"called-{x}").stat().st_size


def called(folder: Path) -> Counter[int]:
    """What was called since this was asked last."""
    found = {int(path.name.partition("-")[2]): path for path in folder.glob("called-*")}
    counts = Counter({x: path.stat().st_size for x, path in found.items()})
    for path in found.values():
        path.unlink()
    return counts


@task.cpu
def square(x: int, folder: Path, times: int = 1) -> int:
    note(x, folder)
    return x * x * times


@task.cpu
def add(a: int, b: int) -> int:
    return a + b


@task.cpu
def blow_up(x: int) -> bytes:
    return bytes([x]) * LARGE


@task.cpu
def first(value: bytes) -> int:
    return value[0]


@task.io(executor="threads")
def first_here(values: list[bytes]) -> list[int]:
    return [value[0] for value in values]


@task.cpu
def total(values: list[int]) -> int:
    return sum(values)


@task.cpu
def listed(n: int) -> list[int]:
    return list(range(n))


@task.cpu
def picky(x: int) -> int:
    if x == 1:
        raise Skip("not that one")
    return x


@task.cpu(retries=2)
def moody(x: int, folder: Path) -> int:
    if note(x, folder) == 1 and x == 1:
        raise RetryAfter(0)
    return x


@workflow
def squares(folder: Path, n: int = 9) -> list[int]:
    return square.options(batch=3).map(range(n), folder, times=1)


def test_the_values_are_those_of_single_elements(where: dict[str, Any], tmp_path: Path) -> None:
    """
    range ─▶ square[0..3] (3 items each)       listed ─▶ square#2[0..2] ─▶ total
    """

    @task.cpu
    def shifted(x: int) -> int:
        return x + len(tmp_path.parts)  # a closure: it can only travel by value

    @workflow
    def row() -> Any:
        counted = total(square.options(batch=3).map(listed(7), tmp_path, times=2))
        tree = total.reduce(square.options(batch=4).map(iter(range(10)), tmp_path), fan_in=2)
        pairs = add.options(batch=2).starmap([(1, 2), (3, 4), (5, 6)])
        return square.options(batch=3).map(range(10), tmp_path), counted, tree, pairs, shifted.options(batch=2).map([1])

    with Engine(**where) as engine:
        result = engine.start(row).result(100)
    squared = [x * x for x in range(10)]
    counted = 2 * sum(squared[:7])
    assert result.value == (squared, counted, sum(squared), [3, 7, 11], [1 + len(tmp_path.parts)])
    assert called(tmp_path) == Counter([*range(7), *range(10), *range(10)])
    assert {one.executor for one in result.tasks.values()} == {where["routes"]["cpu"]}


def test_large_values_stay_there_and_are_taken_apart_for_who_reads_them(where: dict[str, Any]) -> None:
    """
    blow_up[0..2] (2 items each) ─▶ first[0..5]        blow_up#2[0..2] ─▶ first_here (threads)
    """

    @workflow
    def row() -> Any:
        keyed: Mapping[str, int] = {"us": 1, "eu": 2, "de": 3}
        singly = first.map(blow_up.options(batch=2).map([5, 6, 7, 8, 9, 10]))
        again = first.options(batch=4).map(blow_up.options(batch=2).map([5, 6, 7, 8, 9, 10]))
        here = first_here(blow_up.options(batch=2).map([1, 2, 3]))
        return singly, again, here, blow_up.options(batch=2).map(keyed)

    with Engine(**where) as engine:
        value = engine.start(row).result(100).value
    numbers = [5, 6, 7, 8, 9, 10]
    assert value[:3] == (numbers, numbers, [1, 2, 3])
    assert {key: each[:1] for key, each in value[3].items()} == {"us": b"\x01", "eu": b"\x02", "de": b"\x03"}


@task.cpu
def pair(n: int, size: int) -> tuple[int, bytes]:
    return n, bytes(size)


@task.cpu
def weigh(n: int, value: bytes) -> int:
    return n + len(value)


@task.io(executor="threads")
def weigh_here(n: int, value: bytes) -> int:
    return n + len(value)


@pytest.mark.parametrize("size", [10, LARGE])
def test_items_that_are_results_are_values_wherever_they_are_read(where: dict[str, Any], size: int) -> None:
    """
    [blow_up, blow_up] ─▶ first[0..1], first_here[0..1]     pair[0..2] ─▶ weigh[0..2], weigh_here[0..2] (starmap)
    """

    @workflow
    def row() -> Any:
        listed = [blow_up(1), blow_up(2)]
        pairs = [pair(n, size) for n in range(3)]
        chained = weigh.starmap(pair.map(range(3), size))
        apart = weigh_here.starmap([(1, blow_up(3)), (2, blow_up(4))])
        return (
            first.map(listed),
            first_here.map([listed]),
            weigh.starmap(pairs),
            weigh_here.starmap(pairs),
            chained,
            apart,
        )

    with Engine(**where) as engine:
        value = engine.start(row).result(100).value
    weighed = [n + size for n in range(3)]
    assert value == ([1, 2], [[1, 2]], weighed, weighed, weighed, [1 + LARGE, 2 + LARGE])


def test_a_batch_has_one_outcome_and_its_error_says_which_item(where: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bad-4").touch()
    with Engine(**where) as engine, pytest.raises(RunFailed) as caught:
        engine.start(squares, tmp_path).result(100)
    failure = caught.value.failures["square[1]"]
    assert (failure.type, failure.message) == ("ValueError", "4 is bad")
    assert failure.notes == ("raised for item 1 of a batch of 3",)
    assert called(tmp_path) == Counter({0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 6: 1, 7: 1, 8: 1})


def test_an_item_of_a_batch_cannot_be_skipped(where: dict[str, Any]) -> None:
    @workflow
    def row() -> list[int]:
        return picky.options(batch=2).map(range(4))

    message = "item 1 of a batch of 2 raised Skip, and a batch has one outcome"
    with Engine(**where) as engine, pytest.raises(RunFailed, match=message) as caught:
        engine.start(row).result(100)
    assert set(caught.value.failures) == {"picky[0]"}


def test_a_batch_is_tried_again_as_a_whole(where: dict[str, Any], tmp_path: Path) -> None:
    @workflow
    def row() -> list[int]:
        return moody.options(batch=2).map(range(4), tmp_path)

    with Engine(**where) as engine:
        assert engine.start(row).result(100).value == [0, 1, 2, 3]
    assert called(tmp_path) == Counter({0: 2, 1: 2, 2: 1, 3: 1})


def test_a_resumed_run_repeats_the_batch_that_failed_and_no_other(where: dict[str, Any], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with Engine(**where, store=tmp_path / "flow.db") as engine:
        (marks / "bad-4").touch()
        with pytest.raises(RunFailed):
            engine.start(squares, marks).result(100)
        called(marks)
        (marks / "bad-4").unlink()
        result = engine.resume("last", squares).result(100)
    assert result.value == [x * x for x in range(9)]
    assert called(marks) == Counter([3, 4, 5])
