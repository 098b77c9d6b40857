"""What a run has become beyond its plan: items of maps, graphs that tasks have become, and what each element is.

The scheduler numbers elements and decides; here is what the numbers stand for. An element of the run's own plan is looked up in
the program, as ever. Any other is found through its place (see ``core.elements``): a node of a graph that was grafted, whose
program is kept by the number of its first element, or element i of a map, which shares its node's task and arguments.

Items of a map are looked up when an element is about to run: in the list that the map was given, which is kept as it is, or, of
an iterator, among those that were pulled and have not been used up. Belongs to the loop's thread; names may be asked for from
any.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE
from flowlane.core.states import DONE
from flowlane.errors import DefinitionError, UnknownName
from flowlane.program import MISSING, Item, Ref, key_text
from flowlane.runtime.values import Gathered, fill, fill_arguments_at, local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flowlane.core.elements import Block
    from flowlane.core.scheduler import Scheduler
    from flowlane.program import MapCall, Program, Test
    from flowlane.runtime.ports import Target

__all__ = ["Cast", "Growing", "Growth", "Part", "Roster", "cores_of"]

T = TypeVar("T")


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

    __slots__ = ("_first", "_more", "_size")

    def __init__(self, first: Sequence[T], more: Callable[[int], T], size: Callable[[], int]) -> None:
        self._first = first
        self._more = more
        self._size = size

    def __getitem__(self, element: Any) -> Any:
        first: Sequence[Any] = self._first
        try:
            return first[element]
        except IndexError:
            if element >= self._size():
                raise
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
        self._keys: dict[int, Sequence[Any]] = {}  # of maps whose elements have keys
        self._numbers: dict[int, dict[str, int]] = {}  # names of graphs, made when somebody looks for one
        size = lambda: scheduler.size  # noqa: E731
        self.names: Sequence[str] = Growing(self._own.names, self.name, size)
        self.kinds: Sequence[str] = Growing(self._own.kinds, lambda e: self._told(e).kinds[self.node(e)], size)
        self.tasks: Sequence[str] = Growing(self._own.tasks, lambda e: self._told(e).tasks[self.node(e)], size)
        self.executors: Sequence[str] = Growing(
            self._own.executors, lambda e: self._told(e).executors[self.node(e)], size
        )
        self.upstreams: Sequence[Sequence[int]] = Growing(program.plan.upstreams, scheduler.upstreams, size)

    def grafted(self, start: int, program: Program) -> None:
        """A graph has been added, from element `start` on."""
        self._parts[start] = Part.of(program)

    def keyed(self, container: int, keys: Sequence[Any]) -> None:
        """The elements of a map have keys."""
        self._keys[container] = keys

    def keys(self, container: int) -> Sequence[Any] | None:
        """The keys of a map's elements, by index, where they have any."""
        return self._keys.get(container)

    def declared(self, element: int) -> int:
        """The element that stands for the node which `element` was declared as: itself, or the map it belongs to."""
        place = self._scheduler.place(element)
        while place.kind != GRAPH:
            element = place.owner
            place = self._scheduler.place(element)
        return element

    def node(self, element: int) -> int:
        """The number of that node in its own graph."""
        return self._scheduler.place(self.declared(element)).number

    def start(self, element: int) -> int:
        """The number of the first element of that graph; 0 for the run's own."""
        declared = self.declared(element)
        return declared - self._scheduler.place(declared).number

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
        """The element of that name. Raises KeyError."""
        found = self._find(name, {})
        if found is None:
            raise KeyError(name)
        return found

    def _find(self, name: str, seen: dict[str, int | None]) -> int | None:
        """The same, or None. `seen` are beginnings of the name that were looked up: each is once, however it can be cut."""
        if name not in seen:
            found = self._index(0, self._own).get(name)
            if found is None and name.endswith("]"):
                found = self._element(name, seen)
            seen[name] = self._inside(name, seen) if found is None else found
        return seen[name]

    def _element(self, name: str, seen: dict[str, int | None]) -> int | None:
        base, bracket, key = name[:-1].rpartition("[")
        container = self._find(base, seen) if bracket else None
        if container is None:
            return None
        keys = self._keys.get(container)
        try:
            if keys is not None:
                index = [str(each) for each in keys].index(key)
            elif "." in key:
                level, _, group = key.partition(".")
                return self._scheduler.merge_at(container, int(level), int(group))
            else:
                index = int(key)
            return self._scheduler.element_at(container, index)
        except (ValueError, LookupError):
            return None

    def _inside(self, name: str, seen: dict[str, int | None]) -> int | None:
        cut = len(name)
        while (cut := name.rfind("/", 0, cut)) >= 0:  # names of inlined workflows hold slashes as well
            owner = self._find(name[:cut], seen)
            if owner is None or self._scheduler.is_map(owner):
                continue
            try:
                _, first = self._scheduler.plan_of(owner)
            except KeyError:
                continue
            number = self._index(first, self._parts[first]).get(name[cut + 1 :])
            if number is not None:
                return first + number
        return None

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

    def _told(self, element: int) -> Part:
        start = self.start(element)
        return self._parts[start] if start else self._own

    def name(self, element: int) -> str:
        """The element's name: ``fetch[7]``, ``sub[3]/parse``."""
        words: list[str] = []
        while element != NOBODY:
            place = self._scheduler.place(element)
            if place.kind == GRAPH:
                start = element - place.number
                part = self._parts[start] if place.owner != NOBODY else self._own
                words.append(part.names[place.number])
                if place.owner != NOBODY:
                    words.append("/")
            elif place.kind == CHAIN:
                words.append(f"[{self._key(place.owner, place.number)}]")
            else:
                words.append(f"[{place.level}.{place.number}]")
            element = place.owner
        return "".join(reversed(words))

    def _key(self, container: int, index: int) -> str:
        keys = self._keys.get(container)
        return str(index if keys is None else keys[index])


class _Source:
    """The items of a map: a sequence, or an iterator and what was pulled of it."""

    __slots__ = ("ahead", "items", "iterator", "keys", "pulled")

    def __init__(self, items: Sequence[Any] | None, iterator: Iterator[Any] | None, keys: Sequence[Any] | None) -> None:
        self.items = items
        self.iterator = iterator
        self.keys = keys
        self.ahead: dict[int, Any] = {}  # by index: pulled, and not used up
        self.pulled = 0

    def item(self, index: int) -> Any:
        return self.items[index] if self.items is not None else self.ahead[index]


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
        self._sources: dict[int, _Source] = {}
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
        source = self._combined(call, sources)
        if program.plan.maps[node].fan_in:
            source = _grouped(source, program.plan.maps[node].fan_in)
        self._sources[container] = source
        if source.keys is not None:
            self._roster.keyed(container, source.keys)
        return -1 if source.items is None else len(source.items)

    def _combined(self, call: MapCall, sources: list[Any]) -> _Source:
        if call.combine == "each":
            return _source_of(sources[0])
        for each in sources:
            _iterable(each)
        if call.combine == "product":
            return _Source(None, itertools.product(*sources), None)
        if all(isinstance(each, Sequence) for each in sources):
            return _Source(list(zip(*sources, strict=True)), None, None)
        return _Source(None, zip(*sources, strict=True), None)

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


def _fits(pattern: str, name: str) -> bool:
    """Whether `*` and `?` of a pattern fit a name; brackets are what they are in names."""
    if "*" not in pattern and "?" not in pattern:
        return False
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def _iterable(value: Any) -> None:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(
            f"a map goes over the items of a list, a mapping or an iterable, not over {type(value).__name__}"
        )


def _source_of(value: Any) -> _Source:
    _iterable(value)
    if isinstance(value, Mapping):
        mapping: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - truly any
        keys = list(mapping)
        for key in keys:
            _check_key(key)
        if len(set(map(str, keys))) < len(keys):
            raise DefinitionError(
                "two keys of a mapping read the same", hint="the elements of a map are named by their keys"
            )
        return _Source(list(mapping.values()), None, keys)
    if isinstance(value, Sequence):
        items: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType] - likewise
        return _Source(items, None, None)
    if isinstance(value, (set, frozenset)) or (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        return _Source(list(cast("Iterable[Any]", value)), None, None)
    return _Source(None, iter(value), None)


def _check_key(key: Any) -> None:
    try:
        key_text(key)
    except ValueError as error:
        raise DefinitionError(
            f"{key!r} cannot name an element of a map: {error}", hint="a list has numbers for names"
        ) from None


def _grouped(source: _Source, size: int) -> _Source:
    """The items in groups of `size`, an empty one where there are none: what the first level of a tree merges."""
    items = list(source.items if source.items is not None else source.iterator or ())
    groups = [items[low : low + size] for low in range(0, len(items), size)]
    return _Source(groups or [[]], None, None)


def cores_of(program: Program, node: int) -> int:
    """Slots of its lane that an attempt holds."""
    plan = program.plan
    return plan.requirements[plan.requirement[node]].slots if node in plan.requirement else 1
