"""What only some graphs have: maps, conditions, tear-downs, workflows inside workflows. By node, beside a Workflow's table.

Conditions, tear-downs and scopes hold for everything that a block of the body records, and what a block records are
consecutive nodes: so each is kept as a range, and recording a call costs nothing for it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowlane.core.plan import Guard
    from flowlane.core.rules import TriggerRule
    from flowlane.declare.workflow import WorkflowDefinition
    from flowlane.program import MapCall, Test

__all__ = ["Region", "Sparse", "TearDown"]


class Region(NamedTuple):
    """The nodes `start` to `end` - 1 run only if `guard` holds."""

    start: int
    end: int
    guard: Guard


class TearDown(NamedTuple):
    """`node` runs when the nodes `start` to `end` - 1 have ended, however they end."""

    node: int
    start: int
    end: int


class Sparse:
    """By node unless said otherwise.

    maps         mapped nodes → what they take their items from
    trees        reductions as a tree → items that one call merges
    choices      nodes with conditions on their value → those, the k-th being bit k
    regions      not by node: which nodes are conditional
    teardowns    not by node
    scopes       not by node: ranges of nodes in which the first failure cancels the rest
    definitions  nodes that are a workflow to be made at run time, or are mapped over one → that
    rules        trigger rules that we choose; those that users choose are options
    raw_missing  nodes that are told MISSING instead of None
    """

    __slots__ = (
        "choices",
        "definitions",
        "maps",
        "raw_missing",
        "regions",
        "rules",
        "scopes",
        "teardowns",
        "trees",
    )

    def __init__(self) -> None:
        self.maps: dict[int, MapCall] = {}
        self.trees: dict[int, int] = {}
        self.choices: dict[int, list[Test]] = {}
        self.regions: list[Region] = []
        self.teardowns: list[TearDown] = []
        self.scopes: list[tuple[int, int]] = []
        self.definitions: dict[int, WorkflowDefinition[..., object]] = {}
        self.rules: dict[int, TriggerRule] = {}
        self.raw_missing: set[int] = set()

    def edges(self) -> Iterator[tuple[int, int]]:
        """(before, after) for what conditions and tear-downs wait for."""
        for start, end, guard in self.regions:
            for node in range(start, end):
                yield guard.node, node
        for tearing in self.teardowns:
            for node in range(tearing.start, tearing.end):
                yield node, tearing.node

    def reduced_to(self, kept: Sequence[int], number: Mapping[int, int], template: Callable[[Any], Any]) -> Sparse:
        """The same for the nodes `kept` alone, which are in order; `number` gives their new ones, `template` new templates."""

        def ranged(start: int, end: int) -> tuple[int, int]:
            return bisect_left(kept, start), bisect_left(kept, end)

        new = Sparse()
        new.maps = {
            number[node]: call._replace(sources=tuple([template(source) for source in call.sources]))
            for node, call in self.maps.items()
            if node in number
        }
        new.trees = {number[node]: fan_in for node, fan_in in self.trees.items() if node in number}
        new.choices = {number[node]: tests for node, tests in self.choices.items() if node in number}
        new.definitions = {number[node]: each for node, each in self.definitions.items() if node in number}
        new.rules = {number[node]: rule for node, rule in self.rules.items() if node in number}
        new.raw_missing = {number[node] for node in self.raw_missing if node in number}
        for start, end, guard in self.regions:
            first, last = ranged(start, end)
            if last > first:
                new.regions.append(Region(first, last, guard._replace(node=number[guard.node])))
        for node, start, end in self.teardowns:
            first, last = ranged(start, end)
            if node in number and last > first:
                new.teardowns.append(TearDown(number[node], first, last))
        new.scopes = [(first, last) for first, last in (ranged(*scope) for scope in self.scopes) if last > first]
        return new

    def guards(self) -> dict[int, tuple[Guard, ...]]:
        """Conditional nodes → their conditions, the outermost first."""
        found: dict[int, tuple[Guard, ...]] = {}
        for start, end, guard in sorted(self.regions, key=lambda region: (region.start, -region.end)):
            for node in range(start, end):
                found[node] = (*found.get(node, ()), guard)
        return found
