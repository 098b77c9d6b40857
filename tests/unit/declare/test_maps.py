"""map, starmap, filter and reduce: what is recorded, what is chained to what, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.plan import MapSpec
from flowlane.declare.mapping import product, zipped
from flowlane.declare.task import task
from flowlane.declare.workflow import workflow
from flowlane.errors import ArgumentError, DefinitionError, HandleError
from flowlane.program import Item, MapCall

from .sample import anything, compiled, fetch, parse, shown, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.program import Program

HERE = "test_maps.py:"


@task.cpu
def join(a: Any, b: Any, *, k: int = 0) -> int:
    return k


@task.cpu
def is_good(x: Any) -> bool:
    return bool(x)


@task.cpu
def merge(parts: list[int]) -> int:
    return sum(parts)


@task.io
def listed() -> list[Any]:
    return []


def of(body: Callable[[], Any]) -> Program:
    return compiled(workflow(body).bind())


def map_of(program: Program, name: str) -> tuple[Any, ...]:
    """(sources as plain data, how they combine, star, filters) of a mapped node."""
    call = program.maps[program.names.index(name)]
    return shown(list(call.sources)), call.combine, call.star, call.filters


def over(program: Program, name: str) -> list[str]:
    """The maps that one is chained to."""
    return [program.names[node] for node in program.plan.maps[program.names.index(name)].over]


def fault(body: Callable[[], Any], kind: type[Exception] = DefinitionError) -> Any:
    with pytest.raises(kind) as caught:
        of(body)
    assert HERE in (getattr(caught.value, "where", None) or "")
    return caught.value


# ── what is recorded ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_map_over_a_list() -> None:
    urls = ["a", "b"]
    program = of(lambda: fetch.map(urls, timeout=3))
    assert program.names == ("fetch",)
    assert type(program.arguments[0].args[0]) is Item
    assert program.arguments[0].kwargs == {"timeout": 3}
    assert program.maps == {0: MapCall((urls,), "each", False, False, "fetch.map(...)", program.maps[0].where, (1, 1))}
    assert program.maps[0].where is not None and HERE in program.maps[0].where
    assert program.maps[0].sources[0] is urls
    assert program.plan.maps == {0: MapSpec()}
    assert shown(program.result) == "@0"


def test_a_map_over_a_result() -> None:
    # listed ──▶ parse[*]
    program = of(lambda: parse.map(listed(), strict=True))
    assert map_of(program, "parse") == (["@0"], "each", False, False)
    assert program.plan.upstreams[1] == program.plan.inputs[1] == (0,)
    assert over(program, "parse") == []


def test_fixed_arguments_may_be_results() -> None:
    program = of(lambda: join.map(listed(), listed(), k=total([])))
    assert program.plan.inputs[3] == (0, 1, 2)
    assert shown(program.arguments[3].args[1]) == "@1"
    assert shown(dict(program.arguments[3].kwargs)) == {"k": "@2"}


def test_a_list_of_results_is_a_template() -> None:
    program = of(lambda: parse.map([fetch("a"), fetch("b")]))
    assert map_of(program, "parse") == ([["@0", "@1"]], "each", False, False)
    assert over(program, "parse") == []


def test_a_mapping_is_kept_with_its_keys() -> None:
    program = of(lambda: fetch.map({"us-east": "a", 3: "b"}))
    assert map_of(program, "fetch") == ([{"us-east": "a", 3: "b"}], "each", False, False)


def test_other_iterables_are_kept_as_they_are() -> None:
    pulled = (str(n) for n in range(3))
    program = of(lambda: [fetch.map(pulled), join.map(range(5), 0)])
    assert program.maps[0].sources == (pulled,)
    assert program.maps[1].sources == (range(5),)
    assert next(pulled) == "0"  # nobody has looked


def test_options_of_a_map() -> None:
    program = of(lambda: fetch.options(in_flight=7, enough=3, cancel_rest=False, name="eu").map(["a"]))
    assert program.names == ("eu",)
    assert program.plan.maps[0] == MapSpec(window=7, enough=3, cancel_rest=False)


def test_options_of_the_decorator_reach_maps_and_leave_single_calls_alone() -> None:
    @task.io(in_flight=5)
    def own(x: int) -> int:
        return x

    program = of(lambda: [own(1), own.map([1])])
    assert program.plan.maps == {1: MapSpec(window=5)}


def test_methods_are_mapped_behind_their_instance() -> None:
    program = of(lambda: Client("x").get.map(["a"], 3))
    client, item, fixed = program.arguments[0].args
    assert (type(client), type(item), fixed) == (Client, Item, 3)


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    @task.io
    def get(self, path: str, tries: int) -> bytes:
        return path.encode() * tries


def test_a_filter_and_a_star() -> None:
    program = of(lambda: [is_good.filter([1, 2]), join.starmap([(1, 2), (3, 4)], k=3)])
    assert map_of(program, "is_good") == ([[1, 2]], "each", False, True)
    assert map_of(program, "join") == ([[(1, 2), (3, 4)]], "each", True, False)
    assert [type(each) for each in program.arguments[1].args] == [Item]
    assert program.arguments[1].kwargs == {"k": 3}


def test_starmap_over_what_is_not_known_yet() -> None:
    program = of(lambda: join.starmap(listed()))
    assert map_of(program, "join") == (["@0"], "each", True, False)
    assert [type(each) for each in program.arguments[1].args] == [Item]


def test_zipped_and_product() -> None:
    def body() -> Any:
        xs, ys = listed(), listed()
        return [
            join.starmap(zipped(xs, ys)),
            join.starmap(product(xs, [1, 2])),
            total.map(zipped(xs, ys)),
            join.starmap(zipped([1, 2], [3, 4])),
            join.starmap(product([1, 2], [3])),
        ]

    program = of(body)
    assert map_of(program, "join") == (["@0", "@1"], "zip", True, False)
    assert map_of(program, "join#2") == (["@0", [1, 2]], "product", True, False)
    assert map_of(program, "total") == (["@0", "@1"], "zip", False, False)
    assert map_of(program, "join#3") == ([[(1, 3), (2, 4)]], "each", True, False)
    assert map_of(program, "join#4") == ([[(1, 3), (2, 3)]], "each", True, False)


def test_products_of_many_are_not_made_at_once() -> None:
    program = of(lambda: join.starmap(product(range(1_000_000), range(1_000_000))))
    assert program.maps[0].sources == (range(1_000_000), range(1_000_000))


def test_reduce() -> None:
    program = of(lambda: [merge.reduce(listed()), merge.reduce(listed(), fan_in=8)])
    assert shown(program.arguments[1]) == (("@0",), {})
    assert program.plan.maps == {3: MapSpec(fan_in=8)}
    assert map_of(program, "merge#2") == (["@2"], "each", False, False)
    assert [type(each) for each in program.arguments[3].args] == [Item]


# ── chains ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_map_over_a_map_is_chained_to_it() -> None:
    # fetch[*] ─▶ parse[*] ─▶ is_good[*] ──▶ merge (a tree)
    def body() -> Any:
        return merge.reduce(is_good.filter(parse.map(fetch.map(["a"]))), fan_in=2)

    program = of(body)
    assert over(program, "fetch") == []
    assert over(program, "parse") == ["fetch"]
    assert over(program, "is_good") == ["parse"]
    assert over(program, "merge") == ["is_good"]


def test_the_value_of_a_tree_is_no_map() -> None:
    program = of(lambda: total.map(merge.reduce(parse.map(listed()), fan_in=2)))
    assert over(program, "total") == []


def test_a_zip_of_one_chain_is_chained_and_of_two_is_not() -> None:
    def body() -> Any:
        pages, others = fetch.map(["a"]), fetch.map(["b"])
        sizes = parse.map(pages)
        return [
            join.starmap(zipped(pages, sizes)),
            join.starmap(zipped(pages, others)),
            join.starmap(product(pages, sizes)),
            join.starmap(zipped(pages, pages)),
        ]

    program = of(body)
    assert over(program, "join") == ["fetch", "parse"]
    assert over(program, "join#2") == over(program, "join#3") == over(program, "join#4") == []


def test_what_waits_for_all_of_a_chain_is_not_chained_to_it() -> None:
    # fetch[*] ─▶ total ─┐
    #     └─────────────▶ join[*]: waits for all of fetch anyway
    def body() -> Any:
        pages = fetch.map(["a"])
        before, after = listed(), total(pages)
        return [
            join.map(pages, before),
            join.map(pages, after),
            join.map(pages, pages),
            parse.options(after=[after]).map(pages),
            parse.options(after=[before]).map(pages),
        ]

    program = of(body)
    assert over(program, "join") == ["fetch"]
    assert over(program, "join#2") == over(program, "join#3") == over(program, "parse") == []
    assert over(program, "parse#2") == ["fetch"]


def test_a_chain_may_begin_again_where_one_was_broken() -> None:
    def body() -> Any:
        pages = fetch.map(["a"])
        whole = join.map(pages, total(pages))
        return join.map(whole, pages)  # comes after all of the first chain, which is complete by then

    program = of(body)
    assert over(program, "join") == []
    assert over(program, "join#2") == ["join"]


def test_a_map_read_as_a_whole_stays_a_value() -> None:
    program = of(lambda: total(fetch.map(["a"])))
    assert shown(program.arguments[1]) == (("@0",), {})


def test_static_graphs_have_none_of_it() -> None:
    program = of(lambda: parse(fetch("a")))
    assert not program.maps
    assert not program.plan.maps
    assert not program.plan.rules
    assert not program.plan.requirement


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


def test_lifting_by_keyword() -> None:
    error = fault(lambda: fetch.map(url=["a"]), ArgumentError)  # type: ignore[call-overload]  # pyright: ignore
    assert "'url' is passed by keyword" in error.message
    assert "fetch.map(items)" in error.hint


def test_what_does_not_fit_the_function() -> None:
    assert "tiemout" in fault(lambda: fetch.map(["a"], tiemout=3), ArgumentError).message  # type: ignore[call-overload]
    assert "multiple values" in fault(lambda: fetch.map(["a"], url="b"), ArgumentError).message  # type: ignore[call-overload]
    error = fault(lambda: join.starmap([(1, 2), (1, 2, 3)]), ArgumentError)
    assert "the 3 arguments of item 1" in error.message
    assert "too many positional" in fault(lambda: join.starmap(zipped(listed(), [1], [2])), ArgumentError).message
    error = fault(lambda: join.starmap([3]))  # type: ignore[list-item]
    assert "item 0 is an int" in error.message and "join.map(items)" in error.hint


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ("abc", "goes over a str", "['abc']"),
        (b"abc", "goes over a bytes", "[b'abc']"),
        ({1, 2}, "goes over a set", "sorted"),
        (3, "goes over an int, which has no items", "list"),
        ({"a/b": 1}, "the key 'a/b'", "none of / # [ ]"),
        ({"": 1}, "the key ''", "list(mapping.values())"),
        ({1: "a", "1": "b"}, "1 and '1' would both be named '1'", "keys whose texts differ"),
    ],
)
def test_what_a_map_cannot_go_over(given: Any, said: str, hint: str) -> None:
    error = fault(lambda: anything.map(given))
    assert said in error.message
    assert hint in error.hint


def test_async_iterators_are_for_tasks_to_read() -> None:
    async def numbers() -> Any:
        yield 1

    assert "return a list" in fault(lambda: anything.map(numbers())).hint


def test_sources_that_are_no_sources() -> None:
    assert "two sources or more" in fault(lambda: zipped([1])).message
    assert "2 and 3 items" in fault(lambda: zipped([1, 2], [1, 2, 3])).message
    assert ".items()" in fault(lambda: zipped({"a": 1}, [1])).hint
    error = fault(lambda: total(zipped(listed(), [1])), HandleError)
    assert "zipped(...)" in error.message and "starmap" in error.hint
    assert "starmap" in fault(lambda: list(zipped(listed(), [1])), HandleError).hint
    assert "first argument" in fault(lambda: join.map([1], zipped(listed(), [1]))).hint


def test_reductions_that_cannot_be() -> None:
    assert "with one argument" in fault(lambda: join.reduce([1]), ArgumentError).message  # type: ignore[arg-type]
    assert "fan_in=1" in fault(lambda: merge.reduce(listed(), fan_in=1)).message
    assert "a mapping, not a list" in fault(lambda: merge.reduce({"a": 1}, fan_in=2)).message  # type: ignore[arg-type]


def test_numbers_that_are_none() -> None:
    assert "in_flight=0" in fault(lambda: fetch.options(in_flight=0).map(["a"])).message
    assert "enough=0" in fault(lambda: fetch.options(enough=0).map(["a"])).message


def test_options_of_maps_at_calls_that_are_none() -> None:
    error = fault(lambda: fetch.options(in_flight=5)("a"))
    assert "in_flight=5, and is a single call" in error.message
    assert "fetch.options(in_flight=...).map(items)" in error.hint
    assert "enough=2, and is a reduction" in fault(lambda: merge.options(enough=2).reduce([1], fan_in=2)).message


def test_maps_belong_into_bodies() -> None:
    with pytest.raises(DefinitionError, match="outside a workflow body") as caught:
        fetch.map(["a"])
    assert HERE in (caught.value.where or "")


def test_a_source_of_another_workflow() -> None:
    kept: list[Any] = []
    of(lambda: kept.append(fetch.map(["a"])))
    error = fault(lambda: parse.map(kept[0]), HandleError)
    assert "is given the result of task 'fetch'" in error.message
    assert "whose body has ended" in error.message


def test_nothing_is_recorded_by_a_call_that_is_refused() -> None:
    def body() -> Any:
        with pytest.raises(DefinitionError):
            fetch.map("abc")
        with pytest.raises(ArgumentError):
            fetch.map(["a"], nothing=1)  # type: ignore[call-overload]
        return fetch("a")

    assert of(body).names == ("fetch",)
