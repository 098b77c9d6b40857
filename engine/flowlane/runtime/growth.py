"""What a run has become beyond its plan: items of maps, graphs that tasks have become, and what each element runs, with what.

The scheduler numbers elements and decides; here is what the numbers stand for. An element of the run's own plan is looked up in
the program, as ever. Any other is found through its place (see ``core.elements``): a node of a graph that was grafted, whose
program is kept by the number of its first element, or element i of a map, which shares its node's task and arguments.

Items of a map are looked up when an element is about to run: in the list that the map was given, which is kept as it is, or, of
an iterator, among those that were pulled and have not been used up. Belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE
from flowlane.core.outcomes import HAS_VALUE
from flowlane.core.states import DONE, SUCCEEDED
from flowlane.errors import FlowError
from flowlane.program import MISSING, Ref
from flowlane.runtime.casts import Cast, ValuesFrom
from flowlane.runtime.sources import Ingredients, read_before
from flowlane.runtime.values import Gathered, composed, fill, fill_arguments_at, local, nodes_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flowlane.core.elements import Block
    from flowlane.core.scheduler import Scheduler
    from flowlane.program import MapCall, Program, Test
    from flowlane.runtime.ports import Target
    from flowlane.runtime.roster import Roster
    from flowlane.runtime.sources import Source

__all__ = ["Growth"]


class Growth:
    """Programs, items and values of one run. `values` is the run's list, by element."""

    def __init__(self, program: Program, scheduler: Scheduler, values: list[Any], roster: Roster) -> None:
        self._own = program
        self._scheduler = scheduler
        self._values = values
        self._roster = roster
        self._programs: dict[int, Program] = {0: program}  # by the number of their first element
        self._sources: dict[int, Source] = {}
        self._keys: dict[int, Sequence[Any]] = {}  # of items of maps whose elements are batches of them
        self._casts: dict[int, tuple[Cast, ...]] = {}  # by the first map of a chain
        #: by id: those that maps have read, kept so that ids stay theirs
        self._iterators: dict[int, tuple[Any, MapCall]] = {}
        self.remote = False  # whether values may be remote

    # ── what an element is ────────────────────────────────────────────────────────────────────────────────────────

    def declared(self, element: int) -> tuple[Program, int]:
        """The program and the node that an element was declared as."""
        container = self._roster.declared(element)
        number = self._scheduler.place(container).number
        return self._programs[container - number], number

    def target(self, element: int) -> Target:
        program, node = self.declared(element)
        return program.targets[node]

    def retry_on(self, element: int) -> tuple[type[BaseException], ...]:
        program, node = self.declared(element)
        return program.retry_on[program.plan.policy[node]]

    def retry_when(self, element: int) -> Callable[[BaseException], bool] | None:
        """What its retry policy asks besides, of the exception as far as it could travel."""
        program, node = self.declared(element)
        return program.retry_when.get(program.plan.policy[node])

    def choices(self, element: int) -> Sequence[Test]:
        """The conditions that others make of its value."""
        place = self._scheduler.place(element)
        if place.kind != GRAPH:
            return ()
        return self._programs[element - place.number].choices.get(place.number, ())

    def name(self, element: int) -> str:
        """Its name, for people."""
        return self._roster.names[element]

    def keys(self, container: int) -> Sequence[Any] | None:
        """The keys of a map's elements, by index, where they have any."""
        return self._roster.keys(container)

    def sources(self, container: int) -> list[int]:
        """The elements whose values a map's items are made of; of one that is chained to others nothing but these."""
        program, node = self.declared(container)
        found = [each for source in program.maps[node].sources for each in nodes_in(source)]
        return [container - node + each for each in dict.fromkeys(found)]

    def opens(self, container: int) -> list[int]:
        """Of these, the elements whose values are looked into to find its items."""
        program, node = self.declared(container)
        return [container - node + source.node for source in program.maps[node].sources if type(source) is Ref]

    def depth(self, element: int) -> int:
        """How many graphs it is inside of, the run's own not counted."""
        depth = 0
        while True:
            place = self._scheduler.place(element)
            if place.owner == NOBODY:
                return depth
            depth += place.kind == GRAPH
            element = place.owner

    # ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────

    def arguments(self, element: int, home: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of an attempt for the executor `home`. Raises what fetching a value raises, KeyError for a lost item."""
        block = self._scheduler.block(element)
        if block.chain is not None:
            index, cast = self.cast(element, block)
            return cast.arguments(element, index, home)
        if block.kind == TREE:
            return ([local(self._values[item], home) for item in self._scheduler.inputs(element)],), {}
        return self._of_node(element, element - block.start, home)

    def casts(self, block: Block) -> tuple[Cast, ...]:
        """Of a block of elements of maps: what they have in common, by position in the chain."""
        casts = self._casts.get(block.owner)
        if casts is None:
            containers = self._scheduler.stages(block.owner)
            program, first = self.declared(block.owner)
            start = block.owner - first
            positions = {container - start: position for position, container in enumerate(containers)}
            casts = self._casts[block.owner] = tuple(
                [
                    Cast(
                        each,
                        program,
                        each - start,
                        name=self._roster.name(each),
                        positions=positions,
                        values=self._values,
                        source=self._sources.get(each),
                        keys=self._roster.keys(each),
                    )
                    for each in containers
                ]
            )
        return casts

    def cast(self, element: int, block: Block) -> tuple[int, Cast]:
        """Of an element of a map: its index there, and what it has in common with the others."""
        casts = self.casts(block)
        index, position = divmod(element - block.start, len(casts))
        return block.first + index, casts[position]

    def _of_node(self, element: int, node: int, home: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
        start = element - node
        program = self._programs[start]
        values: Any = self._values if not start else ValuesFrom(self._values, start)
        if node in program.raw_missing:
            values = _Raw(values, self._scheduler, start)
        return fill_arguments_at(home, program.arguments[node], values)

    # ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────

    def ingredients(self, container: int) -> Ingredients:
        """What a map's items are to be made of. Raises ItemsError, and what fetching a value raises."""
        program, node = self.declared(container)
        call = program.maps[node]
        start = container - node
        values: Any = self._values if not start else ValuesFrom(self._values, start)
        sources = [self._source(source, values, start) for source in call.sources]
        origins = [program.names[each.node] if type(each) is Ref else "" for each in call.sources]
        self._take_iterators(call, sources, origins)
        if call.combine != "each":
            sources = [self._unkeyed(program, *pair) for pair in zip(call.sources, sources, strict=True)]
        return Ingredients(call, sources, origins, program.plan.maps[node].fan_in)

    def open_source(self, container: int, source: Source) -> int:
        """A map goes over this: how many items there are, -1 where an iterator does not tell."""
        program, node = self.declared(container)
        start = container - node
        self._sources[container] = source
        source.unfilled = any(map(self._stays, program.maps[node].sources))
        if source.keys is not None and program.maps[node].batch:
            self._keys[container] = source.keys
        elif source.keys is not None:
            for each in self._scheduler.stages(container):
                if self._one_for_one(program, each - start):
                    self._roster.keyed(each, source.keys)
        return -1 if source.items is None else len(source.items)

    def _source(self, source: Any, values: Any, start: int) -> Any:
        """What there is to go over; nothing, where a task that is missing was to make it (a trigger rule lets the map run)."""
        if source is None:
            return ()
        if type(source) is Ref and self._scheduler.state(start + source.node) not in DONE:
            parts = values[source.node] if self._scheduler.is_map(start + source.node) else None
            return () if parts is None else local(parts, None)
        return source if self._stays(source) else local(fill(source, values), None)

    def _stays(self, source: Any) -> bool:
        """Whether what a map goes over is left as it was written, because there are values in it that may be remote: each is
        looked up for the element that reads it. So it need not come here, and may be made again when it is lost."""
        return self.remote and type(source) is not Ref and bool(nodes_in(source))

    @staticmethod
    def _unkeyed(program: Program, source: Any, value: Any) -> Any:
        """Side by side with others, of the dict that a map gave its values: what its elements are."""
        if type(source) is Ref and source.node in program.maps and isinstance(value, Mapping):
            mapping: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - truly any
            return list(mapping.values())
        return value

    def _take_iterators(self, call: MapCall, values: Sequence[Any], origins: Sequence[str]) -> None:
        """Refuse an iterator that another map has read: there is nothing left in it. Raises ItemsError."""
        for value, origin in zip(values, origins, strict=True):
            if hasattr(value, "__next__"):
                known, other = self._iterators.setdefault(id(value), (value, call))
                if other is not call and known is value:
                    raise read_before(call, origin, other)

    def told(self, container: int, error: BaseException) -> BaseException:
        """`error`, which came from the source of a map, with a word of which map that was."""
        if isinstance(error, FlowError):  # it says so itself, and where our own code raised it is no news
            error = error.with_traceback(None)
        else:
            program, node = self.declared(container)
            call = program.maps[node]
            with suppress(Exception):  # a class of the user's may have its own idea of notes
                error.add_note(f"raised while {call.called}{f' at {call.where}' if call.where else ''} read its items")
        return error

    def opened(self, container: int) -> bool:
        return container in self._sources

    def iterator(self, container: int) -> Iterator[Any]:
        """Where the items of a map come from that does not tell how many there are."""
        iterator = self._sources[container].iterator
        assert iterator is not None
        return iterator

    def add_items(self, container: int, items: Sequence[Any]) -> None:
        """What was pulled of an iterator."""
        source = self._sources.get(container)
        if source is not None:
            source.ahead.update(enumerate(items, source.pulled))
            source.pulled += len(items)

    def used(self, container: int, index: int) -> None:
        """An element of a map has its result: it needs its item no more."""
        source = self._sources.get(container)
        if source is not None:
            source.used(index)

    def used_up(self, element: int) -> None:
        """`used`, for an element of whatever kind."""
        place = self._scheduler.place(element)
        if place.kind == CHAIN:
            self.used(place.owner, place.number)

    # ── values ────────────────────────────────────────────────────────────────────────────────────────────────────

    def grafted(self, start: int, program: Program) -> None:
        """A graph has been added, from element `start` on."""
        self._programs[start] = program
        self._roster.grafted(start, program)

    def gather(self, container: int) -> Any:
        """The value of an element that has become others, made of theirs."""
        scheduler, values = self._scheduler, self._values
        if scheduler.is_tree(container):
            return values[scheduler.root(container)]
        if not scheduler.is_map(container):
            _, start = scheduler.plan_of(container)
            template = self._programs[start].result
            if type(template) is Ref:
                return values[start + template.node]
            inner = cast("Sequence[Any]", ValuesFrom(values, start))
            return composed(template, inner) if self.remote else fill(template, inner)
        program, node = self.declared(container)
        if batch := program.maps[node].batch:
            return self._gather_batches(container, batch)
        keys = self._roster.keys(container)
        whole: list[Any] = []
        names: list[Any] = []
        first = 0
        for elements in scheduler.ranges_of(container):
            states = scheduler.states_of(elements)
            if keys is None and states.count(SUCCEEDED) == len(states):  # nearly always; it may be a million
                whole += values[elements.start : elements.stop : elements.step]
                continue
            for index, (element, state) in enumerate(zip(elements, states, strict=True), first):
                if state in HAS_VALUE:
                    whole.append(values[element])
                    if keys is not None:
                        names.append(keys[index])
            first += len(states)
        if self.remote:
            return Gathered(whole, None if keys is None else names)
        return whole if keys is None else dict(zip(names, whole, strict=True))

    def _gather_batches(self, container: int, batch: int) -> Any:
        """The value of a map in batches: of its items, as if each had been an element."""
        keys, index = self._keys.get(container), 0
        parts: list[Any] = []
        names: list[Any] = []
        for elements in self._scheduler.ranges_of(container):
            for element, state in zip(elements, self._scheduler.states_of(elements), strict=True):
                if state in HAS_VALUE:
                    parts.append(self._values[element])
                    if keys is not None:
                        names += keys[index : index + batch]
                index += batch
        whole = Gathered(parts, None if keys is None else names, batched=True)
        return whole if self.remote else whole.local(None)

    def refill(self) -> None:
        """Values were lost: arguments are filled from those that are there when they are asked for next."""
        for chain in self._casts.values():
            for each in chain:
                each.refill()

    def ended(self, container: int) -> None:
        """A map has ended, with all its elements, or a graph: what they were made of is not needed any more."""
        scheduler = self._scheduler
        if scheduler.is_map(container):
            self._sources.pop(container, None)
            self._keys.pop(container, None)
            first = container if scheduler.is_tree(container) else scheduler.stages(container)[0]
            self._casts.pop(first, None)  # it has items and arguments; for maps that go on it is made anew
            return
        _, start = scheduler.plan_of(container)
        program = self._programs.pop(start)
        for node in program.maps:
            self._casts.pop(start + node, None)

    @staticmethod
    def _one_for_one(program: Program, node: int) -> bool:
        """Whether a map takes its items, by whatever ways, from one source alone: its elements have the keys of that."""
        while over := program.plan.maps[node].over:
            if program.maps[node].combine != "each":
                return False
            node = over[0]
        return True


class _Raw:
    """Values for a task that is told which of them are missing."""

    __slots__ = ("_scheduler", "_start", "_values")

    def __init__(self, values: Any, scheduler: Scheduler, start: int) -> None:
        self._values = values
        self._scheduler = scheduler
        self._start = start

    def __getitem__(self, node: int) -> Any:
        return self._values[node] if self._scheduler.state(self._start + node) in DONE else MISSING
