"""Choices in a body: what runs only if a value is so or so, and the value of whichever ran.

    with when(is_new(x)) as new:        with switch(kind(x)) as case:
        a = load(x)                         with case("csv", "tsv"):
    with otherwise(new):                        t = read_csv(x)
        b = touch(x)                        with case.default():
    y = either(a, b)                            t = refuse(x)

A body runs once, before there are values: so it runs through all blocks, and what a block records is put under its condition.
Tasks whose condition does not hold are skipped, and as a rule what depends on them is, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

from flowlane.core.plan import Guard
from flowlane.core.rules import TriggerRule
from flowlane.declare.callsite import caller, frame_at
from flowlane.declare.conditions import NoneOf, OneOf, Truthy
from flowlane.declare.handle import PLAIN, Handle, home_of, kind_of, ref_of
from flowlane.declare.sparse import Region
from flowlane.declare.task import BODY
from flowlane.errors import ArgumentError, DefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType
    from typing import Self

    from flowlane.declare.nodes import Workflow
    from flowlane.program import Test

__all__ = ["Arm", "Switch", "either", "flatten", "otherwise", "switch", "when"]

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")

_MIN_ONE: Final = TriggerRule("none_failed_min_one_success")
_NONE_FAILED: Final = TriggerRule("none_failed")


class Arm:
    """One way that a choice may go: ``with`` it, what is recorded inside runs only if it was taken."""

    __slots__ = ("_flow", "_guard", "_starts")

    def __init__(self, flow: Workflow, node: int, test: Test) -> None:
        tests = flow.sparse.choices.setdefault(node, [])
        self._flow = flow
        self._guard = Guard(node, len(tests))
        self._starts: list[int] = []
        tests.append(test)

    def __enter__(self) -> Self:
        self._starts.append(len(self._flow))
        return self

    def __exit__(self, *_error: object) -> None:
        start, end = self._starts.pop(), len(self._flow)
        if end > start:
            self._flow.sparse.regions.append(Region(start, end, self._guard))

    def __repr__(self) -> str:
        return f"<a condition on {self._flow.name_of(self._guard.node)!r}>"

    def opposite(self) -> Arm:
        """The arm that is taken when this one is not."""
        return Arm(self._flow, self._guard.node, NoneOf((self._guard.bit,)))


def when(value: object) -> Arm:
    """A condition: ``with when(value):``, and what is recorded inside runs only if the value is true, else is skipped.

    `value` is what a call of a task returned, or a plain value. Keep what ``with ... as`` gives for `otherwise`.
    """
    flow, node = _subject(value, "when", frame_at(1))
    return Arm(flow, node, Truthy())


def otherwise(arm: Arm) -> Arm:
    """The opposite of a condition: ``with otherwise(new):`` after ``with when(...) as new:``."""
    if not isinstance(arm, Arm):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass the value again
        raise DefinitionError(
            f"otherwise() is given {arm!r}, which is no condition",
            where=caller(),
            hint="with when(value) as yes: ..., then with otherwise(yes): ...",
        )
    return arm.opposite()


class Switch(Generic[T]):
    """The cases of one value: ``with switch(value) as case:``, and inside ``with case("a", "b"):`` for each."""

    __slots__ = ("_bits", "_default", "_flow", "_node", "_open", "_seen")

    def __init__(self, flow: Workflow, node: int) -> None:
        self._flow = flow
        self._node = node
        self._bits: list[int] = []
        self._seen: list[Any] = []
        self._default: str | None = None  # where it is
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, *_error: object) -> None:
        self._open = False

    def __call__(self, *values: T) -> Arm:
        """What is recorded inside runs only if the value equals one of `values`."""
        self._check("case(...)")
        if not values:
            raise ArgumentError(
                "case() is given no values", where=caller(), hint="case('csv', 'tsv'), or case.default() for all others"
            )
        if self._default is not None:
            raise DefinitionError(
                f"case({', '.join(map(repr, values))}) comes after case.default(), which is at {self._default}",
                where=caller(),
                hint="put the default last: it is for what none of the cases is for",
            )
        for value in values:
            if kind_of(value) is Handle:
                handle = cast("Handle", value)
                raise DefinitionError(
                    f"case(...) is given the result of task {home_of(handle).name_of(ref_of(handle).node)!r}",
                    where=caller(),
                    hint="cases are plain values; to compare two results, let a task do it, and when(...)",
                )
            if kind_of(value) in PLAIN:
                if any(type(value) is type(other) and value == other for other in self._seen):
                    raise DefinitionError(
                        f"case({value!r}) is there twice in one switch",
                        where=caller(),
                        hint="name each value once; one case may have several",
                    )
                self._seen.append(value)
        return self._arm(OneOf(values))

    def default(self) -> Arm:
        """What is recorded inside runs only if none of the cases before it was taken."""
        self._check("case.default()")
        if self._default is not None:
            raise DefinitionError(
                f"case.default() is there twice in one switch, first at {self._default}",
                where=caller(),
                hint="one will do",
            )
        if not self._bits:
            raise DefinitionError(
                "case.default() is the first case of its switch", where=caller(), hint="put it last, after case(...)"
            )
        arm = self._arm(NoneOf(tuple(self._bits)))
        self._default = caller() or "?"
        return arm

    def _arm(self, test: Test) -> Arm:
        self._bits.append(len(self._flow.sparse.choices.get(self._node, ())))
        return Arm(self._flow, self._node, test)

    def _check(self, what: str) -> None:
        if not self._open:
            raise DefinitionError(
                f"{what} is used outside its switch",
                where=caller(),
                hint="with switch(value) as case: and inside it with case(...):",
            )


def switch(value: T) -> Switch[T]:
    """A choice among several: ``with switch(value) as case:``, see Switch. At most one of its cases is taken."""
    flow, node = _subject(value, "switch", frame_at(1))
    return Switch(flow, node)


# ── values of whichever ran ───────────────────────────────────────────────────────────────────────────────────────


@overload
def either(a: A, b: B, /) -> A | B: ...
@overload
def either(a: A, b: B, c: C, /) -> A | B | C: ...
@overload
def either(a: A, b: B, c: C, d: D, /) -> A | B | C | D: ...
@overload
def either(*values: T) -> T: ...
def either(*values: Any) -> Any:
    """The first of `values` that there is: after a choice, that of the arm which was taken.

    It waits for all of them; it is skipped when all are, and fails with any that does. A plain value among them is always there.
    """
    from flowlane.declare import standard

    if len(values) < 2:
        raise ArgumentError(
            f"either() takes two values or more, and was given {len(values)}",
            where=caller(),
            hint="y = either(a, b), where a and b are results of different arms",
        )
    flow = _body("either(...)", values)
    handle = flow.record(standard.either, values, {}, None, (), frame_at(1))
    node = ref_of(handle).node
    flow.sparse.raw_missing.add(node)
    flow.sparse.rules[node] = _MIN_ONE if all(type(value) is Handle for value in values) else _NONE_FAILED
    return handle


def flatten(lists: Iterable[Iterable[T]]) -> list[T]:
    """The items of many lists as one list, in order: of a map whose task returns lists, or of a list of results."""
    from flowlane.declare import standard

    flow = _body("flatten(...)", (lists,))
    return cast("list[T]", flow.record(standard.flatten, (lists,), {}, None, (), frame_at(1)))


def _body(what: str, values: Iterable[Any]) -> Workflow:
    """The workflow whose body runs, or else the one that a handle belongs to."""
    body = BODY.get()
    if body is not None:
        return cast("Workflow", body)
    for value in values:
        if type(value) is Handle:
            return cast("Workflow", home_of(value))
    from flowlane.declare.mapping import body_of

    return body_of(what)


def _subject(value: Any, what: str, frame: FrameType) -> tuple[Workflow, int]:
    """The node whose value a condition is about."""
    flow = _body(f"{what}(...)", (value,))
    if isinstance(value, (Arm, Switch)):
        raise DefinitionError(
            f"{what}() is given a condition, not a value",
            where=caller(),
            hint="conditions nest: write one inside the other",
        )
    if type(value) is Handle:
        return flow, flow.template(f"{what}(...)").of(value).node
    from flowlane.declare import standard

    return flow, ref_of(flow.record(standard.condition, (value,), {}, None, (), frame)).node
