"""What the elements of a run are called, and what kind they are, for people: also of those that come into being on the way.

An element of the run's own plan is looked up in a column. Any other is found through its place (see ``core.elements``): a node
of a graph that was grafted, or element i of a map, which shares all but its number with its node. No value, no argument.
Any thread, and after the run.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE
from flowlane.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flowlane.core.scheduler import Scheduler
    from flowlane.program import Program

__all__ = ["Growing", "Part", "Roster"]

T = TypeVar("T")

_OWNERS_KEPT: Final = 1_024


class Part(NamedTuple):
    """What is to be known of the nodes of one program for people: no value, no argument."""

    names: Sequence[str]
    kinds: Sequence[str]
    tasks: Sequence[str]
    executors: Sequence[str]

    @classmethod
    def of(cls, program: Program) -> Part:
        return cls(
            program.names,
            program.kinds,
            tuple([target.name for target in program.targets]),
            tuple([program.lanes[lane] for lane in program.plan.lane]),
        )


class Growing(Sequence[T]):
    """A column by element of which the first are at hand, and the others made when they are asked for."""

    __slots__ = ("_first", "_known", "_more", "_size")

    def __init__(self, first: Sequence[T], more: Callable[[int], T], size: Callable[[], int]) -> None:
        self._first = first
        self._known = len(first)
        self._more = more
        self._size = size

    def __getitem__(self, element: Any) -> Any:
        first: Sequence[Any] = self._first
        if type(element) is not int or element < self._known or element >= self._size():
            return first[element]
        return self._more(element)

    def __len__(self) -> int:
        return self._size()

    def __iter__(self) -> Iterator[T]:
        yield from self._first
        for element in range(len(self._first), self._size()):
            yield self._more(element)


class Roster:
    """Names, kinds and executors of all elements of a run, also of those that are yet to come. Any thread, and after the run.

    Every column may be indexed by any element there is.
    """

    def __init__(self, program: Program, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._own = Part.of(program)
        self._parts: dict[int, Part] = {}  # by the number of their first element
        self._same: dict[Part, Part] = {}
        self._keys: dict[int, Sequence[Any]] = {}  # of maps whose elements have keys
        self._numbers: dict[int, dict[str, int]] = {}  # names of graphs, made when somebody looks for one
        self._owners: dict[
            int, str
        ] = {}  # names of elements that others came of; never emptied, other threads may be reading
        self._indices: dict[int, dict[str, int]] = {}  # of keys, by map, made when somebody looks for one
        size = lambda: scheduler.size  # noqa: E731
        self.names: Sequence[str] = Growing(self._own.names, self.name, size)
        self.kinds: Sequence[str] = Growing(self._own.kinds, lambda e: self._of(e, "kinds"), size)
        self.tasks: Sequence[str] = Growing(self._own.tasks, lambda e: self._of(e, "tasks"), size)
        self.executors: Sequence[str] = Growing(self._own.executors, lambda e: self._of(e, "executors"), size)
        self.upstreams: Sequence[Sequence[int]] = Growing(program.plan.upstreams, scheduler.upstreams, size)

    def grafted(self, start: int, program: Program) -> None:
        """A graph has been added, from element `start` on."""
        part = Part.of(program)
        self._parts[start] = self._same.setdefault(part, part)  # one for all that a mapped workflow becomes

    def keyed(self, container: int, keys: Sequence[Any]) -> None:
        """The elements of a map have keys."""
        self._keys[container] = keys

    def keys(self, container: int) -> Sequence[Any] | None:
        """The keys of a map's elements, by index, where they have any."""
        return self._keys.get(container)

    def declared(self, element: int) -> int:
        """The element that stands for the node which `element` was declared as: itself, or the map it belongs to."""
        while (block := self._scheduler.block(element)).kind != GRAPH:
            if block.chain is not None:
                stages = block.chain.stages
                element = stages[(element - block.start) % len(stages)].container
            else:
                element = block.owner
        return element

    def start(self, element: int) -> int:
        """The number of the first element of the graph that node is in; 0 for the run's own."""
        return self._scheduler.block(self.declared(element)).start

    def node(self, element: int) -> int:
        """The number of that node in its own graph."""
        declared = self.declared(element)
        return declared - self._scheduler.block(declared).start

    def ranges(self) -> Iterator[tuple[int, range]]:
        """All elements, by what they were declared as: (element of the node, elements of it)."""
        for block in self._scheduler.blocks:
            if block.kind == GRAPH:
                yield from (
                    (element, range(element, element + 1)) for element in range(block.start, block.start + block.count)
                )
            elif block.kind == CHAIN:
                stages = self._scheduler.stages(block.owner)
                for position, container in enumerate(stages):
                    yield container, range(block.start + position, block.start + block.count, len(stages))
            else:
                yield block.owner, range(block.start, block.start + block.count)

    def find(self, name: str) -> int:
        """The element of that name; the latest, where a workflow was tried again. Raises KeyError."""
        found = self._find(name, {})
        if not found:
            raise KeyError(name)
        return found[0]

    def _find(self, name: str, seen: dict[str, list[int]]) -> list[int]:
        """All of that name, the latest first: one try of a workflow may have come to more than the next.

        `seen` are beginnings of the name that were looked up: each is once, however it can be cut.
        """
        if name not in seen:
            own = self._index(0, self._own).get(name)
            found = [own] if own is not None else self._elements(name, seen)
            seen[name] = found or self._inside(name, seen)
        return seen[name]

    def _elements(self, name: str, seen: dict[str, list[int]]) -> list[int]:
        """Those of maps and reductions."""
        base, bracket, key = name[:-1].rpartition("[")
        if not bracket or not name.endswith("]"):
            return []
        found = [self._element(container, key) for container in self._find(base, seen)]
        return [element for element in found if element is not None]

    def _element(self, container: int, key: str) -> int | None:
        keys = self._keys.get(container)
        try:
            if keys is not None:
                index = self._index_of_key(container, keys, key)
            elif "." in key:
                level, _, group = key.partition(".")
                return self._scheduler.merge_at(container, int(level), int(group))
            else:
                index = int(key)
            return self._scheduler.element_at(container, index)
        except (ValueError, LookupError):
            return None

    def _index_of_key(self, container: int, keys: Sequence[Any], key: str) -> int:
        indices = self._indices.get(container)
        if indices is None:
            indices = self._indices[container] = {str(each): index for index, each in enumerate(keys)}
        return indices[key]

    def _inside(self, name: str, seen: dict[str, list[int]]) -> list[int]:
        """Nodes of graphs that others have become."""
        found: list[int] = []
        cut = len(name)
        while (cut := name.rfind("/", 0, cut)) >= 0:  # names of inlined workflows hold slashes as well
            for owner in self._find(name[:cut], seen):
                for first in self._scheduler.graphs_of(owner):
                    number = self._index(first, self._parts[first]).get(name[cut + 1 :])
                    if number is not None:
                        found.append(first + number)
        return sorted(found, reverse=True)

    def matching(self, names: Iterable[str]) -> list[int]:
        """The elements that `names` mean, patterns among them. Raises UnknownName for one that means nothing."""
        found: dict[int, None] = {}
        for name in names:
            try:
                found[self.find(name)] = None
                continue
            except KeyError:
                pass
            fits = [element for element, other in enumerate(self.names) if _fits(name, other)]
            if not fits:
                close = difflib.get_close_matches(name, list(self._own.names), 1)
                raise UnknownName(
                    f"there is no task {name!r} in this run, and none that it fits as a pattern",
                    hint=f"did you mean {close[0]!r}?" if close else None,
                )
            found.update(dict.fromkeys(fits))
        return list(found)

    def _index(self, start: int, part: Part) -> dict[str, int]:
        index = self._numbers.get(start)
        if index is None:
            index = self._numbers[start] = {name: number for number, name in enumerate(part.names)}
        return index

    def became(self, element: int) -> bool:
        """Whether it has become others: then they took the time that it seems to have taken."""
        return next(iter(self._scheduler.elements_of(element)), None) is not None

    def waited_for(self, element: int) -> Sequence[int]:
        """What had to end before it could: of a map or a workflow its elements, else what it waited for.

        Of what waited for nothing within the graph or the map that it is part of, what that waited for.
        """
        scheduler = self._scheduler
        parts = list(scheduler.elements_of(element))
        if parts:
            return parts
        while element != NOBODY:
            place = scheduler.place(element)
            ups = [up for up in scheduler.upstreams(element) if up != place.owner]
            if ups:
                return ups
            element = place.owner
        return ()

    def came_of(self, element: int) -> Iterator[int]:
        """What had to become others for this one to be there, innermost first: as far up as `waited_for` looks."""
        scheduler = self._scheduler
        while (owner := scheduler.place(element).owner) != NOBODY:
            if any(up != owner for up in scheduler.upstreams(element)):
                return
            yield owner
            element = owner

    def _of(self, element: int, column: str) -> str:
        declared = self.declared(element)
        start = self._scheduler.block(declared).start
        told: Sequence[str] = getattr(self._parts[start] if start else self._own, column)
        return told[declared - start]

    def name(self, element: int) -> str:
        """The element's name: ``fetch[7]``, ``sub[3]/parse``."""
        owner = self._owner_of(element)
        return (
            self._own.names[element]
            if owner == NOBODY
            else self._named(element, self._owners.get(owner) or self._owner(owner))
        )

    def _owner_of(self, element: int) -> int:
        """The element that this one came of, whose name its own begins with."""
        block = self._scheduler.block(element)
        if block.chain is not None:
            stages = block.chain.stages
            return stages[(element - block.start) % len(stages)].container
        return block.owner

    def _named(self, element: int, owner: str) -> str:
        """`name`, of what came of the element that is called `owner`."""
        block = self._scheduler.block(element)
        if block.chain is not None:
            stages = block.chain.stages
            index, position = divmod(element - block.start, len(stages))
            return f"{owner}[{self._key(stages[position].container, block.first + index)}]"
        if block.kind == TREE:
            level, group = block.where
            return f"{owner}[{level}.{group}]"
        return f"{owner}/{self._parts[block.start].names[element - block.start]}"

    def _owner(self, element: int) -> str:
        """`name`, kept for those that come of it. Without recursion: work may be nested deeper than Python's stack."""
        if len(self._owners) >= _OWNERS_KEPT:
            self._owners = {}
        kept = self._owners
        above: list[int] = []
        name = ""
        while element != NOBODY and not (name := kept.get(element, "")):
            above.append(element)
            element = self._owner_of(element)
        for each in reversed(above):
            name = kept[each] = self._named(each, name) if name else self._own.names[each]
        return name

    def _key(self, container: int, index: int) -> str:
        keys = self._keys.get(container)
        return str(index if keys is None else keys[index])


def _fits(pattern: str, name: str) -> bool:
    """Whether `*` and `?` of a pattern fit a name; brackets are what they are in names."""
    if "*" not in pattern and "?" not in pattern:
        return False
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
