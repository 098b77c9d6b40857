"""What people get wrong in dynamic workflows, and what they are told: what they wrote, where, and the fix."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import pytest

from flowlane import (
    DefinitionError,
    ItemsError,
    RetryPolicy,
    RunFailed,
    TaskState,
    product,
    run,
    task,
    workflow,
    zipped,
)

if TYPE_CHECKING:
    from flowlane import Failure

pytestmark = pytest.mark.timeout(60)
HERE = "test_mistakes.py:"


def broken(count: int = 3) -> Iterator[int]:
    yield from range(count)
    raise ValueError("the source broke")


async def numbers() -> Any:
    yield 1


GIVEN: dict[str, Any] = {
    "none": lambda: None,
    "number": lambda: 5,
    "text": lambda: "hello",
    "bytes": lambda: b"hello",
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset([1]),
    "async": numbers,
    "same keys": lambda: {1: "a", "1": "b"},
    "no name": lambda: {"a/b": 1},
    "no text": lambda: {object(): 1},
    "pairs": lambda: [(1, 2), (3,)],
    "triple": lambda: [(1, 2, 3)],
    "singles": lambda: [1, 2],
    "two": lambda: [1, 2],
    "mapping": lambda: {"a": 1},
    "broken": broken,
    "broken at once": lambda: broken(0),
    "keys": {"a": 1, "b": 2}.keys,
    "empty": list,
}


@task.io
def load(what: str) -> Any:
    return GIVEN[what]()


@task.io
def one(x: Any) -> Any:
    return x


@task.io
def pair(a: Any, b: Any = 0) -> Any:
    return [a, b]


@task.io
def total(parts: list[int]) -> int:
    return sum(parts)


@workflow
def mapped(what: str) -> Any:
    return one.map(load(what))


@workflow
def starred(what: str) -> Any:
    return pair.starmap(load(what))


@workflow
def beside(what: str) -> Any:
    return pair.starmap(zipped(load(what), [1, 2, 3]))


@workflow
def across(what: str) -> Any:
    return pair.starmap(product(load(what), [1, 2, 3]))


@workflow
def reduced(what: str) -> Any:
    return total.reduce(load(what), fan_in=2)


def failure_of(flow: Any, task_name: str, **given: Any) -> Failure:
    return run(flow.bind(**given), check=False, routes={"*": "inline"}).failures[task_name]


# ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flow", "name", "what", "says", "fix"),
    [
        (mapped, "one", "none", "one.map(...) goes over the result of 'load', which is None and has no items", "list"),
        (mapped, "one", "number", "which is an int and has no items", "return a list"),
        (mapped, "one", "text", "which is a str: one value, not many", "of one item"),
        (mapped, "one", "bytes", "which is a bytes: one value, not many", "of one item"),
        (mapped, "one", "set", "which is a set, whose items come in another order each time", "sorted(...)"),
        (mapped, "one", "frozenset", "which is a frozenset", "sorted(...)"),
        (mapped, "one", "async", "which is an async_generator and has no items", "async for"),
        (mapped, "one", "same keys", "1 and '1' would both be named '1'", "list(mapping.values())"),
        (mapped, "one", "no name", "with the key 'a/b', which would name an element", "list(mapping.values())"),
        (mapped, "one", "no text", "its text has an address in memory", "list(mapping.values())"),
        (starred, "pair", "none", "pair.starmap(...) goes over the result of 'load', which is None", "return a list"),
        (starred, "pair[0]", "singles", "goes over tuples of arguments, and item 0 is an int", "pair.map(...)"),
        (starred, "pair[0]", "triple", "calls 'pair' with the 3 parts of item 0, and it takes 1 to 2", "as many parts"),
        (beside, "pair", "two", "zipped lists of different lengths: 2 of 'load', 3", "product(...)"),
        (beside, "pair", "mapping", "the result of 'load', which is a mapping", ".items()"),
        (beside, "pair", "none", "the result of 'load', which is None", "return a list"),
        (across, "pair", "none", "the result of 'load', which is None", "return a list"),
        (reduced, "total", "none", "total.reduce(...) goes over the result of 'load', which is None", "return a list"),
    ],
)
def test_what_a_task_returned_is_nothing_to_go_over(flow: Any, name: str, what: str, says: str, fix: str) -> None:
    failure = failure_of(flow, name, what=what)
    assert (failure.type, isinstance(failure.exception, ItemsError)) == ("ItemsError", True)
    assert says in failure.message
    assert failure.where is not None
    assert HERE in failure.where
    assert fix in failure.notes[-1]
    assert "sources.py" not in failure.traceback


def test_zipped_iterators_of_different_lengths_say_which_ended() -> None:
    @task.io
    def count(size: int) -> Any:
        return iter(range(size))

    @workflow
    def uneven() -> Any:
        return pair.starmap(zipped(count(2), count(3)))

    failure = failure_of(uneven, "pair")
    assert "number 1, of 'count', ends after 2 items" in failure.message
    assert failure.where is not None
    assert HERE in failure.where


def test_an_error_of_a_generator_is_the_users_and_says_which_map_read_it() -> None:
    failure = failure_of(mapped, "one", what="broken")
    assert (failure.type, failure.message) == ("ValueError", "the source broke")
    assert failure.where is not None
    assert failure.where.endswith("in broken")
    assert "raised while one.map(...) at " in failure.notes[0]
    assert HERE in failure.notes[0]


def test_what_a_generator_raises_need_not_even_read_as_text() -> None:
    class Mute(BaseException):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    def source() -> Iterator[int]:
        yield 1
        raise Mute

    @workflow
    def flow() -> Any:
        return one.map(source())

    failure = failure_of(flow, "one")
    assert failure.type.endswith("Mute")


def test_views_of_a_mapping_have_an_order() -> None:
    assert run(mapped.bind("keys"), routes={"*": "inline"}).value == ["a", "b"]

    @workflow
    def literal() -> Any:
        return one.map({"a": 1, "b": 2}.keys())

    assert run(literal.bind(), routes={"*": "inline"}).value == ["a", "b"]


@pytest.mark.parametrize("what", ["broken", "broken at once"])
def test_nobody_takes_what_there_was_of_a_broken_source_for_all_there_is(what: str) -> None:
    #   load ─▶ one ─▶ one#2 ─▶ total (a tree) ─▶ publish
    #                    └─▶ total#2 (a tree), total#3 (of all)
    ran: list[Any] = []

    @task.io
    def publish(value: Any) -> None:
        ran.append(value)

    @workflow
    def chain() -> None:
        first = one.map(load(what))
        second = one.map(first)
        publish(total.reduce(first, fan_in=2))
        publish(total.reduce(second, fan_in=2))
        publish(total(second))

    result = run(chain.bind(), check=False, routes={"*": "inline"})
    assert list(result.failures) == ["one"]
    for name in ("one#2", "total", "total#2", "total#3", "publish", "publish#2", "publish#3"):
        assert result.tasks[name].state is TaskState.UPSTREAM_FAILED, name
        assert result.upstream(name)[0] == "one"
    assert ran == []


def test_a_reduction_whose_source_broke_ends() -> None:
    failure = failure_of(reduced, "total", what="broken")
    assert (failure.type, failure.message) == ("ValueError", "the source broke")
    assert "raised while total.reduce(...) at " in failure.notes[0]


def test_an_iterator_can_be_gone_over_once() -> None:
    @task.io
    def stream() -> Any:
        return iter([1, 2])

    @workflow
    def twice() -> Any:
        given = stream()
        return [one.map(given), pair.map(given)]

    @workflow
    def literal() -> Any:
        given = iter([1, 2])
        return [one.map(given), pair.map(given)]

    for flow, whose in ((twice, "the result of 'stream', an iterator"), (literal, "an iterator")):
        failure = failure_of(flow, "pair")
        assert f"pair.map(...) goes over {whose} that one.map(...) at " in failure.message
        assert "goes over as well" in failure.message
        assert "return a list" in failure.notes[0]


@pytest.mark.parametrize("count", [10, 5_000])
def test_a_tree_merges_what_was_enough_of_a_map_however_long(count: int) -> None:
    @workflow
    def flow() -> Any:
        return total.reduce(one.options(enough=2, in_flight=1).map(range(count)), fan_in=2)

    result = run(flow.bind(), check=False, routes={"*": "inline"})
    assert (result.value, result.tasks["total"].state) == (1, TaskState.SUCCEEDED)


@task.io
def forever(n: int) -> Any:
    return forever.bind(n + 1)


def test_work_without_an_end_names_the_task_that_returns_it() -> None:
    @workflow
    def flow() -> Any:
        return forever.options(max_depth=3)(0)

    failure = next(iter(run(flow.bind(), check=False, routes={"*": "inline"}).failures.values()))
    assert "task 'forever' has gone on with more work" in failure.message
    assert HERE in (failure.where or "")
    assert "repeat_until" in failure.notes[0]


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────


@workflow
def sub(x: int = 1) -> Any:
    return one(x)


async def waiting() -> None:
    await asyncio.sleep(0)


MISTAKES: dict[str, Any] = {
    "task": lambda: one,
    "workflow": lambda: sub,
    "list": lambda: [one.bind(1), one.bind(2)],
    "tuple": lambda: (1, sub.bind(2)),
    "dict": lambda: {"a": one.bind(1)},
    "coroutine": waiting,
    "coroutines": lambda: [waiting(), waiting()],
    "long": lambda: [None] * 100 + [one],
    "deep": lambda: [[one]],
}

attempts: list[str] = []


@task.io(retry=RetryPolicy(attempts=3, backoff=0))
async def slip(what: str) -> Any:
    attempts.append(what)
    return MISTAKES[what]()


@task.cpu
def slip_elsewhere(what: str) -> Any:
    return MISTAKES[what]()


@workflow
def slipping(what: str) -> Any:
    return slip(what)


@workflow
def slipping_elsewhere(whats: tuple[str, ...]) -> Any:
    slip_elsewhere.map(whats)


@pytest.mark.parametrize(
    ("what", "says", "fix"),
    [
        ("task", "task 'slip' returned the task 'one' itself, not its result", "return one.bind(...)"),
        ("workflow", "task 'slip' returned the workflow 'sub' itself", "return sub.bind(...)"),
        ("list", "returned a list that holds one.bind(...), a call and 1 more of the kind", "a_task.map(items)"),
        ("tuple", "returned a tuple that holds sub.bind(...), a workflow", "a_workflow.bind(...)"),
        ("dict", "returned a dict that holds one.bind(...), a call", "a_workflow.bind(...)"),
        ("coroutine", "returned a coroutine of 'waiting', which nobody awaited", "return await"),
        ("coroutines", "returned a list that holds a coroutine of 'waiting'", "await"),
    ],
)
def test_results_that_are_mistakes_fail_at_once(what: str, says: str, fix: str) -> None:
    attempts.clear()
    failure = failure_of(slipping, "slip", what=what)
    assert isinstance(failure.exception, DefinitionError)
    assert says in failure.message
    assert failure.where is not None
    assert HERE in failure.where
    assert fix in failure.notes[0]
    assert attempts == [what], "it would return the same again"


def test_results_of_classes_that_cannot_be_hashed_are_values() -> None:
    class Meta(type):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(cls, other: object) -> bool:
            raise RuntimeError("no")

    class Odd(metaclass=Meta):
        pass

    @task.io
    def odd() -> Any:
        return [Odd()]

    @workflow
    def flow() -> Any:
        odd()

    assert run(flow.bind(), routes={"*": "inline"}).state == "succeeded"


@pytest.mark.parametrize("what", ["long", "deep"])
def test_only_short_containers_are_looked_into_and_one_level_deep(what: str) -> None:
    assert run(slipping.bind(what), routes={"*": "inline"}).state == "succeeded"


def test_results_of_worker_processes_are_looked_at_as_well() -> None:
    whats = ("task", "workflow", "list", "tuple", "dict")
    result = run(slipping_elsewhere.bind(whats), check=False)
    assert [failure.type for failure in result.failures.values()] == ["DefinitionError"] * len(whats)


@task.cpu
def more(kind: str) -> Any:
    if kind == "small":
        return one.bind(3)
    if kind == "pickle":  # longer than a message: it lies in shared memory
        return length.bind("x" * 300_000)
    return length.bind(bytearray(3_000_000))  # a buffer apart


@task.io
def length(value: Any) -> int:
    return len(value)


def test_work_returned_by_a_worker_process_is_done() -> None:
    @workflow
    def flow() -> Any:
        return more.map(["small", "pickle", "buffer"])

    assert run(flow.bind()).value == [3, 300_000, 3_000_000]


@workflow
def strict(x: int) -> Any:
    return one(x)


@task.io
def to_strict(x: Any) -> Any:
    return strict.bind(x)


@task.io
def words() -> list[str]:
    return ["1", "x"]


def test_parameters_that_do_not_fit_name_the_map_or_the_task_and_no_line_of_the_event_loop() -> None:
    @workflow
    def mapped_over() -> Any:
        return strict.map(words())

    @workflow
    def returned() -> Any:
        return to_strict.map(words())

    for flow, name in ((mapped_over, "strict[1]"), (returned, "to_strict[1]")):
        failure = run(flow.bind(), check=False).failures[name]
        assert "workflow 'strict' has x='x'" in failure.message
        assert HERE in (failure.where or "")


class Quiet(Exception):
    pass


@task.io
def silent() -> None:
    raise Quiet


@task.cpu
def unawaited() -> Any:
    return waiting()


@workflow
def says_nothing() -> None:
    silent()


@workflow
def awaits_nothing() -> None:
    unawaited()


def test_an_error_without_a_message_is_told_by_its_type_alone() -> None:
    with pytest.raises(RunFailed) as raised:
        run(says_nothing.bind())
    assert str(raised.value).endswith("task 'silent' failed: " + raised.value.failures["silent"].type)
    assert repr(raised.value.failures["silent"]).endswith("Quiet)")


@pytest.mark.parametrize("executor", ["threads", "inline", "processes"])
def test_a_plain_function_that_returns_a_coroutine_is_told_so_everywhere(executor: str) -> None:
    result = run(awaits_nothing.bind(), check=False, routes={"*": executor})
    failure = result.failures["unawaited"]
    assert "task 'unawaited' is a plain function that returned a coroutine" in failure.message
    assert "asyncio.run(...)" in failure.notes[0]
    if executor != "processes":
        assert failure.where is not None
        assert HERE in failure.where


# ── which input it was ────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def opens(path: object) -> str:
    return str(path)


@task.cpu
def refuses(text: object, other: object = None) -> int:
    raise ValueError("bad")


@workflow
def refused() -> list[object]:
    return [
        refuses.options(name="chained").map(opens.map([Path("a b.txt")])),
        refuses.options(name="plain").map(["x" * 200]),
        refuses.options(name="keyed").map({"eu": 3}),
        refuses.options(name="pair").starmap([(1, "two")]),
        refuses.options(name="batch", batch=2).map(["p", "q"]),
        refuses.options(name="opaque").map([{"password": 1}]),
    ]


@pytest.mark.parametrize("routes", [{"*": "inline"}, {"cpu": "processes"}])
@pytest.mark.timeout(60)
def test_the_failure_of_an_element_says_which_item_it_was(routes: dict[str, str]) -> None:
    """Of a chain the one that it began with; nothing of what is no text, number or path."""
    failures = run(refused.bind(), routes=routes, check=False).failures
    assert {name: failure.notes for name, failure in failures.items()} == {
        "chained[0]": ("its item was made from: 'a b.txt'",),
        "plain[0]": (f"its item: '{'x' * 119}…",),
        "keyed[eu]": ("its item: 3",),
        "pair[0]": ("its item: (1, 'two')",),
        "batch[0]": ("raised for item 0 of a batch of 2: 'p'",),
        "opaque[0]": (),
    }


class Lazy(Sequence[int]):
    """Its second item cannot be had."""

    def __len__(self) -> int:
        return 2

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if index == 1:
            raise OSError("the disk")
        return 7


class Login(NamedTuple):
    user: str
    password: str


@task.io
async def odd(kind: str) -> object:
    return {"lazy": Lazy(), "huge": [10**5000, 1], "secret": [Login("me", "hunter2")], "long": ["x" * 10_000_000]}[kind]


@workflow
def odd_items(kind: str) -> list[int]:
    return refuses.map(odd(kind))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "notes"),
    [
        ("lazy", [(), ()]),
        ("huge", [(), ("its item: 1",)]),
        ("secret", [()]),
        ("long", [(f"its item: '{'x' * 119}…",)]),
    ],
)
def test_to_say_which_item_it_was_changes_nothing(kind: str, notes: list[tuple[str, ...]]) -> None:
    """Red when code of the user's runs for that: a source that raises would keep the run from ending."""
    failures = run(odd_items.bind(kind), routes={"*": "inline"}, check=False).failures
    told = [failures[f"refuses[{index}]"].notes for index in range(len(notes))]
    assert [tuple(note for note in each if note.startswith("its item")) for each in told] == notes
