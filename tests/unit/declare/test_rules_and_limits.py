"""Trigger rules, joins, limits, cores, memory, priorities and the bounds of a run: as written, and as compiled."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.plan import Requirement
from flowlane.core.rules import AT_LEAST, TRIGGERS, TriggerRule
from flowlane.declare.bounds import Bounds
from flowlane.declare.choice import when
from flowlane.declare.limits import SHARE, Limit, by_name, machine_memory, parse_memory
from flowlane.declare.spec import RetryPolicy
from flowlane.declare.task import task
from flowlane.declare.workflow import workflow
from flowlane.engine import Engine
from flowlane.errors import DefinitionError, RetryAfter, Skip, UnknownName
from flowlane.program import LimitSpec

from .sample import anything, compiled, fetch, parse, read, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.program import Program

HERE = "test_rules_and_limits.py:"


def of(body: Callable[[], Any], **options: Any) -> Program:
    return compiled(workflow(body).bind(), **options)


def fault(body: Callable[[], Any], kind: type[Exception] = DefinitionError, **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        of(body, **options)
    assert HERE in (getattr(caught.value, "where", None) or "")
    return caught.value


# ── rules ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_rule_by_its_name(name: Any) -> None:
    program = of(lambda: total.options(trigger=name)([fetch("a"), fetch("b")]))
    assert program.plan.rules == ({} if name == "all_success" else {2: TriggerRule(name)})


def test_a_join() -> None:
    program = of(
        lambda: [
            total.options(join=1, cancel_rest=True)([fetch("a"), fetch("b")]),
            total.options(join=2)([fetch("a"), fetch("b")]),
        ]
    )
    assert program.plan.rules == {2: TriggerRule(AT_LEAST, 1, True), 5: TriggerRule(AT_LEAST, 2, False)}


def test_joins_that_cannot_be() -> None:
    error = fault(lambda: total.options(join=3)([fetch("a"), fetch("b")]))
    assert "has join=3, and waits for 2 tasks" in error.message
    error = fault(lambda: total.options(join=3)(fetch.map(["a"])))
    assert "waits for 1 task" in error.message and "enough=n" in error.hint
    assert "both join and trigger" in fault(lambda: total.options(join=1, trigger="all_done")(fetch("a"))).message
    assert "so no rest" in fault(lambda: total.options(cancel_rest=True)(fetch("a"))).message
    assert "join=0" in fault(lambda: total.options(join=0)(fetch("a"))).message


def test_a_join_does_not_count_its_conditions() -> None:
    def body() -> Any:
        with when(anything()):
            total.options(join=2)([fetch("a")])

    assert "waits for 1 task" in fault(body).message


def test_a_rule_misspelt() -> None:
    error = fault(lambda: total.options(trigger="all_dnoe")(fetch("a")))  # type: ignore[typeddict-item]
    assert "trigger='all_dnoe'" in error.message and "none_failed" in error.message
    assert error.hint == "did you mean 'all_done'?"


def test_priorities_and_failures_that_do_not_count() -> None:
    program = of(lambda: [total.options(priority=7)(1), total.options(may_fail=True)(2), total.options(max_depth=3)(3)])
    assert program.plan.priority == {0: 7}
    assert program.plan.may_fail == {1}
    assert program.max_depth == {2: 3}


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────

API = Limit("api", 8, rate="50/s", burst=10)


@task.io(limits=[API])
def ask(x: Any) -> int:
    return 0


@task.io(limits={"api": 2, "disk": 1})
def ask_twice(x: Any) -> int:
    return 0


def test_limits_of_tasks_and_of_runs() -> None:
    disk = Limit("disk", 3, shared=False)
    program = of(lambda: [fetch("a"), ask(1), ask(2), ask_twice(3)], limits=by_name([disk], "a run"))
    assert program.limits == (
        LimitSpec("api", 8, (50, 1_000_000_000, 10), True),
        LimitSpec("disk", 3, None, False),
    )
    assert program.plan.requirement == {1: 1, 2: 1, 3: 2}
    assert program.plan.requirements == (Requirement(), Requirement(1, ((0, 1),)), Requirement(1, ((0, 2), (1, 1))))


def test_what_a_run_says_of_a_limit_counts() -> None:
    program = of(lambda: ask(1), limits=by_name([Limit("api", 2)], "a run"))
    assert program.limits == (LimitSpec("api", 2, None, True),)


def test_limits_that_cannot_be() -> None:
    error = fault(lambda: ask_twice(1), UnknownName, limits=by_name([Limit("dist", 1), API], "a run"))
    assert "the limit 'disk', which nobody defines; defined are 'api', 'dist'" in error.message
    assert error.hint == "did you mean 'dist'?"
    error = fault(lambda: fetch.options(limits=["api"])("a"), UnknownName)
    assert "no limits are defined" in error.message and "Limit('api', 8)" in error.hint
    error = fault(lambda: ask.options(limits={API: 9})(1))
    assert "holds 9 of limit 'api', which has 8" in error.message
    error = fault(lambda: [ask(1), fetch.options(limits=[Limit("api", 3)])("a")])
    assert "'ask' and 'fetch' have limits that are both named 'api'" in error.message
    assert "named twice" in fault(lambda: ask.options(limits=[API, "api"])(1)).message
    assert "should be a list" in fault(lambda: ask.options(limits="api")(1)).message  # type: ignore[typeddict-item]
    assert "0 of 'api'" in fault(lambda: ask.options(limits={"api": 0})(1)).message


@pytest.mark.parametrize(
    ("rate", "means"),
    [
        ("50/s", (50, 10**9)),
        ("100 / min", (100, 60 * 10**9)),
        ("3/10s", (3, 10 * 10**9)),
        ("0.5/s", (1, 2 * 10**9)),
        ("5/500ms", (5, 500 * 10**6)),
        ("1000/hour", (1000, 3600 * 10**9)),
    ],
)
def test_rates(rate: str, means: tuple[int, int]) -> None:
    assert Limit("x", rate=rate).spec == LimitSpec("x", None, (*means, means[0]), True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"slots": 0}, "slots=0"),
        ({}, "neither slots nor a rate"),
        ({"rate": "fast"}, 'should read like "50/s"'),
        ({"rate": "0/s"}, "should read like"),
        ({"slots": 1, "burst": 3}, "a burst without a rate"),
        ({"slots": 1, "brust": 3}, "no field 'brust'"),
    ],
)
def test_limits_that_are_none(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DefinitionError, match=r"Limit 'x' has") as caught:
        Limit("x", **given)
    assert said in caught.value.message
    assert HERE in (caught.value.where or "")


def test_limits_of_an_engine() -> None:
    with pytest.raises(DefinitionError, match="two limits named 'api'"):
        Engine(limits=[API, Limit("api", 3)])
    with pytest.raises(DefinitionError, match="'api' among its limits"):
        Engine(limits=["api"])  # type: ignore[list-item]
    engine = Engine(limits=[Limit("disk", 3), Limit("api", 5)])
    program = engine.compile(workflow(lambda: ask_twice(1)).bind(), limits=[Limit("api", 4)])
    assert [(each.name, each.slots) for each in program.limits] == [("api", 4), ("disk", 3)]


def test_cores() -> None:
    program = of(lambda: [parse.options(cores=3)(b""), parse(b"")])
    assert program.plan.requirement == {0: 1}
    assert program.plan.requirements[1] == Requirement(3)
    error = fault(lambda: parse.options(cores=5)(b""))
    assert "cores=5, and its executor has 4 slots" in error.message
    assert of(lambda: parse.options(cores=5)(b""), slots={"processes": 6}).plan.requirements[1].slots == 5


def test_memory() -> None:
    program = of(lambda: [read.options(memory="1.5 MB")("a"), read("b")])
    assert program.memory == {0: 1_500_000}
    (limit,) = program.limits
    assert limit.name == "memory" and limit.slots == int(machine_memory() * SHARE) // 1_000_000
    assert program.plan.requirements[1] == Requirement(1, ((0, 2),))
    assert "and there are" in fault(lambda: read.options(memory="900 TB")("a")).message
    small = by_name([Limit("memory", 100)], "a run")
    assert of(lambda: read.options(memory="100 MB")("a"), limits=small).limits[0].slots == 100
    assert "there are 100,000,000" in fault(lambda: read.options(memory="101 MB")("a"), limits=small).message


@pytest.mark.parametrize(
    ("text", "size"),
    [("2 GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("10k", 10_000), ("7 B", 7), (3, 3)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["much", "2 XB", "-1 GB", "", "0 MB", True])
def test_sizes_that_are_none(text: Any) -> None:
    assert f"memory={text!r}" in fault(lambda: read.options(memory=text)("a")).message


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bounds_of_a_workflow_and_of_a_run() -> None:
    @workflow(max_failures=3, deadline=1.5, retry_budget=10)
    def w() -> None:
        fetch("a")

    plan = compiled(w.bind()).plan
    assert (plan.max_failures, plan.deadline, plan.retry_budget) == (3, 1_500_000_000, 10)
    plan = compiled(w.bind(), bounds=Bounds(max_failures=1)).plan
    assert (plan.max_failures, plan.deadline, plan.retry_budget) == (1, 1_500_000_000, 10)
    assert Engine().compile(w.bind(), deadline=7).plan.deadline == 7_000_000_000


def test_a_share_of_failures_is_the_plans() -> None:
    plan = of(lambda: fetch("a"), bounds=Bounds(max_failures="2.5 %")).plan
    assert (plan.max_failures, plan.max_share) == (0, 2.5)
    assert of(lambda: fetch("a"), bounds=Bounds(retry_budget=0)).plan.retry_budget == 0
    assert of(lambda: fetch("a")).plan.retry_budget == -1


@pytest.mark.parametrize(
    "given",
    [
        {"max_failures": 0},
        {"max_failures": "ten"},
        {"max_failures": "0%"},
        {"deadline": 0},
        {"deadline": "1h"},
        {"retry_budget": -1},
    ],
)
def test_bounds_that_are_none(given: dict[str, Any]) -> None:
    name, value = next(iter(given.items()))
    with pytest.raises(DefinitionError, match=f"has {name}=") as caught:
        workflow(**given)
    assert HERE in (caught.value.where or "")
    with pytest.raises(DefinitionError, match="a run has"):
        Engine().compile(workflow(lambda: None).bind(), **given)
    assert repr(value) in caught.value.message


# ── what tasks say ────────────────────────────────────────────────────────────────────────────────────────────────


def is_busy(error: BaseException) -> bool:
    return "busy" in str(error)


def test_a_predicate_says_which_errors_are_retried() -> None:
    policy = RetryPolicy(attempts=3, on=(OSError,), when=is_busy)
    program = of(lambda: [fetch("a"), fetch.options(retry=policy)("b"), fetch.options(retries=1)("c")])
    assert program.retry_when == {program.plan.policy[1]: is_busy}
    with pytest.raises(DefinitionError, match="should be a function"):
        RetryPolicy(when=OSError("x"))  # type: ignore[arg-type]


def test_skip_and_retry_after_travel() -> None:
    assert str(pickle.loads(pickle.dumps(Skip("no rows")))) == "no rows"
    again = pickle.loads(pickle.dumps(RetryAfter(2.5, "429")))
    assert (again.seconds, again.reason, str(again)) == (2.5, "429", "again in 2.5 s: 429")
    for wrong in (-1, "5", float("inf"), True):
        with pytest.raises(ValueError, match="RetryAfter takes seconds"):
            RetryAfter(wrong)  # type: ignore[arg-type]
