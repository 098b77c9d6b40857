"""Who the tasks of a stored session are: those it was opened with, and those that came into being while it went on.

Numbers are the session's own, and mean nothing in another. What a task is in any session is told by its name (``fetch[7]``,
``sub[3]/parse``, ``merge[2.0]``), or by its *place*: a node of a graph, element i of a map, a merge of a reduction. Two sessions
are held against each other place by place, which is the same as by name, and quicker.

Made of what a store has, pure, and as deep as work was nested.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE, Place
from flowlane.description import Description
from flowlane.runtime.blocks import read_chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flowlane.runtime.blocks import ChainData
    from flowlane.storage.port import StoredBlock

__all__ = ["Census"]


class Census:
    """The tasks of one session: `description` of those it was opened with, `blocks` of the others, in order.

    Methods that look for a task raise LookupError where there is none. What is damaged raises StoreError when it is come to.
    """

    def __init__(self, description: Description, blocks: Sequence[StoredBlock]) -> None:
        self.blocks = blocks
        self._starts = [block.start for block in blocks]
        self._graphs: dict[int, Description] = {
            0: description
        }  # by the number of their first task; read when asked for
        self._chains: dict[int, ChainData] = {}
        self._numbers: dict[int, dict[str, int]] = {}
        self._keys: dict[int, dict[str, int]] = {}
        self._own = len(description.names)
        self.size = blocks[-1].start + blocks[-1].length if blocks else self._own

    @cached_property
    def _of(self) -> dict[int, list[StoredBlock]]:
        """Task → the blocks of what it has become, in order."""
        found: dict[int, list[StoredBlock]] = {}
        for block in self.blocks:
            for container in self.chain(block).stages if block.kind == CHAIN else (block.owner,):
                found.setdefault(container, []).append(block)
        return found

    def chain(self, block: StoredBlock) -> ChainData:
        """What the elements of maps in a block are of."""
        data = self._chains.get(block.start)
        if data is None:
            data = self._chains[block.start] = read_chain(block.data)
        return data

    def graph(self, start: int) -> Description:
        """The graph whose first task has number `start`; 0 for the session's own."""
        description = self._graphs.get(start)
        if description is None:
            description = self._graphs[start] = Description.read(self.block(start).data)
        return description

    def block(self, element: int) -> StoredBlock:
        """The block that a task beyond the session's own is in."""
        at = bisect_right(self._starts, element) - 1
        if at < 0 or not element < self.blocks[at].start + self.blocks[at].length:
            raise LookupError(element)
        return self.blocks[at]

    # ── what a task is ────────────────────────────────────────────────────────────────────────────────────────────

    def place(self, element: int) -> Place:
        """See ``core.elements``."""
        if 0 <= element < self._own:
            return Place(NOBODY, GRAPH, element)
        block = self.block(element)
        offset = element - block.start
        if block.kind == GRAPH:
            return Place(block.owner, GRAPH, offset)
        if block.kind == TREE:
            return Place(block.owner, TREE, block.first, block.level)
        stages = self.chain(block).stages
        index, position = divmod(offset, len(stages))
        return Place(stages[position], CHAIN, block.first + index)

    def declared(self, element: int) -> tuple[Description, int]:
        """The graph and the node in it that a task was declared as: its own, or that of the map which it is an element of."""
        place = self.place(element)
        while place.kind != GRAPH:
            element = place.owner
            place = self.place(element)
        return self.graph(element - place.number), place.number

    def name(self, element: int) -> str:
        words: list[str] = []
        while element != NOBODY:
            place = self.place(element)
            if place.kind == GRAPH:
                words.append(self.graph(element - place.number).names[place.number])
                if place.owner != NOBODY:
                    words.append("/")
            elif place.kind == TREE:
                words.append(f"[{place.level}.{place.number}]")
            else:
                words.append(f"[{self.key(element)}]")
            element = place.owner
        return "".join(reversed(words))

    def key(self, element: int) -> str:
        """How an element of a map is told from the others: its key, or its index."""
        block = self.block(element)
        data = self.chain(block)
        index, position = divmod(element - block.start, len(data.stages))
        keys = data.keys.get(position)
        return str(block.first + index) if keys is None else keys[index]

    def upstreams(self, element: int) -> list[int]:
        """What it waited for: an element of a map for the same one of others that it takes its item from, and for what its map
        waited for besides.
        """
        place = self.place(element)
        if place.kind == GRAPH:
            start = element - place.number
            return [start + up for up in self.graph(start).upstreams[place.number]]
        block = self.block(element)
        if place.kind == TREE:
            return list(json.loads(block.data)) if block.data else []
        stages = self.chain(block).stages
        position = stages.index(place.owner)
        above = self.upstreams(place.owner)
        over = [element - position + stages.index(up) for up in above if up in stages]
        return [*over, *[up for up in above if up not in stages]]

    # ── what it has become ────────────────────────────────────────────────────────────────────────────────────────

    def is_container(self, element: int) -> bool:
        """Whether it has become others."""
        return element in self._of

    def elements_of(self, container: int) -> Iterator[int]:
        """What a task has become, in order; of one that did so again for each attempt the latest."""
        blocks = self._of.get(container, [])
        if blocks and blocks[-1].kind == GRAPH:
            blocks = blocks[-1:]
        for block in blocks:
            if block.kind == CHAIN:
                stages = self.chain(block).stages
                yield from range(block.start + stages.index(container), block.start + block.length, len(stages))
            else:
                yield from range(block.start, block.start + block.length)

    def graph_of(self, element: int) -> StoredBlock | None:
        """The graph that a task has become, the latest one; None where it has not."""
        blocks = self._of.get(element)
        return blocks[-1] if blocks and blocks[-1].kind == GRAPH else None

    def element_at(self, container: int, index: int) -> int:
        """Element `index` of a map."""
        blocks = self._of.get(container, [])
        at = bisect_right(blocks, index, key=lambda block: block.first) - 1
        if at >= 0 and blocks[at].kind == CHAIN:
            block = blocks[at]
            stages = self.chain(block).stages
            element = block.start + (index - block.first) * len(stages) + stages.index(container)
            if element < block.start + block.length:
                return element
        raise LookupError(index)

    def element_of_key(self, container: int, key: str) -> int:
        """The element of a map that `key` names: a key, or an index where it has none."""
        keys = self._keys.get(container)
        if keys is None:
            keys = self._keys[container] = {}
            for block in self._of.get(container, []):
                if block.kind == TREE:
                    continue
                data = self.chain(block)
                position = data.stages.index(container)
                for offset, each in enumerate(data.keys.get(position, ())):
                    keys[each] = block.start + offset * len(data.stages) + position
        if keys:
            return keys[key]
        if not key.isdecimal():
            raise LookupError(key)
        return self.element_at(container, int(key))

    def merge_at(self, container: int, level: int, number: int) -> int:
        """A merge of a reduction by tree."""
        return self._merges[container, level, number]

    @cached_property
    def _merges(self) -> dict[tuple[int, int, int], int]:
        return {(block.owner, block.level, block.first): block.start for block in self.blocks if block.kind == TREE}

    # ── by name ───────────────────────────────────────────────────────────────────────────────────────────────────

    def find(self, name: str) -> int:
        """The task called `name`."""
        found = self._find(name, {})
        if found is None:
            raise LookupError(name)
        return found

    def _find(self, name: str, seen: dict[str, int | None]) -> int | None:
        """The same, or None. `seen` are beginnings of the name that were looked up: each is once, however it can be cut."""
        if name not in seen:
            seen[name] = self.node(0, name)
            if seen[name] is None:
                seen[name] = self._element(name, seen) if name.endswith("]") else None
            if seen[name] is None:
                seen[name] = self._inside(name, seen)
        return seen[name]

    def _element(self, name: str, seen: dict[str, int | None]) -> int | None:
        base, bracket, key = name[:-1].rpartition("[")
        container = self._find(base, seen) if bracket else None
        if container is None:
            return None
        level, dot, number = key.partition(".")
        try:
            if (
                dot
                and level.isdecimal()
                and number.isdecimal()
                and (container, int(level), int(number)) in self._merges
            ):
                return self.merge_at(container, int(level), int(number))
            return self.element_of_key(container, key)
        except LookupError:
            return None

    def _inside(self, name: str, seen: dict[str, int | None]) -> int | None:
        cut = len(name)
        while (cut := name.rfind("/", 0, cut)) >= 0:  # names of inlined workflows hold slashes as well
            owner = self._find(name[:cut], seen)
            block = self.graph_of(owner) if owner is not None else None
            number = self.node(block.start, name[cut + 1 :]) if block is not None else None
            if number is not None:
                return number
        return None

    def node(self, start: int, name: str) -> int | None:
        """The task of that name in the graph whose first task has number `start`."""
        numbers = self._numbers.get(start)
        if numbers is None:
            numbers = self._numbers[start] = {each: node for node, each in enumerate(self.graph(start).names)}
        node = numbers.get(name)
        return None if node is None else start + node
