from __future__ import annotations

import collections
import datetime
import enum
import json
import math
import pathlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.runtime.encode import encode, inert, quote

# Seeded; a slow machine is no failure.
CALM = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(line: str) -> dict[str, Any]:
    """Strict: no NaN, one line, ASCII, no half surrogate pairs."""
    assert line.isascii()
    assert line.isprintable()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    value = json.loads(line, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises for a lone surrogate
    return value


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class ExitingRepr:
    def __repr__(self) -> str:
        raise SystemExit(3)


class WrongRepr:
    def __repr__(self) -> str:
        return 7  # type: ignore[return-value]


class HugeRepr:
    def __repr__(self) -> str:
        return "x" * 5_000_000


class Liar:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        return dict


class Shy:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise ValueError("not telling")


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


class Opaque(metaclass=Meta):
    def __repr__(self) -> str:
        raise ValueError


class EndlessDict(dict[str, Any]):
    def items(self) -> Any:
        while True:
            yield "a", 1

    def values(self) -> Any:
        raise RuntimeError


class EndlessList(list[int]):
    def __iter__(self) -> Any:
        while True:
            yield 1


class TrickyStr(str):
    def __str__(self) -> str:
        raise RuntimeError

    def encode(self, *_: Any, **__: Any) -> bytes:
        raise RuntimeError


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


CASES: list[tuple[Any, Any]] = [
    (math.nan, "NaN"),
    (math.inf, "Infinity"),
    (-math.inf, "-Infinity"),
    (b"ab\xff", "ab\\xff"),
    (bytearray(b"x"), "x"),
    (memoryview(b"x"), "x"),
    ((1, 2), [1, 2]),
    ({3}, [3]),
    (frozenset({3}), [3]),
    ({(1, 2): "x"}, {"(1, 2)": "x"}),
    ({1: "x", None: "y", False: "z", 2.5: "w"}, {"1": "x", "null": "y", "false": "z", "2.5": "w"}),
    ({math.nan: 1}, {"NaN": 1}),
    ({1: "a", "1": "b"}, {"1": "a", "1~1": "b"}),
    ("half \udc80", "half \\udc80"),
    ({"half \udc80": 1}, {"half \\udc80": 1}),
    ("\ud83d\ude00", "\\ud83d\\ude00"),  # two lone ones, not a pair
    ("\N{GRINNING FACE}", "\N{GRINNING FACE}"),
    ("\x1b[31m\u202e\n", "\x1b[31m\u202e\n"),
    (Colour.RED, "red"),
    (Number.ONE, 1),
    (TrickyStr("abc"), "abc"),
    (10**5000, hex(10**5000)[:1000]),
    (2**64, 2**64),
    (datetime.date(2026, 11, 22), "2026-11-22"),
    (pathlib.PurePosixPath("/a/b"), "/a/b"),
    (collections.OrderedDict(a=1), {"a": 1}),
    (EndlessDict(a=2), {"a": 2}),
    (EndlessList([5]), [5]),
    (BadRepr(), "<BadRepr: repr raised RuntimeError>"),
    (ExitingRepr(), "<ExitingRepr: repr raised SystemExit>"),
    (WrongRepr(), "<WrongRepr: repr raised TypeError>"),
    (int, "<class 'int'>"),
]


# pytest would look into the values for a name of each case
@pytest.mark.parametrize("case", range(len(CASES)))
def test_values_json_does_not_know(case: int) -> None:
    value, wanted = CASES[case]
    assert read(encode({"event": "x", "value": value})) == {"event": "x", "value": wanted}
    assert read(encode({"deep": {"value": [value]}})) == {"deep": {"value": [wanted]}}


def test_strange_objects_become_text() -> None:
    for value in (Liar(), Shy(), Opaque(), lambda: 0, object(), NotImplemented, ...):
        assert isinstance(read(encode({"value": value}))["value"], str)


def test_a_huge_repr_is_cut() -> None:
    text = read(encode({"value": HugeRepr()}))["value"]
    assert text.startswith("xxx")
    assert len(text) < 1100


def test_circular_values() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    event: dict[str, Any] = {"event": "x", "list": loop}
    event["self"] = event
    assert read(encode(event)) == {"event": "x", "list": [1, "<circular>"], "self": "<circular>"}


def test_a_value_met_twice_is_not_circular() -> None:
    twice = [1]
    assert read(encode({"a": twice, "b": twice, "c": [twice, twice]})) == {"a": [1], "b": [1], "c": [[1], [1]]}


def test_deep_and_unfolding_values_are_cut() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "<too deep>" in encode({"deep": deep})
    bomb: list[Any] = ["boom"]
    for _ in range(14):
        bomb = [bomb] * 9
    line = encode({"bomb": bomb, "after": 1})
    read(line)
    assert "<too large>" in line
    assert len(line) < 1_000_000
    while deep:  # take it apart by hand: its destructor recurses
        deep = deep.pop()


def test_events_that_are_no_dict() -> None:
    assert read(encode(collections.UserDict(a=1))) == {"a": 1}  # type: ignore[arg-type]
    assert read(encode(None))["event"] == "log.unencodable"  # type: ignore[arg-type]


# Drawn by name and put in afterwards: hypothesis itself looks into what it draws.
MINES: dict[str, Any] = {f"mine {kind.__qualname__}": kind for kind in (BadRepr, ExitingRepr, Liar, Shy, TrickyStr)}
MINES["mine Opaque"] = Opaque


def armed(value: Any) -> Any:
    if isinstance(value, dict):
        return {armed(key): armed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([armed(item) for item in value])
    return MINES[value]() if isinstance(value, str) and value in MINES else value


_hostile = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.sampled_from(sorted(MINES)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.none() | st.integers() | st.floats() | st.text(st.characters()) | st.tuples(st.text()) | st.binary(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@CALM
@given(event=st.dictionaries(st.text(st.characters()) | st.tuples(st.integers()), _hostile, max_size=6))
def test_total(event: dict[Any, Any]) -> None:
    read(encode(armed(event)))


_plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)


@CALM
@given(event=st.dictionaries(st.text(), _plain | st.text()))
def test_plain_values_are_as_json_dumps_writes_them(event: dict[str, Any]) -> None:
    line = encode(event)
    assert line == json.dumps(event, separators=(",", ":"))
    assert read(line) == event


@CALM
@given(text=st.text(st.characters()))
def test_quote_is_what_encode_writes(text: str) -> None:
    assert encode({"k": text}) == f'{{"k":{quote(text)}}}'
    assert encode({"k": [text]}) == f'{{"k":[{quote(text)}]}}'


@CALM
@given(text=st.text(st.characters()))
def test_inert_text_is_printable_and_plain_text_is_kept(text: str) -> None:
    assert inert(text).isprintable()
    if text.isprintable():
        assert inert(text) == text


def test_inert_examples() -> None:
    assert inert("a\x1b[2Jb\r\n\u202ec\udc80") == "a\\x1b[2Jb\\r\\n\\u202ec\\udc80"
