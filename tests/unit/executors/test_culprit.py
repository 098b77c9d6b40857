"""The way to a culprit, checked on random values that hold exactly one, at a place we know."""

from __future__ import annotations

import pickle
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from flowlane_plugins.executors.culprit import parameter_name, unpicklable, written
from flowlane_plugins.executors.explosion import exploding

if TYPE_CHECKING:
    from types import ModuleType


def attempt(value: Any) -> BaseException | None:
    try:
        pickle.dumps(value)
    except BaseException as error:
        return error
    return None


def buried(rng: random.Random, shapes: ModuleType, culprit: Any) -> tuple[Any, list[str]]:
    """`culprit` under a few random layers, and the segments of the way to it."""
    value, way = culprit, []
    for _ in range(rng.randrange(6)):
        before, after = ([rng.random()] * rng.choice([0, 1, 3, 1500]) for _ in range(2))
        match rng.randrange(5):
            case 0:
                value, segment = [*before, value, *after], f"[{len(before)}]"
            case 1:
                value, segment = (*before, value, *after), f"[{len(before)}]"
            case 2:
                value, segment = {"x": before, "k": value, "z": after}, "['k']"
            case 3:
                value, segment = shapes.Holder(value), ".parts"
            case _:
                value, segment = {7: "a", 8: value}, "[8]"
        way.insert(0, segment)
    return value, way


@pytest.mark.parametrize("seed", range(40))
def test_finds_what_cannot_be_pickled(shapes: ModuleType, seed: int) -> None:
    value, way = buried(random.Random(seed), shapes, threading.Lock())
    error = attempt(value)
    assert error is not None
    assert unpicklable(value, attempt, error) == (written(way), "cannot pickle '_thread.lock' object")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_finds_what_explodes_on_load(shapes: ModuleType, seed: int, protocol: int) -> None:
    value, way = buried(random.Random(seed), shapes, shapes.Bomb())
    assert exploding(pickle.dumps(value, protocol)) == (way, "_flow_shapes.Bomb")


def test_an_object_that_is_met_twice_is_found_where_it_is_made(shapes: ModuleType) -> None:
    bomb = shapes.Bomb()
    assert exploding(pickle.dumps({"first": [bomb], "again": bomb}, 5)) == (["['first']", "[0]"], "_flow_shapes.Bomb")


def test_values_in_sets_keys_and_subclasses(shapes: ModuleType) -> None:
    bomb = shapes.Bomb()
    assert exploding(pickle.dumps({1, bomb}, 5))[0] == [" an element"]
    assert exploding(pickle.dumps({bomb: 1}, 5))[0] == [" a key"]
    assert exploding(pickle.dumps(shapes.Names(x=[bomb]), 5))[0] == ["['x']", "[0]"]


def test_says_nothing_of_what_loads_after_all_or_is_no_pickle() -> None:
    assert exploding(pickle.dumps([1, 2])) == ([], "")
    assert exploding(b"\x80\x05 this is no pickle") == ([], "")


def test_a_cycle_does_not_trap_the_search(shapes: ModuleType) -> None:
    holder = shapes.Holder([])
    holder.parts += [holder, threading.Lock()]
    error = attempt(holder)
    assert error is not None
    path, reason = unpicklable(holder, attempt, error)
    assert path.startswith(".parts")
    assert reason == "cannot pickle '_thread.lock' object"


def test_long_ways_are_shortened() -> None:
    assert written([f".a{n}" for n in range(20)]) == ".a0.a1.a2.a3 … .a18.a19"
    assert written([]) == ""


def test_parameters_by_position() -> None:
    def fn(first: Any, *rest: Any, named: Any = None) -> None: ...

    names = [parameter_name(fn, 0), parameter_name(fn, 1), parameter_name(fn, 3), parameter_name(fn, "named")]
    assert names == ["first", "rest[0]", "rest[2]", "named"]
    assert parameter_name(print, 5) == "args[5]" or parameter_name(print, 5).startswith("argument")
