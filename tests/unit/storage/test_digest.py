"""Digests of inputs: equal for what is the same, different for what is nearly the same, refused where nobody can tell."""

from __future__ import annotations

import abc
import array
import ast
import collections
import datetime as dt
import decimal
import enum
import fractions
import functools
import hashlib
import itertools
import math
import operator
import os
import pathlib
import random
import re
import sqlite3
import subprocess
import sys
import threading
import types
import uuid
import weakref
import zoneinfo
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Generic, Literal, NamedTuple, NewType, TypeVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, PrivateAttr, RootModel

from flowlane.storage.cachekey import cache_key
from flowlane.storage.digest import Unhashable, digest
from flowlane.storage.fingerprint import Fingerprint, fingerprint

T = TypeVar("T")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Shade(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    S = 1
    M = 2


class Perm(enum.Flag):
    R = 1
    W = 2


class Point(NamedTuple):
    x: int
    y: int = 0


class Place(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Row:
    a: int
    b: Any = None


@dataclass
class Line:
    a: int
    b: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: Any = field(default=None, compare=False)


class Model(BaseModel):
    a: int = 1
    b: list[int] = []
    _hidden: int = PrivateAttr(default=0)


class Extra(BaseModel, extra="allow"):
    a: int = 1


class Names(RootModel[list[str]]):
    pass


class Plain:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def method(self) -> None: ...


class Other:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)


class Lazy(Plain):
    @functools.cached_property
    def dear(self) -> int:
        return 1


class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


class MyInt(int): ...


class MyFloat(float): ...


class MyStr(str):
    __slots__ = ()


class MyBytes(bytes): ...


class MyList(list[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("code of the user's")


class MyDict(dict[Any, Any]):
    def items(self) -> Any:
        raise AssertionError("code of the user's")


class MySet(set[Any]): ...


class MyTuple(tuple[Any, ...]):
    __slots__ = ()


class Told:
    def __init__(self, word: Any) -> None:
        self.word = word
        self.lock = threading.Lock()

    def __flow_digest__(self) -> Any:
        if isinstance(self.word, BaseException):
            raise self.word
        return self.word


class ToldToo(Told): ...


def with_attributes(value: Any, **fields: Any) -> Any:
    value.__dict__.update(fields)
    return value


def circle(length: int) -> list[Any]:
    first: list[Any] = []
    last = first
    for _ in range(length - 1):
        last = [last]
    first.append(last)
    return first


def helper(x: int) -> int:
    return x


def close_over(value: Any) -> Any:
    return lambda: value


#: All different from each other.
DIFFERENT: list[Any] = [
    None, True, False, ..., NotImplemented,
    0, 1, -1, 2, 127, 128, 255, 256, -128, -129, 2**31, 2**63, -(2**63), 2**64, 10**5000, 10**5000 + 1,
    0.0, -0.0, 1.0, -1.0, 1.5, math.inf, -math.inf, math.nan, 2.0**63, 5e-324,
    0j, 1 + 0j, 1j, complex(-0.0, 0), complex(0, -0.0), complex(math.nan, 0),
    "", "1", "1.0", "a", "ab", "b", "None", "é", "e\u0301", "\ud800\udc00", "\U00010000", "\udc80", "x" * 64,
    "x" * 65, "x" * 200, "[]", "\0",
    b"", b"1", b"a", b"x" * 64, b"x" * 65, bytearray(), bytearray(b"1"), bytearray(b"a"), memoryview(b"1"),
    [], (), {}, set(), frozenset(),
    [1], (1,), {1}, frozenset({1}), {1: None}, [[1]], [(1,)], ([1],), ((1,),), [1, 1], (1, 1), [1, 2], [2, 1], [12],
    ["12"], ["1", "2"], ["1, 2"], [True], [1.0], ["1"], [b"1"], [None],
    [[1], [2]], [[1, 2]], [[1], 2], [1, [2]], [[], []], [[[]]], [[[]], []], [[], [[]]], [10**5000], [[10**5000]],
    ["a", "b"], ["ab"], ["a", ["b"]], [b"a", b"b"], [b"ab"], [b"", b"ab"], [b"ab", b""],
    {"a": 1}, {"a": True}, {"a": 1.0}, {"a": "1"}, {b"a": 1}, {"a": None}, {"a": [1]}, {"a": {}}, {"a": 1, "b": 2},
    {"b": 2, "a": 1}, {"a": 2, "b": 1}, {1: "a"}, {"1": "a"}, {True: "a"}, {"a": [1], "b": 2}, {"b": 2, "a": [1]},
    [("a", 1)], [["a", 1]], {("a", 1)}, {("a", 1): None}, {"a": ("a", 1)},
    {1, 2}, {"1", "2"}, {1, "1"}, {(1, 2)}, {frozenset({1})}, frozenset({frozenset()}), {None}, {b"1"}, {1.5},
    range(3), range(4), range(0, 3, 2), range(1, 3), slice(3), slice(0, 3), slice(0, 3, 1), slice(None), slice("a"),
    Color.RED, Color.BLUE, Shade.RED, Size.S, Size.M, Perm.R, Perm.W, Perm.R | Perm.W, Perm(0),
    Point(1), Point(1, 2), Point(2, 1), Place(1), (1, 0),
    Row(1), Row(2), Row(1, 2), Line(1), Row(True), Row(1, Row(1)), with_attributes(Row(1), c=1), Frozen(1), Frozen(2),
    Frozen(1, 2),
    Model(), Model(a=2), Model(a=1), Model(b=[1]), Extra(), Extra(c=1), Extra(c=2), Names(["a"]), Names(["b"]),
    Names([]),
    Plain(), Plain(a=1), Plain(a=2), Plain(b=1), Plain(a=1, b=1), Plain(a="1"), Other(), Other(a=1), Plain(a=Plain()),
    Plain(a=Other()),
    Slots(), Slots(a=1), Slots(b=1), Slots(a=1, b=1), Box(1), Box("1"), Lazy(), Lazy(a=1),
    MyInt(1), MyInt(2), with_attributes(MyInt(1), a=1), MyFloat(1), MyStr("1"), MyStr("a"), MyBytes(b"1"),
    MyList([1]), MyList([2]), MyList(), with_attributes(MyList([1]), a=1),
    MyDict(a=1), MyDict(a=2), MySet({1}), MySet({2}), MyTuple((1,)), MyTuple((2,)),
    Told("a"), Told("b"), Told(b"a"), ToldToo("a"),
    dt.date(2020, 1, 1), dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, fold=1),
    dt.datetime(2020, 1, 1, microsecond=1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "Z")),
    dt.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
    dt.time(1), dt.time(1, fold=1), dt.time(1, tzinfo=dt.UTC), dt.timedelta(1), dt.timedelta(0, 1),
    dt.timedelta(0, 0, 1), dt.UTC, dt.timezone(dt.timedelta(hours=1)), zoneinfo.ZoneInfo("UTC"),
    zoneinfo.ZoneInfo("Europe/Paris"),
    decimal.Decimal(1), decimal.Decimal("1.0"), decimal.Decimal("1.00"), decimal.Decimal("-0"), decimal.Decimal(0),
    decimal.Decimal("NaN"), decimal.Decimal("sNaN"), decimal.Decimal("Infinity"), decimal.Decimal("1E+1"),
    decimal.Decimal(10),
    fractions.Fraction(1), fractions.Fraction(1, 2), fractions.Fraction(2), uuid.UUID(int=1), uuid.UUID(int=2),
    pathlib.Path("a"), pathlib.Path("b"), pathlib.Path("/a"), pathlib.PurePosixPath("a"),
    pathlib.PureWindowsPath("a"), pathlib.Path("a/b"), pathlib.PureWindowsPath("a/b"), pathlib.Path("."),
    re.compile("a"), re.compile(b"a"), re.compile("a", re.IGNORECASE), re.compile("b"),
    collections.deque(), collections.deque([1]), collections.deque([1], 1), collections.deque([1], 2),
    collections.OrderedDict(), collections.OrderedDict(a=1), collections.OrderedDict([("b", 1), ("a", 1)]),
    collections.OrderedDict([("a", 1), ("b", 1)]),
    collections.Counter(), collections.Counter("a"), collections.Counter("aa"), collections.defaultdict(),
    collections.defaultdict(list), collections.defaultdict(int), collections.defaultdict(list, a=1),
    types.MappingProxyType({}), types.MappingProxyType({"a": 1}), types.SimpleNamespace(), types.SimpleNamespace(a=1),
    types.SimpleNamespace(a=2), types.SimpleNamespace(b=1),
    array.array("i"), array.array("i", [1]), array.array("d", [1]), array.array("i", [2]), array.array("b", [1]),
    memoryview(b"12"), memoryview(bytearray(b"2")), memoryview(b"1234").cast("H"), memoryview(b"1234").cast("I"),
    memoryview(b"1234"),
    int, str, list, dict, Plain, Other, Color, Row, Model, type, object, type(None), type(...),
    len, print, math.sqrt, [].append, [1].append, "a".join, str.upper, str.lower, dict.fromkeys,
    operator.itemgetter("a"), operator.itemgetter("b"), operator.itemgetter("a", "b"), operator.attrgetter("a"),
    operator.methodcaller("a"), operator.methodcaller("a", 1),
    helper, close_over, close_over(1), close_over(2), close_over([1]), functools.partial(helper),
    functools.partial(helper, 1), functools.partial(helper, x=1), functools.partial(helper, 2),
    functools.lru_cache(helper), Plain().method, Plain(a=1).method, Plain.method,
    list[int], list[str], dict[str, int], int | None, int | str, str | None, Literal[1], Literal[True],
    Literal["1"], Any, T, TypeVar("S"), NewType("Id", int), NewType("Id", str), NewType("Key", int), Generic,
    Box[int], Box[str],
    circle(1), circle(2), circle(3), [circle(1)], [circle(1), circle(1)], [circle(1), circle(2)],
]  # fmt: skip

#: numpy and pandas, likewise.
ARRAYS: list[Any] = [
    np.array(1), np.array(2), np.array([1]), np.array([[1]]), np.array([1, 2]), np.array([2, 1]), np.array([[1, 2]]),
    np.array([[1], [2]]), np.array([]), np.array([[]]), np.zeros((0, 2)), np.zeros((2, 0)),
    np.array([1], "i4"), np.array([1], "u8"), np.array([1.0]), np.array([1], "f4"), np.array([1], ">i8"),
    np.array([True]), np.array([1 + 0j]), np.array([0.0]), np.array([-0.0]), np.array([np.nan]),
    np.array(["1"]), np.array(["1"], "U2"), np.array([b"1"]), np.array(["1"], object), np.array([1], object),
    np.array([None]), np.array([[1]], object), np.array([1.0], object), np.array([Row(1)]), np.array([Row(2)]),
    np.array(["2020-01-01"], "M8[D]"), np.array(["2020-01-01"], "M8[s]"), np.array([1], "m8[D]"),
    np.array([1], "m8[s]"), np.array([b"\1"], "V1"), np.array([b"\2"], "V1"),
    np.array([(1, 2)], [("a", "i4"), ("b", "i4")]), np.array([(1, 2)], [("a", "i4"), ("c", "i4")]),
    np.array([(2, 1)], [("a", "i4"), ("b", "i4")]), np.array([(1, "x")], [("a", "i4"), ("b", "O")]),
    np.array([(1, "y")], [("a", "i4"), ("b", "O")]),
    np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2), np.arange(6).reshape(2, 3).T, np.arange(6),
    np.int64(1), np.int64(2), np.int32(1), np.float64(1), np.float32(1), np.bool_(True), np.str_("1"), np.str_("1\0"),
    np.bytes_(b"1"), np.bytes_(b"1\0"), np.complex128(1), np.datetime64("2020-01-01"),
    np.datetime64("2020-01-01", "s"), np.timedelta64(1, "s"), np.timedelta64(1, "D"), np.datetime64("NaT", "s"),
    np.array([(1, 2)], [("a", "i4"), ("b", "i4")])[0],
    np.dtype("i4"), np.dtype("i8"), np.sum, np.add, np.multiply, np.ndarray, np.random.RandomState,
    pd.Series([1]), pd.Series([2]), pd.Series([1.0]), pd.Series(["1"]), pd.Series(["1"], dtype=object),
    pd.Series([1], name="a"), pd.Series([1], index=[1]), pd.Series([1], index=["0"]), pd.Series([1, None]),
    pd.Series([1, None], dtype="Int64"), pd.Series([1, 2], dtype="Int64"),
    pd.Series(["a", "b"], dtype="category"),
    pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["a", "b"], ordered=True)),
    pd.Series(["a", "b"], dtype=pd.CategoricalDtype(["b", "a"])), pd.Series(["a", "a"], dtype="category"),
    pd.Series(pd.to_datetime(["2020-01-01"])), pd.Series(pd.to_datetime(["2020-01-01"])).dt.tz_localize("UTC"),
    pd.Series(pd.to_datetime(["2020-01-02"])).dt.tz_localize("UTC"),
    pd.Series(pd.to_datetime(["2020-01-01"])).dt.tz_localize("UTC").dt.tz_convert("Europe/Paris"),
    pd.Series(pd.period_range("2020", periods=1, freq="D")), pd.Series(pd.period_range("2020", periods=1, freq="h")),
    pd.Series(pd.interval_range(0, 1)), pd.Series(pd.arrays.SparseArray([1, 0])),
    pd.Index([1]), pd.Index([2]), pd.Index([1], name="a"), pd.Index(["1"]), pd.RangeIndex(3), pd.RangeIndex(4),
    pd.RangeIndex(3, name="a"), pd.Index([0, 1, 2]), pd.MultiIndex.from_tuples([(1, 2)]),
    pd.MultiIndex.from_tuples([(1, 3)]), pd.MultiIndex.from_tuples([(1, 2)], names=["a", None]),
    pd.date_range("2020", periods=2), pd.DatetimeIndex(["2020-01-01", "2020-01-02"]),
    pd.DataFrame(), pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}), pd.DataFrame({"b": [1]}),
    pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": ["1"]}), pd.DataFrame({"a": [1], "b": [2]}),
    pd.DataFrame({"b": [2], "a": [1]}), pd.DataFrame({"a": [1]}, index=["x"]), pd.DataFrame({"a": [1]}).T,
    pd.DataFrame(columns=["a"]), pd.DataFrame(index=[1]), pd.DataFrame([[1, 2]], columns=["a", "a"]),
    pd.DataFrame([[2, 1]], columns=["a", "a"]),
    pd.Timestamp("2020"), pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2020-01-02"), pd.Timedelta(1),
    pd.Timedelta(2), pd.NaT, pd.NA, pd.Period("2020", "D"), pd.Interval(0, 1), pd.Interval(0, 1, "left"),
    pd.Categorical(["a"]), pd.offsets.Day(1), pd.offsets.Day(2),
]  # fmt: skip
with_notes = pd.DataFrame({"a": [1]})
with_notes.attrs["note"] = 1
ARRAYS.append(with_notes)


# ── different, equal, refused ─────────────────────────────────────────────────────────────────────────────────────


def test_near_misses_all_differ() -> None:
    memo: dict[int, Fingerprint] = {}

    def code(value: Any) -> Fingerprint:
        return memo.setdefault(id(value), fingerprint(value))

    count = 0
    # alone, and where it is part of something else
    for wrap in (
        lambda x: x,
        lambda x: [x],
        lambda x: (x, 1),
        lambda x: {"a": x},
        lambda x: Plain(a=x),
        lambda x: Row(1, x),
    ):
        seen: dict[bytes, Any] = {}
        for value in [*DIFFERENT, *ARRAYS]:
            key = digest(wrap(value), code)
            assert len(key) == 32
            assert key not in seen, (type(value), type(seen[key]))
            seen[key] = value
            count += 1
    assert count > 2500


def test_the_same_again() -> None:
    """Made a second time, from other objects, it is the same; nothing depends on identity."""
    import copy

    for value in DIFFERENT:
        if isinstance(value, (memoryview, types.MappingProxyType, MyList, MyDict, Told)):
            continue  # which cannot be copied
        again = copy.deepcopy(value)
        assert digest(again) == digest(value) == digest(value), value
    for value in ARRAYS:
        if hasattr(value, "copy") and not isinstance(value, (type, np.flexible)):
            assert digest(value.copy()) == digest(value), value


EQUAL: list[tuple[Any, Any]] = [
    (math.nan, -math.nan),
    ([math.nan], [float("nan")]),
    ({3, 1, 2}, {2, 3, 1}),
    ({0, 8}, {8, 0}),  # which are iterated in the order of coming
    (frozenset([(), 0, 8]), frozenset([8, 0, ()])),
    ({"a", "b", "c"}, {"c", "b", "a"}),
    (Plain(a=1, b=2), Plain(b=2, a=1)),
    (types.SimpleNamespace(a=1, b=2), types.SimpleNamespace(b=2, a=1)),
    ([[1]] * 3, [[1], [1], [1]]),
    (Slots(a=1, b=2), Slots(b=2, a=1)),
    (uuid.UUID(int=5), uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe)),
    (pathlib.Path("a/./b//c"), pathlib.Path("a/b/c")),
    (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
    (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
    (np.arange(10)[::-1], np.array(list(range(9, -1, -1)))),
    (np.array(["a", None], object)[::-1], np.array([None, "a"], object)),
    (pd.DataFrame({"a": [1, 2], "b": [3, 4]}), pd.DataFrame(np.array([[1, 3], [2, 4]]), columns=["a", "b"])),
    (pd.DataFrame({"a": [1, 2, 3]})[::2].reset_index(drop=True), pd.DataFrame({"a": [1, 3]})),
    (pd.Series([1, 2, None], dtype="Int64")[1:].reset_index(drop=True), pd.Series([2, None], dtype="Int64")),
]


@pytest.mark.parametrize(("one", "two"), EQUAL, ids=[str(i) for i in range(len(EQUAL))])
def test_made_in_another_way_but_the_same(one: Any, two: Any) -> None:
    assert digest(one) == digest(two)
    assert digest([one, two]) == digest([two, one]) == digest([one, one])


def test_a_frame_put_together_of_pieces() -> None:
    whole = pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]})
    pieces = pd.DataFrame({"a": [1.0]})
    pieces["b"] = [2.0]
    pieces["c"] = [3.0]
    assert digest(whole) == digest(pieces)


def test_values_of_cached_properties_count_once_they_are_there() -> None:
    """They may have been assigned, and nobody can see whether they were."""
    lazy, other = Lazy(a=1), Lazy(a=1)
    assert lazy.dear == 1
    other.dear = 2
    assert len({digest(lazy), digest(other), digest(Lazy(a=1))}) == 3


def masked(hard: bool = False, fill: Any = None, mask: Any = (0, 1), data: Any = (1, 2)) -> Any:
    return np.ma.MaskedArray(np.array(data), mask=mask, hard_mask=hard, fill_value=fill)


#: What looked alike, pair by pair.
ALIKE: list[tuple[Any, Any]] = [
    (TypeVar("B", bound=int), TypeVar("B", bound=str)),
    (TypeVar("B"), TypeVar("B", bound=str)),
    (TypeVar("B", int, str), TypeVar("B", int, bytes)),
    (TypeVar("B"), TypeVar("B", covariant=True)),
    (pd.MultiIndex([[1, 2]] * 2, [[0], [0]]), pd.MultiIndex([[1], [1]], [[0], [0]])),
    (pd.MultiIndex([[1, 2], [1]], [[0, 1], [0, 0]]), pd.MultiIndex([[2, 1], [1]], [[1, 0], [0, 0]])),
    (pd.Series([1]), pd.Series([1]).set_flags(allows_duplicate_labels=False)),
    (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False)),
    (masked(), masked(hard=True)),
    (masked(), masked(fill=7)),
    (masked(), masked(mask=(1, 0))),
    (masked(), masked(data=(1, 3))),
    (masked(mask=np.ma.nomask), masked(mask=(0, 0))),
    (masked(), with_attributes(masked(), note=1)),
    (masked(data=(None, "a"), fill="x"), masked(data=(None, "b"), fill="x")),
    (functools.partial(helper), with_attributes(functools.partial(helper), base=1)),
    (functools.lru_cache(helper), with_attributes(functools.lru_cache(helper), base=1)),
]


@pytest.mark.parametrize(("one", "two"), ALIKE, ids=[str(i) for i in range(len(ALIKE))])
def test_what_differs_where_one_hardly_looks(one: Any, two: Any) -> None:
    assert digest(one) != digest(two)
    assert digest(one) == digest(one)


def test_a_masked_array_is_not_changed_by_looking() -> None:
    one, two = masked(), masked()
    before = digest(one)
    assert one._fill_value is None
    assert two.fill_value == 999999
    assert digest(two) == before
    assert digest(masked(data=(None, "a"), fill="x")) == digest(masked(data=(None, "a"), fill="x"))


def test_attributes_of_a_function_count() -> None:
    def made(base: str) -> Any:
        def url(path: str) -> str:
            return base_of(url) + path

        return with_attributes(url, base=base)

    def base_of(fn: Any) -> str:
        return str(fn.base)

    assert digest(made("a")) == digest(made("a"))
    assert digest(made("a")) != digest(made("b"))
    with pytest.raises(Unhashable, match=r"uses .*url\.base"):
        digest(made(threading.Lock()))  # type: ignore[arg-type]


def test_private_fields_of_models() -> None:
    one, two = Model(), Model()
    two._hidden = 1
    assert digest(one) != digest(two)


class Reduced:
    def __reduce__(self) -> Any:
        return Reduced, ()


class Getstate:
    def __getstate__(self) -> Any:
        return {}


class Newargs:
    def __getnewargs__(self) -> Any:
        return ()


class TupleNewargs(tuple[Any, ...]):
    __slots__ = ()

    def __getnewargs__(self) -> Any:
        return ()


class WithLock:
    lock = threading.Lock()


class HiddenInC(sqlite3.Connection): ...


class HiddenToo(threading.local): ...


class MyArray(np.ndarray[Any, Any]): ...


#: The smallest file of a time zone: UTC.
NO_ZONE = b"TZif\0" + b"\0" * 31 + b"\0\0\0\1" + b"\0\0\0\4" + b"\0" * 6 + b"UTC\0"

REFUSED: list[tuple[Any, str, str, str]] = [
    (object(), "", "object", "nothing but its identity"),
    (threading.Lock(), "", "_thread.lock", "cannot see"),
    (BytesIO(), "", "_io.BytesIO", "cannot see"),
    ((i for i in ()), "", "generator", "cannot see"),
    (iter([]), "", "list_iterator", "cannot see"),
    (HiddenInC(":memory:"), "", "test_digest.HiddenInC", "cannot see"),
    (HiddenToo(), "", "test_digest.HiddenToo", "cannot see"),
    (weakref.ref(Plain), "", "weakref.ReferenceType", "cannot see"),
    (ValueError("a"), "", "ValueError", "cannot see"),
    (itertools.count(), "", "itertools.count", "cannot see"),
    (random.Random(1), "", "random.Random", "cannot see"),
    (Reduced(), "", "test_digest.Reduced", r"Reduced\.__reduce__\); give its class a __flow_digest__"),
    (Getstate(), "", "test_digest.Getstate", "__getstate__"),
    (Newargs(), "", "test_digest.Newargs", "__getnewargs__"),
    (TupleNewargs((1,)), "", "test_digest.TupleNewargs", "__getnewargs__"),
    (ast.parse("a"), "", "ast.Module", "__reduce"),
    (sys, "", "module", "is a module"),
    ({"cfg": Plain(session=threading.Lock())}, "['cfg'].session", "_thread.lock", "cannot see"),
    ([1, (2, [object()])], "[1][1][0]", "object", "identity"),
    ({Plain(): 1, "a": [object()]}, "['a'][0]", "object", "identity"),
    ({"a": {(1, object()): 1}}, "['a'].key(<tuple>)[1]", "object", "identity"),
    ({(1, 2): object()}, "[<tuple>]", "object", "identity"),
    (Row(1, {"x": Slots(a=object())}), ".b['x'].a", "object", "identity"),
    (MyList([1, object()]), "[1]", "object", "identity"),
    (np.array([1, object()]), ".flat[1]", "object", "identity"),
    (np.array([(1, object())], [("a", "i4"), ("b", "O")]), "['b'].flat[0]", "object", "identity"),
    (pd.DataFrame({"a": [1], "b": [object()]}), ".iloc[:, 1]", "object", "identity"),
    (np.array([1], "g"), "", "numpy.ndarray", "elements of type"),
    (np.array([1]).view(MyArray), "", "test_digest.MyArray", "cannot see"),
    (Told(3), "", "test_digest.Told", "returned an int, not bytes or str"),
    (Told(KeyError("a")), "", "test_digest.Told", "raised KeyError"),
    (close_over(threading.Lock()), "", "function", "uses value of close_over.<locals>.<lambda>"),
    ([].__iter__().__next__, "", "list_iterator", "cannot see"),
    (zoneinfo.ZoneInfo.from_file(BytesIO(NO_ZONE)), "", "zoneinfo.ZoneInfo", "no key"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "path", "type_", "reason"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_nobody_can_tell_apart_is_refused(value: Any, path: str, type_: str, reason: str) -> None:
    with pytest.raises(Unhashable, match=reason) as caught:
        digest(value)
    if path.startswith(".iloc"):
        assert caught.value.path.startswith(path)
    else:
        assert caught.value.path == path
    assert caught.value.type.removeprefix("tests.unit.storage.") == type_
    assert (path or "the value") in str(caught.value)


def test_whatever_goes_wrong_while_reading_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"a": [1]})
    monkeypatch.setattr(pd.DataFrame, "iloc", property(lambda self: 1 / 0))
    with pytest.raises(Unhashable, match="cannot be read: ZeroDivisionError"):
        digest([frame])


def test_a_name_alone_makes_no_known_class() -> None:
    fake = type("UUID", (), {"__module__": "uuid", "int": 1})
    assert digest(fake()) != digest(uuid.UUID(int=1))
    nameless = type("Nameless", (), {"__module__": 3})
    assert len(digest(nameless())) == 32


# ── shared, recursive, deep ───────────────────────────────────────────────────────────────────────────────────────


def test_sharing_does_not_count_and_costs_nothing() -> None:
    shared: list[Any] = []
    for _ in range(200):
        shared = [shared, shared]  # 2**200 lists, walked as a tree
    assert len(digest(shared)) == 32


def test_circles() -> None:
    tree = Plain(children=[])
    for i in range(1000):
        tree.children.append(Plain(parent=tree, i=i))  # type: ignore[attr-defined]
    other = Plain(children=[])
    for i in range(1000):
        other.children.append(Plain(parent=other, i=i))  # type: ignore[attr-defined]
    assert digest(tree) == digest(other)
    other.children[999].i = 0  # type: ignore[attr-defined]
    assert digest(tree) != digest(other)
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert digest(loop) != digest({"self": {}})


def test_where_a_circle_closes_counts() -> None:
    """a → b → a, and a → b → b: the inner list refers to other levels."""
    a: list[Any] = []
    b: list[Any] = [a, 1]
    a.append(b)
    c: list[Any] = []
    d: list[Any] = [c, 1]
    d[0] = d
    c.append(d)
    assert digest(a) != digest(c)
    # an inner list that was seen before is not taken for one that refers to the whole
    whole: list[Any] = [a]
    whole.append([whole, 1])
    assert digest([a, b]) != digest(whole)
    # what was met inside of a circle is not taken for the same thing outside of it
    assert digest([a, b]) != digest([a, d])
    assert digest([b, a]) == digest([b, a])


def test_objects_that_all_know_each_other_are_given_up() -> None:
    nodes = [Plain() for _ in range(12)]
    for each in nodes:
        each.others = [other for other in nodes if other is not each]  # type: ignore[attr-defined]
    with pytest.raises(Unhashable, match="too many circles"):
        digest(nodes)
    few = nodes[:4]
    for each in few:
        each.others = [other for other in few if other is not each]  # type: ignore[attr-defined]
    assert len(digest(few)) == 32


def test_depth_is_no_matter() -> None:
    value: Any = []
    other: Any = [1]
    for _ in range(100_000):
        value, other = [value], [other]
    assert digest(value) != digest(other)
    for _ in range(10_000):
        value = Row(1, (value,))
    assert len(digest(value)) == 32
    while isinstance(value, Row):  # taking a deep value apart is recursive where Python's own is
        value = value.b[0]


def test_classes_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowlane.storage import digest as module

    monkeypatch.setattr(module, "_MAX_CLASSES", 10)
    want = digest(Plain(a=1))
    for i in range(50):
        assert digest(type("Made", (), {})()) != digest(type("Made", (), {"a": i})())
        assert len(module._CLASSES) <= 10
    assert digest(Plain(a=1)) == want


def test_temporary_objects_are_not_taken_for_each_other() -> None:
    """Columns and bases are made for the walk, and their ids used again if they were let go."""
    frame = pd.DataFrame({str(i): [object] * 3 if i % 2 else [str(i)] * 3 for i in range(100)})
    assert digest(frame) == digest(frame.copy())
    values = [MyList([i, [i]]) for i in range(1000)]
    assert len({digest(each) for each in values}) == 1000
    assert digest(values) == digest([MyList([i, [i]]) for i in range(1000)])


def test_big_arrays_that_lie_across(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowlane.storage import families

    straight = np.arange(24.0).reshape(4, 3, 2)
    want = digest(straight)
    for block in (1, 8, 48, 100, 10**9):
        monkeypatch.setattr(families, "_BLOCK", block)
        assert digest(np.asfortranarray(straight)) == want
    assert digest(np.asfortranarray(np.zeros((2, 0, 3)))) == digest(np.zeros((2, 0, 3)))


# ── classes and functions ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_code_of_an_objects_class_counts() -> None:
    def made(scale: int) -> Any:
        scope: dict[str, Any] = {"__name__": "user_module"}
        exec(f"class Scaled:\n    def __init__(self): self.x = 1\n    def get(self): return self.x * {scale}\n", scope)
        return scope["Scaled"]

    assert digest(made(1)()) == digest(made(1)())
    assert digest(made(1)()) != digest(made(2)())
    assert digest(made(1)) != digest(made(2))
    assert digest([made(1)().get]) != digest([made(2)().get])


def test_the_fingerprints_of_a_run_are_asked_for_once() -> None:
    asked: list[Any] = []

    def code(value: Any) -> Fingerprint:
        asked.append(value)
        return fingerprint(value)

    assert digest([Plain(), Plain(a=1), [Plain()], helper], code) == digest([Plain(), Plain(a=1), [Plain()], helper])
    assert asked == [Plain, helper]


def test_tasks_count_as_their_functions() -> None:
    from flowlane import task

    assert digest(task.io(helper)) == digest(task.cpu(retries=1)(helper))
    assert digest(task.io(helper)) != digest(task.io(close_over))
    from flowlane import RetryPolicy

    assert digest(RetryPolicy(attempts=2)) != digest(RetryPolicy(attempts=3))


def test_a_class_may_hold_what_cannot_be_told() -> None:
    """Its instances and itself are what they were: only a function is refused for that."""
    assert digest(WithLock()) == digest(WithLock())
    assert digest(WithLock) != digest(Plain)
    with pytest.raises(Unhashable, match=r"uses WithLock\.lock"):
        digest(lambda: WithLock)


def test_abstract_and_generic_classes() -> None:
    class Base(abc.ABC):
        @abc.abstractmethod
        def m(self) -> None: ...

    class Leaf(Base):
        def m(self) -> None: ...

    assert digest(Leaf()) == digest(Leaf())
    assert digest(Base) != digest(Leaf)


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    | st.sampled_from([0, 1, "", "1", b"1", 0.0, -0.0, 1.0, True, "a", (), frozenset()])
)  # fmt: skip
hashables = st.recursive(
    leaves.filter(lambda x: x == x),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    leaves | hashables,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashables, inner, max_size=3)
        | st.sets(hashables, max_size=3)
    ),
    max_leaves=12,
)


def spelled(value: Any) -> Any:
    """A naive reference: what is compared with ==, types and all."""
    match value:
        case float():
            return ("float", "nan" if value != value else value.hex())
        case list() | tuple():
            return (type(value).__name__, tuple(spelled(each) for each in value))
        case dict():
            return ("dict", tuple((spelled(key), spelled(each)) for key, each in value.items()))
        case set() | frozenset():
            return (type(value).__name__, frozenset(spelled(each) for each in value))
        case _:
            return (type(value).__name__, value)


@given(values, values)
@settings(max_examples=400, deadline=None)
def test_equal_exactly_when_spelled_the_same(one: Any, two: Any) -> None:
    assert (digest(one) == digest(two)) == (spelled(one) == spelled(two))


@given(values)
@settings(max_examples=200, deadline=None)
def test_a_copy_is_the_same_and_a_wrapping_is_not(value: Any) -> None:
    import copy
    import pickle

    assert digest(copy.deepcopy(value)) == digest(value) == digest(pickle.loads(pickle.dumps(value)))
    assert len({digest(value), digest([value]), digest((value,)), digest([[value]]), digest({"a": value})}) == 5


def test_stable_across_processes() -> None:
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nimport test_digest as t\n"
        "from flowlane.storage.digest import digest\n"
        "print([digest(each).hex() for each in [*t.DIFFERENT, *t.ARRAYS, [one for one, _ in t.EQUAL]]])"
    )
    told: list[list[str]] = []
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told.append(eval(done.stdout))
    assert told[0] == told[1] == told[2]


def test_what_must_never_change() -> None:
    """Keys that are stored already would be lost."""
    plain = (None, 1, 1.5, "a", b"a", [1], (1, "a"), {"a": [b"1"]}, {1}, dt.date(2020, 1, 1), np.array([1], "<i8"))
    assert hashlib.sha256(b"".join([digest(each) for each in plain])).hexdigest() == (
        "5d0a0c378c7b8c4c2c0b3430e09754e71c6ac7a5c34b8f10a7c2b7c766d29ab1"
    )


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys() -> None:
    one, two = digest(1), digest(2)
    key = cache_key("parse", one, "1", {"x": one, "y": two})
    assert len(key) == 32
    assert key == cache_key("parse", one, 1, {"y": two, "x": one})
    others = [
        cache_key("parse2", one, "1", {"x": one, "y": two}),
        cache_key("parse", two, "1", {"x": one, "y": two}),
        cache_key("parse", one, "2", {"x": one, "y": two}),
        cache_key("parse", one, "", {"x": one, "y": two}),
        cache_key("parse", one, "1", {"x": two, "y": one}),
        cache_key("parse", one, "1", {"x": one, "z": two}),
        cache_key("parse", one, "1", {"x": one}),
        cache_key("parse", one, "1", {}),
        cache_key("pars", b"e" + one, "1", {"x": one, "y": two}),
        cache_key("parse", one, "1", {"x": one + two}),
        cache_key("", one, "1", {"x": one, "y": two}),
        cache_key("\ud800", one, "1", {}),
    ]
    assert len({key, *others}) == len(others) + 1
