"""Maps that go on element by element, and reductions by tree: what is known of them while they run. No decisions.

A *chain* is a map with a source of its own and the maps that take their items from it, element by element, directly or not: its
*stages*. They share their indices: element i of a stage waits for element i of the stages it takes from. An index is under way
from when it is admitted until its elements have ended in all stages, and so many may be under way at a time: that is the chain's
window, what bounds its memory, and why it goes depth first.

A *tree* merges `fan_in` items at a time, level by level. Which items make a group depends on their indices alone, so the shape,
and with it the result, is the same whatever ends first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.core.plan import WINDOW

if TYPE_CHECKING:
    from flowlane.core.plan import MapSpec
    from flowlane.core.states import Reason

__all__ = ["BLOCK", "UNKNOWN_SIZE", "Chain", "Group", "Scope", "Stage", "Tree"]

UNKNOWN_SIZE: Final = -1

#: Indices whose elements get their numbers at once. Larger blocks would make the step that admits them long.
BLOCK: Final = 1_024


class Scope:
    """What has become of the elements of a container, of whatever kind: counts of those that have ended.

    open       elements that have not ended
    concluded  whether its container has ended, or will by itself
    late       whether its deadline has passed
    parted     whether what its elements made was given back
    reason     why its elements were told to stop, where they were
    blocks     numbers of the blocks its elements are in
    """

    __slots__ = (
        "blocks",
        "cancelled",
        "concluded",
        "container",
        "failed",
        "late",
        "ok",
        "open",
        "parted",
        "reason",
        "skipped",
        "upstream_failed",
    )

    def __init__(self, container: int) -> None:
        self.container = container
        self.blocks: list[int] = []
        self.reset(0)

    def reset(self, count: int) -> None:
        """Begin anew, with `count` elements."""
        self.open = count
        self.ok = self.failed = self.upstream_failed = self.skipped = self.cancelled = 0
        self.concluded = self.parted = self.late = False
        self.reason: Reason | None = None


class Stage(Scope):
    """One map of a chain.

    over    positions, in the chain, of the stages it takes its items from
    below   positions of those that take from it
    gate    whether all else that it waits for is there, so that it has begun
    dead    the state that its elements end in because that will never be; 0
    waiting elements that wait for the gate only
    trees   reductions that it feeds
    whole   somebody reads its values as a whole
    runs_out  it has ended with enough of its elements, and the rest goes on
    plain   the success of an element concerns its own index and nobody else
    uses    readers of each of its elements
    """

    __slots__ = (
        "below",
        "dead",
        "gate",
        "over",
        "plain",
        "policy",
        "position",
        "queue",
        "rank",
        "runs_out",
        "spec",
        "trees",
        "uses",
        "waiting",
        "whole",
    )

    def __init__(self, container: int, spec: MapSpec, position: int, over: tuple[int, ...]) -> None:
        super().__init__(container)
        self.spec = spec
        self.position = position
        self.over = over
        self.below: list[int] = []
        self.gate = False
        self.dead = 0
        self.waiting: list[int] = []
        self.trees: list[Tree] = []
        self.queue = self.policy = self.rank = 0
        self.uses = 0
        self.whole = self.runs_out = self.plain = False


class Chain:
    """A map and those that go on with its elements.

    window     indices that may be under way
    under_way  how many are
    known      indices there are so far
    numbered   indices that have elements, the last of them in block number `block`
    admitted   indices that have begun
    cut        not all indices there are will begin
    more       whether there may be others: the source is not exhausted
    pulling    an answer to a Pull is awaited
    begun      the first stage has begun
    ended      all of its maps have ended, and the reductions that merge their elements
    fleeting   an item is there for one success only: it comes from an iterator
    failed     the source raised
    sized      some of its items are known, or none will come: kept where somebody must know
    """

    __slots__ = (
        "admitted",
        "begun",
        "block",
        "cut",
        "ended",
        "failed",
        "fleeting",
        "known",
        "more",
        "numbered",
        "pulling",
        "sized",
        "stages",
        "under_way",
        "window",
    )

    def __init__(self, container: int, spec: MapSpec) -> None:
        self.stages = [Stage(container, spec, 0, ())]
        self.window = spec.window or WINDOW
        self.under_way = self.known = self.numbered = self.admitted = self.block = 0
        self.more = True
        self.pulling = self.begun = self.failed = self.cut = self.sized = self.fleeting = self.ended = False

    def add(self, container: int, spec: MapSpec, over: tuple[int, ...]) -> Stage:
        """A further stage, which takes from those at the positions `over`."""
        stage = Stage(container, spec, len(self.stages), over)
        for position in over:
            self.stages[position].below.append(stage.position)
        self.stages.append(stage)
        return stage

    @property
    def containers(self) -> list[int]:
        """Its maps, and the reductions that merge their elements."""
        trees = [tree.container for stage in self.stages for tree in stage.trees]
        return list(dict.fromkeys([*[stage.container for stage in self.stages], *trees]))

    @property
    def complete(self) -> bool:
        """Whether all indices there will ever be have begun."""
        return not self.more and self.admitted == self.known


class Group:
    """Items of a tree that are merged together, as far as they have ended."""

    __slots__ = ("failed", "items", "landed")

    def __init__(self, size: int) -> None:
        self.items: list[int] = [-1] * size  # elements; -1 for one that is skipped, or not there yet
        self.landed = 0
        self.failed = -1  # the first that did not succeed


class Tree(Scope):
    """A reduction by tree. Level 0 are the items; the merges of level 1 take theirs from it, and so on.

    base   the level whose items come from outside: 0 from a map, 1 from the elements of its own stage (a list in groups)
    size   items of each level, UNKNOWN_SIZE until it is known
    root   the element whose value is the result, once it is known
    """

    __slots__ = ("base", "chain", "fan_in", "groups", "policy", "queue", "rank", "root", "size")

    chain: Chain

    def __init__(self, container: int, fan_in: int, base: int) -> None:
        super().__init__(container)
        self.fan_in = fan_in
        self.base = base
        self.size: dict[int, int] = {}
        self.groups: dict[tuple[int, int], Group] = {}  # (level of the items, group)
        self.root = -1
        self.queue = self.policy = self.rank = 0

    def size_known(self, count: int) -> None:
        """There are `count` items at the base; fewer than was said before, where enough of a map had succeeded."""
        self.size.clear()
        level = self.base
        self.size[level] = count
        while count > 1 or level == 0:  # items of a map are merged at least once, and be it none
            count = max(1, -(-count // self.fan_in))
            level += 1
            self.size[level] = count

    def group_size(self, level: int, group: int) -> int:
        """Items of a group, UNKNOWN_SIZE while it may or may not be the last one."""
        size = self.size.get(level, UNKNOWN_SIZE)
        if size == UNKNOWN_SIZE:
            return UNKNOWN_SIZE
        return min(self.fan_in, size - group * self.fan_in)
