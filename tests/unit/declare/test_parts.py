"""A part of a workflow by itself: what is in it, what it must not lack, and what it returns."""

from __future__ import annotations

from typing import Any

import pytest

from flowlane.declare.choice import when
from flowlane.declare.part import part_of, part_options
from flowlane.declare.teardown import teardown
from flowlane.declare.workflow import Workflow, workflow
from flowlane.engine import Engine
from flowlane.errors import UnknownName, UsageError
from flowlane.program import Item

from .sample import anything, compiled, edges, fetch, parse, read, shown, total

#   fetch ────▶ parse ────┐
#   fetch#2 ──▶ parse#2 ──┴─▶ total       read (after total)


@workflow
def etl() -> Any:
    result = total([parse(fetch("a")), parse(fetch("b"))])
    read.options(after=[result])("x")
    return result


def part(target: Any = etl, **options: Any) -> Any:
    return compiled(part_of(target.bind().build(), part_options(options)))


def test_only() -> None:
    program = part(only=["fetch", "parse"])
    assert program.names == ("fetch", "parse")
    assert edges(program) == {"fetch": set(), "parse": {"fetch"}}
    assert shown(program.result) == {"parse": "@1"}
    assert part(only=["fetch*"]).names == ("fetch", "fetch#2")
    assert shown(part(only=["fetch*"]).result) == {"fetch": "@0", "fetch#2": "@1"}


def test_until() -> None:
    program = part(until=["parse#2"])
    assert program.names == ("fetch#2", "parse#2")
    assert shown(program.arguments[1]) == (("@0",), {})
    assert part(until=["total"]).names == ("fetch", "parse", "fetch#2", "parse#2", "total")


def test_from() -> None:
    assert part(start_at=["fetch*"]).names == ("fetch", "parse", "fetch#2", "parse#2", "total", "read")
    assert part(start_at=["read"]).names == ("read",)  # it only comes after what is left out
    assert edges(part(start_at=["read"])) == {"read": set()}


def test_what_lies_between() -> None:
    assert part(start_at=["fetch"], until=["parse"]).names == ("fetch", "parse")
    with pytest.raises(UsageError, match="lies between 'total' and 'fetch'") as caught:
        part(start_at=["total"], until=["fetch"])
    assert "start_at=['fetch'], until=['total']" in (caught.value.hint or "")


def test_a_value_from_outside_is_nowhere_to_be_had() -> None:
    with pytest.raises(UsageError, match="task 'parse' needs the value of 'fetch', which is left out") as caught:
        part(only=["parse"])
    assert "--only fetch" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="task 'total' needs the value of 'parse#2'") as caught:
        part(start_at=["fetch"])
    assert "--from parse#2" in (caught.value.hint or "")


def test_names_that_nothing_has() -> None:
    with pytest.raises(UnknownName, match="no task that --until prase fits") as caught:
        part(until=["prase"])
    assert caught.value.hint == "did you mean 'parse'?"
    with pytest.raises(UsageError, match="a list of tasks' names, not 'parse'"):
        part(only="parse")
    with pytest.raises(UsageError, match="only names all tasks"):
        part(only=["parse"], until=["total"])


def test_maps_conditions_and_teardowns_come_along() -> None:
    # read ─┐                        ┌─ if ─▶ total
    #       └ fetch[*] ─▶ parse[*] ──┴─ total#2         with a tear-down around the maps
    @workflow
    def w() -> Any:
        read("unused")
        db = anything()
        with teardown(total.options(name="stop").bind(db)):
            sizes = parse.map(fetch.map(["a"], db))
        with when(total(sizes)):
            total.options(trigger="all_done")(sizes)

    program = part(w, start_at=["anything"])
    assert program.names == ("anything", "fetch", "parse", "stop", "total", "total#2")
    assert program.plan.teardowns == {3: (1, 2)}
    assert program.plan.maps[2].over == (1,)
    assert type(program.arguments[1].args[0]) is Item
    assert shown(program.arguments[1].args[1]) == "@0"
    assert program.plan.guards == {5: ((4, 0),)}
    assert list(program.choices) == [4]
    assert program.plan.rules[5].name == "all_done"
    # what is set up is torn down
    assert part(w, until=["parse"]).names == ("anything", "fetch", "parse", "stop")
    with pytest.raises(UsageError, match="task 'total#2' needs the values of 'parse', 'total'"):
        part(w, only=["total#2"])


def test_parts_of_programs_and_of_runs() -> None:
    wf = Workflow("w")
    a = wf.add(fetch.bind("a"))
    wf.add(parse.bind(a))
    program = Engine().compile(wf.returns(a), only=["fetch"])
    assert (program.names, shown(program.result)) == (("fetch",), {"fetch": "@0"})
    assert len(wf) == 2
