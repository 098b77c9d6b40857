"""A run's value on stdout: strings as they are, everything else JSON that every reader accepts, whatever it is."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flowlane.cli.value import value_as_text


@dataclasses.dataclass
class Row:
    n: int
    when: datetime.date


class Model(BaseModel):
    name: str


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python's own reader lets pass."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_string_is_verbatim() -> None:
    assert value_as_text("a\x1b[31m\n'b'") == "a\x1b[31m\n'b'"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, "a", None, True], [1, "a", None, True]),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (Row(1, datetime.date(2026, 11, 22)), {"n": 1, "when": "2026-11-22"}),
        (Model(name="x"), {"name": "x"}),
        (Path("a/b"), "a/b"),
        ({1: "a"}, {"1": "a"}),
        (b"text", "text"),
        (b"\xff", "_w=="),
        ([Opaque()], ["<opaque>"]),
        ([Broken()], ["<Broken: repr raised RuntimeError>"]),
        (10**30, 10**30),
        ([math.nan, math.inf], [None, None]),
    ],
)
def test_values_as_json(value: object, expected: object) -> None:
    assert strict(value_as_text(value)) == expected


def test_a_value_that_holds_itself_falls_back_to_its_repr() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert strict(value_as_text(loop)) == "[[...]]"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=10,
    )
)
def test_any_value_gives_one_line_of_valid_json(value: object) -> None:
    if isinstance(value, str):
        return
    text = value_as_text(value)
    strict(text)
    assert "\n" not in text


def test_an_iterator_is_not_gone_over() -> None:
    """Red when it is: one without end would fill the memory, and no signal could stop that."""
    assert value_as_text(itertools.count()) == '"count(0)"'
    found = json.loads(value_as_text({"a": [1, iter("ab")], "b": (x for x in itertools.count())}))
    assert found["a"][0] == 1
    assert found["a"][1].startswith("<str_")
    assert found["b"].startswith("<generator object")


def test_what_is_in_itself_is_looked_into_once() -> None:
    """Red when each way to it is tried: as many as two to the depth."""
    tree: dict[str, Any] = {}
    tree["children"] = [{"parent": tree}, {"parent": tree}]
    assert "children" in value_as_text(tree)
