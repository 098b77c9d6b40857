"""Compiling: routes and what executors accept, cycles named, targets, size."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from flowlane.declare import graph as graphs
from flowlane.declare.compile import BUILTIN_ROUTES, check_definitions
from flowlane.declare.task import task
from flowlane.declare.workflow import Workflow, workflow
from flowlane.errors import CycleError, DefinitionError, RouteError, UnknownName

from .sample import capabilities, compiled, edges, fetch, parse, read, total

HERE = "test_compile.py:"


@task.io
def link(x: Any = None) -> Any:
    return x


def three() -> Workflow:
    """fetch (io, async), read (io, sync), parse (cpu)."""
    wf = Workflow("w")
    wf.add(fetch.bind("u"))
    wf.add(read.bind("p"))
    wf.add(parse.bind(b""))
    return wf


def lanes(wf: Workflow, **options: Any) -> list[str]:
    program = compiled(wf, **options)
    return [program.lanes[lane] for lane in program.plan.lane]


# ── routes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_built_in_routes() -> None:
    assert lanes(three()) == ["asyncio", "threads", "processes"]
    assert BUILTIN_ROUTES == {"io.async": "asyncio", "io.sync": "threads", "cpu": "processes"}


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ({"*": "inline"}, ["inline", "inline", "inline"]),
        ({"io": "inline"}, ["inline", "inline", "processes"]),
        ({"io.async": "inline"}, ["inline", "threads", "processes"]),
        ({"io.sync": "inline"}, ["asyncio", "inline", "processes"]),
        ({"cpu": "threads"}, ["asyncio", "threads", "threads"]),
        ({"*": "inline", "cpu": "threads"}, ["inline", "inline", "threads"]),
        ({"io": "inline", "io.sync": "threads"}, ["inline", "threads", "processes"]),
        ({"cpu": "threads", "parse": "inline"}, ["asyncio", "threads", "inline"]),
        ({"fetch": "inline"}, ["inline", "threads", "processes"]),
    ],
)
def test_the_most_specific_route_counts(routes: dict[str, str], expected: list[str]) -> None:
    assert lanes(three(), routes=routes) == expected
    assert lanes(three(), defaults=routes) == expected


def test_routes_by_node() -> None:
    wf = three()
    wf.add(parse.bind(b""))
    wf.add(parse.bind(b""), name="special")
    routes = {"parse#2": "threads", "special": "inline"}
    assert lanes(wf, routes=routes)[2:] == ["processes", "threads", "inline"]
    assert lanes(wf, routes={**routes, "parse": "inline"})[2:] == ["inline", "threads", "inline"]
    assert lanes(wf, defaults=routes)[2:] == ["processes", "threads", "inline"]
    assert lanes(wf, defaults=routes, routes={"*": "inline"})[2:] == ["inline", "inline", "inline"]


def test_who_has_the_last_word() -> None:
    wf = Workflow("w")
    wf.add(parse.options(executor="threads").bind(b""))
    assert lanes(wf) == ["threads"]
    assert lanes(wf, defaults={"cpu": "inline"}) == ["threads"]  # the task over the engine
    assert lanes(wf, defaults={"parse": "inline"}) == ["threads"]
    assert lanes(wf, routes={"*": "inline"}) == ["inline"]  # the run over the task
    assert lanes(wf, routes={"cpu": "processes"}, defaults={"parse": "inline"}) == ["processes"]
    assert lanes(three(), routes={"*": "inline"}, defaults={"parse": "threads"}) == ["inline"] * 3


def test_routes_of_other_workflows_do_not_matter_to_an_engine() -> None:
    assert lanes(three(), defaults={"transform": "threads"}) == ["asyncio", "threads", "processes"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("pasre", "did you mean 'parse'?"),
        ("io.asnyc", "did you mean 'io.async'?"),
        ("qqqqq", "a route's key is one of"),
    ],
)
def test_a_route_that_matches_nothing(key: str, hint: str) -> None:
    with pytest.raises(RouteError, match=f"route {key}=threads matches nothing in workflow 'w'") as caught:
        compiled(three(), routes={key: "threads"})
    assert hint in (caught.value.hint or "")


def test_unknown_executors_name_who_asked() -> None:
    wf = Workflow("w")
    written = sys._getframe().f_lineno + 1  # pyright: ignore[reportPrivateUsage]
    wf.add(parse.options(executor="gpu").bind(b""))
    with pytest.raises(RouteError, match="task 'parse' asks for executor 'gpu': there is no executor") as caught:
        compiled(wf)
    assert (caught.value.where or "").endswith(f"{HERE}{written}")
    assert caught.value.hint == "did you mean ...?"
    with pytest.raises(RouteError, match="route cpu=gpu asks for executor 'gpu'"):
        compiled(three(), routes={"cpu": "gpu"})
    with pytest.raises(RouteError, match="route cpu=gpu asks for executor 'gpu'"):
        compiled(three(), defaults={"cpu": "gpu"})
    empty = Workflow("empty")
    with pytest.raises(RouteError, match="route cpu=gpu"):  # though nothing goes there
        compiled(empty, routes={"cpu": "gpu"})


def test_executors_that_cannot_run_the_task() -> None:
    with pytest.raises(
        RouteError, match="task 'fetch' is an async def and is sent to executor 'threads' by route io="
    ) as caught:
        compiled(three(), routes={"io": "threads"})
    assert "which runs a plain def only" in caught.value.message
    assert "io.sync=threads" in (caught.value.hint or "")
    assert "sample.py:" in (caught.value.where or "")
    with pytest.raises(RouteError, match="task 'read' is a plain def and is sent to executor 'asyncio'") as caught:
        compiled(three(), routes={"read": "asyncio"})
    assert "threads or inline" in (caught.value.hint or "")
    wf = Workflow("w")
    wf.add(fetch.options(executor="processes").bind("u"))
    with pytest.raises(RouteError, match="task 'fetch' is an async def and is sent to executor 'processes', which"):
        compiled(wf)
    wf = three()
    wf.add(fetch.bind("v"))
    with pytest.raises(RouteError, match=r"by route fetch#2=threads"):
        compiled(wf, routes={"fetch#2": "threads"})


# ── cycles ────────────────────────────────────────────────────────────────────────────────────────────────────────


def ring(*names: str) -> Workflow:
    wf = Workflow("w")
    for name in names:
        wf.add(link.bind(), name=name)
    for before, after in zip(names, (*names[1:], names[0]), strict=True):
        wf.order(before, after)
    return wf


def test_a_cycle_is_named() -> None:
    wf = ring("a", "b")
    with pytest.raises(CycleError, match=r"workflow 'w' has a cycle: a → b → a") as caught:
        compiled(wf)
    assert caught.value.cycle == ["a", "b", "a"]
    assert HERE in (caught.value.where or "")


def test_a_task_that_waits_for_itself() -> None:
    wf = Workflow("w")
    wf.add(link.bind(), name="a", after=["a"])
    with pytest.raises(CycleError, match="a → a"):
        compiled(wf)


def test_a_cycle_through_data() -> None:
    #   a ──▶ b ──▶ c      and c before a
    wf = Workflow("w")
    a = wf.add(link.bind(), name="a")
    b = wf.add(link.bind(a), name="b")
    c = wf.add(link.bind(b), name="c")
    wf.add(link.bind(c), name="behind")
    wf.order(c, a)
    written = sys._getframe().f_lineno - 1  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(CycleError, match="a → b → c → a") as caught:
        compiled(wf)
    assert (caught.value.where or "").endswith(f"{HERE}{written}")
    assert "'c' is put before 'a' here" in (caught.value.hint or "")


def test_a_long_cycle_is_cut_short() -> None:
    names = [f"n{i:05}" for i in range(20_000)]
    with pytest.raises(CycleError) as caught:
        compiled(ring(*names))
    shown = caught.value.message.rpartition(": ")[2]
    assert len([name for name in shown.split(" → ") if name.startswith("n")]) == 8
    assert "(19993 more)" in shown
    assert len(caught.value.cycle) == 20_001
    assert shown.endswith("n00000")


def test_the_shortest_way_round_is_shown() -> None:
    wf = ring(*"abcdefghijkl")
    wf.order("c", "a")
    with pytest.raises(CycleError, match="has a cycle: a → b → c → a\\n"):
        compiled(wf)


# ── what a person asks of a graph ─────────────────────────────────────────────────────────────────────────────────


def diamond() -> Workflow:
    #       ┌─▶ b ─┐
    #   a ──┤      ├──▶ d
    #       └─▶ c ─┘
    wf = Workflow("diamond")
    a = wf.add(link.bind(), name="a")
    b, c = wf.add(link.bind(a), name="b"), wf.add(link.bind(a), name="c")
    wf.add(link.bind(b), name="d", after=[c])
    return wf


def test_questions() -> None:
    wf = diamond()
    graph = wf.graph
    assert graph.edges["b", "d"] == {"kind": "data"}
    assert graph.edges["c", "d"] == {"kind": "order"}
    assert graphs.layers(wf) == [["a"], ["b", "c"], ["d"]]
    assert graphs.ancestors(graph, "d") == {"a", "b", "c"}
    assert graphs.descendants(graph, "b") == {"d"}
    assert graphs.critical_path(graph, {"a": 1.0, "b": 1.0, "c": 5.0, "d": 0.5}) == ["a", "c", "d"]
    assert len(graphs.critical_path(graph)) == 3
    assert graphs.critical_path(Workflow("empty").graph) == []
    with pytest.raises(UnknownName, match="no task named 'e'"):
        graphs.ancestors(graph, "e")


def test_layers_of_a_cycle() -> None:
    with pytest.raises(CycleError, match="a → b → a"):
        graphs.layers(ring("a", "b"))


def test_a_layout_has_no_needless_crossing() -> None:
    wf = Workflow("w")
    tops = [wf.add(link.bind(), name=f"t{i}") for i in range(4)]
    for i in reversed(range(4)):
        wf.add(link.bind(tops[i]), name=f"b{i}")
    place = graphs.layout(wf.graph)
    assert len(set(place.values())) == 8
    order = [sorted((name for name in place if name[0] == side), key=lambda name: place[name][1]) for side in "tb"]
    assert [name[1] for name in order[0]] == [name[1] for name in order[1]]


def test_acyclic_edges_have_no_cycle() -> None:
    assert graphs.name_cycle([(1, 2), (2, 3), (1, 3)]) == []
    assert graphs.name_cycle([]) == []


# ── without running a body ────────────────────────────────────────────────────────────────────────────────────────


@workflow
def needs(urls: list[str]) -> int:
    raise AssertionError("the body must not run")


def test_definitions_are_checked_without_the_body() -> None:
    assert {"fetch", "parse", "link", "total"} <= set(check_definitions(needs, capabilities))
    assert total.name == "total"


def test_bad_definitions_are_found_without_the_body() -> None:
    scope: dict[str, Any] = {"__name__": "somewhere", "bad": task.cpu(retries=-1)(len)}
    exec("def body(x: int) -> None: ...", scope)
    with pytest.raises(DefinitionError, match="task 'len' has retries=-1"):
        check_definitions(workflow(scope["body"]))
    scope["bad"] = task.cpu(executor="gpu")(len)
    with pytest.raises(RouteError, match="task 'len' asks for executor 'gpu'"):
        check_definitions(workflow(scope["body"]), capabilities)
    scope["bad"] = None
    exec("def odd(x: 'Nowhere') -> None: ...", scope)
    with pytest.raises(DefinitionError, match="Nowhere"):
        check_definitions(workflow(scope["odd"]))


# ── targets and size ──────────────────────────────────────────────────────────────────────────────────────────────


def test_targets() -> None:
    program = compiled(three())
    first = program.targets[0]
    assert (first.name, first.fn, first.is_async) == ("fetch", fetch.fn, True)
    assert first.address is not None
    assert first.address.qualname == "fetch"
    wf = Workflow("w")
    wf.add(task.io(lambda: 1).bind())
    assert compiled(wf).targets[0].address is None


def test_a_long_chain_neither_recurses_nor_slows() -> None:
    wf = Workflow("chain")
    x = wf.add(link.bind())
    for _ in range(99_999):
        x = wf.add(link.bind(x))
    program = compiled(wf.returns(x))
    assert program.plan.size == 100_000
    assert program.plan.order == tuple(range(100_000))
    assert program.plan.rank[0] == 100_000
    assert program.plan.pinned == {99_999}


def test_many_small_things_are_shared() -> None:
    wf = Workflow("wide")
    for i in range(100):
        wf.add(link.options(name=f"n{i}").bind())
    program = compiled(wf)
    assert len({id(each) for each in program.arguments}) == 1
    assert len({id(each) for each in program.targets}) == 1
    assert len({id(each) for each in wf.settings}) == 1
    assert edges(program) == {f"n{i}": set() for i in range(100)}
