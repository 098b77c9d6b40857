"""Maps: one call in a body that becomes a task for each of many items, which may be known only when it runs.

A mapped node is recorded as a call whose lifted parameter is an `Item`; next to it stands a `MapCall`, which says what the items
are taken from. A source that is a literal (a list, a mapping, any iterable) is kept as it was given; one that holds handles
becomes a template, as arguments do.
"""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sized
from collections.abc import Set as AbstractSet
from itertools import product as combinations
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from flowlane.declare.callsite import caller
from flowlane.declare.handle import Combined, Handle, kind_of, ref_of
from flowlane.declare.task import BODY, NOT_GIVEN
from flowlane.errors import ArgumentError, DefinitionError, with_article
from flowlane.program import ITEM, Arguments, MapCall, key_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from flowlane.declare.nodes import Workflow
    from flowlane.declare.task import Task
    from flowlane.program import Combine

__all__ = ["body_of", "product", "record_map", "record_reduce", "zipped"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")

_EVALUATED: Final = 100_000  # combinations of literals that are made at once
_PARTS_MAX: Final = 256  # parts of a tuple that is looked at as arguments


# ── several sources ───────────────────────────────────────────────────────────────────────────────────────────────


@overload
def zipped(a: Iterable[A], b: Iterable[B], /) -> list[tuple[A, B]]: ...
@overload
def zipped(a: Iterable[A], b: Iterable[B], c: Iterable[C], /) -> list[tuple[A, B, C]]: ...
@overload
def zipped(a: Iterable[A], b: Iterable[B], c: Iterable[C], d: Iterable[D], /) -> list[tuple[A, B, C, D]]: ...
@overload
def zipped(*sources: Iterable[Any]) -> list[tuple[Any, ...]]: ...
def zipped(*sources: Any) -> Any:
    """The items of several lists side by side, for ``starmap``: ``join.starmap(zipped(pages, sizes))``.

    Sources are lists, other iterables, or results still to come. All must be of the same length; where that shows only when they
    are read, the map fails then. Of literals it is simply a list of tuples.
    """
    _check_sources("zipped", sources)
    if all(_is_literal(source) for source in sources):
        lengths = [len(source) for source in sources]
        if len(set(lengths)) > 1:
            raise DefinitionError(
                f"zipped(...) is given lists of {' and '.join(map(str, lengths))} items",
                where=caller(),
                hint="they must be of the same length; product(...) makes all combinations",
            )
        return list(zip(*sources, strict=True))
    return Combined("zip", sources)


@overload
def product(a: Iterable[A], b: Iterable[B], /) -> list[tuple[A, B]]: ...
@overload
def product(a: Iterable[A], b: Iterable[B], c: Iterable[C], /) -> list[tuple[A, B, C]]: ...
@overload
def product(a: Iterable[A], b: Iterable[B], c: Iterable[C], d: Iterable[D], /) -> list[tuple[A, B, C, D]]: ...
@overload
def product(*sources: Iterable[Any]) -> list[tuple[Any, ...]]: ...
def product(*sources: Any) -> Any:
    """All combinations of the items of several lists, the last one changing fastest, for ``starmap``.

    Sources as for `zipped`, of any lengths.
    """
    _check_sources("product", sources)
    if all(_is_literal(source) for source in sources):
        count = 1
        for source in sources:
            count *= len(source)
        if count <= _EVALUATED:
            return list(combinations(*sources))
    return Combined("product", sources)


def _check_sources(what: str, sources: tuple[Any, ...]) -> None:
    if len(sources) < 2:
        raise ArgumentError(
            f"{what}() takes two sources or more, and was given {len(sources)}",
            where=caller(),
            hint="some_task.map(items) goes over one",
        )
    for source in sources:
        if type(source) is not Handle:
            _check_items(f"{what}(...)", source)
            if _is_mapping(source):
                raise DefinitionError(
                    f"{what}(...) is given {with_article(kind_of(source).__name__)}",
                    where=caller(),
                    hint="say which part of it: .keys(), .values() or .items()",
                )


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_literal(source: Any) -> bool:
    return kind_of(source) is not Handle and isinstance(source, Sized)


# ── recording ─────────────────────────────────────────────────────────────────────────────────────────────────────


def body_of(what: str) -> Workflow:
    """The workflow whose body runs. Raises DefinitionError for `what` outside of one."""
    body = BODY.get()
    if body is None:
        raise DefinitionError(
            f"{what} was used outside a workflow body",
            where=caller(),
            hint="call it in a function under @workflow",
        )
    return cast("Workflow", body)


def record_map(
    task: Task[Any, Any, Any],
    over: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType,
    *,
    star: bool = False,
    filters: bool = False,
) -> Handle:
    """Record a mapped call of `task` over `over`, with `args` and `kwargs` the same for all items; its handle.

    Raises ArgumentError when the function cannot be called so, DefinitionError or HandleError for a source that is none.
    """
    verb = "starmap" if star else "filter" if filters else "map"
    called = f"{task.name}.{verb}(...)"
    flow = body_of(called)
    if over is NOT_GIVEN:
        raise _by_keyword(task, verb, kwargs)
    if any(type(argument) is Combined for argument in (*args, *kwargs.values())):
        raise DefinitionError(
            f"{called} is given zipped(...) or product(...) as an argument that all items share",
            where=caller(),
            hint="what a map goes over is its first argument",
        )
    template = flow.template(called)
    combine: Combine = "each"
    given: tuple[Any, ...]
    if type(over) is Combined:
        combine = cast("Combine", over.how)
        given = over.sources
    else:
        given = (over,)
    sources = tuple([_source(called, source, template.of) for source in given])
    lifted = _lifted(task, over, called, kwargs) if star else 1
    handle = flow.record(task, (*[ITEM] * lifted, *args), kwargs, task.label, task.after, frame)
    node = ref_of(handle).node
    arguments = flow.arguments[node]
    if star and lifted != 1:  # one Item stands for all of them
        first = len(task.prefix)
        whole = (*arguments.args[:first], ITEM)
        arguments = Arguments(whole, arguments.kwargs, (), arguments.nested or bool(arguments.direct))
    flow.take_items(node, arguments, template.found)
    parts = _parts(task, args, kwargs) if star else (1, 1)
    flow.sparse.maps[node] = MapCall(sources, combine, star, filters, called, flow.site_of(node), parts)
    return handle


def record_reduce(task: Task[Any, Any, Any], items: Any, fan_in: int | None, frame: FrameType) -> Handle:
    """Record a call of `task` with all `items`, or a tree of calls with `fan_in` of them each; its handle."""
    called = f"{task.name}.reduce(...)"
    flow = body_of(called)
    shape = task.settings.measure()
    if not shape.fits((*task.prefix, items), {}):
        raise ArgumentError(
            f"{called} calls {task.name!r} with one argument, the list of what is to be merged, and that does not fit it",
            where=caller(),
            hint=f"the signature is {task.name}{shape.signature}; make it one that can be called as {task.name}(items)",
        )
    if type(items) is Combined or _is_mapping(items):
        raise DefinitionError(
            f"{called} is given {items.called if type(items) is Combined else 'a mapping'}, not a list",
            where=caller(),
            hint="reduce a list, or the result of a map",
        )
    if fan_in is None:
        return flow.record(task, (items,), {}, task.label, task.after, frame)
    if type(fan_in) is not int or fan_in < 2:
        raise DefinitionError(
            f"{called} has fan_in={fan_in!r}",
            where=caller(),
            hint="fan_in is how many items one call merges, 2 or more; without it all are merged at once",
        )
    template = flow.template(called)
    source = _source(called, items, template.of)
    handle = flow.record(task, (ITEM,), {}, task.label, task.after, frame)
    node = ref_of(handle).node
    flow.take_items(node, flow.arguments[node], template.found)
    flow.sparse.maps[node] = MapCall((source,), called=called, where=flow.site_of(node))
    flow.sparse.trees[node] = fan_in
    return handle


def _source(called: str, source: Any, template: Callable[[Any], Any]) -> Any:
    """One source as a Program keeps it. Raises for what cannot be gone over."""
    kind = kind_of(source)
    if kind is Handle:
        return template(source)
    _check_items(called, source)
    if isinstance(source, Mapping):
        seen: dict[str, object] = {}
        for key in cast("Mapping[object, object]", source):
            try:
                text = key_text(key)
            except ValueError as error:
                raise DefinitionError(
                    f"{called} goes over a mapping with the key {key!r}, which would name an element",
                    where=caller(),
                    hint=f"{error}; map over list(mapping.values()) to have them numbered",
                ) from None
            if text in seen:
                raise DefinitionError(
                    f"{called} goes over a mapping in which {seen[text]!r} and {key!r} would both be named {text!r}",
                    where=caller(),
                    hint="give it keys whose texts differ",
                )
            seen[text] = key
    if issubclass(kind, (list, tuple, dict)):
        return template(source)
    return cast("object", source)


def _check_items(called: str, source: Any) -> None:
    """Refuse what cannot be gone over item by item, or not twice in the same order."""
    if isinstance(source, (str, bytes, bytearray)):
        raise DefinitionError(
            f"{called} goes over {with_article(kind_of(source).__name__)}, which is one value here, not many",
            where=caller(),
            hint=f"for one item write a list: [{source!r}]" if len(source) < 40 else "for one item write a list",
        )
    if isinstance(source, Combined):
        raise DefinitionError(
            f"{called} is given {source.called} as a source", where=caller(), hint="name all sources in one"
        )
    if isinstance(source, AbstractSet) and not isinstance(source, (Mapping, KeysView, ItemsView)):
        raise DefinitionError(
            f"{called} goes over a set, whose items come in another order each time",
            where=caller(),
            hint="sorted(...) of it: an element is known by its place, also when the run is resumed",
        )
    if not isinstance(source, Iterable):
        hint = "map over a list, a mapping, any iterable, or the result of a task that returns one"
        if hasattr(source, "__aiter__"):
            hint = "an async iterator cannot be read here: let a task read it and return a list"
        kind = kind_of(source).__name__
        raise DefinitionError(
            f"{called} goes over {'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}, which has no items",
            where=caller(),
            hint=hint,
        )


def _lifted(task: Task[Any, Any, Any], over: Any, called: str, kwargs: dict[str, Any]) -> int:
    """How many positional arguments a tuple stands for; where it does not show, as few as the function needs."""
    shape = task.settings.measure()
    hidden = len(task.prefix)
    if type(over) is Combined:
        return len(over.sources)
    items: Any = list(over.values()) if _is_mapping(over) else over
    if isinstance(items, (list, tuple)) and items:
        lengths: dict[int, int] = {}
        for index, item in enumerate(cast("list[Any]", items)):
            if type(item) is Handle:
                continue
            if not isinstance(item, (tuple, list)):
                raise DefinitionError(
                    f"{called} goes over tuples of arguments, and item {index} is {with_article(kind_of(item).__name__)}",
                    where=caller(),
                    hint=f"{task.name}.map(items) passes each item as one argument",
                )
            lengths.setdefault(len(cast("tuple[Any, ...]", item)), index)
        for length, index in lengths.items():
            if not shape.fits((None,) * (hidden + length), kwargs):
                raise ArgumentError(
                    f"{called} calls {task.name!r} with the {length} arguments of item {index}, which do not fit it",
                    where=caller(),
                    hint=f"the signature is {task.name}{shape.signature}",
                )
        if lengths:
            return next(iter(lengths))
    for count in range(1, _PARTS_MAX):
        if shape.fits((None,) * (hidden + count), kwargs):
            return count
    return 1


def _parts(task: Task[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Of how many parts the tuples may be that `task` is called with: the least and the most."""
    shape, others = task.settings.measure(), len(task.prefix) + len(args)
    fitting = [count for count in range(_PARTS_MAX) if shape.fits((None,) * (others + count), kwargs)]
    if not fitting:
        return 0, sys.maxsize
    return fitting[0], sys.maxsize if fitting[-1] == _PARTS_MAX - 1 else fitting[-1]


def _by_keyword(task: Task[Any, Any, Any], verb: str, kwargs: dict[str, Any]) -> ArgumentError:
    given = next(iter(kwargs), None)
    return ArgumentError(
        f"{task.name}.{verb}() is given nothing to go over"
        + (f": {given!r} is passed by keyword, to all items alike" if given is not None else ""),
        where=caller(),
        hint=f"a map goes over its first positional argument, for the function's first parameter: {task.name}.{verb}(items)",
    )
