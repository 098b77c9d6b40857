"""What a map goes over: a list that is kept as it is, or an iterator and what was pulled of it and is not used up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from flowlane.errors import DefinitionError
from flowlane.program import key_text

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = ["Ingredients", "Source", "combined"]


class Source:
    """The items of a map: a sequence, or an iterator and what was pulled of it."""

    __slots__ = ("ahead", "items", "iterator", "keys", "pulled")

    def __init__(self, items: Sequence[Any] | None, iterator: Iterator[Any] | None, keys: Sequence[Any] | None) -> None:
        self.items = items
        self.iterator = iterator
        self.keys = keys
        self.ahead: dict[int, Any] = {}  # by index: pulled, and not used up
        self.pulled = 0

    def item(self, index: int) -> Any:
        """Item `index`. Raises KeyError for one that is used up."""
        return self.items[index] if self.items is not None else self.ahead[index]

    def used(self, index: int) -> None:
        """Nobody needs that item any more."""
        if self.items is None:
            self.ahead.pop(index, None)


class Ingredients(NamedTuple):
    """What the items of a map are made of: `values`, of one alone ("each"), zipped, or their product.

    fan_in  in groups of so many, which a reduction merges; 0 for none
    batch   in batches of so many, as they come; 0 for none
    """

    combine: str
    values: Sequence[Any]
    fan_in: int = 0
    batch: int = 0

    @property
    def are_plain(self) -> bool:
        """Whether none of them can run user code, so that they can be looked at on the loop."""
        return all(type(value) in _PLAIN for value in self.values)


#: Sequences of which a slice can be had. Others need not have any: a deque has none.
_SLICED: Final = (list, tuple, range)

#: Types whose items are there, and come without a line of anybody's code.
_PLAIN: Final[frozenset[type]] = frozenset([list, tuple, dict, range, set, frozenset])


def combined(of: Ingredients) -> Source:
    """The items of a map. May read iterators to their end (for a product, for groups), and takes as long as those do.

    Raises TypeError for what has no items, DefinitionError for keys that cannot be names, and what user code raises.
    """
    source = _combined(of.combine, of.values)
    if of.batch:
        return _batched(source, of.batch)
    return _grouped(source, of.fan_in) if of.fan_in else source


def _combined(combine: str, values: Sequence[Any]) -> Source:
    if combine == "each":
        return _of(values[0])
    for each in values:
        _iterable(each)
    values = [_unkeyed(each) for each in values]
    if combine == "product":
        return Source(None, itertools.product(*values), None)
    if all(isinstance(each, Sequence) for each in values):
        return Source(list(zip(*values, strict=True)), None, None)
    return Source(None, zip(*values, strict=True), None)


def _unkeyed(value: Any) -> Any:
    """Of a mapping its values, which are what a map over it goes over."""
    if not isinstance(value, Mapping):
        return value
    mapping: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - truly any
    return list(mapping.values())


def _iterable(value: Any) -> None:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(
            f"a map goes over the items of a list, a mapping or an iterable, not over {type(value).__name__}"
        )


def _of(value: Any) -> Source:
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
        return Source(list(mapping.values()), None, keys)
    if isinstance(value, Sequence):
        items: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType] - likewise
        return Source(items, None, None)
    if isinstance(value, (set, frozenset)) or (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        return Source(list(cast("Iterable[Any]", value)), None, None)
    return Source(None, iter(value), None)


def _check_key(key: Any) -> None:
    try:
        key_text(key)
    except ValueError as error:
        raise DefinitionError(
            f"{key!r} cannot name an element of a map: {error}", hint="a list has numbers for names"
        ) from None


def _batched(source: Source, size: int) -> Source:
    """The items in batches, as they come. The keys stay those of the items."""
    if source.items is not None:
        items = source.items if isinstance(source.items, _SLICED) else list(source.items)
        return Source([items[low : low + size] for low in range(0, len(items), size)], None, source.keys)
    return Source(None, _batches(source.iterator or iter(()), size), None)


def _batches(iterator: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _grouped(source: Source, size: int) -> Source:
    """The items in groups of `size`, an empty one where there are none: what the first level of a tree merges."""
    items = list(source.items if source.items is not None else source.iterator or ())
    groups = [items[low : low + size] for low in range(0, len(items), size)]
    return Source(groups or [[]], None, None)
