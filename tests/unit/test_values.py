"""Filling templates: values where Refs stood, and nothing else touched."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowlane.program import Arguments, Ref
from flowlane.runtime.ports import RemoteValue
from flowlane.runtime.values import fill, fill_arguments, fill_arguments_at


class Pair(NamedTuple):
    left: Any
    right: Any


def test_every_searched_container_is_rebuilt_around_its_values() -> None:
    values = ["zero", ["one"]]
    template = {"a": [Ref(0), (Ref(1), 5)], "b": Pair(Ref(0), {"c": Ref(1)})}
    filled = fill(template, values)
    assert filled == {"a": ["zero", (["one"], 5)], "b": Pair("zero", {"c": ["one"]})}
    assert type(filled["b"]) is Pair
    assert filled["a"][1][0] is values[1]


def test_what_holds_no_ref_is_the_same_object() -> None:
    plain = {"deep": [(1, 2)]}
    template = [plain, Ref(0)]
    filled = fill(template, ["x"])
    assert filled[0] is plain
    assert fill(plain, []) is plain


def test_a_value_that_looks_like_a_template_is_not_walked() -> None:
    value = [Ref(0)]
    assert fill([Ref(0)], [value])[0] is value


def test_depth_does_not_recurse_and_sharing_is_kept() -> None:
    deep: Any = Ref(0)
    for _ in range(100_000):
        deep = [deep]
    filled = fill(deep, ["bottom"])
    for _ in range(100_000):
        (filled,) = filled
    assert filled == "bottom"
    shared: Any = [Ref(0)]
    for _ in range(60):  # 2^60 paths, 61 containers
        shared = [shared, shared]
    top = fill(shared, [1])
    assert top[0] is top[1]


def test_a_container_inside_itself_is_left_as_it_is() -> None:
    loop: list[Any] = [Ref(0)]
    loop.append(loop)
    filled = fill(loop, [7])
    assert filled[0] == 7
    assert filled[1] is loop


def test_arguments_are_filled_by_position_or_by_a_walk() -> None:
    values = [10, 20]
    plain = Arguments((1, 2), {"k": 3})
    assert fill_arguments(plain, values) == ((1, 2), {"k": 3})
    direct = Arguments((1, Ref(1), Ref(0)), {}, (1, 2))
    assert fill_arguments(direct, values) == ([1, 20, 10], {})
    nested = Arguments((Ref(0), [Ref(1)]), {"k": Ref(1)}, (0,), nested=True)
    assert fill_arguments(nested, values) == ([10, [20]], {"k": 20})


# ── values that stay where they were made ─────────────────────────────────────────────────────────────────────────


class Far(RemoteValue):
    def __init__(self, home: object, value: Any) -> None:
        super().__init__(home, 8)
        self.value = value
        self.fetched = 0

    def fetch(self) -> Any:
        self.fetched += 1
        return self.value


def test_a_remote_value_goes_home_as_it_is_and_elsewhere_as_what_it_stands_for() -> None:
    home, away = object(), object()
    far = Far(home, "x")
    arguments = Arguments((Ref(0), 5, Ref(1)), {}, direct=(0, 2))
    assert fill_arguments_at(home, arguments, [far, "y"]) == ([far, 5, "y"], {})
    assert far.fetched == 0
    assert fill_arguments_at(away, arguments, [far, "y"]) == (["x", 5, "y"], {})
    assert arguments.args[0] is not far  # the template stays


def test_remote_values_inside_containers_and_keywords() -> None:
    home = object()
    far = Far(home, "x")
    arguments = Arguments((5,), {"all": [Ref(0), {"k": (Ref(0), Ref(1))}], "one": Ref(0)}, nested=True)
    assert fill_arguments_at(home, arguments, [far, "y"]) == ([5], {"all": [far, {"k": (far, "y")}], "one": far})
    assert fill_arguments_at(None, arguments, [far, "y"]) == ([5], {"all": ["x", {"k": ("x", "y")}], "one": "x"})


def test_arguments_without_upstream_values_are_not_copied() -> None:
    arguments = Arguments((1, 2), {"a": 3})
    args, kwargs = fill_arguments_at(object(), arguments, [])
    assert args is arguments.args
    assert kwargs is arguments.kwargs
