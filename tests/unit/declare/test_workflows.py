"""@workflow and Workflow: names, edges, results, parameters, and what is refused."""

from __future__ import annotations

import datetime
import enum
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from flowlane.declare.task import task
from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition, as_bound, workflow
from flowlane.errors import (
    ArgumentError,
    DefinitionError,
    NameTaken,
    ParameterError,
    UnknownName,
    UsageError,
)

from .sample import compiled, edges, fetch, parse, read, shown, total

if TYPE_CHECKING:
    from decimal import Decimal

HERE = "test_workflows.py:"


@workflow
def etl(urls: list[str], strict: bool = True) -> int:
    """Extract and so on."""
    return total([parse(fetch(u), strict=strict) for u in urls])


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_becomes_a_program() -> None:
    #   fetch ──▶ parse ────┐
    #   fetch#2 ─▶ parse#2 ─┴─▶ total
    program = compiled(etl.bind(["a", "b"], strict=False))
    assert program.workflow == "etl"
    assert program.names == ("fetch", "parse", "fetch#2", "parse#2", "total")
    assert edges(program) == {
        "fetch": set(),
        "parse": {"fetch"},
        "fetch#2": set(),
        "parse#2": {"fetch#2"},
        "total": {"parse", "parse#2"},
    }
    assert program.kinds == ("io", "cpu", "io", "cpu", "cpu")
    assert program.params == {"urls": ["a", "b"], "strict": False}
    assert shown(program.result) == "@4"
    assert program.plan.pinned == {4}
    assert program.plan.inputs == program.plan.upstreams


def test_a_definition_looks_like_its_function() -> None:
    assert (etl.name, etl.__name__, etl.__doc__) == ("etl", "etl", "Extract and so on.")
    assert etl.on_failure == "continue"
    assert HERE in (etl.where or "")


def test_options_of_a_workflow() -> None:
    @workflow(name="nightly load", on_failure="fail_fast")
    def w() -> None: ...

    assert w.name == "nightly load"
    assert compiled(w.bind()).plan.fail_fast
    assert not compiled(w.bind(), on_failure="continue").plan.fail_fast
    assert compiled(etl.bind([]), on_failure="fail_fast").plan.fail_fast


def test_results_of_any_shape() -> None:
    @workflow
    def nothing() -> None:
        fetch("u")

    @workflow
    def shapes() -> Any:
        a, b = fetch("a"), fetch("b")
        return {"a": a, "list": [b, (a, 1)], "plain": {1, 2}}

    @workflow
    def constant() -> int:
        return 3

    assert compiled(nothing.bind()).result is None
    assert compiled(nothing.bind()).plan.pinned == frozenset()
    program = compiled(shapes.bind())
    assert shown(program.result) == {"a": "@0", "list": ["@1", ("@0", 1)], "plain": {1, 2}}
    assert program.plan.pinned == {0, 1}
    assert compiled(constant.bind()).result == 3


def test_every_recorded_call_runs() -> None:
    @workflow
    def w() -> None:
        for i in range(5):
            fetch(str(i))

    assert compiled(w.bind()).names == ("fetch", "fetch#2", "fetch#3", "fetch#4", "fetch#5")


def test_a_bound_workflow_may_be_built_again() -> None:
    bound = etl.bind(["a"])
    assert bound.build() is not bound.build()
    assert compiled(bound).names == compiled(bound).names


def test_a_plain_function_may_call_tasks() -> None:
    def fetch_and_parse(u: str) -> int:
        return parse(fetch(u))

    @workflow
    def w() -> int:
        return total([fetch_and_parse("a"), etl.fn(["b"])])

    assert compiled(w.bind()).names == ("fetch", "parse", "fetch#2", "parse#2", "total", "total#2")


def test_bodies_do_not_mix() -> None:
    @workflow
    def inner() -> None:
        read("x")

    @workflow
    def outer() -> None:
        fetch("a")
        assert inner.bind().build().names == ["read"]
        fetch("b")

    assert compiled(outer.bind()).names == ("fetch", "fetch#2")


def test_order_only_edges_in_a_body() -> None:
    @workflow
    def w() -> None:
        a = fetch("a")
        b = fetch.options(name="second", after=[a])("b")
        fetch.options(after=[a, b, "last"])("c")
        read.options(name="last", after="second")("d")
        read.options(after=b)("e")

    wf = Workflow("w")
    a = wf.add(fetch.bind("a"))
    wf.add(fetch.options(after=a).bind("b"), after=a)
    wf.add(read.options(after=[a]).bind("b"), after="fetch#2")
    assert edges(compiled(wf)) == {"fetch": set(), "fetch#2": {"fetch"}, "read": {"fetch", "fetch#2"}}
    program = compiled(w.bind())
    assert edges(program) == {
        "fetch": set(),
        "second": {"fetch"},
        "fetch#2": {"fetch", "second", "last"},
        "last": {"second"},
        "read": {"second"},
    }
    assert not any(program.plan.inputs)


def test_a_call_after_the_body_has_ended() -> None:
    import contextvars

    contexts: list[contextvars.Context] = []

    @workflow
    def w() -> None:
        contexts.append(contextvars.copy_context())

    w.bind().build()
    with pytest.raises(DefinitionError, match="after the body had ended"):
        contexts[0].run(fetch, "u")


def test_a_thread_of_the_body_is_outside() -> None:
    seen: list[BaseException] = []

    def call() -> None:
        try:
            fetch("u")
        except DefinitionError as error:
            seen.append(error)

    @workflow
    def w() -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    w.bind().build()
    assert "outside a workflow body" in str(seen[0])


def test_errors_in_a_body_name_the_line() -> None:
    @workflow
    def w(n: int) -> float:
        return 1 / n

    with pytest.raises(
        DefinitionError, match="the body of workflow 'w' raised ZeroDivisionError: division by"
    ) as caught:
        w.bind(0).build()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"{HERE}{w.fn.__code__.co_firstlineno + 2}")
    with pytest.raises(DefinitionError, match="outside a workflow body"):
        fetch("u")  # the failed body is over


class Klass:
    pass


def body_generator() -> Any:
    yield fetch("u")


async def body_async() -> None: ...


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (body_generator, "has yield"),
        (body_async, "is an async def"),
        (Klass, "takes a function"),
        (3, "takes a function"),
        ("name", "takes a function"),
        (fetch, "'fetch' is a task already"),
        (etl, "'etl' is a workflow already"),
        (print, "takes a function"),
    ],
)
def test_what_cannot_be_a_body(fn: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        workflow(fn)
    assert HERE in (caught.value.where or "")


def test_unknown_options_of_a_workflow() -> None:
    with pytest.raises(DefinitionError, match="no option 'onfailure'") as caught:
        workflow(onfailure="continue")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    assert caught.value.hint == "did you mean 'on_failure'?"
    with pytest.raises(DefinitionError, match="on_failure='failfast'") as caught:
        workflow(on_failure="failfast")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert caught.value.hint == "did you mean 'fail_fast'?"
    with pytest.raises(DefinitionError, match="cannot be named 'a/b'"):
        workflow(name="a/b")


# ── graphs built by programs ──────────────────────────────────────────────────────────────────────────────────────


def test_a_graph_built_by_a_program() -> None:
    wf = Workflow("nightly")
    a = wf.add(fetch.bind("u"), name="fetch-a")
    b = wf.add(parse.bind(a), after=["fetch-b"])
    wf.add(fetch.bind("v"), name="fetch-b", after=[a])
    wf.order("fetch-b", "end")
    wf.add(read.bind("x"), name="end")
    program = compiled(wf)
    assert edges(program) == {
        "fetch-a": set(),
        "parse": {"fetch-a", "fetch-b"},
        "fetch-b": {"fetch-a"},
        "end": {"fetch-b"},
    }
    assert program.plan.inputs == ((), (0,), (), ())
    assert shown(program.result) == {"parse": "@1", "end": "@3"}  # what nothing waits for
    assert program.plan.pinned == {1, 3}
    result = wf.returns([b, 5])
    assert isinstance(result, Bound)
    assert shown(compiled(result).result) == ["@1", 5]
    assert shown(compiled(wf).result) == {"parse": "@1", "end": "@3"}  # returns() changed nothing
    assert compiled(wf.returns(None)).result is None
    assert len(wf) == 4
    assert repr(wf) == "<Workflow 'nightly' with 4 tasks>"


def test_an_empty_graph() -> None:
    program = compiled(Workflow("empty"))
    assert program.names == ()
    assert program.result == {}


def test_names_are_unique() -> None:
    wf = Workflow("w")
    wf.add(fetch.bind("u"), name="one")
    first = sys._getframe().f_lineno - 1  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(NameTaken, match="already has a task named 'one'") as caught:
        wf.add(parse.bind(b""), name="one")
    assert f"{HERE}{first}" in caught.value.message
    assert (caught.value.where or "").endswith(f"{HERE}{first + 3}")
    wf.add(fetch.bind("v"))
    with pytest.raises(NameTaken, match="already has a task named 'fetch'"):
        wf.add(parse.bind(b""), name="fetch")
    wf.add(read.bind("x"), name="parse")
    wf.add(parse.bind(b""))  # numbered around the name that is taken
    assert list(wf.names) == ["one", "fetch", "parse", "parse#2"]


def test_the_same_name_twice_in_a_body() -> None:
    @workflow
    def w() -> None:
        eu = fetch.options(name="eu")
        eu("a")
        eu("b")

    with pytest.raises(NameTaken, match="'eu'"):
        w.bind().build()


def test_names_that_nothing_has() -> None:
    wf = Workflow("w")
    wf.add(fetch.bind("u"), name="fetch-a")
    wf.add(parse.bind(b""), after=["fetch-b"])
    written = sys._getframe().f_lineno - 1  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(UnknownName, match="'w' has no task named 'fetch-b'") as caught:
        compiled(wf)
    assert caught.value.hint == "did you mean 'fetch-a'?"
    assert (caught.value.where or "").endswith(f"{HERE}{written}")
    wf = Workflow("w")
    wf.order("x", "y")
    with pytest.raises(UnknownName, match="no task named 'x'"):
        compiled(wf)


@pytest.mark.parametrize("item", [3, None, [fetch], object()])
def test_what_cannot_be_ordered(item: Any) -> None:
    wf = Workflow("w")
    with pytest.raises(DefinitionError, match="cannot order"):
        wf.order(item, "x")
    with pytest.raises(DefinitionError, match="cannot order"):
        wf.add(fetch.bind("u"), after=[item])


def test_what_cannot_be_added() -> None:
    wf = Workflow("w")
    h = wf.add(fetch.bind("u"))
    for value, hint in ((fetch, "fetch.bind(...)"), (h, "in a workflow already"), (3, "some_task.bind")):
        with pytest.raises(DefinitionError, match="cannot add") as caught:
            wf.add(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert hint in (caught.value.hint or "")
    with pytest.raises(DefinitionError, match="cannot be named 'a#2'"):
        wf.add(fetch.bind("u"), name="a#2")
    with pytest.raises(DefinitionError, match="a workflow cannot be named ''"):
        Workflow("")


def test_a_refused_node_leaves_no_trace() -> None:
    wf = Workflow("w")
    with pytest.raises(DefinitionError):
        wf.add(fetch.bind("u"), name="x", after=[3])
    with pytest.raises(DefinitionError):
        wf.add(fetch.bind("u"), after=[3])
    wf.add(fetch.bind("u"), name="x")
    wf.add(fetch.bind("u"))
    assert list(wf.names) == ["x", "fetch"]


# ── from networkx ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_from_networkx() -> None:
    import networkx as nx  # type: ignore[import-untyped]

    graph: Any = nx.DiGraph([("a", "b"), ("b", 3), ("a", 3)])
    wf = Workflow.from_graph(graph, {"a": fetch.bind("u"), "b": read.bind("p"), 3: parse.bind(b"")}, name="made")
    assert edges(compiled(wf)) == {"a": set(), "b": {"a"}, "3": {"a", "b"}}
    assert wf.name == "made"
    assert HERE in (wf.where or "")
    back = wf.graph
    assert set(back.edges()) == {("a", "b"), ("b", "3"), ("a", "3")}
    assert back.nodes["b"] == {"kind": "io", "executor": None, "task": "read"}
    assert back.edges["a", "b"] == {"kind": "order"}


def test_graphs_that_cannot_be() -> None:
    import networkx as nx

    graph: Any = nx.DiGraph([("a", "b")])
    calls = {"a": fetch.bind("u"), "b": fetch.bind("u")}
    with pytest.raises(DefinitionError, match="not a directed graph"):
        Workflow.from_graph(nx.Graph([("a", "b")]), calls)
    with pytest.raises(DefinitionError, match="not a directed graph"):
        Workflow.from_graph({"a": ["b"]}, calls)
    with pytest.raises(DefinitionError, match="node 'b' of the graph has no call"):
        Workflow.from_graph(graph, {"a": fetch.bind("u")})
    with pytest.raises(UnknownName, match="'c'"):
        Workflow.from_graph(graph, {**calls, "c": fetch.bind("u")})
    with pytest.raises(DefinitionError, match="cannot add"):
        Workflow.from_graph(graph, {**calls, "b": fetch})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    with pytest.raises(NameTaken, match=rf"made at .*{HERE}") as caught:
        Workflow.from_graph(nx.DiGraph([(1, "1")]), {1: fetch.bind("u"), "1": fetch.bind("u")})
    assert HERE in (caught.value.where or "")


# ── parameters ────────────────────────────────────────────────────────────────────────────────────────────────────


class Colour(enum.Enum):
    RED = "red"


class Config(BaseModel):
    depth: int = 1


@dataclass
class Point:
    x: int
    y: int = 0


class Opaque:
    pass


@workflow
def wide(
    text: str,
    maybe: str | None = None,
    number: int = 1,
    flag: bool = False,
    day: datetime.date = datetime.date(2026, 1, 1),
    path: Path = Path(),
    colour: Colour = Colour.RED,
    mode: Literal["fast", "slow"] = "fast",
    numbers: list[int] = [],  # noqa: B006
    config: Config = Config(),  # noqa: B008
    point: Point = Point(0),  # noqa: B008
    opaque: Opaque | None = None,
    bounded: Annotated[int, Field(ge=1)] = 1,
    free: Any = None,
) -> None: ...


def params(bound: Bound[Any]) -> dict[str, Any]:
    return dict(bound.build().params)


def test_python_values_are_coerced() -> None:
    opaque = Opaque()
    values = params(
        wide.bind(
            "t",
            number="5",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            day="2026-11-21",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            path="x/y",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            colour="red",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            numbers=("1", 2),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            config={"depth": "3"},  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            point={"x": 1},  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            opaque=opaque,
        )
    )
    assert values["number"] == 5
    assert values["day"] == datetime.date(2026, 11, 21)
    assert values["path"] == Path("x/y")
    assert values["colour"] is Colour.RED
    assert values["numbers"] == [1, 2]
    assert values["config"] == Config(depth=3)
    assert values["point"] == Point(1)
    assert values["opaque"] is opaque
    assert list(values) == [p.name for p in wide.parameters]  # defaults are there, in order


def test_texts_of_a_command_line() -> None:
    texts = {
        "text": "[not json",
        "maybe": "null",
        "number": "5",
        "flag": "yes",
        "day": "2026-11-21",
        "path": "x",
        "mode": "slow",
        "numbers": " [1, 2]",
        "config": '{"depth": 4}',
        "bounded": "3",
        "free": "x",
    }
    values = params(wide.from_text(texts, {"number": 9, "colour": "red"}))
    assert values["text"] == "[not json"
    assert values["maybe"] == "null"
    assert values["number"] == 5  # the text counts
    assert values["flag"] is True
    assert values["day"] == datetime.date(2026, 11, 21)
    assert values["numbers"] == [1, 2]
    assert values["config"] == Config(depth=4)
    assert values["colour"] is Colour.RED
    assert values["free"] == "x"


@pytest.mark.parametrize(
    ("texts", "words", "hint"),
    [
        ({}, "no value for parameter 'text'", "-p text=TEXT"),
        ({"text": "t", "number": "x"}, "number='x': should be a valid integer", "-p number=VALUE"),
        ({"text": "t", "numbers": "1,2"}, "numbers='1,2'", "-p 'numbers=[...]'"),
        ({"text": "t", "numbers": '["x"]'}, r"numbers\[0\]='x'", "JSON list"),
        ({"text": "t", "numbers": "[1"}, "Invalid JSON", "JSON list"),
        ({"text": "t", "config": '{"depth": "x"}'}, r"config\.depth='x'", "config"),
        ({"text": "t", "nubmer": "1"}, "no parameter 'nubmer'", "did you mean 'number'?"),
        ({"text": "t", "bounded": "0"}, "greater than or equal to 1", "bounded"),
        ({"number": "x"}, "2 problems with its parameters: .*'text'; number=", "-p text"),
    ],
)
def test_bad_texts(texts: dict[str, str], words: str, hint: str) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        wide.from_text(texts, {})
    assert hint in (caught.value.hint or "")
    assert HERE in (caught.value.where or "")


def test_bad_values_from_python() -> None:
    with pytest.raises(ParameterError, match="workflow 'wide' has number='x': should be a valid integer") as caught:
        wide.bind("t", number="x").build()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert caught.value.hint == "the parameter is number: int"
    many: Any = ["x"] * 1000
    with pytest.raises(ParameterError) as caught:
        wide.bind("t", numbers=many).build()
    assert "and 997 more in numbers" in caught.value.message
    assert len(caught.value.message) < 500


def test_a_body_that_is_not_run_on_bad_values() -> None:
    ran: list[int] = []

    @workflow
    def w(n: int) -> None:
        ran.append(n)

    with pytest.raises(ParameterError):
        w.bind("x").build()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert ran == []


def test_star_parameters() -> None:
    @workflow
    def w(first: int, /, *rest: int, key: str = "k", **more: float) -> Any:
        return (first, rest, key, more)

    assert compiled(w.bind("1", "2", 3, key="x", z="1.5")).result == (1, (2, 3), "x", {"z": 1.5})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert compiled(w.bind(1)).result == (1, (), "k", {})
    assert compiled(w.from_text({"first": "1", "rest": "[2]", "z": "3"}, {"y": 2})).result == (
        1,
        (2,),
        "k",
        {"y": 2.0, "z": 3.0},
    )


def test_arguments_of_a_workflow_fit_its_signature() -> None:
    with pytest.raises(ArgumentError, match="missing a required argument: 'urls'") as caught:
        etl.bind()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert (caught.value.where or "").endswith(f"{HERE}{sys._getframe().f_lineno - 1}")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ArgumentError, match="unexpected keyword argument 'url'") as caught:
        etl.bind(url=["a"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert "did you mean 'urls'?" in (caught.value.hint or "")


def test_annotations_that_cannot_be_used() -> None:
    @workflow
    def later(x: Decimal) -> None: ...

    @workflow
    def nowhere(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]

    @workflow
    def field(x: int = Field(ge=1)) -> None: ...

    with pytest.raises(DefinitionError, match="parameter 'x' of workflow 'later' is annotated Decimal") as caught:
        later.bind(1).build()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert "TYPE_CHECKING" in (caught.value.hint or "")
    with pytest.raises(DefinitionError, match="Nowhere"):
        nowhere.bind(1).build()  # pyright: ignore[reportUnknownMemberType]
    with pytest.raises(DefinitionError, match="has a pydantic Field as its default") as caught:
        field.bind(1).build()
    assert "Annotated[int, Field(...)]" in (caught.value.hint or "")


def test_annotations_from_the_function_around() -> None:
    class Local(BaseModel):
        n: int

    @workflow
    def w(config: Local) -> int:
        return config.n

    assert compiled(w.bind({"n": "4"})).result == 4  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_secrets_are_not_told() -> None:
    from pydantic import SecretStr

    @workflow
    def w(token: Annotated[SecretStr, Field(min_length=100)]) -> None: ...

    with pytest.raises(ParameterError) as caught:
        w.from_text({"token": "hunter2"}, {})
    assert "hunter2" not in str(caught.value)


# ── what run() is given ───────────────────────────────────────────────────────────────────────────────────────────


def test_as_bound() -> None:
    assert as_bound(etl, (["a"],), {}).build().names == ["fetch", "parse", "total"]
    bound = etl.bind(["a"])
    assert as_bound(bound, (), {}) is bound
    wf = Workflow("w")
    assert as_bound(wf, (), {}).build() is wf
    assert as_bound(wf, (), {}).name == "w"


def test_an_option_of_run_among_the_parameters() -> None:
    with pytest.raises(ArgumentError, match="'check' is not a parameter of etl") as caught:
        as_bound(etl, (["a"],), {"check": False})
    assert caught.value.hint == "write run(etl.bind(...), check=False)"

    @workflow
    def owner(check: int) -> int:
        return check

    assert compiled(as_bound(owner, (), {"check": "3"})).result == 3


def test_parameters_after_bind() -> None:
    with pytest.raises(UsageError, match="bound already, and was given 'urls'"):
        as_bound(etl.bind(["a"]), (), {"urls": ["b"]})
    with pytest.raises(UsageError, match="bound already") as caught:
        as_bound(etl.bind(["a"]), (), {"chekc": False})
    assert caught.value.hint == "did you mean 'check'?"
    with pytest.raises(UsageError, match="bound already"):
        as_bound(Workflow("w"), (1,), {})


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        (fetch, "a task runs within a workflow"),
        (fetch.bind("u"), "wf.add(call)"),
        (etl.fn, "put @workflow above etl"),
        ("etl.py", "flow run FILE"),
        (Path("etl.py"), "flow run FILE"),
        (3, "a function under @workflow"),
        (None, "a function under @workflow"),
    ],
)
def test_what_is_no_workflow(target: Any, hint: str) -> None:
    with pytest.raises(UsageError, match="run takes a workflow, not") as caught:
        as_bound(target, (), {})
    assert hint in (caught.value.hint or "")
    assert HERE in (caught.value.where or "")


def test_definitions_are_what_they_say() -> None:
    assert isinstance(etl, WorkflowDefinition)
    assert repr(etl).startswith("<workflow ")
    assert repr(etl.bind([])) == "<workflow 'etl', bound>"
    assert isinstance(task.io(lambda: 1).bind().options, dict)
