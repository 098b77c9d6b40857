"""Handles inside objects: they would stay handles there, so the call is refused, as far as it is cheap to see."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import HandleError, run, task, workflow

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = "test_hidden_handles.py:"


@dataclass
class Order:
    lines: Any
    number: int = 1


@dataclass(frozen=True, slots=True)
class Slotted:
    lines: Any


class Guarded:
    """Attributes are looked at without its own code."""

    def __init__(self, lines: Any) -> None:
        self.lines = lines

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@task.io
def load() -> list[int]:
    return [1, 2]


@task.io
def use(given: Any) -> Any:
    return given


@pytest.mark.parametrize(
    ("hide", "where"),
    [
        (Order, "a Order that holds the result of task 'load' (its attribute 'lines')"),
        (Slotted, "a Slotted that holds the result of task 'load' (its attribute 'lines')"),
        (Guarded, "a Guarded that holds the result of task 'load' (its attribute 'lines')"),
        (lambda handle: [1, Order(handle)], "a Order that holds"),
        (lambda handle: {"a": Guarded(handle)}, "a Guarded that holds"),
        (lambda handle: [handle, Guarded(handle)], "a Guarded that holds"),
        (lambda handle: deque([handle]), "a deque that holds the result of task 'load' (its element 0)"),
        (
            lambda handle: partial(print, end=handle),
            "a partial that holds the result of task 'load' (its argument 'end')",
        ),
        (lambda handle: lambda: handle, "a function that holds the result of task 'load' (its variable 'handle')"),
    ],
)
def test_a_handle_in_an_object_is_refused(hide: Callable[[Any], Any], where: str) -> None:
    @workflow
    def flow() -> Any:
        return use(hide(load()))

    with pytest.raises(HandleError) as caught:
        flow.bind().build()
    assert f"task 'use' is given {where}".replace("a Order", "an Order") in caught.value.message
    assert HERE in (caught.value.where or "")
    assert "pass it as an argument of its own" in (caught.value.hint or "")


def test_it_is_refused_among_the_items_of_a_map_and_in_a_result() -> None:
    @workflow
    def mapped() -> Any:
        return use.map([Order(load())])

    @workflow
    def returned() -> Any:
        return Order(load())

    for flow, subject in ((mapped, "use.map(...)"), (returned, "the result of workflow 'returned'")):
        with pytest.raises(HandleError, match="that holds the result of task 'load'") as caught:
            flow.bind().build()
        assert caught.value.message.startswith(subject)


def test_objects_without_handles_pass_by_identity() -> None:
    given = [Order([1]), Slotted(2), Guarded(3), deque([1]), partial(print, 1), len, Order]

    @workflow
    def flow() -> Any:
        return [use(each) for each in given]

    value = run(flow.bind(), routes={"*": "inline"}).value
    assert all(each is other for each, other in zip(value, given, strict=True))


class Shop:
    """A body may be a method that keeps its handles on the instance."""

    def __init__(self) -> None:
        self.found: Any = None

    @task.io
    def look(self) -> int:
        return 3

    @task.io
    def double(self, number: int) -> int:
        return 2 * number


def test_the_instance_of_a_method_may_keep_handles_for_the_body() -> None:
    shop = Shop()

    @workflow
    def flow() -> Any:
        shop.found = shop.look()
        return shop.double(shop.found)

    assert run(flow.bind(), routes={"*": "inline"}).value == 6


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda handle: [*handle], "iterated or unpacked"),
        (lambda handle: handle + 1, "used in arithmetic"),
        (lambda handle: "yes" if handle else "no", "used as a condition"),
        (lambda handle: handle.name, "asked for its attribute 'name'"),
    ],
)
def test_a_task_that_gets_a_handle_all_the_same_is_told_what_it_is(misuse: Any, told: str) -> None:
    @task.io
    def deep(given: Any) -> Any:
        return misuse(given.lines.lines)

    @workflow
    def flow() -> Any:
        return deep(Guarded(Guarded(load())))

    failure = run(flow.bind(), check=False, routes={"*": "inline"}).failures["deep"]
    assert f"the result of task 'load' was {told}" in failure.message
    assert "after the body of workflow 'flow' had ended: it is a handle still" in failure.message
    assert HERE in (failure.where or "")
    assert "is an argument of its own" in failure.notes[0]
