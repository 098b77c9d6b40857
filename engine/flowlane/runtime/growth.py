"""What a run has become beyond its plan: items of maps, graphs that tasks have become, and what each element runs, with what.

The scheduler numbers elements and decides; here is what the numbers stand for. An element of the run's own plan is looked up in
the program, as ever. Any other is found through its place (see ``core.elements``): a node of a graph that was grafted, whose
program is kept by the number of its first element, or element i of a map, which shares its node's task and arguments.

Items of a map are looked up when an element is about to run: in the list that the map was given, which is kept as it is, or, of
an iterator, among those that were pulled and have not been used up. Belongs to the loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE
from flowlane.core.states import DONE
from flowlane.program import MISSING, Item, Ref
from flowlane.runtime.sources import Source, combined
from flowlane.runtime.values import Gathered, fill, fill_arguments_at, local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowlane.core.elements import Block
    from flowlane.core.scheduler import Scheduler
    from flowlane.program import Program, Test
    from flowlane.runtime.ports import Target
    from flowlane.runtime.roster import Roster

__all__ = ["Cast", "Growth", "cores_of", "holds_of"]


class Cast:
    """What the elements of one map have in common.

    name     the map's own; its elements are ``name[0]`` and so on
    once     whether they must not begin a second time
    """

    __slots__ = (
        "combine",
        "container",
        "cores",
        "filters",
        "holds",
        "memory",
        "name",
        "node",
        "once",
        "over",
        "program",
        "star",
        "target",
    )

    def __init__(self, container: int, name: str, program: Program, node: int, over: dict[int, int]) -> None:
        call = program.maps[node]
        self.container = container
        self.name = name
        self.program = program
        self.node = node
        self.target = program.targets[node]
        self.star = call.star
        self.filters = call.filters
        self.once = node in program.once
        self.cores = cores_of(program, node)
        self.holds = holds_of(program, node)
        self.memory = program.memory.get(node, 0)
        self.combine = call.combine
        #: of a chained map, the stages that its items come from, by position in the chain
        self.over = [over[source.node] for source in call.sources] if program.plan.maps[node].over else []


class _Fixed(NamedTuple):
    """The arguments of a map's elements beside their item: positional ones before and after it, and keywords."""

    before: Sequence[Any]
    after: Sequence[Any]
    kwargs: Mapping[str, Any]


class _From:
    """The values of a graph whose first node is element `start`."""

    __slots__ = ("_start", "_values")

    def __init__(self, values: Sequence[Any], start: int) -> None:
        self._values = values
        self._start = start

    def __getitem__(self, node: int) -> Any:
        return self._values[self._start + node]


class Growth:
    """Programs, items and values of one run. `values` is the run's list, by element."""

    def __init__(self, program: Program, scheduler: Scheduler, values: list[Any], roster: Roster) -> None:
        self._own = program
        self._scheduler = scheduler
        self._values = values
        self._roster = roster
        self._programs: dict[int, Program] = {0: program}  # by the number of their first element
        self._sources: dict[int, Source] = {}
        self._fixed: dict[tuple[int, int], _Fixed] = {}  # by map, and id of the executor
        self._casts: dict[int, tuple[Cast, ...]] = {}  # by the first map of a chain
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
        seen = _Seen()
        for source in program.maps[node].sources:
            fill(source, cast("Sequence[Any]", seen))
        return [container - node + each for each in seen.nodes]

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
        if block.kind == CHAIN:
            index, cast = self.cast(element, block)
            return self.arguments_of(element, block.first + index, cast, home)
        if block.kind == TREE:
            return ([local(self._values[item], home) for item in self._scheduler.inputs(element)],), {}
        return self._of_node(element, element - block.start, home)

    def cast(self, element: int, block: Block) -> tuple[int, Cast]:
        """Of an element of a map: its index within the block, and what it shares with the others."""
        chain = block.chain
        assert chain is not None
        casts = self._casts.get(block.owner)
        if casts is None:
            containers = self._scheduler.stages(block.owner)
            program, first = self.declared(block.owner)
            start = block.owner - first
            positions = {container - start: position for position, container in enumerate(containers)}
            casts = self._casts[block.owner] = tuple(
                [Cast(each, self._roster.name(each), program, each - start, positions) for each in containers]
            )
        index, position = divmod(element - block.start, len(casts))
        return index, casts[position]

    def arguments_of(
        self, element: int, index: int, cast: Cast, home: object
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """`arguments`, for element `index` of a map."""
        item = self._item(element, index, cast, home)
        if cast.program.plan.maps[cast.node].fan_in:
            return (item,), {}
        before, after, kwargs = self._fixed_of(cast.container, cast.program, cast.node, home)
        return ((*before, *item, *after) if cast.star else (*before, item, *after)), kwargs

    def _item(self, element: int, index: int, cast: Cast, home: object) -> Any:
        if not cast.over:
            return self._sources[cast.container].item(index)
        base = element - self._scheduler.position(cast.container)
        values = self._values
        if cast.combine == "each":
            return local(values[base + cast.over[0]], home)
        return tuple([local(values[base + each], home) for each in cast.over])

    def own_item(self, element: int) -> Any:
        """The item of an element of a map, as a value of its own."""
        block = self._scheduler.block(element)
        index, cast = self.cast(element, block)
        return self._item(element, block.first + index, cast, None)

    def _of_node(self, element: int, node: int, home: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
        start = element - node
        program = self._programs[start]
        values: Any = self._values if not start else _From(self._values, start)
        if node in program.raw_missing:
            values = _Raw(values, self._scheduler, start)
        return fill_arguments_at(home, program.arguments[node], values)

    def _fixed_of(self, container: int, program: Program, node: int, home: object) -> _Fixed:
        """The arguments that all elements of a map share: filled once for each executor."""
        key = (container, id(home))
        fixed = self._fixed.get(key)
        if fixed is None:
            start = container - node
            values: Any = self._values if not start else _From(self._values, start)
            args, kwargs = fill_arguments_at(home, program.arguments[node], values)
            place = next(place for place, arg in enumerate(args) if type(arg) is Item)
            fixed = self._fixed[key] = _Fixed(args[:place], args[place + 1 :], kwargs)
        return fixed

    # ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────

    def open_source(self, container: int) -> int:
        """Find out what a map goes over, at its first Pull: how many items there are, -1 where an iterator does not tell.

        Raises TypeError for what has no items, and what user code raises.
        """
        program, node = self.declared(container)
        call = program.maps[node]
        start = container - node
        values: Any = self._values if not start else _From(self._values, start)
        sources = [local(fill(source, values), None) if source is not None else () for source in call.sources]
        source = combined(call.combine, sources, program.plan.maps[node].fan_in)
        self._sources[container] = source
        if source.keys is not None:
            self._roster.keyed(container, source.keys)
        return -1 if source.items is None else len(source.items)

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
        if source is not None and source.items is None:
            source.ahead.pop(index, None)

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
        """The value of an element that has become others, made of theirs. Raises what fetching one of a graph raises."""
        scheduler, values = self._scheduler, self._values
        if scheduler.is_tree(container):
            return values[scheduler.root(container)]
        if not scheduler.is_map(container):
            _, start = scheduler.plan_of(container)
            template = self._programs[start].result
            if type(template) is Ref:
                return values[start + template.node]
            return fill(template, cast("Sequence[Any]", _Local(_From(values, start))))
        places = enumerate(scheduler.elements_of(container))
        done = [(index, element) for index, element in places if scheduler.state(element) in DONE]
        keys = self._keys_of(container)
        whole: Any
        if keys is not None:
            whole = {keys[index]: values[element] for index, element in done}
        else:
            whole = [values[element] for _, element in done]
        return Gathered(whole) if self.remote else whole

    def refill(self) -> None:
        """Values were lost: arguments are filled from those that are there when they are asked for next."""
        self._fixed.clear()

    def ended(self, container: int) -> None:
        """A map has ended: what it went over is not needed any more."""
        self._sources.pop(container, None)
        for key in [key for key in self._fixed if key[0] == container]:
            del self._fixed[key]

    def _keys_of(self, container: int) -> Sequence[Any] | None:
        """Those of the first map of the chain."""
        program, node = self.declared(container)
        over = program.plan.maps[node].over
        while over:
            node, above = over[0], node
            over = program.plan.maps[node].over
            if program.maps[above].combine != "each":
                return None
        start = container - self._scheduler.place(container).number
        return self._roster.keys(start + node)


class _Seen:
    """In place of values: which of them are asked for."""

    __slots__ = ("nodes",)

    def __init__(self) -> None:
        self.nodes: dict[int, None] = {}

    def __getitem__(self, node: int) -> None:
        self.nodes[node] = None


class _Local:
    """Values, every one of them here."""

    __slots__ = ("_values",)

    def __init__(self, values: Any) -> None:
        self._values = values

    def __getitem__(self, node: int) -> Any:
        return local(self._values[node], None)


class _Raw:
    """Values for a task that is told which of them are missing."""

    __slots__ = ("_scheduler", "_start", "_values")

    def __init__(self, values: Any, scheduler: Scheduler, start: int) -> None:
        self._values = values
        self._scheduler = scheduler
        self._start = start

    def __getitem__(self, node: int) -> Any:
        return self._values[node] if self._scheduler.state(self._start + node) in DONE else MISSING


def holds_of(program: Program, node: int) -> Mapping[str, int] | None:
    """The limits that an attempt holds, by name, without that of memory; None for none."""
    plan = program.plan
    if node not in plan.requirement:
        return None
    limits = plan.requirements[plan.requirement[node]].limits
    named = [(program.limits[index].name, weight) for index, weight in limits]
    return {name: weight for name, weight in named if name != "memory"} or None


def cores_of(program: Program, node: int) -> int:
    """Slots of its lane that an attempt holds."""
    plan = program.plan
    return plan.requirements[plan.requirement[node]].slots if node in plan.requirement else 1
