"""Workflows called in the body of another: put there, kept as one node, mapped; and how they travel."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.plan import MapSpec
from flowlane.core.rules import TriggerRule
from flowlane.declare.choice import when
from flowlane.declare.workflow import Bound, WorkflowDefinition, workflow
from flowlane.errors import ArgumentError, DefinitionError, HandleError, NameTaken, ParameterError, UnknownName

from .sample import anything, compiled, edges, fetch, parse, shown, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.program import Program

HERE = "test_nesting.py:"


@workflow
def one(url: str, times: int = 2) -> int:
    return total([parse(fetch(url)), times])


@workflow(on_failure="fail_fast")
def two(url: str) -> list[int]:
    return [one(url), one(url, times=4)]


def of(body: Callable[[], Any]) -> Program:
    return compiled(workflow(body).bind())


def fault(body: Callable[[], Any], kind: type[Exception] = DefinitionError) -> Any:
    with pytest.raises(kind) as caught:
        of(body)
    assert HERE in (getattr(caught.value, "where", None) or "")
    return caught.value


# ── put there ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_tasks_are_tasks_of_the_outer_graph() -> None:
    # anything ──▶ one/fetch ──▶ one/parse ──▶ one/total ──▶ total
    program = of(lambda: total(one(anything())))
    assert program.names == ("anything", "one/fetch", "one/parse", "one/total", "total")
    assert edges(program)["one/fetch"] == {"anything"}
    assert shown(program.arguments[3].args) == (["@2", 2],)
    assert shown(program.result) == "@4"
    assert not program.plan.grafts


def test_names_count_by_call_and_by_level() -> None:
    program = of(lambda: [fetch("a"), two("a"), two("b"), fetch("b")])
    assert program.names[:4] == ("fetch", "two/one/fetch", "two/one/parse", "two/one/total")
    assert program.names[4] == "two/one#2/fetch"
    assert program.names[7] == "two#2/one/fetch"
    assert program.names[-1] == "fetch#2"


def test_a_name_of_its_own() -> None:
    program = of(lambda: [one.options(name="eu")("a"), one("b")])
    assert program.names[0] == "eu/fetch"
    assert program.names[3] == "one/fetch"
    error = fault(lambda: [one.options(name="fetch")("a"), fetch.options(name="fetch")("b")], NameTaken)
    assert "already has a task named 'fetch'" in error.message
    assert "cannot be named 'a/b'" in fault(lambda: one.options(name="a/b")).message


def test_a_task_and_a_workflow_of_one_name_are_numbered() -> None:
    sub = workflow(name="fetch")(one.fn)
    assert of(lambda: [fetch("a"), sub("b")]).names == ("fetch", "fetch#2/fetch", "fetch#2/parse", "fetch#2/total")


def test_parameters_are_checked_where_they_are_there() -> None:
    program = of(lambda: one("a", times="4"))  # type: ignore[arg-type]  # coerced, as ever
    assert shown(program.arguments[2].args) == (["@1", 4],)
    error = fault(lambda: one(anything(), times="many"), ParameterError)  # type: ignore[arg-type]
    assert "times='many'" in error.message
    assert "unexpected keyword" in fault(lambda: one("a", time=3), ArgumentError).message  # type: ignore[call-arg]


def test_edges_by_name_stay_inside() -> None:
    @workflow
    def sub() -> None:
        parse.options(after=["fetch"])(b"")
        fetch("a")

    @workflow
    def wrong() -> None:
        parse.options(after=["fetch"])(b"")

    program = of(lambda: [fetch("outer"), sub()])
    assert edges(program)["sub/parse"] == {"sub/fetch"}
    assert "workflow 'wrong' has no task named 'fetch'" in fault(lambda: [fetch("a"), wrong()], UnknownName).message


def test_fail_fast_is_a_scope() -> None:
    program = of(lambda: [fetch("a"), two("a"), one.options(on_failure="fail_fast")("b")])
    assert program.plan.scopes == (tuple(range(1, 7)), tuple(range(7, 10)))
    assert not program.plan.fail_fast
    assert "'fail_fats'" in fault(lambda: one.options(on_failure="fail_fats")).message  # type: ignore[typeddict-item]


def test_it_stands_under_the_conditions_around_it() -> None:
    def body() -> None:
        with when(anything()):
            one("a")

    assert sorted(of(body).plan.guards) == [1, 2, 3]


def test_in_its_own_body_it_would_have_no_end() -> None:
    @workflow
    def itself(n: int) -> Any:
        return other(n)

    @workflow
    def other(n: int) -> Any:
        return itself(n)

    error = fault(lambda: itself(3))
    assert "workflow 'itself' is called in its own body" in error.message
    assert "return itself.bind(...)" in error.hint
    with pytest.raises(DefinitionError, match="called in its own body"):
        compiled(itself.bind(3))


def test_what_it_returns_is_a_value() -> None:
    @workflow
    def returns_a_call() -> Any:
        return one.bind("a")

    assert "returns one.bind(...)" in fault(lambda: [returns_a_call()], HandleError).message
    assert "given one.bind(...)" in fault(lambda: total(one.bind("a")), HandleError).message


def test_called_outside_of_a_body() -> None:
    with pytest.raises(DefinitionError, match="was called like a function") as caught:
        one("a")
    assert "run(one, ...)" in (caught.value.hint or "")


# ── one node ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retries_make_it_one_node() -> None:
    program = of(lambda: total(one.options(retries=2, total_timeout=5)(anything(), times=3)))
    assert program.names == ("anything", "one", "total")
    assert program.plan.grafts == {1}
    assert shown(program.arguments[1]) == (("@0",), {"times": 3})
    policy = program.plan.policies[program.plan.policy[1]]
    assert (policy.attempts, policy.total_timeout) == (3, 5_000_000_000)
    definition = program.definitions[1]
    assert isinstance(definition, WorkflowDefinition)
    assert definition.fn is one.fn


def test_it_may_have_a_rule_and_an_order() -> None:
    program = of(
        lambda: one.options(after=[anything()], trigger="all_done", may_fail=True, name="x", on_failure="fail_fast")(
            "a"
        )
    )
    assert program.names == ("anything", "x")
    assert program.plan.rules == {1: TriggerRule("all_done")}
    assert program.plan.may_fail == {1}
    assert edges(program)["x"] == {"anything"}
    assert program.definitions[1].on_failure == "fail_fast"


def test_a_node_may_be_called_in_its_own_body() -> None:
    @workflow
    def itself(n: int) -> Any:
        with when(anything(n)):
            itself.options(max_depth=9)(n - 1)

    program = compiled(itself.bind(3))
    assert program.names == ("anything", "itself")
    assert program.max_depth == {1: 9}


def test_options_that_it_does_not_have() -> None:
    error = fault(lambda: one.options(retires=2))  # type: ignore[call-arg]
    assert "no option 'retires'" in error.message and "'retries'" in error.hint
    assert "retries=-1" in fault(lambda: one.options(retries=-1)("a")).message


# ── mapped ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workflow_for_each_item() -> None:
    program = of(lambda: one.options(in_flight=3).map(fetch.map(["a"]), times=anything()))
    assert program.names == ("fetch", "anything", "one")
    assert program.plan.maps[2] == MapSpec(over=(0,), window=3, grafts=True)
    assert not program.plan.grafts
    assert program.definitions[2].fn is one.fn
    assert shown(dict(program.arguments[2].kwargs)) == {"times": "@1"}
    assert "times='many'" in fault(lambda: one.map(["a"], times="many"), ParameterError).message  # type: ignore[call-overload]
    assert of(lambda: one.starmap([("a", 1)])).maps[0].star


def test_maps_of_workflows_belong_into_bodies() -> None:
    with pytest.raises(DefinitionError, match=r"one\.map\(\.\.\.\) was used outside a workflow body"):
        one.map(["a"])


# ── travelling ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workflow_travels_as_where_it_is() -> None:
    assert pickle.loads(pickle.dumps(one)) is one
    derived = pickle.loads(pickle.dumps(one.options(retries=2)))
    assert derived.fn is one.fn and derived.call_options == {"retries": 2}
    bound = pickle.loads(pickle.dumps(one.bind("a", times=7)))
    assert isinstance(bound, Bound)
    assert shown(compiled(bound).arguments[2].args) == (["@1", 7],)


def test_one_that_is_nowhere_travels_by_value() -> None:
    seven = 7

    @workflow(name="local", on_failure="fail_fast", max_failures=3)
    def local(n: int) -> Any:
        return total([n, seven])

    there = pickle.loads(pickle.dumps(local))
    assert (there.name, there.on_failure, there.bounds) == (local.name, local.on_failure, local.bounds)
    assert compiled(there.bind(1)).arguments[0].args == ([1, 7],)
    call = pickle.loads(pickle.dumps(fetch.bind("a")))
    assert (call.task, call.args) == (fetch, ("a",))
