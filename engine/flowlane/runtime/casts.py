"""What the elements of one map have in common: found once for all of them, because there may be a million."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.program import Item
from flowlane.runtime.sources import check_parts
from flowlane.runtime.values import fill_arguments_at, filled_at, local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.program import Program
    from flowlane.runtime.sources import Source

__all__ = ["Cast", "ValuesFrom", "cores_of", "holds_of"]

_SEQUENCES: Final = (list, tuple, range)


class _Fixed(NamedTuple):
    """The arguments of a map's elements beside their item: positional ones before and after it, and keywords."""

    before: Sequence[Any]
    after: Sequence[Any]
    kwargs: Mapping[str, Any]


class Cast:
    """See the module's text.

    name      the map's own; its elements are ``name[0]`` and so on, or ``name[key]`` where there are `keys`
    source    what its items come from; None where they are the values of other stages of its chain
    pulls     items are pulled from an iterator, and kept until they are `used`
    once      whether they must not begin a second time
    star      their items are taken apart, to be several arguments
    """

    __slots__ = (
        "_call",
        "_fixed",
        "_grouped",
        "_over",
        "_position",
        "_template",
        "_upstreams",
        "_values",
        "container",
        "cores",
        "filters",
        "holds",
        "keys",
        "memory",
        "name",
        "once",
        "pulls",
        "source",
        "star",
        "target",
    )

    def __init__(
        self,
        container: int,
        program: Program,
        node: int,
        *,
        name: str,
        positions: Mapping[int, int],
        values: list[Any],
        source: Source | None,
        keys: Sequence[Any] | None,
    ) -> None:
        """`positions` are those of the nodes of its chain, its own among them; `values` the run's."""
        self.container = container
        self.name = name
        self.keys = keys
        self.target = program.targets[node]
        self.once = node in program.once
        self.cores = cores_of(program, node)
        self.holds = holds_of(program, node)
        self.memory = program.memory.get(node, 0)
        self._call = call = program.maps[node]
        spec = program.plan.maps[node]
        self.filters = call.filters
        self.star = call.star and not call.batch  # a batch is one argument; its items are unpacked where they are used
        self.source = None if spec.over else source
        self.pulls = self.source is not None and self.source.items is None
        self._grouped = bool(spec.fan_in)
        self._over = [positions[each.node] for each in call.sources] if spec.over else []
        self._position = positions[node]
        self._values = values
        start = container - node
        self._template = program.arguments[node]
        self._upstreams: Any = values if not start else ValuesFrom(values, start)  # values of its graph
        self._fixed: dict[int, _Fixed] = {}  # by id of the executor

    def named(self, index: int) -> str:
        """The name of element `index`."""
        return f"{self.name}[{index if self.keys is None else self.keys[index]}]"

    def item(self, element: int, index: int, home: object) -> Any:
        """The item of element `index`, for the executor `home`. KeyError: it is used up. Raises what fetching raises, too."""
        source = self.source
        if source is not None:
            item = source.item(index)
            return filled_at(home, item, self._upstreams) if source.unfilled else item
        values, base, over = self._values, element - self._position, self._over
        if self._call.combine == "each":
            return local(values[base + over[0]], home)
        return tuple([local(values[base + each], home) for each in over])

    def at_hand(self, index: int) -> Any:
        """The item of element `index` as it stands in the source, where it is there; else None. Runs no code of the user's."""
        source = self.source
        if source is None or source.unfilled or self._grouped:
            return None
        items = source.items
        if items is None:
            return source.ahead.get(index)
        return items[index] if type(items) in _SEQUENCES else None

    def arguments(self, element: int, index: int, home: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments of element `index`. Raises what `item` raises."""
        item = self.item(element, index, home)
        if self._grouped:
            return (item,), {}
        fixed = self._fixed.get(id(home))
        if fixed is None:
            fixed = self._fix(home)
        before, after, kwargs = fixed
        if self.star:
            item = local(item, None)  # its parts are arguments, so it is taken apart here
            check_parts(item, index, self._call, self.target.name)
            return (*before, *item, *after), kwargs
        return ((*before, item, *after) if before or after else (item,)), kwargs

    def _fix(self, home: object) -> _Fixed:
        args, kwargs = fill_arguments_at(home, self._template, self._upstreams)
        place = next(place for place, arg in enumerate(args) if type(arg) is Item)
        fixed = self._fixed[id(home)] = _Fixed(args[:place], args[place + 1 :], kwargs)
        return fixed

    def refill(self) -> None:
        """What all elements get beside their item is looked up anew when the next of them begins."""
        self._fixed.clear()

    def used(self, index: int) -> None:
        """Element `index` has its result: it needs its item no more."""
        if self.source is not None:
            self.source.used(index)


class ValuesFrom:
    """The values of a graph whose first node is element `start`."""

    __slots__ = ("_start", "_values")

    def __init__(self, values: Sequence[Any], start: int) -> None:
        self._values = values
        self._start = start

    def __getitem__(self, node: int) -> Any:
        return self._values[self._start + node]


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
