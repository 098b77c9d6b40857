"""Handles: every misuse is refused with an error that teaches; they are found wherever they may be."""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import json
import math
import operator
import os
import pickle
import sys
from typing import Any, NamedTuple, Self

import pytest

from flowlane.declare.handle import Handle
from flowlane.declare.workflow import Workflow, workflow
from flowlane.errors import DefinitionError, HandleError

from .sample import anything, compiled, fetch, parse, shown, total

HERE = "test_handles.py:"


class Pair(NamedTuple):
    left: Any
    right: Any = 0


class Picky(NamedTuple("Base", [("x", Any)])):
    def __new__(cls, x: Any) -> Self:
        raise AssertionError("a container is rebuilt without asking its class")


def handle() -> Any:
    return Workflow("w").add(fetch.bind("u"))


def unpack(h: Any) -> None:
    _a, *_b = h


def store(h: Any) -> None:
    h.field = 3


def remove(h: Any) -> None:
    del h.field


def assign(h: Any) -> None:
    h[0] = 1


def delete(h: Any) -> None:
    del h[0]


def enter(h: Any) -> None:
    with h:
        pass


def enter_async(h: Any) -> None:
    async def body() -> None:
        async with h:
            pass

    asyncio.run(body())


def iterate_async(h: Any) -> None:
    async def body() -> None:
        async for _ in h:
            pass

    asyncio.run(body())


def await_it(h: Any) -> None:
    async def body() -> None:
        await h

    asyncio.run(body())


def in_place(h: Any) -> None:
    h += 1


MISUSES: dict[str, Any] = {
    "bool": bool,
    "not": operator.not_,
    "and": lambda h: h and 1,
    "if": lambda h: 1 if h else 2,
    "iter": iter,
    "next": next,
    "list": list,
    "unpack": unpack,
    "star": lambda h: [*h],
    "double star": lambda h: {**h},
    "reversed": reversed,
    "sorted": sorted,
    "sum": sum,
    "len": len,
    "in": lambda h: 1 in h,
    "in list": lambda h: h in [1, 2],
    "index": lambda h: h[0],
    "slice": lambda h: h[1:],
    "assign": assign,
    "delete": delete,
    "getattr": lambda h: h.rows,
    "getattr dunder": lambda h: h.__array__,
    "setattr": store,
    "delattr": remove,
    "format": lambda h: f"{h}",
    "format spec": lambda h: f"{h:>10}",
    "percent": lambda h: "%s" % h,  # noqa: UP031
    "str": str,
    "bytes": bytes,
    "fspath": os.fspath,
    "print": print,
    "join": lambda h: "".join([str(h)]),
    "eq": lambda h: h == 1,
    "eq reflected": lambda h: 1 == h,  # noqa: SIM300
    "ne": lambda h: h != None,  # noqa: E711
    "lt": lambda h: h < 1,
    "ge": lambda h: h >= 1,
    "gt reflected": lambda h: 1 > h,  # noqa: SIM300
    "max": lambda h: max(h, 1),
    "hash": hash,
    "dict key": lambda h: {h: 1},
    "set": lambda h: {h},
    "await": await_it,
    "async with": enter_async,
    "async for": iterate_async,
    "with": enter,
    "call": lambda h: h(),
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "add": lambda h: h + 1,
    "radd": lambda h: 1 + h,
    "str add": lambda h: "a" + h,
    "iadd": in_place,
    "mul": lambda h: h * 2,
    "matmul": lambda h: h @ h,
    "truediv": lambda h: 1 / h,
    "divmod": lambda h: divmod(h, 2),
    "pow": lambda h: 2**h,
    "lshift": lambda h: h << 1,
    "or": lambda h: h | {},
    "neg": operator.neg,
    "invert": operator.invert,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "int": int,
    "float": float,
    "complex": complex,
    "range": range,
    "hex": hex,
    "json": json.dumps,
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES.keys())
def test_misuse_teaches(misuse: Any) -> None:
    with pytest.raises(TypeError) as caught:
        misuse(handle())
    if caught.type is TypeError:  # json asks only for the type; ** turns any AttributeError into this
        assert misuse in (json.dumps, MISUSES["double star"])
        return
    error = caught.value
    assert isinstance(error, HandleError)
    assert "the result of task 'fetch'" in error.message
    assert "in workflow 'w'" in error.message
    assert error.hint
    assert error.where is not None


def test_misuse_names_the_line() -> None:
    h = handle()
    with pytest.raises(HandleError, match="used as a condition") as caught:
        assert h
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{sys._getframe().f_lineno - 2}")  # pyright: ignore[reportPrivateUsage]
    assert "branch on the workflow's parameters" in (caught.value.hint or "")


def test_what_is_allowed() -> None:
    h = handle()
    assert repr(h) == "<handle of 'fetch' in workflow 'w': no value yet>"
    assert h is not None
    assert not hasattr(h, "rows")
    assert isinstance(h, Handle)
    assert getattr(h, "rows", 7) == 7
    assert dir(h)


# ── where handles are found ───────────────────────────────────────────────────────────────────────────────────────


def graph() -> tuple[Workflow, Any, Any]:
    wf = Workflow("w")
    return wf, wf.add(fetch.bind("a")), wf.add(fetch.bind("b"))


def test_handles_in_containers() -> None:
    wf, a, b = graph()
    wf.add(anything.bind(a, [b, 1], (a, [b]), Pair(a, "x"), {"k": a, "l": {"m": [b]}}, x=b, y=[a], z=3))
    arguments = wf.arguments[2]
    assert shown(arguments)[0][:3] == ("@0", ["@1", 1], ("@0", ["@1"]))
    pair = arguments.args[3]
    assert type(pair) is Pair
    assert shown(tuple(pair)) == ("@0", "x")
    assert shown(arguments.args[4]) == {"k": "@0", "l": {"m": ["@1"]}}
    assert shown(dict(arguments.kwargs)) == {"x": "@1", "y": ["@0"], "z": 3}
    assert wf.inputs[2] == (0, 1)
    assert arguments.direct == (0,)
    assert arguments.nested


def test_direct_handles_need_no_walk() -> None:
    wf, a, b = graph()
    wf.add(anything.bind(a))
    wf.add(anything.bind(1, b, "x", a))
    assert wf.arguments[2].direct == (0,)
    assert wf.arguments[3].direct == (1, 3)
    assert not wf.arguments[2].nested
    assert not wf.arguments[3].nested
    assert wf.inputs[3] == (1, 0)


def test_one_handle_twice_is_one_edge() -> None:
    wf, a, _ = graph()
    wf.add(anything.bind(a, a, [a, a]))
    assert wf.inputs[2] == (0,)
    assert shown(wf.arguments[2])[0] == ("@0", "@0", ["@0", "@0"])


def test_containers_without_handles_pass_by_identity() -> None:
    wf, a, _ = graph()
    plain: list[Any] = [1, [2, {"k": (3,)}], object()]
    mapping = collections.OrderedDict(x=1)
    outer = [a, plain]
    wf.add(anything.bind(plain, mapping, {1, 2}, outer, data=plain))
    arguments = wf.arguments[2]
    assert arguments.args[0] is plain
    assert arguments.args[1] is mapping
    assert arguments.args[3][1] is plain
    assert arguments.args[3] is not outer
    assert outer[0] is a  # the user's own list is not touched
    assert arguments.kwargs["data"] is plain


def test_a_named_tuple_is_rebuilt_without_its_constructor() -> None:
    wf, a, _ = graph()
    picky = tuple.__new__(Picky, [a])
    wf.add(anything.bind(picky))
    assert type(wf.arguments[2].args[0]) is Picky


def test_nothing_else_is_searched_but_near_misses_are_told() -> None:
    wf, a, _ = graph()

    @dataclasses.dataclass
    class Box:
        value: Any

    class MyList(list[Any]):
        pass

    for wrong in (collections.defaultdict(int, x=a), collections.OrderedDict(x=a), MyList([a]), [MyList([a])]):
        with pytest.raises(HandleError, match="that holds the result of a task"):
            wf.add(anything.bind(wrong))
    with pytest.raises(
        HandleError, match=r"is given a Box that holds the result of task 'fetch' \(its attribute 'value'\)"
    ):
        wf.add(anything.bind(Box(a)))
    wf.add(anything.bind(Box(Box(a))))  # one level is looked at
    assert wf.inputs[-1] == ()


def test_a_task_that_is_passed_without_calling_it_is_refused() -> None:
    wf, a, _ = graph()
    for call in (parse.bind(fetch), anything.bind(a, fetch), anything.bind(x=fetch)):
        with pytest.raises(HandleError) as caught:
            wf.add(call)
        assert caught.value.message == f"task {call.task.name!r} is given the task 'fetch' itself, not its result"
        assert caught.value.hint == "call it: fetch(...); to pass the function, fetch.fn"
        assert HERE in (caught.value.where or "")
    wf.add(anything.bind(fetch.fn))
    assert len(wf.names) == 3


def test_deep_nesting_neither_recurses_nor_slows() -> None:
    wf, a, _ = graph()
    deep: Any = a
    for _ in range(50_000):
        deep = [deep]
    wf.add(anything.bind(deep))
    assert wf.inputs[2] == (0,)
    template = wf.arguments[2].args[0]
    depth = 0
    while type(template) is list:
        template = template[0]
        depth += 1
    assert depth == 50_000
    assert compiled(wf.returns(deep)).plan.pinned == {0}


def test_shared_containers_are_visited_once() -> None:
    wf, a, _ = graph()
    shared: Any = [a]
    for _ in range(100):  # 2**100 paths
        shared = [shared, shared]
    wf.add(anything.bind(shared))
    template = wf.arguments[2].args[0]
    assert template[0] is template[1]
    assert wf.inputs[2] == (0,)


def test_containers_that_hold_themselves() -> None:
    wf, a, _ = graph()
    loop: list[Any] = [1]
    loop.append(loop)
    wf.add(anything.bind(loop))
    assert wf.arguments[2].args[0] is loop
    loop.append(a)
    with pytest.raises(HandleError, match="holds both a handle and itself"):
        wf.add(anything.bind(loop))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, x], lambda x: {"k": (x,)}])
def test_lazy_arguments_are_refused(wrap: Any) -> None:
    wf, _, _ = graph()
    lazies: list[Any] = [(x for x in [1]), map(str, [1]), filter(None, [1]), zip([1], strict=True)]
    for lazy in lazies:
        with pytest.raises(HandleError, match="only once and only when asked") as caught:
            wf.add(anything.bind(wrap(lazy)))
        assert "write a list" in (caught.value.hint or "")


def test_a_coroutine_is_no_argument() -> None:
    wf, _, _ = graph()
    with pytest.raises(HandleError, match="coroutine") as caught:
        wf.add(anything.bind(fetch.fn("u")))
    assert "some_task(x)" in (caught.value.hint or "")


def test_a_bound_call_is_no_argument() -> None:
    wf, _, _ = graph()
    for call in (anything.bind(fetch.bind("u")), anything.bind(x=fetch.bind("u"))):
        with pytest.raises(HandleError, match=r"is given fetch\.bind\(\.\.\.\)"):
            wf.add(call)


# ── of another body ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_handle_of_another_graph_names_both() -> None:
    other = Workflow("other")
    theirs = other.add(fetch.bind("u"), name="far")
    wf, _, _ = graph()
    for misuse in (
        lambda: wf.add(parse.bind(theirs)),
        lambda: wf.add(total.bind([theirs])),
        lambda: wf.add(fetch.bind("x"), after=[theirs]),
        lambda: wf.order(theirs, "fetch"),
        lambda: wf.returns(theirs),
        lambda: wf.returns({"k": [theirs]}),
    ):
        with pytest.raises(HandleError, match=r"'w' is given the result of task 'far' of workflow 'other'") as caught:
            misuse()
        assert HERE in (caught.value.where or "")
        assert HERE in (caught.value.hint or "")


def test_a_handle_of_a_finished_body() -> None:
    kept: list[Any] = []

    @workflow
    def w() -> Any:
        if kept:
            return parse(kept[0])
        kept.append(fetch("u"))
        return None

    w.bind().build()
    with pytest.raises(HandleError, match="of an earlier run of its body of workflow 'w', whose body has ended"):
        w.bind().build()


def test_results_may_not_be_lazy_or_bound() -> None:
    @workflow
    def lazy() -> Any:
        return (fetch(u) for u in "abc")

    @workflow
    def bound() -> Any:
        return fetch.bind("u")

    with pytest.raises(HandleError, match="the result of workflow 'lazy' is given a generator"):
        lazy.bind().build()
    with pytest.raises(DefinitionError, match=r"returns fetch\.bind"):
        bound.bind().build()
