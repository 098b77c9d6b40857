"""The elements of a run: columns with an entry each, which grow as maps get their items and work is added.

An element is what runs. The nodes of the plan are elements 0..n-1; whatever comes later gets the numbers behind, a *block* at a
time, and keeps them. A block says what its elements are:

    GRAPH  the nodes of a plan: the run's own, or one that an element has become (a graft)
    CHAIN  elements of mapped nodes, ``stages`` for each index: stage s of index i is ``start + (i - first) * stages + s``
    TREE   merges of a reduction by tree, in the order in which they came about

All that is kept of an element are some bytes in each column: about 70 together.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.core.messages import NEVER

if TYPE_CHECKING:
    from flowlane.core.chains import Chain, Tree
    from flowlane.core.plan import Plan

__all__ = ["CHAIN", "GRAPH", "NOBODY", "TREE", "Block", "Elements", "Place"]

NOBODY: Final = -1  # no element

GRAPH: Final = 0
CHAIN: Final = 1
TREE: Final = 2


class Place(NamedTuple):
    """What an element is: node `number` of a graph that `owner` has become, or element `number` of the map `owner`.

    owner  an element, NOBODY for the run's own nodes
    level  of a merge in a tree, from 1 where its items are a map's or a list's; 0 otherwise
    """

    owner: int
    kind: int
    number: int
    level: int = 0


class Block:
    """Elements ``start .. start + count - 1``. Which of the other fields are set depends on `kind`."""

    __slots__ = ("chain", "count", "first", "kind", "left", "owner", "plan", "start", "tree", "where")

    def __init__(
        self,
        kind: int,
        owner: int,
        *,
        plan: Plan | None = None,
        chain: Chain | None = None,
        tree: Tree | None = None,
        first: int = 0,
    ) -> None:
        self.kind = kind
        self.owner = owner  # GRAPH, TREE: whose they are; CHAIN: the first stage's
        self.plan = plan
        self.chain = chain
        self.tree = tree
        self.first = first  # CHAIN: index of the first elements
        self.left = bytearray()  # CHAIN: by index, stages that have not ended
        self.where: tuple[int, int] = (0, 0)  # TREE: (level, group), of the only element
        self.start = 0
        self.count = 0


class Elements:
    """Columns by element. Times are those of the latest attempt, NEVER where it did not come to that.

    linked  1 where an end concerns others than plain dependants, so that the short way is not enough
    held    0, or while an attempt is out: 1, and above that why it was asked to stop (see scheduler)
    left    upstreams that have not ended
    uses    readers that have not ended; one more for a value of the run's result
    queue   where it waits for a slot, NOBODY for what needs none
    rank    the smaller, the earlier it starts
    """

    __slots__ = (
        "attempt",
        "block_of",
        "blocks",
        "dependants",
        "ended_ns",
        "held",
        "inputs",
        "launched_ns",
        "left",
        "linked",
        "policy",
        "queue",
        "rank",
        "ready_ns",
        "started_ns",
        "state",
        "uses",
    )

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.state = bytearray()
        self.attempt = bytearray()
        self.held = bytearray()
        self.linked = bytearray()
        self.left = array("i")
        self.uses = array("i")
        self.dependants: list[tuple[int, ...]] = []
        self.inputs: list[tuple[int, ...]] = []
        self.queue = array("h")
        self.policy = array("H")
        self.rank = array("i")
        self.block_of = array("i")
        self.ready_ns = array("q")
        self.launched_ns = array("q")
        self.started_ns = array("q")
        self.ended_ns = array("q")

    def __len__(self) -> int:
        return len(self.state)

    def grow(self, block: Block, count: int) -> int:
        """Give `block` the next `count` numbers; returns the first. `left` to `rank` are for the caller to extend."""
        block.start = start = len(self.state)
        block.count = count
        self.block_of.extend(array("i", [len(self.blocks)]) * count)
        self.blocks.append(block)
        zeros = bytes(count)
        for column in (self.state, self.attempt, self.held, self.linked):
            column.extend(zeros)
        never = array("q", [NEVER]) * count
        for times in (self.ready_ns, self.launched_ns, self.started_ns, self.ended_ns):
            times.extend(never)
        return start

    def block(self, element: int) -> Block:
        return self.blocks[self.block_of[element]]

    def place(self, element: int) -> Place:
        """What an element is."""
        block = self.blocks[self.block_of[element]]
        offset = element - block.start
        if block.kind == GRAPH:
            return Place(block.owner, GRAPH, offset)
        if block.kind == TREE:
            level, group = block.where
            return Place(block.owner, TREE, group, level)
        assert block.chain is not None
        index, stage = divmod(offset, len(block.chain.stages))
        return Place(block.chain.stages[stage].container, CHAIN, block.first + index)
