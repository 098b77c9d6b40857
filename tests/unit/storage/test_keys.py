"""Keys of calls: one for all the ways of saying the same, and another for everything else."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest

from flowlane.program import CacheRule
from flowlane.runtime.cache import key_of
from flowlane.runtime.codes import Codes
from flowlane.storage.digest import Unhashable

MISSING: Any = object()


def f(x: Any, y: int = 2, *rest: int, z: int = 3, **more: int) -> None: ...


def sentinel(x: int, y: Any = MISSING) -> None: ...


@functools.wraps(f)
def other_default(x: Any, y: int = 4) -> None:
    return f(x, y)


class Has:
    def method(self, x: int, y: int = 2) -> None: ...


def key(fn: Any, *args: Any, **kwargs: Any) -> bytes:
    target: Any = SimpleNamespace(name="task", fn=fn)
    return key_of(target, Codes(), CacheRule("1", 0), args, kwargs).key


def test_defaults_are_filled_in() -> None:
    same = [key(f, 1), key(f, x=1), key(f, 1, 2), key(f, 1, y=2), key(f, 1, z=3), key(f, x=1, z=3, y=2)]
    assert len(set(same)) == 1
    others = [key(f, 2), key(f, 1, 3), key(f, 1, z=4), key(f, 1, 2, 3), key(f, 1, w=1), key(f, 1, y=2.0)]
    assert len({*same, *others}) == 1 + len(others)
    assert key(Has().method, 1) == key(Has().method, 1, 2)


def test_a_decorator_may_have_other_defaults_than_it_shows() -> None:
    assert key(other_default, 1) != key(other_default, 1, 2)


def test_a_default_that_cannot_be_hashed_stays_with_the_code() -> None:
    assert key(sentinel, 1) == key(sentinel, x=1)
    assert key(sentinel, 1) != key(sentinel, 1, 2)
    with pytest.raises(Unhashable) as caught:
        key(sentinel, 1, MISSING)
    assert caught.value.path == "y"


def test_callables_of_c() -> None:
    assert key(max, 1, 2) != key(max, 2, 1)
    assert key(functools.partial(f, 1), 2) != key(functools.partial(f, 1), 3)
