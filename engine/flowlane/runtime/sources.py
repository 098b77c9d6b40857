"""What a map goes over: a list that is kept as it is, or an iterator and what was pulled of it and is not used up.

What cannot be gone over raises ItemsError, which names the call in the workflow's body, the task that made the value, and what to
return instead.
"""

from __future__ import annotations

import itertools
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from flowlane.errors import ItemsError, with_article
from flowlane.program import key_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowlane.program import MapCall


__all__ = ["Ingredients", "Source", "check_parts", "close", "combined", "read_before"]

_LIKE: Final = "return a list, a mapping, or any other iterable from it"
_END: Final = object()
#: Types whose items are there, and come without a line of anybody's code.
_PLAIN: Final[frozenset[type]] = frozenset([list, tuple, dict, range, set, frozenset])
#: Sequences of which a slice can be had. Others need not have any: a deque has none.
_SLICED: Final = (list, tuple, range)
#: Sets by their interface, and in a fixed order all the same.
_ORDERED: Final = (Mapping, KeysView, ItemsView)


class Source:
    """The items of a map: a sequence, or an iterator and what was pulled of it. `unfilled`: there are Refs in the items."""

    __slots__ = ("ahead", "items", "iterator", "keys", "pulled", "unfilled")

    def __init__(self, items: Sequence[Any] | None, iterator: Iterator[Any] | None, keys: Sequence[Any] | None) -> None:
        self.items = items
        self.iterator = iterator
        self.keys = keys
        self.ahead: dict[int, Any] = {}  # by index: pulled, and not used up
        self.pulled = 0
        self.unfilled = False

    def item(self, index: int) -> Any:
        """Item `index`. Raises KeyError for one that is used up."""
        return self.items[index] if self.items is not None else self.ahead[index]

    def used(self, index: int) -> None:
        """Nobody needs that item any more."""
        if self.items is None:
            self.ahead.pop(index, None)


class Ingredients(NamedTuple):
    """What the items of a map are made of: `values`, of one alone, zipped, or their product (``call.combine``).

    origins  the names of the tasks that made the values, "" where none did
    fan_in   in groups of so many, which a reduction merges; 0 for none
    """

    call: MapCall
    values: Sequence[Any]
    origins: Sequence[str]
    fan_in: int = 0

    @property
    def are_plain(self) -> bool:
        """Whether none of them can run user code, so that they can be looked at on the loop."""
        return all(type(value) in _PLAIN for value in self.values)


def combined(of: Ingredients) -> Source:
    """The items of a map. May read iterators to their end (for a product, for groups), and takes as long as those do.

    Raises ItemsError for what has no items, or none that can be told apart, and what user code raises.
    """
    call, values, origins, fan_in = of
    for value, origin in zip(values, origins, strict=True):
        _check(call, value, origin)
    if call.combine == "each":
        source = _of(call, values[0], origins[0])
    else:
        for value, origin in zip(values, origins, strict=True):
            if isinstance(value, Mapping):
                raise _refused(call, origin, "is a mapping", "return list(mapping), .values() or .items() of it")
        crossed = call.combine == "product"
        source = Source(None, itertools.product(*values), None) if crossed else _zipped(call, values, origins)
    if call.batch:
        return _batched(source, call.batch)
    return _grouped(source, fan_in) if fan_in else source


def close(iterator: Any) -> None:
    """The rest of it is not wanted. What a generator does at its end is user code, so this is for the thread that reads it."""
    if type(iterator) is GeneratorType:  # pyright: ignore[reportUnknownArgumentType] - of truly any
        with suppress(BaseException):  # nobody waits for it
            iterator.close()


def check_parts(item: Any, index: int, call: MapCall, task: str) -> None:
    """Raise ItemsError unless the parts of `item`, number `index` of a starmap, can be arguments of `task`."""
    if not isinstance(item, (tuple, list)):
        raise ItemsError(
            f"{call.called} goes over tuples of arguments, and item {index} is {_kind(item)}",
            where=call.where,
            hint=f"make each item a tuple; {task}.map(...) passes each item as one argument",
        )
    least, most = call.parts
    given = len(cast("Sequence[Any]", item))
    if not least <= given <= most:
        takes = f"{least}" if least == most else f"{least} to {most}" if most < least + 256 else f"{least} or more"
        raise ItemsError(
            f"{call.called} calls {task!r} with the {given} parts of item {index}, and it takes {takes}",
            where=call.where,
            hint=f"make each item a tuple of as many parts as {task!r} has arguments left",
        )


def read_before(call: MapCall, origin: str, other: MapCall) -> ItemsError:
    """What a map fails with over an iterator that `other` has read."""
    subject = f"the result of {origin!r}, an iterator" if origin else "an iterator"
    if (other.called, other.where) == (call.called, call.where):  # its workflow is tried again, or used twice
        who = "another use or an earlier try of its workflow has read"
    else:
        who = f"{other.called}{f' at {other.where}' if other.where else ''} goes over as well"
    return ItemsError(
        f"{call.called} goes over {subject} that {who}",
        where=call.where,
        hint="an iterator gives its items only once: return a list of them",
    )


def _refused(call: MapCall, origin: str, what: str, hint: str) -> ItemsError:
    subject = f"the result of {origin!r}, which {what}" if origin else f"something that {what}"
    return ItemsError(f"{call.called} goes over {subject}", where=call.where, hint=hint)


def _kind(value: Any) -> str:
    """``None``, ``an int``, ``a str``."""
    if value is None:
        return "None"
    return with_article(type(value).__name__)


def _check(call: MapCall, value: Any, origin: str) -> None:
    """Refuse what cannot be gone over item by item, or not twice in the same order."""
    kind = _kind(value)
    if isinstance(value, (str, bytes, bytearray)):
        hint = "return a list from it, of one item if there is only one"
        raise _refused(call, origin, f"is {kind}: one value, not many", hint)
    if isinstance(value, AbstractSet) and not isinstance(value, _ORDERED):
        hint = "return sorted(...) of it: an element is known by its place, also when the run is resumed"
        raise _refused(call, origin, f"is {kind}, whose items come in another order each time", hint)
    if not hasattr(cast("object", value), "__iter__") and not _is_indexed(value):
        hint = _LIKE
        if hasattr(cast("object", value), "__aiter__"):
            hint = "read it in the task, `[each async for each in ...]`, and return that list"
        raise _refused(call, origin, f"is {kind} and has no items", hint)


def _is_indexed(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _of(call: MapCall, value: Any, origin: str) -> Source:
    if isinstance(value, Mapping):
        mapping: Mapping[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - truly any
        keys = list(mapping)
        _check_keys(call, keys, origin)
        return Source(list(mapping.values()), None, keys)
    if isinstance(value, Sequence):
        items: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType] - likewise
        return Source(items, None, None)
    if isinstance(value, (KeysView, ItemsView)) or _is_indexed(value):
        return Source(list(cast("Iterable[Any]", value)), None, None)
    return Source(None, iter(value), None)


def _check_keys(call: MapCall, keys: Sequence[Any], origin: str) -> None:
    """Refuse keys that cannot name an element, or two that would name the same."""
    subject = f"the result of {origin!r}, a mapping" if origin else "a mapping"
    hint = "return list(mapping.values()): elements of a list are numbered"
    seen: dict[str, Any] = {}
    for key in keys:
        try:
            text = key_text(key)
        except ValueError as error:
            raise ItemsError(
                f"{call.called} goes over {subject} with the key {key!r}, which would name an element: {error}",
                where=call.where,
                hint=hint,
            ) from None
        if text in seen:
            raise ItemsError(
                f"{call.called} goes over {subject} in which {seen[text]!r} and {key!r} would both be named {text!r}",
                where=call.where,
                hint=f"give it keys whose texts differ, or {hint}",
            )
        seen[text] = key


def _zipped(call: MapCall, values: Sequence[Any], origins: Sequence[str]) -> Source:
    if not all(isinstance(each, Sequence) for each in values):
        return Source(None, _side_by_side(call, values, origins), None)
    lengths = [len(each) for each in values]
    if len(set(lengths)) > 1:
        told = [
            f"{length:,}{f' of {origin!r}' if origin else ''}" for length, origin in zip(lengths, origins, strict=True)
        ]
        raise _unequal(call, f"lists of different lengths: {', '.join(told)}")
    return Source(list(zip(*values, strict=True)), None, None)


def _side_by_side(call: MapCall, values: Sequence[Any], origins: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    iterators = [iter(each) for each in values]
    try:
        for index in itertools.count():
            item = tuple([next(each, _END) for each in iterators])
            ended = [number for number, part in enumerate(item) if part is _END]
            if len(ended) == len(item):
                return
            if ended:
                who = f", of {origins[ended[0]]!r}," if origins[ended[0]] else ""
                raise _unequal(
                    call, f"sources of different lengths: number {ended[0] + 1}{who} ends after {index:,} items"
                )
            yield item
    finally:
        for each in iterators:
            close(each)


def _unequal(call: MapCall, what: str) -> ItemsError:
    return ItemsError(
        f"{call.called} goes over zipped {what}",
        where=call.where,
        hint="they must be of the same length; product(...) makes all combinations",
    )


def _batched(source: Source, size: int) -> Source:
    """The items in batches, as they come. The keys stay those of the items."""
    if source.items is not None:
        items = source.items if isinstance(source.items, _SLICED) else list(source.items)
        return Source([items[low : low + size] for low in range(0, len(items), size)], None, source.keys)
    return Source(None, _batches(source.iterator or iter(()), size), None)


def _batches(iterator: Iterator[Any], size: int) -> Iterator[list[Any]]:
    try:
        while batch := list(itertools.islice(iterator, size)):
            yield batch
    finally:
        close(iterator)


def _grouped(source: Source, size: int) -> Source:
    """The items in groups of `size`, an empty one where there are none: what the first level of a tree merges."""
    items = list(source.items if source.items is not None else source.iterator or ())
    groups = [items[low : low + size] for low in range(0, len(items), size)]
    return Source(groups or [[]], None, None)
