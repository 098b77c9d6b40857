"""How values of the standard library, of typing, numpy and pandas are told apart. Part of ``digest``.

A class is recognised by the name it is found under, so nothing is imported for its sake: a value of a module that was never
imported cannot exist.

Arrays count by element type, shape and content in row order, whatever order they are kept in; tables column by column, however
pandas keeps its blocks. Other objects of numpy and pandas are what pickle would write of them.
"""

from __future__ import annotations

import copyreg
import sys
from hashlib import blake2b
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    GenericAlias,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
    UnionType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any, Final

from flowlane.storage.digest import (
    Opened,
    Unhashable,
    class_of,
    is_user_module,
    joined,
    name_of,
    no_label,
    open_object,
    open_pairs,
    place_of,
    sealed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.storage.digest import Opener, Walk

__all__ = ["opener_for", "told_of"]


def opener_for(cls: type, mro: tuple[type, ...]) -> Opener | None:
    """The rule for instances of `cls`, or None where they are objects like any other."""
    opener = _TYPES.get(id(cls)) or _found(cls, _NAMED)
    if opener is not None:
        return opener
    root = place_of(cls)[0].partition(".")[0]
    if name_of(cls).endswith("cython_function_or_method"):
        return _open_compiled
    if root in ("numpy", "pandas"):
        return next((rule for each in mro if (rule := _found(each, _DERIVED))), _open_reduced)
    if root == "typing":
        return _guarded(_open_hint)
    if root == "flowlane":
        return _open_ours
    if any(name_of(each) == "enum.Enum" for each in mro):
        return _open_member
    return None


def _found(cls: type, rules: dict[str, Opener]) -> Opener | None:
    """The rule under the name of `cls`, if that name really leads there: anybody can call a class "uuid.UUID"."""
    name = name_of(cls)
    opener = rules.get(name)
    if opener is None:
        return None
    module, _, last = name.rpartition(".")
    return opener if getattr(sys.modules.get(module), last, None) is cls else None


def _parts(of: Callable[[Any], list[Any]]) -> Opener:
    """The rule for what is told by a few values, those `of` gives."""

    def opener(_: Walk, value: Any) -> Opened:
        return Opened(b"parts" + name_of(class_of(value)).encode(), of(value), no_label)

    return opener


def _open_path(_: Walk, value: Any) -> bytes:
    return sealed(b"P", joined((class_of(value).__name__.encode(), str(value).encode("utf-8", "surrogatepass"))))


def _open_zone(walk: Walk, value: Any) -> Opened | bytes:
    if value.key is None:
        return walk.unknown(value, "has no key, so it may be any time zone")
    return Opened(b"zone", [value.key])


def _open_member(walk: Walk, value: Any) -> Opened:
    """A member of an enum: its class has the rest."""
    return Opened(b"member" + walk.kind(class_of(value)), list(told_of(value)), no_label)


def _open_compiled(walk: Walk, value: Any) -> Opened | bytes:
    module = str(value.__module__)
    if is_user_module(module):
        return walk.unknown(value, "is compiled, so what it does cannot be read")
    return sealed(b"C", joined((module.encode(), value.__qualname__.encode())))


def told_of(member: Any) -> tuple[Any, Any]:
    """Name and value of a member of an enum, which may define attributes of these names."""
    scope: dict[str, Any] = object.__getattribute__(member, "__dict__")
    return scope.get("_name_"), scope.get("_value_")


def _open_builtin(walk: Walk, value: Any) -> Opened | bytes:
    owner = value.__self__
    if owner is None or isinstance(owner, ModuleType):
        return _open_compiled(walk, value)
    return Opened(b"bound", [value.__name__, owner], lambda i: ".__self__" if i else "")


def _open_slot(walk: Walk, value: Any) -> bytes:
    """What C put into a class: a slot, an attribute, a method."""
    return sealed(b"O", joined((walk.kind(value.__objclass__), value.__name__.encode())))


def _open_ours(walk: Walk, value: Any) -> Opened | bytes:
    """A task or workflow is its function; how often it is retried makes no other result."""
    fn = getattr(value, "__dict__", {}).get("fn")
    return Opened(b"task", [fn], no_label) if fn is not None else open_object(walk, value)


#: What may tell type hints apart. From 3.12 on, bounds and values may be worked out when asked: expressions that name types.
_OF_HINTS: Final = (
    *("_name", "__name__", "__origin__", "__args__", "__metadata__", "__forward_arg__", "__supertype__", "__bound__"),
    *("__constraints__", "__covariant__", "__contravariant__", "__infer_variance__", "__default__", "__value__"),
)


def _open_hint(_: Walk, value: Any) -> Opened:
    told = [getattr(value, name, None) for name in _OF_HINTS]
    return Opened(b"hint" + class_of(value).__name__.encode(), told, no_label)


def _open_signature(_: Walk, value: Any) -> Opened:
    return Opened(b"signature", [list(value.parameters.values()), value.return_annotation], no_label)


def _open_partial(_: Walk, value: Any) -> Opened:
    return Opened(b"partial", [value.func, value.args, value.keywords, value.__dict__], no_label)


def _open_kept(_: Walk, value: Any) -> Opened:
    return Opened(b"kept", [value.__wrapped__, value.__dict__], no_label)


def _guarded(opener: Opener) -> Opener:
    """`opener`, which asks what others wrote. A broken table must not stop the run: it is not cached, and told."""

    def guarded(walk: Walk, value: Any) -> Opened | bytes:
        try:
            return opener(walk, value)
        except Unhashable:
            raise
        except Exception as error:  # noqa: BLE001
            return walk.unknown(value, f"cannot be read: {type(error).__name__}")

    return guarded


# ── numpy ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_BLOCK: Final = 8 * 1024 * 1024  # bytes that are copied at once, of an array that does not lie in row order
_OF_BYTES: Final = "biufcSUMmV"  # kinds of element types that are nothing but their bytes


@_guarded
def _open_array(walk: Walk, value: Any) -> Opened | bytes:
    dtype = value.dtype
    kind = joined((b"array", str(dtype).encode(), name_of(dtype.type).encode(), repr(value.shape).encode()))
    if dtype.names is not None:  # by field, for there may be padding in between
        return Opened(kind, [value[name] for name in dtype.names], lambda i: f"[{dtype.names[i]!r}]")
    if dtype.hasobject or dtype.kind == "T":
        return Opened(kind, list(value.flat), lambda i: f".flat[{i}]")
    if dtype.kind not in _OF_BYTES or dtype.char in "gG":
        return walk.unknown(value, f"has elements of type {dtype}, whose bytes do not tell their values")
    content = blake2b(digest_size=32)
    if value.nbytes:
        for block in _blocks(value):
            content.update(block.reshape(-1).view("u1"))
    return sealed(b"A", kind + dtype.str.encode() + content.digest())


def _blocks(value: Any) -> Any:
    """`value` in pieces that lie in row order."""
    if value.flags.c_contiguous:
        yield value
        return
    numpy: Any = sys.modules["numpy"]
    step = max(1, _BLOCK * len(value) // value.nbytes)
    for start in range(0, len(value), step):
        yield numpy.ascontiguousarray(value[start : start + step])


#: What a masked array keeps in its ``__dict__`` beside content and mask; the rest is the user's.
_OF_MASKED: Final = frozenset("_mask _fill_value _hardmask _sharedmask _isfield _baseclass _optinfo _basedict".split())


@_guarded
def _open_masked(_: Walk, value: Any) -> Opened:
    scope: dict[str, Any] = value.__dict__
    told = [sys.modules["numpy"].asarray(value.data), value.mask, value.hardmask]
    told.append(value.view().fill_value)  # it is worked out and kept when asked for: by a view
    told += [scope.get("_optinfo"), {name: scope[name] for name in sorted(scope) if name not in _OF_MASKED}]
    return Opened(b"masked" + class_of(value).__name__.encode(), told, no_label)


@_guarded
def _open_scalar(_: Walk, value: Any) -> Opened:
    plain: Any = sys.modules["numpy"].asarray(value)
    if isinstance(value, str):  # an array would cut trailing zeros off
        plain = str.__str__(value)
    elif isinstance(value, bytes):
        plain = bytes.__getitem__(value, slice(None))
    return Opened(b"scalar" + class_of(value).__name__.encode(), [plain], no_label)


@_guarded
def _open_reduced(walk: Walk, value: Any) -> Opened | bytes:
    """What pickle would write, for classes that are known to write themselves in full."""
    reducer: Any = copyreg.dispatch_table.get(class_of(value))
    made: Any = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    if isinstance(made, str):
        return sealed(b"G", joined((walk.kind(class_of(value)), made.encode())))
    function, args, state, items, pairs = (*made, None, None, None)[:5]
    return Opened(b"reduced", [function, args, state, list(items or ()), list(pairs or ())], no_label)


# ── pandas ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _column(of: Any) -> Any:
    """The values of a Series or Index, as something that is told apart in full."""
    dtype = of.dtype
    if isinstance(dtype, sys.modules["numpy"].dtype):
        return of.to_numpy()
    if dtype.name == "category":
        return ("category", of.array.codes, of.array.categories, of.array.ordered)
    if dtype.kind == "M" and hasattr(of.array, "asi8"):  # with a time zone
        return (repr(dtype), of.array.asi8)
    return (repr(dtype), of.to_numpy(dtype=object))


@_guarded
def _open_index(_: Walk, value: Any) -> Opened:
    kind = b"index" + class_of(value).__name__.encode()
    names = list(value.names)
    match class_of(value).__name__:
        case "RangeIndex":
            return Opened(kind, [names, value.start, value.stop, value.step], no_label)
        case "MultiIndex":
            # levels too, for some may be unused, and their order is what `unstack` goes by
            return Opened(kind, [names, value.sortorder, list(value.levels), list(value.codes)], no_label)
        case _:
            return Opened(kind, [names, getattr(value, "freqstr", None), _column(value)], no_label)


@_guarded
def _open_series(_: Walk, value: Any) -> Opened:
    told = [value.name, value.attrs, value.flags.allows_duplicate_labels, value.index, _column(value)]
    return Opened(b"series", told, no_label)


@_guarded
def _open_frame(_: Walk, value: Any) -> Opened:
    columns = [_column(value.iloc[:, i]) for i in range(value.shape[1])]

    def label(i: int) -> str:
        return f".iloc[:, {i - 4}]" if i >= 4 else (".columns", ".index", ".attrs", ".flags")[i]

    flags = value.flags.allows_duplicate_labels
    return Opened(b"frame", [value.columns, value.index, value.attrs, flags, *columns], label)


# ── the rules ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _date(value: Any) -> list[Any]:
    return [value.year, value.month, value.day]


def _time(value: Any) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold, value.tzinfo]


_TYPES: Final[dict[int, Opener]] = {
    id(range): _parts(lambda value: [value.start, value.stop, value.step]),
    id(slice): _parts(lambda value: [value.start, value.stop, value.step]),
    id(memoryview): _parts(lambda value: [value.format, value.shape, value.tobytes()]),
    id(MappingProxyType): lambda walk, value: open_pairs(b"mappingproxy", value),  # noqa: ARG005
    id(SimpleNamespace): lambda walk, value: open_pairs(b"namespace", dict(sorted(value.__dict__.items()))),  # noqa: ARG005
    id(GenericAlias): _parts(lambda value: [value.__origin__, value.__args__]),
    id(UnionType): _parts(lambda value: [value.__args__]),
    id(BuiltinFunctionType): _open_builtin,
    id(MethodWrapperType): _parts(lambda value: [value.__name__, value.__self__]),
    id(MethodType): _parts(lambda value: [value.__func__, value.__self__]),
    id(property): _parts(lambda value: [value.fget, value.fset, value.fdel]),
    id(staticmethod): _parts(lambda value: [value.__func__]),
    id(classmethod): _parts(lambda value: [value.__func__]),
    id(MemberDescriptorType): _open_slot,
    id(GetSetDescriptorType): _open_slot,
    id(WrapperDescriptorType): _open_slot,
    id(MethodDescriptorType): _open_slot,
    id(ClassMethodDescriptorType): _open_slot,
}

_NAMED: Final[dict[str, Opener]] = {
    "datetime.datetime": _parts(lambda value: [*_date(value), *_time(value)]),
    "datetime.date": _parts(_date),
    "datetime.time": _parts(_time),
    "datetime.timedelta": _parts(lambda value: [value.days, value.seconds, value.microseconds]),
    "datetime.timezone": _parts(lambda value: [value.utcoffset(None), value.tzname(None)]),
    "zoneinfo.ZoneInfo": _open_zone,
    "decimal.Decimal": _parts(lambda value: [*value.as_tuple()]),
    "fractions.Fraction": _parts(lambda value: [value.numerator, value.denominator]),
    "uuid.UUID": _parts(lambda value: [value.int]),
    "re.Pattern": _parts(lambda value: [value.pattern, value.flags]),
    "array.array": _parts(lambda value: [sys.byteorder, value.typecode, value.tobytes()]),
    "collections.deque": _parts(lambda value: [value.maxlen, *value]),
    "collections.OrderedDict": _parts(lambda value: [dict(value)]),
    "collections.Counter": _parts(lambda value: [dict(value)]),
    "collections.defaultdict": _parts(lambda value: [value.default_factory, dict(value)]),
    "functools.partial": _open_partial,
    "functools.cached_property": _parts(lambda value: [value.func]),
    "functools._lru_cache_wrapper": _open_kept,
    "inspect.Signature": _open_signature,
    "inspect.Parameter": _parts(lambda value: [value.name, int(value.kind), value.default, value.annotation]),
    **{f"operator.{name}": _open_reduced for name in ("attrgetter", "itemgetter", "methodcaller")},
    **{
        f"{module}.{name}": _open_path
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    "numpy.ndarray": _open_array,
    **{f"pandas.{path}DataFrame": _open_frame for path in ("", "core.frame.")},
    **{f"pandas.{path}Series": _open_series for path in ("", "core.series.")},
}
#: Of classes of numpy and pandas, looked for among their bases.
_DERIVED: Final[dict[str, Opener]] = {
    "numpy.generic": _open_scalar,
    **{f"numpy.{path}MaskedArray": _open_masked for path in ("ma.", "ma.core.")},
    **{f"pandas.{path}Index": _open_index for path in ("", "core.indexes.base.")},
}
