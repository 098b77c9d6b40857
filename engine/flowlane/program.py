"""A compiled workflow: the plan, and by node what the plan's ints stand for. Made by declare, carried out by runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowlane.core.plan import Plan
    from flowlane.runtime.ports import Target

__all__ = ["Arguments", "CacheRule", "Program", "Ref"]


class Ref:
    """Stands for the value of node `node` inside a template of arguments or of a result."""

    __slots__ = ("node",)

    def __init__(self, node: int) -> None:
        self.node = node

    def __repr__(self) -> str:
        return f"Ref({self.node})"


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
    """How results of a node are cached: `ttl` in ns, 0 for no end; `version` is part of the key."""

    version: str
    ttl: int


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
