"""Workflows within workflows have a policy of their own; shares of failures; what is skipped, missing, or was tried before."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import (
    DefinitionError,
    Engine,
    RetryAfter,
    Skip,
    either,
    otherwise,
    product,
    run,
    task,
    teardown,
    when,
    workflow,
    zipped,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane import RunResult


def states(result: RunResult[Any]) -> dict[str, str]:
    return {name: str(end.state) for name, end in result.tasks.items()}


@task.io
async def broken(x: int = 0) -> int:
    raise ValueError(f"no {x}")


@task.io
async def echo(x: int, other: int = 0) -> int:
    return x + other


@task.io
async def slow(x: int = 0) -> int:
    await asyncio.sleep(60)
    return x


@task.io
async def odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


@task.io
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task.io
async def skipped(x: int = 0) -> int:
    raise Skip("nothing")


@task.io
async def numbers(n: int) -> list[int]:
    return list(range(n))


# ── a policy of its own ───────────────────────────────────────────────────────────────────────────────────────────


@workflow(on_failure="fail_fast")
def hasty(x: int) -> Any:
    return [broken(x), slow()]


@pytest.mark.parametrize("how", ["inlined", "kept", "mapped", "returned"])
def test_the_first_failure_ends_a_hasty_workflow_and_nothing_else(how: str) -> None:
    @task.io
    async def more(x: int) -> Any:
        return hasty.bind(x)

    @workflow
    def w() -> Any:
        echo(1)
        if how == "inlined":
            hasty(1)
        elif how == "kept":
            hasty.options(name="hasty", max_depth=3)(1)
        elif how == "mapped":
            hasty.map([1])
        else:
            more(1)
        return None

    found = states(run(w.bind(), check=False))
    prefix = {"inlined": "hasty", "kept": "hasty", "mapped": "hasty[0]", "returned": "more"}[how]
    assert found[f"{prefix}/broken"] == "failed"
    assert found[f"{prefix}/slow"] == "cancelled"
    assert found["echo"] == "succeeded"
    if how != "inlined":
        assert found[prefix] == "failed"


def test_an_element_of_a_map_ends_a_hasty_workflow_at_once_too() -> None:
    #   sub: broken[0] broken[1] …   slow       the map ends as failed, what is beside it is cancelled
    @workflow(on_failure="fail_fast")
    def sub() -> Any:
        return [broken.options(in_flight=1).map(list(range(50))), slow()]

    @workflow
    def w() -> Any:
        sub()
        return echo(1)

    result = run(w.bind(), check=False)
    found = states(result)
    assert (found["sub/broken"], found["sub/slow"], found["echo"]) == ("failed", "cancelled", "succeeded")
    assert Counter(state for name, state in found.items() if "[" in name)["failed"] < 5


def test_what_may_fail_ends_no_hasty_workflow() -> None:
    @workflow(on_failure="fail_fast")
    def sub() -> Any:
        broken.options(may_fail=True)(1)
        return echo(1)

    @workflow
    def w() -> Any:
        return [sub(), sub.options(name="kept", max_depth=3)()]

    assert run(w).value == [1, 1]


@workflow(max_failures=2)
def patient(x: int) -> Any:
    return [broken(x), slow.options(after=[broken(x)], trigger="all_done")()]


def test_max_failures_of_a_workflow_counts_its_own() -> None:
    @workflow
    def w() -> Any:
        broken(0)
        return patient.map([1, 2])

    found = states(run(w.bind(), check=False))
    for element in ("patient[0]", "patient[1]"):
        assert found[element] == "failed"
        assert found[f"{element}/broken"] == found[f"{element}/broken#2"] == "failed"
        assert found[f"{element}/slow"] == "cancelled"


def test_a_deadline_of_a_workflow_ends_that_alone() -> None:
    cleaned: list[int] = []

    @task.io
    async def clean(x: int) -> None:
        cleaned.append(x)

    @workflow(deadline=0.05)
    def sub(x: int) -> Any:
        begun = echo(x)
        with teardown(clean.bind(begun)):
            return slow(begun)

    @workflow
    def w() -> Any:
        return [sub(7), echo(1)]

    result = run(w.bind(), check=False)
    assert states(result) == {
        "sub": "timed_out",
        "echo": "succeeded",
        "sub/echo": "succeeded",
        "sub/slow": "cancelled",
        "sub/clean": "succeeded",
    }
    failure = result.tasks["sub"].failure
    assert failure is not None
    assert failure.message == "not finished within its deadline of 0.05 s"
    assert cleaned == [7]


def test_a_retry_budget_of_a_workflow_is_its_own() -> None:
    calls: Counter[int] = Counter()

    @task.io(retries=5)
    async def try_hard(x: int) -> int:
        calls[x] += 1
        raise RetryAfter(0)

    @workflow(retry_budget=2)
    def sub(x: int) -> Any:
        return try_hard(x)

    @workflow
    def w() -> Any:
        return [sub(1), sub.map([2, 3]), try_hard(4)]

    run(w.bind(), check=False)
    assert calls == {1: 3, 2: 3, 3: 3, 4: 6}
    calls.clear()
    run(w.bind(), check=False, retry_budget=0)
    assert calls == {1: 1, 2: 1, 3: 1, 4: 1}


# ── shares ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_share_waits_until_the_size_of_every_list_is_known() -> None:
    #   broken                       1 of 3 tasks that are known: more than a tenth, but the list is not known yet
    #   numbers ─▶ odd[0] … odd[39]  then 1 of 42: less
    @workflow(max_failures="10%")
    def w(n: int) -> Any:
        first = broken(0)
        return [echo(1), echo.options(name="e").map(numbers.options(after=[first], trigger="all_done")(n))]

    found = states(run(w.bind(40), check=False))
    assert found["e"] == "succeeded"
    assert "cancelled" not in found.values()
    found = states(run(w.bind(0), check=False))
    assert found["broken"] == "failed"


def test_items_of_a_list_that_a_task_made_count() -> None:
    # 4 of 43 tasks are less than a tenth, 5 are more: the list and its map are tasks too, the map as its elements
    @workflow(max_failures="10%")
    def w(n: int) -> Any:
        return odd.options(in_flight=1).map(numbers(n))

    ends = Counter(states(run(w.bind(40), check=False)).values())
    assert ends["failed"] == 5 + 1  # and the map itself
    assert ends["succeeded"] == 5 + 1


# ── skipped and missing ───────────────────────────────────────────────────────────────────────────────────────────


@workflow
def maybe(x: int) -> Any:
    with when(echo(x)):
        return echo(x, 100)


def test_an_element_whose_workflow_has_nothing_to_return_is_skipped() -> None:
    @workflow
    def w() -> Any:
        several = maybe.map([0, 1, 2])
        kept = maybe.options(name="kept", max_depth=3)(0)
        return [several, total(several), total.reduce(several, fan_in=2), either(kept, echo(5))]

    result = run(w)
    assert result.value == [[101, 102], 203, 203, 5]
    assert states(result)["maybe[0]"] == states(result)["kept"] == "skipped"


def test_of_several_values_those_that_are_missing_are_none() -> None:
    @workflow
    def both(x: int) -> Any:
        with when(echo(x)) as yes:
            large = echo(x, 100)
        with otherwise(yes):
            small = echo(x, -1)
        return {"large": large, "small": small}

    @workflow
    def w() -> Any:
        return both.map([0, 1])

    assert run(w).value == [{"large": None, "small": -1}, {"large": 101, "small": None}]


def test_a_workflow_whose_result_may_fail_has_none() -> None:
    @workflow
    def sub(x: int) -> Any:
        return odd.options(may_fail=True)(x)

    @workflow
    def w() -> Any:
        return total.options(trigger="all_done")(sub.map([0, 1, 2]))

    result = run(w.bind())
    assert result.value == 2
    assert states(result)["sub[1]"] == states(result)["sub"] == "upstream_failed"


def test_a_map_with_a_rule_goes_over_what_there_is() -> None:
    @workflow
    def w() -> Any:
        some = odd.options(may_fail=True).map([0, 1, 2])
        none = broken.options(may_fail=True)(1)
        return [
            echo.options(trigger="all_done").map(some),
            echo.options(trigger="all_done").map(none),
            total.options(trigger="all_done").reduce(some, fan_in=2),
        ]

    assert run(w).value == [[0, 2], [], 2]


# ── lists that do not come ────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_no_items_fails_a_reduction() -> None:
    @workflow
    def w() -> Any:
        return total.reduce(echo(3), fan_in=2)

    assert states(run(w.bind(), check=False)) == {"echo": "succeeded", "total": "failed"}


def test_what_takes_from_a_map_that_lacks_items_does_not_succeed() -> None:
    def two() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    @workflow
    def w() -> Any:
        first = echo.options(name="first").map(two())
        second = echo.options(name="second").map(first)
        return [total(second), total.reduce(second, fan_in=2)]

    found = states(run(w.bind(), check=False))
    assert found["first"] == "failed"
    assert found["second[1]"] == "succeeded"
    assert found["second"] == found["total"] == found["total#2"] == "upstream_failed"


def test_mappings_side_by_side_and_combined_give_their_values() -> None:
    @workflow
    def w() -> Any:
        keyed = echo.map({"a": 1, "b": 2})
        return [echo.starmap(product(keyed, [10, 20])), echo.starmap(zipped(keyed, numbers(2)))]

    assert run(w).value == [[11, 21, 12, 22], [1, 3]]


# ── the rest of a map ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rest_of_a_map_that_had_enough_runs_out_with_all_it_needs() -> None:
    ran: list[tuple[int, int]] = []

    @task.io(retries=1)
    async def note(x: int, other: int) -> int:
        ran.append((x, other))
        if x == 3 and ran.count((x, other)) < 2:
            raise ValueError("once more")
        return x

    @workflow
    def w() -> Any:
        some = note.options(in_flight=1, enough=1, cancel_rest=False).map(iter(range(5)), echo(7))
        return echo.options(after=[some])(1)

    assert run(w).value == 1
    assert ran == [(0, 7), (1, 7), (2, 7), (3, 7), (3, 7), (4, 7)]


def test_items_that_cannot_be_read_after_there_was_enough_fail_nobody_and_are_told_of() -> None:
    ran: list[int] = []

    def numbers() -> Iterator[int]:
        yield from range(4)
        raise RuntimeError("no more")

    @task.io
    async def note(x: int) -> int:
        await asyncio.sleep(0)
        ran.append(x)
        return x

    @workflow
    def w() -> Any:
        return note.options(in_flight=1, enough=1, cancel_rest=False).map(numbers())

    result = run(w)
    assert (result.value, ran) == ([0], [0, 1, 2, 3])
    assert result.notes == ["note had enough of its items, and the rest could not be read: RuntimeError: no more"]


@pytest.mark.parametrize("kind", ["list", "long list", "iterator"])
@pytest.mark.parametrize("below", [False, True])
def test_what_goes_on_with_a_map_that_had_enough_has_its_values(kind: str, below: bool) -> None:
    """
    items ─▶ (echo.map ─▶) echo.map, 2 are enough ─▶ echo.map ─▶ add, add.reduce
    """
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(4_000):
            read.append(number)
            yield number

    @task.io
    async def add(values: list[int]) -> int:
        return sum(values)

    @workflow
    def w() -> Any:
        items = numbers() if kind == "iterator" else list(range(3_000 if kind == "long list" else 4))
        some: Any
        if below:
            some = echo.options(enough=2).map(echo.options(in_flight=1).map(items))
        else:
            some = echo.options(enough=2, in_flight=1).map(items)
        more = echo.map(some)
        return [some, more, add(more), add.reduce(some, fan_in=2), add.reduce(more, fan_in=2)]

    assert run(w).value == [[0, 1], [0, 1], 1, 1, 1]
    assert len(read) < 10


def test_what_the_rest_of_a_map_reads_is_not_cancelled_because_another_had_enough() -> None:
    """
    echo.map ─▶ slow.map, 1 is enough, and the rest goes on
             └▶ echo.map, 2 are enough, and the rest is not needed
    """
    ran: list[int] = []

    @task.io
    async def slow(x: int) -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        ran.append(x)
        return x

    @workflow
    def w() -> Any:
        items = echo.options(in_flight=1).map(list(range(6)))
        return [slow.options(enough=1, cancel_rest=False).map(items), echo.options(enough=2).map(items)]

    assert run(w).value == [[0], [0, 1]]
    assert ran == list(range(6))


def test_who_tidies_up_waits_for_the_rest_of_a_map() -> None:
    order: list[str] = []

    @task.io
    async def work(x: int, db: int) -> int:
        for _ in range(20 * x):
            await asyncio.sleep(0)
        order.append(f"work {x}")
        return x

    @task.io
    async def stop(db: int) -> None:
        order.append("stop")

    @workflow
    def w() -> Any:
        db = echo(1)
        with teardown(stop.bind(db)):
            work.options(enough=1, cancel_rest=False).map([0, 1, 2], db)

    run(w)
    assert order == ["work 0", "work 1", "work 2", "stop"]


# ── order ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_map_may_come_after_all_of_the_map_that_it_goes_over() -> None:
    order: list[str] = []

    @task.io
    async def step(x: int, name: str) -> int:
        order.append(name)
        return x

    @workflow
    def w() -> Any:
        first = step.options(in_flight=1).map([1, 2, 3], "first")
        return step.options(after=[first]).map(first, "second")

    run(w)
    assert order == ["first"] * 3 + ["second"] * 3


def test_a_condition_that_a_rule_would_have_to_count_is_refused() -> None:
    @workflow
    def w() -> Any:
        asked = echo(1)
        with when(asked):
            echo.options(after=[asked], name="fine")(2)
            echo.options(after=[asked], trigger="all_failed", name="x")(2)

    with pytest.raises(DefinitionError, match="task 'x' has trigger='all_failed' and comes after 'echo'") as caught:
        Engine().compile(w.bind())
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("leave 'echo' out of after=")


def test_all_tries_of_a_workflow_can_be_looked_at() -> None:
    tries: list[int] = []

    @task.io
    async def fickle(x: int) -> list[int]:
        tries.append(x)
        return [1] * (3 - len(tries))

    @workflow
    def sub(x: int) -> Any:
        return broken.map(fickle(x))

    @workflow
    def w() -> Any:
        return sub.options(retries=1)(1)

    result = run(w.bind(), check=False)
    assert len(tries) == 2
    assert states(result) == {
        "sub": "failed",
        "sub/fickle": "succeeded",
        "sub/broken": "failed",
        "sub/broken[0]": "failed",
        "sub/broken[1]": "failed",
    }
