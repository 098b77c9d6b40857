"""A compiled workflow: the plan, and by node what the plan's ints stand for. Made by declare, carried out by runtime."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.core.plan import Plan
    from flowlane.runtime.ports import Target

__all__ = [
    "ITEM",
    "MISSING",
    "Arguments",
    "CacheRule",
    "Combine",
    "Item",
    "LimitSpec",
    "MapCall",
    "Missing",
    "Program",
    "Ref",
    "SlotBounds",
    "Test",
    "Work",
    "key_text",
]


R_co = TypeVar("R_co", covariant=True)


class Work(Generic[R_co]):
    """Work that is described and not begun: a call of a task, or a workflow with its parameters. A task may return it instead
    of an R, and becomes it.
    """

    __slots__ = ()


class Ref:
    """Stands for the value of node `node` inside a template of arguments or of a result."""

    __slots__ = ("node",)

    def __init__(self, node: int) -> None:
        self.node = node

    def __repr__(self) -> str:
        return f"Ref({self.node})"


class Item:
    """Stands in the Arguments of a mapped node for the item of an element: for all of it, or with ``MapCall.star`` for one
    positional argument for each of its parts.

    It is the first positional argument that the user writes: the first of all, but behind the instance where the function is a
    method of one.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "Item()"


#: One will do: it has no state.
ITEM: Final = Item()


class Missing:
    """The class of `MISSING`: the value of a node that has none, for tasks that must tell it from None."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"  # the same object in every process


MISSING: Final = Missing()


def key_text(key: object) -> str:
    """How the key of a mapping names an element: ``fetch[us-east]``. Raises ValueError that says what is wrong with it."""
    text = key if isinstance(key, str) else str(key)
    if not text or not text.isprintable() or any(c in text for c in "/#[]"):
        raise ValueError("names of elements hold printable characters, and none of / # [ ]")
    if text is not key and " at 0x" in text:  # as Python tells of objects that say nothing of themselves
        raise ValueError("its text has an address in memory, so it would be named otherwise in every run")
    return text


class Arguments:
    """The arguments of one call, with a Ref wherever an upstream value belongs.

    direct  positions of the positional arguments that are Refs themselves: the common case, filled without a walk
    nested  True when Refs also sit in keyword arguments or inside containers, so that a walk is needed

    A container that holds no Ref is passed by identity; one that does is rebuilt for each attempt.
    """

    __slots__ = ("args", "direct", "kwargs", "nested")

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        direct: tuple[int, ...] = (),
        nested: bool = False,
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.direct = direct
        self.nested = nested


class CacheRule(NamedTuple):
    """How results of a node are cached: `ttl` in ns, 0 for no end; `version` is part of the key.

    `filters`: what is kept are items that passed, not what the task returned for them, so nobody else may find them.
    """

    version: str
    ttl: int
    filters: bool = False


#: How several sources make the items of a map: each item is one of the only source, or a tuple with one of each.
Combine: TypeAlias = Literal["each", "zip", "product"]


class MapCall(NamedTuple):
    """What a mapped node takes its items from.

    sources  a template each: a Ref, or a list, mapping or iterator as it was given. Of a chained map (``MapSpec.over``) Refs
             to the maps it is chained to, whose values are never looked at as a whole
    combine  see Combine
    star     an item is a tuple of positional arguments
    filters  the value of an element is its item, where its task returns something true; else it is skipped
    called   how it was written, for errors: ``parse.map(...)``
    where    ``file:line`` of that
    parts    with `star`: how many parts an item may have, least and most, so that the task can be called with them
    batch    an element is so many items, and its value the list of theirs; 0: one item, and its value
    """

    sources: tuple[Any, ...]
    combine: Combine = "each"
    star: bool = False
    filters: bool = False
    called: str = "a map"
    where: str | None = None
    parts: tuple[int, int] = (0, sys.maxsize)
    batch: int = 0


class Test(Protocol):
    """A condition on the value of a node."""

    def passes(self, value: Any, before: Sequence[bool]) -> bool:
        """Whether it holds; `before` tells of the tests of the same node with lower numbers. May raise what the value does."""
        ...


class SlotBounds(NamedTuple):
    """Of slots that adapt: between which numbers, and with how many they start."""

    lowest: int
    highest: int
    start: int


class LimitSpec(NamedTuple):
    """A limit by name: `slots` None for no limit of concurrency, `rate` (count, period in ns, burst) or None.

    Where its slots adapt, `slots` are the most it may ever have.
    """

    name: str
    slots: int | None
    rate: tuple[int, int, int] | None
    shared: bool
    adaptive: SlotBounds | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """Everything a run needs. Tuples are indexed by node unless said otherwise.

    lanes      not by node: executor names; ``plan.lane`` indexes it
    retry_on   not by node: for each of ``plan.policies`` the exception classes that are retried
    result     the template of the run's value (Refs inside), or None
    params     the validated parameters by name, for the record
    once       nodes that must not begin a second time
    passing    nodes whose results are not stored
    caches     node → how its result is cached, for those that are

    maps         node → what a mapped node takes its items from
    choices      node → the conditions that others make of its value; the k-th is bit k
    limits       not by node: the limits that ``plan.requirements`` index
    definitions  node → the workflow that it becomes: a WorkflowDefinition whose parameters are the node's arguments
    max_depth    node → how deep work may go on returning more work, where it is not 100
    memory       node → bytes that an attempt may take; they also count against the limit "memory", in MB
    retry_when   not by node: index of ``plan.policies`` → what is asked about an error of ``retry_on`` before it is retried
    part         not by node: the options that named a part of the workflow, if it is one ("only", "start_at", "until")
    known_limits not by node: name → the limit, as it was declared, likewise for work that is added
    routes       not by node: what the run routes where, which holds for work that is added to it as well
    raw_missing  nodes that are given `MISSING` for a value that is missing, where others are given None
    """

    workflow: str
    plan: Plan
    lanes: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    targets: tuple[Target, ...]
    arguments: tuple[Arguments, ...]
    retry_on: tuple[tuple[type[BaseException], ...], ...]
    result: Any
    params: Mapping[str, Any]
    once: frozenset[int] = frozenset()
    passing: frozenset[int] = frozenset()
    caches: Mapping[int, CacheRule] = field(default_factory=dict[int, CacheRule])
    maps: Mapping[int, MapCall] = field(default_factory=dict[int, MapCall])
    choices: Mapping[int, tuple[Test, ...]] = field(default_factory=dict[int, tuple[Test, ...]])
    limits: tuple[LimitSpec, ...] = ()
    definitions: Mapping[int, Any] = field(default_factory=dict[int, Any])
    max_depth: Mapping[int, int] = field(default_factory=dict[int, int])
    memory: Mapping[int, int] = field(default_factory=dict[int, int])
    retry_when: Mapping[int, Callable[[BaseException], bool]] = field(
        default_factory=dict[int, "Callable[[BaseException], bool]"]
    )
    raw_missing: frozenset[int] = frozenset()
    part: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])
    known_limits: Mapping[str, Any] = field(default_factory=dict[str, Any])
    routes: Mapping[str, str] = field(default_factory=dict[str, str])
