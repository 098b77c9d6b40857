"""``flow graph`` of maps, conditions, rules and limits; and what a stored description knows of them."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

from flowlane.cli.compiling import describe
from flowlane.cli.graph import FORMATS, render
from flowlane.declare.choice import either, otherwise, switch, when
from flowlane.declare.limits import Limit
from flowlane.declare.task import task
from flowlane.declare.teardown import teardown
from flowlane.declare.workflow import workflow
from flowlane.description import Description, compare
from flowlane.engine import Engine
from flowlane.program import Program


@task.io(limits=[Limit("api", 8)])
async def fetch(url: str) -> bytes:
    return url.encode()


@task.cpu(cores=1, priority=2)
def parse(raw: Any) -> int:
    return len(raw)


@task.cpu
def merge(numbers: list[int]) -> int:
    return sum(numbers)


@task.io(may_fail=True)
def tell(what: Any) -> str:
    return str(what)


@workflow
def sub(x: int) -> int:
    return parse(x)


@workflow
def etl(urls: list[str]) -> Any:
    total = merge.reduce(parse.map(fetch.options(in_flight=4).map(urls)), fan_in=8)
    with when(total) as some:
        a = tell(1)
    with otherwise(some):
        b = tell(2)
    with switch(a) as case, case("x", "y"):
        tell.options(name="xy")(3)
    with teardown(tell.options(name="stop").bind(total)):
        sub.options(retries=1)(total)
    return tell.options(name="last", join=1, cancel_rest=True)([a, b]), either(a, b)


def compiled(target: Any = etl) -> Program:
    return Engine().compile(target.bind(["a"]))


def line_of(name: str) -> str:
    lines = render(compiled(), "text").splitlines()
    return " ".join(next(line for line in lines if line.split()[:1] == [name]).split())


def test_text_folds_maps_and_tells_what_decides() -> None:
    assert line_of("fetch[*]") == "fetch[*] io asyncio (⟲ each item; limits api)"
    assert line_of("parse[*]") == "parse[*] cpu processes ← fetch[*] (⟲ each of fetch; priority 2)"
    assert line_of("merge[*]") == "merge[*] cpu processes ← parse[*] (merges 8 at a time)"
    assert line_of("tell") == "tell io threads (if merge is true; may fail)"
    assert line_of("tell#2") == "tell#2 io threads (if merge is false; may fail)"
    assert line_of("xy") == "xy io threads (if tell is 'x' or 'y'; may fail)"
    assert line_of("sub") == "sub - - ← merge[*] (a workflow)"
    assert line_of("stop") == "stop io threads ← merge[*], sub (tears down 1 task; may fail)"
    assert line_of("last") == "last io threads ← tell, tell#2 (joins 1; cancels the rest; may fail)"
    assert "3 maps" in describe(compiled())


def test_json_has_the_same_as_fields() -> None:
    document = json.loads(render(compiled(), "json"))
    tasks = {each["name"]: each for each in document["tasks"]}
    assert tasks["parse"]["map"]["over"] == ["fetch"]
    assert tasks["fetch"]["limits"] == {"api": 1} and tasks["fetch"]["map"]["in_flight"] == 4
    assert tasks["tell"]["when"] == [{"task": "merge", "is": "true"}]
    assert tasks["last"]["join"] == 1 and tasks["last"]["cancel_rest"]
    assert tasks["either"]["trigger"] == "none_failed_min_one_success"
    assert tasks["stop"]["tears_down"] == ["sub"]
    assert tasks["sub"]["workflow"] == "sub"
    kinds = {(edge["from"], edge["to"]): edge["kind"] for edge in document["edges"]}
    assert kinds[("fetch", "parse")] == "element"
    assert kinds[("merge", "tell")] == "condition"
    assert kinds[("sub", "stop")] == "order"
    assert kinds[("merge", "stop")] == "value"


def test_pictures_mark_maps_and_conditions() -> None:
    mermaid, dot = render(compiled(), "mermaid"), render(compiled(), "dot")
    assert 'n0[["fetch[*]<br/>⟲ each item<br/>limits api"]]:::io' in mermaid
    assert '-.->|"if true"|' in mermaid
    assert 'label="fetch[*]"' in dot and "peripheries=2" in dot
    assert '[style=dashed, label="if false"]' in dot


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_can_be_made(form: str) -> None:
    assert render(compiled(), form).endswith("\n")


# ── descriptions ──────────────────────────────────────────────────────────────────────────────────────────────────


def described(target: Any) -> Description:
    return Description.of(compiled(target), lambda _fn: SimpleNamespace(digest=b"same", parts={}))  # type: ignore[arg-type, return-value]


def variant(**options: Any) -> Any:
    @workflow(name="w")
    def body(urls: list[str]) -> Any:
        pages = fetch.map(options.get("over", urls))
        with when(merge([1])) as some:
            tell(1)
        with otherwise(some) if options.get("other") else when(pages):
            tell(2)
        return tell.options(trigger=options.get("trigger", "all_done"))(pages)

    return body


def test_a_description_comes_back_as_it_was() -> None:
    now = described(etl)
    again = Description.read(now.packed())
    assert again.shapes == now.shapes
    assert not compare(now, again)


def test_descriptions_from_before_have_no_shapes() -> None:
    @workflow
    def plain(urls: list[str]) -> Any:
        return tell(urls)

    now = described(plain)
    assert not now.shapes
    assert b"shapes" not in zlib.decompress(now.packed())
    assert not compare(Description.read(now.packed()), now)


def test_what_is_declared_otherwise_is_a_change() -> None:
    before = described(variant())
    changes = compare(before, described(variant(trigger="one_done")))
    assert list(changes.shapes) == ["tell#3"]
    assert changes.lines() == ["mapped, conditional or triggered otherwise: tell#3"]
    assert list(compare(before, described(variant(over=["b"]))).calls) == ["fetch"]
    assert "tell#2" in compare(before, described(variant(other=True))).affected
    assert not compare(before, described(variant()))
