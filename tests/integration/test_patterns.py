"""The control-flow patterns of the Workflow Patterns initiative, each as a run: what docs/patterns.md shows, tried.

Numbers and names are those of the 2006 revision. Where a pattern is about who does not wait for whom, a task that is not to be
waited for ends only when the one that does not wait for it has begun: if it were waited for, the run would never end.
"""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import (
    Engine,
    Limit,
    either,
    otherwise,
    run,
    switch,
    task,
    when,
    workflow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowlane import RunHandle, RunResult

ROUTES: list[dict[str, str]] = [{}, {"*": "inline"}]
routes = pytest.mark.parametrize("routes", ROUTES, ids=["asyncio", "inline"])

ran: list[str] = []


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """The names of the tasks below, in the order in which they ran."""
    ran.clear()
    yield ran
    ran.clear()


@task.io
async def a(x: Any = None) -> str:
    ran.append("a")
    return "a" if x is None else f"a{x}"


@task.io
async def b(x: Any = None) -> str:
    ran.append("b")
    return "b" if x is None else f"b{x}"


@task.io
async def c(x: Any = None) -> str:
    ran.append("c")
    return "c" if x is None else f"c{x}"


@task.io
async def d(x: Any = None, y: Any = None) -> list[Any]:
    ran.append("d")
    return [x, y]


@task.io
async def gather(*several: Any) -> list[Any]:
    return list(several)


@task.io
async def double(n: int) -> int:
    return n * 2


@task.io
async def upto(n: int) -> list[int]:
    return list(range(n))


@task.io
async def echo(x: Any) -> Any:
    return x


def states(result: RunResult[Any]) -> dict[str, str]:
    return {name: str(end.state) for name, end in result.tasks.items()}


class Gate:
    """A task that ends when it is told to, and can be waited for until it has begun."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        await self.open.wait()


async def while_running(definition: Any, act: Callable[[RunHandle[Any]], Any]) -> RunResult[Any]:
    """Start a run, let `act` do something to it, and wait for its end."""
    async with Engine() as engine:
        handle = engine.start(definition.bind())
        await act(handle)
        return await handle.wait()


# ── basic control flow ────────────────────────────────────────────────────────────────────────────────────────────


@routes
def test_pattern_01_sequence(routes: dict[str, str]) -> None:
    #   a ─▶ b ─▶ c
    @workflow
    def main() -> str:
        return c(b(a()))

    assert run(main.bind(), routes=routes).value == "cba"
    assert ran == ["a", "b", "c"]


def test_pattern_02_parallel_split() -> None:
    #       ┌─▶ left
    #   a ──┤              each waits for the other to have begun
    #       └─▶ right
    gates = Gate(), Gate()

    @task.io
    async def left(x: str) -> str:
        gates[0].begun.set()
        await gates[1].begun.wait()
        return f"left of {x}"

    @task.io
    async def right(x: str) -> str:
        gates[1].begun.set()
        await gates[0].begun.wait()
        return f"right of {x}"

    @workflow
    def main() -> list[str]:
        first = a()
        return [left(first), right(first)]

    assert run(main).value == ["left of a", "right of a"]


@routes
def test_pattern_03_synchronization(routes: dict[str, str]) -> None:
    #   a ─▶ b ─┐
    #   └──▶ c ─┴▶ d
    @workflow
    def main() -> list[Any]:
        first = a()
        return d(b(first), c(first))

    assert run(main.bind(), routes=routes).value == ["ba", "ca"]
    assert (ran[0], sorted(ran[1:3]), ran[3]) == ("a", ["b", "c"], "d")


@routes
@pytest.mark.parametrize(("kind", "taken"), [("csv", "a"), ("tsv", "a"), ("json", "b"), ("xml", "c")])
def test_pattern_04_exclusive_choice(routes: dict[str, str], kind: str, taken: str) -> None:
    #          ┌─csv,tsv─▶ a
    #   echo ──┼─json────▶ b
    #          └─else────▶ c
    @workflow
    def main(kind: str) -> None:
        with switch(echo(kind)) as case:
            with case("csv", "tsv"):
                a()
            with case("json"):
                b()
            with case.default():
                c()

    result = run(main.bind(kind), routes=routes)
    assert ran == [taken]
    assert states(result) == {"echo": "succeeded", **dict.fromkeys("abc", "skipped"), taken: "succeeded"}
    assert result.state == "succeeded"


@routes
@pytest.mark.parametrize("yes", [True, False])
def test_pattern_05_simple_merge(routes: dict[str, str], yes: bool) -> None:
    #          ┌─yes─▶ a ─┐
    #   echo ──┤          ├─▶ c
    #          └─no──▶ b ─┘
    @workflow
    def main(yes: bool) -> str:
        with when(echo(yes)) as taken:
            left = a()
        with otherwise(taken):
            right = b()
        return c(either(left, right))

    assert run(main.bind(yes), routes=routes).value == ("ca" if yes else "cb")
    assert ran == ["a" if yes else "b", "c"]


@routes
@pytest.mark.parametrize("chosen", [[], [0], [1], [0, 1], [0, 2], [0, 1, 2]])
def test_pattern_06_multi_choice(routes: dict[str, str], chosen: list[int]) -> None:
    #          ┌─?─▶ a
    #   echo ──┼─?─▶ b      any of them, also none and all
    #          └─?─▶ c
    @task.io
    async def has(number: int, numbers: list[int]) -> bool:
        return number in numbers

    @workflow
    def main(chosen: list[int]) -> None:
        numbers = echo(chosen)
        for number, branch in enumerate((a, b, c)):
            with when(has(number, numbers)):
                branch()

    result = run(main.bind(chosen), routes=routes)
    assert sorted(ran) == ["abc"[number] for number in chosen]
    assert [states(result)[name] for name in "abc"] == [
        "succeeded" if number in chosen else "skipped" for number in range(3)
    ]


@routes
@pytest.mark.parametrize("chosen", [[], [0], [1], [0, 1]])
def test_pattern_07_structured_synchronizing_merge(routes: dict[str, str], chosen: list[int]) -> None:
    #          ┌─?─▶ a ─┐
    #   echo ──┤        ├─▶ d    waits for those that were chosen
    #          └─?─▶ b ─┘
    @task.io
    async def has(number: int, numbers: list[int]) -> bool:
        return number in numbers

    @workflow
    def main(chosen: list[int]) -> list[Any]:
        numbers = echo(chosen)
        with when(has(0, numbers)):
            left = a()
        with when(has(1, numbers)):
            right = b()
        return d.options(trigger="none_failed_min_one_success")(left, right)

    result = run(main.bind(chosen), routes=routes)
    if chosen:
        assert result.value == ["a" if 0 in chosen else None, "b" if 1 in chosen else None]
        assert ran[-1] == "d"
    else:
        assert states(result)["d"] == "skipped"


# ── joins that do not wait for all ────────────────────────────────────────────────────────────────────────────────


def test_pattern_09_structured_discriminator() -> None:
    #   a ────┐
    #         ├─1─▶ go       slow runs out, unheard
    #   slow ─┘
    slow_one = Gate()

    @task.io
    async def slow() -> str:
        await slow_one()
        ran.append("slow")
        return "late"

    @task.io
    async def go(x: Any = None, y: Any = None) -> list[Any]:
        ran.append("go")
        slow_one.open.set()
        return [x, y]

    @workflow
    def main() -> list[Any]:
        return go.options(join=1)(a(), slow())

    result = run(main)
    assert result.value == ["a", None]
    assert ran == ["a", "go", "slow"]
    assert set(states(result).values()) == {"succeeded"}


def test_pattern_29_cancelling_discriminator() -> None:
    #   a ────┐
    #         ├─1─▶ d        slow is cancelled
    #   slow ─┘
    @task.io
    async def slow() -> str:
        await asyncio.Event().wait()
        return "never"

    @workflow
    def main() -> list[Any]:
        return d.options(join=1, cancel_rest=True)(a(), slow())

    result = run(main)
    assert result.value == ["a", None]
    assert states(result) == {"a": "succeeded", "slow": "cancelled", "d": "succeeded"}
    assert result.state == "succeeded"


def test_pattern_30_structured_partial_join() -> None:
    #   a ────┐
    #   b ────┼─2─▶ go       slow runs out
    #   slow ─┘
    slow_one = Gate()

    @task.io
    async def slow() -> str:
        await slow_one()
        return "late"

    @task.io
    async def go(x: Any, y: Any, z: Any) -> list[Any]:
        slow_one.open.set()
        return [x, y, z]

    @workflow
    def main() -> list[Any]:
        return go.options(join=2)(a(), slow(), b())

    result = run(main)
    assert result.value == ["a", None, "b"]
    assert states(result)["slow"] == "succeeded"


def test_pattern_32_cancelling_partial_join() -> None:
    #   a ────┐
    #   b ────┼─2─▶ gather   slow is cancelled
    #   slow ─┘
    @task.io
    async def slow() -> str:
        await asyncio.Event().wait()
        return "never"

    @workflow
    def main() -> list[Any]:
        return gather.options(join=2, cancel_rest=True)(a(), slow(), b())

    result = run(main)
    assert result.value == ["a", None, "b"]
    assert states(result)["slow"] == "cancelled"


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes
def test_pattern_11_implicit_termination(routes: dict[str, str]) -> None:
    #   a ─▶ b
    #   c            nothing says which is the end: the run is over when nothing is left to do
    @workflow
    def main() -> None:
        b(a())
        c()

    result = run(main.bind(), routes=routes)
    assert sorted(ran) == ["a", "b", "c"]
    assert result.state == "succeeded"
    assert result.value is None


def test_pattern_43_explicit_termination() -> None:
    #   a ─▶ b ──┐
    #            ├─1─▶ c      c is the end: what still runs is cancelled, and the run has succeeded
    #   forever ─┘
    @task.io
    async def forever() -> None:
        await asyncio.Event().wait()

    @workflow
    def main() -> str:
        result = b(a())
        return c.options(join=1, cancel_rest=True, after=[result, forever()])("!")

    result = run(main)
    assert (str(result.state), result.value) == ("succeeded", "c!")
    assert states(result)["forever"] == "cancelled"


# ── multiple instances ────────────────────────────────────────────────────────────────────────────────────────────


def test_pattern_12_multiple_instances_without_synchronization() -> None:
    #   upto ─▶ notify[0], notify[1], notify[2]     nobody waits for them
    #     └───▶ go
    slow_one = Gate()

    @task.io
    async def notify(n: int) -> int:
        await slow_one.open.wait()
        return n

    @task.io
    async def go(numbers: list[int]) -> int:
        slow_one.open.set()
        return len(numbers)

    @workflow
    def main() -> int:
        numbers = upto(3)
        notify.map(numbers)
        return go(numbers)

    result = run(main)
    assert result.value == 3
    assert [states(result)[f"notify[{n}]"] for n in range(3)] == ["succeeded"] * 3


@routes
def test_pattern_13_multiple_instances_known_at_design_time(routes: dict[str, str]) -> None:
    #   double, double#2, double#3 ─▶ gather
    @workflow
    def main() -> list[Any]:
        return gather(*[double(n) for n in range(3)])

    assert run(main.bind(), routes=routes).value == [0, 2, 4]


@routes
@pytest.mark.parametrize("count", [0, 1, 5])
def test_pattern_14_multiple_instances_known_at_run_time(routes: dict[str, str], count: int) -> None:
    #   upto ─▶ double[0] … double[n-1] ─▶ echo
    @workflow
    def main(count: int) -> Any:
        return echo(double.map(upto(count)))

    result = run(main.bind(count), routes=routes)
    assert result.value == [n * 2 for n in range(count)]
    assert sum(name.startswith("double[") for name in states(result)) == count


@routes
def test_pattern_15_multiple_instances_added_while_running(routes: dict[str, str]) -> None:
    #   page 1 ─▶ 2, 3 ; 3 ─▶ 4       each page finds the next ones, and becomes their work
    links = {1: [2, 3], 2: [], 3: [4], 4: []}

    @task.io
    async def visit(page: int) -> Any:
        return visit_all.bind(page, links[page])

    @task.io
    async def merge(page: int, found: list[list[int]]) -> list[int]:
        return [page, *(one for pages in found for one in pages)]

    @workflow
    def visit_all(page: int, below: list[int]) -> list[int]:
        return merge(page, visit.map(below))

    @workflow
    def main() -> list[int]:
        return visit(1)

    result = run(main.bind(), routes=routes)
    assert result.value == [1, 2, 3, 4]
    assert states(result)["visit/visit[1]/visit[0]"] == "succeeded"


def test_pattern_34_static_partial_join_for_multiple_instances() -> None:
    #   item[0], item[1], item[2] ─2─▶ go       the third runs out
    slow_one = Gate()

    @task.io
    async def item(n: int) -> int:
        if n == 1:
            await slow_one()
        return n

    @task.io
    async def go(numbers: list[int]) -> list[int]:
        slow_one.open.set()
        return numbers

    @workflow
    def main() -> list[int]:
        return go(item.options(enough=2, cancel_rest=False).map([0, 1, 2]))

    result = run(main)
    assert result.value == [0, 2]
    assert states(result)["item[1]"] == "succeeded"


def test_pattern_35_cancelling_partial_join_for_multiple_instances() -> None:
    #   item[0], item[1], item[2] ─2─▶ echo     the third is cancelled
    @task.io
    async def item(n: int) -> int:
        if n == 1:
            await asyncio.Event().wait()
        return n

    @workflow
    def main() -> Any:
        return echo(item.options(enough=2, cancel_rest=True).map([0, 1, 2]))

    result = run(main)
    assert result.value == [0, 2]
    assert [states(result)[name] for name in ("item[0]", "item[1]", "item[2]", "item")] == [
        "succeeded",
        "cancelled",
        "succeeded",
        "succeeded",
    ]
    assert result.state == "succeeded"


# ── cancelling ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pattern_19_cancel_task() -> None:
    #   stuck ─▶ b       stuck is cancelled; c does not care
    #   c
    stuck_one = Gate()

    @task.io
    async def stuck() -> None:
        await stuck_one()

    @workflow
    def main() -> None:
        b(stuck())
        c()

    async def act(handle: RunHandle[Any]) -> None:
        await stuck_one.begun.wait()
        handle.cancel_tasks("stuck")

    result = await while_running(main, act)
    assert states(result) == {"stuck": "cancelled", "b": "upstream_failed", "c": "succeeded"}


async def test_pattern_20_cancel_case() -> None:
    #   stuck ─▶ b       the whole run is cancelled
    stuck_one = Gate()

    @task.io
    async def stuck() -> None:
        await stuck_one()

    @workflow
    def main() -> None:
        b(stuck())

    async def act(handle: RunHandle[Any]) -> None:
        await stuck_one.begun.wait()
        handle.cancel()

    result = await while_running(main, act)
    assert result.state == "cancelled"
    assert states(result) == {"stuck": "cancelled", "b": "cancelled"}


async def test_pattern_25_cancel_region() -> None:
    #   ┌ part ──────────┐
    #   │ stuck ─▶ b     │      c
    #   │ stuck#2        │
    #   └────────────────┘
    stuck_ones = Gate(), Gate()

    @task.io
    async def stuck(n: int) -> None:
        await stuck_ones[n]()

    @workflow
    def part() -> None:
        b(stuck(0))
        stuck(1)

    @workflow
    def main() -> None:
        part()
        c()

    async def act(handle: RunHandle[Any]) -> None:
        for one in stuck_ones:
            await one.begun.wait()
        handle.cancel_tasks("part/*")

    result = await while_running(main, act)
    ends = states(result)
    assert (ends["part/stuck"], ends["part/stuck#2"], ends["c"]) == ("cancelled", "cancelled", "succeeded")
    assert ends["part/b"] in {"cancelled", "upstream_failed"}


async def test_pattern_26_cancel_multiple_instance_activity() -> None:
    #   item[0], item[1], item[2] ─▶ b       all elements are cancelled, those that have not begun included
    begun = Gate()

    @task.io
    async def item(n: int) -> int:
        await begun()
        return n

    @workflow
    def main() -> None:
        b(item.options(in_flight=2).map([0, 1, 2]))
        c()

    async def act(handle: RunHandle[Any]) -> None:
        await begun.begun.wait()
        handle.cancel_tasks("item")

    result = await while_running(main, act)
    ends = states(result)
    assert {state for name, state in ends.items() if name.startswith("item")} == {"cancelled"}
    assert (ends["b"], ends["c"]) == ("upstream_failed", "succeeded")


async def test_pattern_27_complete_multiple_instance_activity() -> None:
    #   item[0], item[1], item[2] ─▶ echo    item[1] takes too long: echo goes on with the others
    stuck_one = Gate()

    @task.io
    async def item(n: int) -> int:
        if n == 1:
            await stuck_one()
        return n

    @workflow
    def main() -> Any:
        return echo.options(trigger="all_done")(item.map([0, 1, 2]))

    async def act(handle: RunHandle[Any]) -> None:
        await stuck_one.begun.wait()
        ended = 0
        async for event in handle.events():
            ended += event["event"] == "task.transition" and event["to"] == "succeeded"
            if ended == 2:
                break
        handle.cancel_tasks("item[1]")

    result = await while_running(main, act)
    assert states(result)["item[1]"] == "cancelled"
    assert (str(result.state), result.value) == ("succeeded", [0, 2])


# ── iteration ─────────────────────────────────────────────────────────────────────────────────────────────────────


@routes
def test_pattern_21_structured_loop(routes: dict[str, str]) -> None:
    #   ┌─▶ double ─▶ large? ─┐
    #   └──────── no ◀────────┘
    @task.io
    async def large(n: int) -> bool:
        return n > 100

    @workflow
    def main() -> int:
        return double.repeat_until(large, 3, limit=10)

    assert run(main.bind(), routes=routes).value == 192


@routes
def test_pattern_22_recursion(routes: dict[str, str]) -> None:
    #   factorial(4) ─▶ factorial(3) ─▶ … ─▶ factorial(0)
    @task.io
    async def factorial(n: int) -> Any:
        return 1 if n == 0 else below.bind(n)

    @task.io
    async def times(n: int, m: int) -> int:
        return n * m

    @task.io
    async def less(n: int) -> int:
        return n - 1

    @workflow
    def below(n: int) -> int:
        return times(n, factorial(less(n)))

    @workflow
    def main() -> int:
        return factorial(4)

    result = run(main.bind(), routes=routes)
    assert result.value == 24
    assert states(result)["factorial/factorial/factorial/factorial/factorial"] == "succeeded"


# ── one at a time ─────────────────────────────────────────────────────────────────────────────────────────────────


def inside_alone() -> tuple[Callable[[], Any], list[int]]:
    """What to await in a section, and how many were in it at each entry."""
    inside: list[str] = []
    seen: list[int] = []

    async def section() -> None:
        inside.append("in")
        seen.append(len(inside))
        for _ in range(5):
            await asyncio.sleep(0)
        inside.pop()

    return section, seen


def test_pattern_39_critical_section() -> None:
    #   a ─▶ write ─┐
    #               ├─▶ gather      write and wipe never at the same time
    #   b ─▶ wipe  ─┘
    section, seen = inside_alone()
    ledger = Limit("ledger", 1)

    @task.io(limits=[ledger])
    async def write(x: str) -> str:
        await section()
        return f"wrote {x}"

    @task.io(limits=[ledger])
    async def wipe(x: str) -> str:
        await section()
        return f"wiped {x}"

    @workflow
    def main() -> list[Any]:
        return gather(write(a()), wipe(b()), write.map([1, 2, 3]))

    assert run(main).value == ["wrote a", "wiped b", ["wrote 1", "wrote 2", "wrote 3"]]
    assert seen == [1] * 5


def test_pattern_40_interleaved_routing() -> None:
    #   step[0] … step[5]     in any order, one at a time
    section, seen = inside_alone()

    @task.io(limits={"patient": 1})
    async def step(n: int) -> int:
        await section()
        return n

    @workflow
    def main() -> Any:
        return step.map(range(6))

    assert run(main.bind(), limits=[Limit("patient", 1)]).value == [0, 1, 2, 3, 4, 5]
    assert seen == [1] * 6


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────

PAGE = Path(__file__).parents[2] / "docs" / "patterns.md"
PREAMBLE, *BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
TITLES = re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
PATTERNS = {*range(1, 8), 9, *range(11, 16), 17, *range(19, 23), 25, 26, 27, 29, 30, 32, 34, 35, 39, 40, 43}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the blocks above have defined: a page is read from its beginning."""
    found: dict[str, Any] = {"__name__": "patterns"}
    exec(compile(PREAMBLE, "patterns.md", "exec"), found)
    for block in BLOCKS:
        *definitions, _ = ast.parse(block).body
        exec(
            compile(ast.Module(definitions[:-1] if is_run(definitions) else definitions, []), "patterns.md", "exec"),
            found,
        )
    return found


def is_run(statements: list[ast.stmt]) -> bool:
    return isinstance(statements[-1], ast.Assign) and ast.unparse(statements[-1]).startswith("result = run(")


@pytest.mark.parametrize("block", BLOCKS, ids=TITLES)
def test_the_page_shows_what_happens(names: dict[str, Any], block: str) -> None:
    lines, _, expected = block.rstrip().rpartition("  # ")
    *before, shown = ast.parse(lines).body
    assert isinstance(shown, ast.Expr)
    if is_run(before):
        exec(compile(ast.Module(before[-1:], []), "patterns.md", "exec"), names)
    assert eval(compile(ast.Expression(shown.value), "patterns.md", "eval"), names) == ast.literal_eval(expected)


def test_the_page_tells_of_all_43() -> None:
    text = PAGE.read_text(encoding="utf-8")
    here = {int(number) for title in TITLES for number in re.findall(r"\d+", title)}
    rows = re.findall(r"^\| ([\d, ]+) \w", text, re.MULTILINE)
    elsewhere = {int(number) for row in rows for number in re.findall(r"\d+", row)}
    assert here == PATTERNS
    assert here | elsewhere == set(range(1, 44))
    assert not here & elsewhere
    mine = Path(__file__).read_text(encoding="utf-8")
    tried = {int(number) for number in re.findall(r"def test_pattern_(\d\d)_", mine)}
    assert tried == PATTERNS - {17}  # 17 is 40 with edges
