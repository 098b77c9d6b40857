"""Random dynamic workflows on the real engine end as the reference says (reference.py), and keep their promises on the way."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flowlane import Engine, RunHandle, RunResult, run

from .dynamic import World, models
from .model import Body, Call, Either, Map, Model, Reduce, Setup, Statement, Sub, Switch, When, settled
from .reference import Ending, Waits, evaluate
from .trigger_rules import RUN, Counts, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNBEGUN = {"skipped", "upstream_failed", "cancelled"}
TERMINAL = {"succeeded", "failed", "skipped", "upstream_failed", "cancelled"}

#: No explaining: it runs an example that fails hundreds of times more.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

quick = settings(
    max_examples=100, deadline=None, derandomize=True, phases=PHASES, suppress_health_check=[HealthCheck.too_slow]
)
deep = settings(
    max_examples=20_000,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def _no_log() -> Iterator[None]:
    """Thousands of tasks that fail on purpose are no news."""
    logging.getLogger("flowlane").disabled = True
    yield
    logging.getLogger("flowlane").disabled = False


# ── without a cancel, all is known ────────────────────────────────────────────────────────────────────────────────


@quick
@given(models())
def test_a_run_ends_as_the_reference_says(model: Model) -> None:
    compare(model)


@quick
@given(models(5, 1))
def test_one_task_at_a_time_ends_as_the_reference_says(model: Model) -> None:
    compare(model, inline=True)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@deep
@given(models(30, 3))
def test_many_runs_end_as_the_reference_says(model: Model) -> None:
    compare(model)


def compare(model: Model, *, inline: bool = False) -> None:
    world = World(model)
    result = run(
        world.main.bind(model.param),
        check=False,
        limits=world.limits,
        slots={"asyncio": model.slots},
        **({"routes": {"*": "inline"}} if inline else {}),
    )
    actual = states_of(result, model)
    expected = evaluate(model, lambda name, allowed: actual.get(name, min(allowed)))
    compare_states(without(expected.torn, actual), without(expected.torn, known(expected.states, model)))
    assert str(result.state) == expected.verdict
    calls = without(expected.torn, calls_of(world, model))
    assert {name: each for name, each in calls.items() if name not in expected.loose} == {
        name: each for name, each in without(expected.torn, expected.calls).items() if name not in expected.loose
    }
    check_teardowns(world, actual)
    if expected.verdict == "succeeded":
        assert settled(result.value) == settled(expected.value)
    check_books(world, actual, expected, 1 if inline else model.slots)


# ── with a cancel, promises hold ──────────────────────────────────────────────────────────────────────────────────


@quick
@given(models(), st.integers(0, 60))
def test_a_cancelled_run_keeps_its_promises(model: Model, ticks: int) -> None:
    check_cancelled(model, ticks)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@deep
@given(models(30, 3), st.integers(0, 400))
def test_many_cancelled_runs_keep_their_promises(model: Model, ticks: int) -> None:
    check_cancelled(model, ticks)


@quick
@given(models(), st.integers(0, 30), st.integers(0, 100))
def test_cancelling_one_task_cancels_no_other(model: Model, ticks: int, which: int) -> None:
    plain = [s.name for s in model.body.statements if isinstance(s, Call) and s.becomes is None]
    if not plain:
        return
    doomed = plain[which % len(plain)]
    world = World(model)
    result = asyncio.run(stopped(world, ticks, lambda handle: handle.cancel_tasks(doomed)))
    actual = states_of(result, model)
    expected = evaluate(model, lambda name, allowed: actual.get(name, min(allowed)), doomed)
    compare_states(without(expected.torn, actual), without(expected.torn, known(expected.states, model)))
    assert str(result.state) == expected.verdict
    check_books(world, actual, expected, model.slots)
    check_teardowns(world, actual)


@quick
@given(models())
def test_a_run_that_fails_fast_keeps_its_promises(model: Model) -> None:
    world = World(model, fail_fast=True)
    result = run(
        world.main.bind(model.param),
        check=False,
        limits=world.limits,
        slots={"asyncio": model.slots},
    )
    actual = states_of(result, model)
    expected = evaluate(model, lambda name, allowed: actual.get(name, min(allowed)))
    assert str(result.state) == expected.verdict
    if expected.verdict == "succeeded":
        compare_states(actual, known(expected.states, model))
    assert set(actual.values()) <= TERMINAL
    check_books(world, actual, expected, model.slots)
    check_teardowns(world, actual)


async def stopped(world: World, ticks: int, stop: Callable[[RunHandle[Any]], object]) -> RunResult[Any]:
    """Run it, and after so many turns of the loop do `stop` to it."""
    async with Engine(limits=world.limits, slots={"asyncio": world.model.slots}) as engine:
        handle = engine.start(world.main.bind(world.model.param))
        for _ in range(ticks):
            await asyncio.sleep(0)
        stop(handle)
        return await handle.wait()


def check_cancelled(model: Model, ticks: int) -> None:
    world = World(model)
    result = asyncio.run(stopped(world, ticks, lambda handle: handle.cancel()))
    actual = states_of(result, model)
    assert set(actual.values()) <= TERMINAL
    expected = evaluate(model, lambda name, allowed: actual.get(name, min(allowed)))
    assert str(result.state) in {"cancelled", expected.verdict}  # it may have ended before
    check_books(world, actual, expected, model.slots)
    check_teardowns(world, actual)


def check_teardowns(world: World, actual: dict[str, str]) -> None:
    """What was set up is torn down, whatever came between."""
    for name, state in actual.items():
        if (setup := setup_of(name, world.model)) is not None and actual[setup] == "succeeded":
            assert state in {"succeeded", "failed", "skipped"}, f"{name} did not tidy up after {setup}"
            assert name in world.calls


# ── what is compared ──────────────────────────────────────────────────────────────────────────────────────────────


def statements_of(body: Body) -> Iterator[Statement]:
    """All statements of a body and of those in it."""
    todo: list[Any] = [*body.statements]
    while todo:
        match statement := todo.pop():
            case Sub(inner):
                todo += inner.statements
            case When(_, then, other):
                todo += [*then, *other]
            case Switch(_, arms, default):
                todo += [inside for _, block in arms for inside in block]
                todo += default or ()
            case Setup(start, block, _):
                todo += [start, *block]
            case Call(becomes=Body() as inner) | Map(becomes=Body() as inner) | Map(body=Body() as inner):
                todo += inner.statements
        yield statement


def compare_states(actual: dict[str, str], expected: dict[str, str]) -> None:
    """Both alike. Of a map that was never to run there may be elements, or not; they ended without a beginning."""
    actual = {
        name: state
        for name, state in actual.items()
        if name in expected or not (state in UNBEGUN and expected.get(re.sub(r"\[[^\]]*\]$", "", name)) in UNBEGUN)
    }
    assert actual == expected, {
        name: (actual.get(name), expected.get(name))
        for name in {**actual, **expected}
        if actual.get(name) != expected.get(name)
    }


def without(torn: set[str], found: dict[str, Any]) -> dict[str, Any]:
    """Without what is in workflows that a failure may have cut short."""
    return {name: each for name, each in found.items() if not name.startswith(tuple(torn))}


def states_of(result: RunResult[Any], model: Model) -> dict[str, str]:
    return known({name: str(end.state) for name, end in result.tasks.items()}, model)


def known(states: dict[str, str], model: Model) -> dict[str, str]:
    """Without what has no name that users chose: how a reduction is cut up, and what gathers two arms."""
    cut = reductions(model)
    arms = {statement.name for statement in statements_of(model.body) if isinstance(statement, Either)}
    return {
        name: state
        for name, state in states.items()
        if last(name).partition("[")[0] not in cut | arms or (last(name) in cut)
        if not re.match(r"either(#\d+)?$", last(name))
    }


def reductions(model: Model) -> set[str]:
    return {statement.name for statement in statements_of(model.body) if isinstance(statement, Reduce)}


def calls_of(world: World, model: Model) -> dict[str, list[list[Any]]]:
    cut = reductions(model)
    return {name: calls for name, calls in world.calls.items() if last(name).partition("[")[0] not in cut}


def last(name: str) -> str:
    return name.rpartition("/")[2]


def setup_of(name: str, model: Model) -> str | None:
    """The full name of the set-up that this teardown tidies up after; None for what is no teardown."""
    for statement in statements_of(model.body):
        if isinstance(statement, Setup) and statement.stop == last(name):
            return name.removesuffix(last(name)) + statement.start.name
    return None


def check_books(world: World, actual: dict[str, str], expected: Ending, slots: int) -> None:
    """Limits and slots were kept, attempts began one after the other, and nothing began before it might."""
    assert world.most[""] <= slots
    for limit, most in world.model.limits:
        assert world.most[limit] <= most, limit
    begun: Counter[str] = Counter()
    latest: dict[str, int] = {}  # full name → the place of its last line, those of what is inside it included
    for place, line in enumerate(world.books):
        begun[line.name] += 1 if line.what == "begin" else -1
        assert begun[line.name] in (0, 1), f"{line.name} began twice"
        latest.update(dict.fromkeys(around(line.name), place))
    assert not begun.total()
    tried = {each.name for each in statements_of(world.model.body) if isinstance(each, Sub) and each.retries}
    early = {each.name for each in statements_of(world.model.body) if isinstance(each, Map) and each.enough}
    for place, line in enumerate(world.books):
        if line.what == "begin" and line.attempt == 1 and not line.name.startswith(tuple(expected.torn)):
            if any(word in tried for word in line.name.split("/")[:-1]):
                continue  # what was before it in an earlier try may be behind it in this one
            waits = expected.waits.get(line.name) or expected.waits.get(re.sub(r"\[[^\]]*\]$", "", line.name))
            if waits is not None:
                check_beginning(
                    waits,
                    {**expected.states, **actual},
                    {name for name, last_line in latest.items() if last_line >= place},
                    early,
                )


def check_beginning(waits: Waits, states: dict[str, str], unfinished: set[str], early: set[str]) -> None:
    """`early` are maps that end before all of them has: nobody waits for the rest, but who tidies up."""
    counts = Counter(
        {"succeeded": "ok", "skipped": "skipped"}.get(states[above], "failed")
        for above in waits.upstreams
        if above not in unfinished or last(above) in early
    )
    left = len(waits.upstreams) - counts.total()
    stands = Counts(counts["ok"], counts["failed"], counts["skipped"], left)
    assert decide(waits.rule, stands, waits.at_least) == RUN, (waits, stands)
    assert not unfinished.intersection(waits.ended), waits


def around(name: str) -> Iterator[str]:
    """The name itself, and those of all that it is inside of: "s[1]/m[2]" is in s[1]/m, s[1] and s."""
    yield name
    for cut in re.finditer(r"[\[/]", name):
        yield name[: cut.start()]
