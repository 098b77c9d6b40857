"""when, otherwise, switch, either, flatten, teardown, repeat_until: what they leave in a plan, and what is refused."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.plan import Guard
from flowlane.core.rules import TriggerRule
from flowlane.declare.choice import either, flatten, otherwise, switch, when
from flowlane.declare.conditions import NoneOf, OneOf, Truthy
from flowlane.declare.repeat import Loop, go_on
from flowlane.declare.standard import either as either_task
from flowlane.declare.standard import flatten as flatten_task
from flowlane.declare.task import task
from flowlane.declare.teardown import teardown
from flowlane.declare.workflow import Bound, Workflow, workflow
from flowlane.errors import ArgumentError, DefinitionError, HandleError, RepeatLimit
from flowlane.program import MISSING

from .sample import anything, compiled, edges, fetch, parse, read, shown, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.program import Program

HERE = "test_choices.py:"


def of(body: Callable[[], Any]) -> Program:
    return compiled(workflow(body).bind())


def fault(body: Callable[[], Any], kind: type[Exception] = DefinitionError) -> Any:
    with pytest.raises(kind) as caught:
        of(body)
    assert HERE in (getattr(caught.value, "where", None) or "")
    return caught.value


def guards(program: Program) -> dict[str, list[tuple[str, int]]]:
    return {
        program.names[node]: [(program.names[guard.node], guard.bit) for guard in each]
        for node, each in program.plan.guards.items()
    }


# ── when ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_when_and_otherwise() -> None:
    # anything ─ true ──▶ fetch ──┐
    #     └───── false ─▶ read ───┴─▶ either
    def body() -> Any:
        with when(anything()) as new:
            a = fetch("a")
        with otherwise(new):
            b = read("b")
        return either(a, b)

    program = of(body)
    assert program.choices == {0: (Truthy(), NoneOf((0,)))}
    assert program.plan.guards == {1: (Guard(0, 0),), 2: (Guard(0, 1),)}
    assert edges(program)["fetch"] == edges(program)["read"] == {"anything"}
    assert program.plan.inputs[1] == ()  # its value decides, and is not read
    assert program.plan.rules == {3: TriggerRule("none_failed_min_one_success")}
    assert program.raw_missing == {3}


def test_conditions_nest_and_hold_for_everything_inside() -> None:
    def body() -> None:
        with when(anything(name="outer")):
            fetch("a")
            with when(total(1)):
                fetch("b")
            parse(b"")
        fetch("c")

    assert guards(of(body)) == {
        "fetch": [("anything", 0)],
        "total": [("anything", 0)],
        "fetch#2": [("anything", 0), ("total", 0)],
        "parse": [("anything", 0)],
    }


def test_two_conditions_on_one_value_are_two_bits() -> None:
    def body() -> None:
        value = anything()
        with when(value):
            fetch("a")
        with switch(value) as case, case(3):
            fetch("b")

    program = of(body)
    assert program.choices == {0: (Truthy(), OneOf((3,)))}
    assert guards(program) == {"fetch": [("anything", 0)], "fetch#2": [("anything", 1)]}


def test_a_plain_value_is_given_a_node() -> None:
    def body() -> None:
        with when(True):
            fetch("a")

    program = of(body)
    assert program.names == ("condition", "fetch")
    assert program.arguments[0].args == (True,)


def test_a_block_that_records_nothing_leaves_nothing() -> None:
    def body() -> None:
        with when(anything()):
            pass

    assert not of(body).plan.guards


def test_results_from_inside_may_be_used_outside() -> None:
    def body() -> Any:
        with when(anything()):
            a = fetch("a")
        return parse(a)

    assert guards(of(body)) == {"fetch": [("anything", 0)]}


def test_a_mapped_node_may_be_conditional() -> None:
    def body() -> Any:
        with when(anything()):
            return fetch.map(["a"])

    program = of(body)
    assert guards(program) == {"fetch": [("anything", 0)]}
    assert set(program.plan.maps) == {1}


def test_a_chain_is_broken_by_a_condition_that_comes_after_it() -> None:
    def body() -> Any:
        pages = fetch.map(["a"])
        before, after = anything(), total(pages)
        with when(before):
            parse.map(pages)
        with when(after):
            parse.map(pages)

    program = of(body)
    assert [program.plan.maps[node].over for node in sorted(program.plan.maps)] == [(), (0,), ()]


def test_conditions_in_a_graph_made_by_a_program() -> None:
    wf = Workflow("w")
    a = wf.add(anything.bind())
    with when(a):
        wf.add(fetch.bind("x"))
    assert guards(compiled(wf)) == {"fetch": [("anything", 0)]}


# ── switch ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_switch() -> None:
    def body() -> None:
        with switch(anything()) as case:
            with case("csv", "tsv"):
                fetch("a")
            with case("json"):
                fetch("b")
            with case.default():
                fetch("c")

    program = of(body)
    tests = program.choices[0]
    assert tests == (OneOf(("csv", "tsv")), OneOf(("json",)), NoneOf((0, 1)))
    assert guards(program) == {f"fetch{n}": [("anything", bit)] for bit, n in enumerate(["", "#2", "#3"])}
    for value, chosen in (("tsv", 0), ("json", 1), ("xml", 2)):
        passed: list[bool] = []
        for test in pickle.loads(pickle.dumps(tests)):
            passed.append(test.passes(value, passed))
        assert [bit for bit, holds in enumerate(passed) if holds] == [chosen]


def test_misuses_of_a_switch() -> None:
    def default_first() -> None:
        with switch(anything()) as case, case.default():
            fetch("a")

    def after_default() -> None:
        with switch(anything()) as case:
            with case(1):
                fetch("a")
            with case.default():
                fetch("b")
            with case(2):
                fetch("c")

    def two_defaults() -> None:
        with switch(anything()) as case:
            with case(1):
                fetch("a")
            with case.default():
                fetch("b")
            with case.default():
                fetch("c")

    def twice() -> None:
        with switch(anything()) as case:
            with case(1):
                fetch("a")
            with case(2, 1):
                fetch("b")

    def no_value() -> None:
        with switch(anything()) as case, case():
            fetch("a")

    def a_result() -> None:
        with switch(anything()) as case, case(fetch("a")):
            fetch("b")

    def outside() -> None:
        with switch(anything()) as case:
            pass
        with case(1):
            fetch("a")

    assert "the first case" in fault(default_first).message
    assert f"comes after case.default(), which is at {HERE}"[:34] in fault(after_default).message
    assert "twice in one switch" in fault(two_defaults).message
    assert "case(1) is there twice" in fault(twice).message
    assert "no values" in fault(no_value, ArgumentError).message
    assert "the result of task 'fetch'" in fault(a_result).message
    assert "outside its switch" in fault(outside).message


def test_misuses_of_conditions() -> None:
    error = fault(lambda: otherwise(anything()))
    assert "is no condition" in error.message and "with otherwise(yes)" in error.hint
    assert "conditions nest" in fault(lambda: when(when(anything()))).hint
    kept: list[Any] = []
    of(lambda: kept.append(anything()))
    assert "whose body has ended" in fault(lambda: when(kept[0]), HandleError).message
    with pytest.raises(DefinitionError, match=r"when\(\.\.\.\) was used outside a workflow body"):
        when(3)


# ── either, flatten ───────────────────────────────────────────────────────────────────────────────────────────────


def test_either_of_a_plain_value_cannot_be_missing() -> None:
    program = of(lambda: either(fetch("a"), b"none"))
    assert program.plan.rules == {1: TriggerRule("none_failed")}
    assert shown(program.arguments[1].args) == ("@0", b"none")


def test_the_task_of_either_tells_none_from_missing() -> None:
    assert either_task.fn(MISSING, None, 3) is None
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING


def test_either_takes_two() -> None:
    assert "two values or more" in fault(lambda: either(fetch("a")), ArgumentError).message


def test_flatten() -> None:
    program = of(lambda: flatten(anything.map([1, 2])))
    assert program.names == ("anything", "flatten")
    assert shown(program.arguments[1].args) == ("@0",)
    assert flatten_task.fn([[1, 2], (), (3,)]) == [1, 2, 3]
    with pytest.raises(TypeError, match="item 1 is a str"):
        flatten_task.fn([[1], "abc"])


# ── teardown ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_teardown_waits_for_its_block_and_reads_its_setup() -> None:
    # anything ──▶ fetch ──▶ parse ──┐
    #     └───────────────────────────▶ read
    def body() -> Any:
        db = anything()
        with teardown(read.bind(db)):
            return parse(fetch("a", db))

    program = of(body)
    assert program.names == ("anything", "fetch", "parse", "read")
    assert program.plan.teardowns == {3: (1, 2)}
    assert edges(program)["read"] == {"anything", "fetch", "parse"}
    assert program.plan.inputs[3] == (0,)


def test_teardowns_nest() -> None:
    def body() -> Any:
        with teardown(total.options(name="outer").bind(1)):
            with teardown(total.options(name="inner").bind(2)):
                fetch("a")
            fetch("b")

    program = of(body)
    assert program.names == ("fetch", "inner", "fetch#2", "outer")
    assert program.plan.teardowns == {1: (0,), 3: (0, 1, 2)}


def test_a_teardown_does_not_hide_what_a_program_returns() -> None:
    wf = Workflow("w")
    db = wf.add(anything.bind())
    with teardown(read.bind(db)):
        wf.add(fetch.bind("x", db))
    assert shown(compiled(wf).result) == {"fetch": "@1"}


def test_misuses_of_teardown() -> None:
    def empty() -> None:
        with teardown(read.bind("a")):
            pass

    def with_a_rule() -> None:
        with teardown(read.options(trigger="all_done").bind("a")):
            fetch("a")

    assert "calls no task" in fault(empty).message
    assert "would run at once" in fault(lambda: teardown(read("a"))).message  # type: ignore[arg-type]
    assert "read.bind(...)" in fault(lambda: teardown(read)).hint  # type: ignore[arg-type]
    assert "trigger='all_done'" in fault(with_a_rule).message


# ── repeat_until ──────────────────────────────────────────────────────────────────────────────────────────────────


@task.cpu
def improve(x: int) -> int:
    return x + 1


@task.cpu
def good_enough(x: int) -> bool:
    return x > 3


def test_a_round_is_step_test_and_what_looks_at_both() -> None:
    program = of(
        lambda: [
            improve.repeat_until(good_enough, 1, limit=10),
            improve.options(name="tune").repeat_until(good_enough, 1, limit=5),
        ]
    )
    assert program.names == (
        *("repeat/improve", "repeat/good_enough", "repeat/go_on"),
        *("tune/improve", "tune/good_enough", "tune/go_on"),
    )
    assert program.max_depth == {2: 11, 5: 6}
    loop, value, content, rounds = program.arguments[2].args
    assert (loop.limit, shown(value), shown(content), rounds) == (10, "@0", "@1", 1)


def test_rounds_go_on_until_the_test_is_content() -> None:
    loop = pickle.loads(pickle.dumps(Loop(improve, good_enough, 3)))
    assert go_on.fn(loop, 7, True, 1) == 7
    more = go_on.fn(loop, 2, False, 1)
    assert isinstance(more, Bound)
    again = compiled(pickle.loads(pickle.dumps(more)))
    assert again.names == ("improve", "good_enough", "go_on")
    assert again.arguments[0].args == (2,)
    with pytest.raises(
        RepeatLimit, match="'good_enough' was not true of what 'improve' returned, in 3 rounds"
    ) as raised:
        go_on.fn(loop, 2, False, 3)
    assert raised.value.where == good_enough.where


def test_misuses_of_repeat_until() -> None:
    assert "limit=0" in fault(lambda: improve.repeat_until(good_enough, 1, limit=0)).message
    assert "which is no task" in fault(lambda: improve.repeat_until(len, 1, limit=3)).message  # type: ignore[arg-type]
    error = fault(lambda: improve.options(after=[fetch("a")]).repeat_until(good_enough, 1, limit=3))
    assert "options(after=...)" in error.message
