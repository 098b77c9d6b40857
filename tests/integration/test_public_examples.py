"""Well-known examples of other engines, written anew from what they do: the same shape, and the same outcome."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import RunFailed, Workflow, otherwise, run, task, teardown, when, workflow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane import RunResult

routes = pytest.mark.parametrize("routes", [{}, {"*": "inline"}], ids=["asyncio", "inline"])

ran: list[str] = []


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    ran.clear()
    yield ran
    ran.clear()


def states(result: RunResult[Any]) -> dict[str, str]:
    return {name: str(end.state) for name, end in result.tasks.items()}


@task.io
async def note(name: str) -> str:
    ran.append(name)
    return name


@task.io
async def decide(name: str, yes: bool) -> bool:
    ran.append(name)
    return yes


# ── Airflow ───────────────────────────────────────────────────────────────────────────────────────────────────────


@routes
def test_airflow_nested_branch(routes: dict[str, str]) -> None:
    #              ┌─yes─▶ true_1 ───────────────────────────────────────────────┐
    #   branch_1 ──┤                          ┌─yes─▶ true_2 ──┐                 ├─▶ join_1
    #              └─no──▶ false_1 ─▶ branch_2┤                ├─▶ join_2 ─▶ false_3
    #                                         └─no──▶ false_2 ─┘
    joins = {"trigger": "none_failed_min_one_success"}

    @workflow
    def nested() -> None:
        def mark(name: str, *above: Any, **options: Any) -> Any:
            return note.options(name=name, after=above, **options)(name)

        with when(decide.options(name="branch_1")("branch_1", True)) as outer:
            true_1 = mark("true_1")
        with otherwise(outer):
            false_1 = mark("false_1")
            with when(decide.options(name="branch_2", after=[false_1])("branch_2", True)) as inner:
                true_2 = mark("true_2")
            with otherwise(inner):
                false_2 = mark("false_2")
            join_2 = mark("join_2", true_2, false_2, **joins)
            false_3 = mark("false_3", join_2)
        mark("join_1", true_1, false_3, **joins)

    result = run(nested.bind(), routes=routes)
    assert ran == ["branch_1", "true_1", "join_1"]
    assert states(result) == {
        **dict.fromkeys(["branch_1", "true_1", "join_1"], "succeeded"),
        **dict.fromkeys(["false_1", "branch_2", "true_2", "false_2", "join_2", "false_3"], "skipped"),
    }
    assert result.state == "succeeded"


@task.io
async def add_one(x: int) -> int:
    return x + 1


@task.io
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@routes
def test_airflow_dynamic_task_mapping(routes: dict[str, str]) -> None:
    #   add_one[0], add_one[1], add_one[2] ─▶ total
    @workflow
    def mapping() -> int:
        return total(add_one.map([1, 2, 3]))

    result = run(mapping.bind(), routes=routes)
    assert result.value == 9
    assert set(states(result)) == {"add_one", "add_one[0]", "add_one[1]", "add_one[2]", "total"}


@routes
def test_airflow_a_map_of_a_map(routes: dict[str, str]) -> None:
    #   numbers ─▶ twice[i] ─▶ add_ten[i]
    @task.io
    async def numbers() -> list[int]:
        return [1, 2, 3]

    @task.io
    async def twice(x: int) -> int:
        return x * 2

    @task.io
    async def add_ten(x: int) -> int:
        return x + 10

    @workflow
    def mapping() -> list[int]:
        return add_ten.map(twice.map(numbers()))

    assert run(mapping.bind(), routes=routes).value == [12, 14, 16]


@routes
@pytest.mark.parametrize("fails", [None, "root_setup", "inner_setup", "inner_normal", "root_normal"])
def test_airflow_setup_and_teardown(routes: dict[str, str], fails: str | None) -> None:
    #   root_setup ─▶ root_normal ─────────────────────────────────────┐
    #        └──────▶ [ inner_setup ─▶ inner_normal ─▶ inner_teardown ]┴▶ root_teardown
    @task.io
    async def act(name: str, *above: str) -> str:
        ran.append(name)
        if name == fails:
            raise RuntimeError(name)
        return name

    def mark(name: str, *above: Any) -> Any:
        return act.options(name=name)(name, *above)

    @workflow
    def nested() -> None:
        root = mark("root_setup")
        with teardown(act.options(name="root_teardown").bind("root_teardown", root)):
            mark("root_normal", root)
            inner = mark("inner_setup", root)
            with teardown(act.options(name="inner_teardown").bind("inner_teardown", inner)):
                mark("inner_normal", inner)

    result = run(nested.bind(), routes=routes, check=False)
    ends = states(result)
    assert result.state == ("failed" if fails else "succeeded")
    below = {
        None: [],
        "root_setup": ["root_normal", "inner_setup", "inner_normal", "inner_teardown", "root_teardown"],
        "inner_setup": ["inner_normal", "inner_teardown"],
        "inner_normal": [],
        "root_normal": [],
    }[fails]
    assert {name for name, state in ends.items() if state == "upstream_failed"} == set(below)
    assert {name for name, state in ends.items() if state == "failed"} == ({fails} if fails else set())
    if "inner_teardown" in ran:
        assert ran.index("inner_normal") < ran.index("inner_teardown")
    if fails != "root_setup":
        assert ran[-1] == "root_teardown"


def test_airflow_complex() -> None:
    #   creates: group ─▶ entry ─▶ template ─▶ field ─▶ tag ; drops: tag ─▶ field ─▶ template ─▶ group ─▶ entry
    #   a search between the two chains, reads and changes across, and results that nothing waits for
    edges: set[tuple[str, str]] = set()

    def chain(*names: str) -> None:
        edges.update(pairwise(names))

    things = ["group", "entry", "template", "field", "tag"]
    chain(*(f"create_{thing}" for thing in things))
    chain("drop_tag", "drop_field", "drop_template", "drop_group", "drop_entry")
    for thing in things:
        chain(f"create_{thing}", f"drop_{'field' if thing == 'template' else thing}")
        chain(f"create_{thing}", f"created_{thing}")
        chain(f"create_{thing}", f"created_{thing}_too")
        chain(f"create_{thing}", "search", f"drop_{thing}")
    chain("search", "searched")
    for verb, thing in [("get", "template"), ("get", "entry"), ("get", "group"), ("list", "tag"), ("look_up", "entry")]:
        chain(f"create_{thing}", f"{verb}_{thing}", f"drop_{thing}")
        chain(f"{verb}_{thing}", f"{verb}_{thing}_result")
    for thing in ("entry", "tag", "template"):
        chain(f"create_{thing}", f"update_{thing}", f"drop_{thing}")
    chain("create_field", "rename_field", "drop_field")
    chain("create_field", "update_field", "rename_field")

    names = list(dict.fromkeys(name for edge in sorted(edges) for name in edge))
    wf = Workflow("complex")
    for name in names:
        wf.add(note.bind(name), name=name)
    for above, below in edges:
        wf.order(above, below)
    assert (len(wf.graph.nodes), len(wf.graph.edges)) == (37, 59)

    result = run(wf)
    assert set(states(result).values()) == {"succeeded"}
    place = {name: number for number, name in enumerate(ran)}
    assert len(place) == len(ran) == 37
    assert all(place[above] < place[below] for above, below in edges)
    assert ran[0] == "create_group"
    assert place["drop_entry"] > place["search"] > place["create_tag"]


# ── Luigi ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes
@pytest.mark.parametrize("count", [7, 16, 25])
def test_luigi_dynamic_requirements(routes: dict[str, str], count: int) -> None:
    #   configure ─▶ dynamic ─▶ dynamic/data[0] … dynamic/data[count-1] ─▶ dynamic/merge
    #
    # What `configure` finds says how many there are, and what they find says which come after them.
    @task.io
    async def configure(seed: int) -> list[int]:
        return Random(seed).sample(range(100), count)

    @task.io
    async def data(number: int) -> int:
        return number * 2

    @task.io
    async def dynamic(numbers: list[int]) -> Any:
        return fetch_all.bind(numbers)

    @task.io
    async def more(found: list[int]) -> Any:
        return fetch_again.bind([number for number in found if number > 100])

    @workflow
    def fetch_again(numbers: list[int]) -> list[int]:
        return data.map(numbers)

    @workflow
    def fetch_all(numbers: list[int]) -> list[int]:
        return more(data.map(numbers))

    @workflow
    def requirements(seed: int) -> list[int]:
        return dynamic(configure(seed))

    result = run(requirements.bind(4), routes=routes)
    numbers = Random(4).sample(range(100), count)
    again = [number * 2 for number in numbers if number > 50]
    assert result.value == [number * 2 for number in again]
    names = set(states(result))
    assert {f"dynamic/data[{index}]" for index in range(count)} <= names
    assert {f"dynamic/more/data[{index}]" for index in range(len(again))} <= names
    assert f"dynamic/data[{count}]" not in names
    assert set(states(result).values()) == {"succeeded"}


@routes
def test_luigi_top_artists(routes: dict[str, str]) -> None:
    #   streams[day] ─▶ count[day] ─▶ aggregate ─▶ top_10 ─▶ table
    def played(day: int) -> list[str]:
        return Random(day).choices([f"artist {number}" for number in range(30)], k=1_000)

    @task.io
    async def streams(day: int) -> list[str]:
        return played(day)

    @task.io
    def count(artists: list[str]) -> Counter[str]:
        return Counter(artists)

    @task.io
    def aggregate(days: list[Counter[str]]) -> Counter[str]:
        return sum(days, Counter())

    @task.io
    def top_10(plays: Counter[str]) -> list[tuple[str, int]]:
        return plays.most_common(10)

    @task.io
    def table(rows: list[tuple[str, int]]) -> dict[int, tuple[str, int]]:
        return dict(enumerate(rows, 1))

    @workflow
    def top_artists(days: int) -> dict[int, tuple[str, int]]:
        plays = aggregate.reduce(count.map(streams.map(range(days))), fan_in=8)
        return table(top_10(plays))

    result = run(top_artists.bind(31), routes=routes)
    expected = Counter(artist for day in range(31) for artist in played(day))
    assert result.value == dict(enumerate(expected.most_common(10), 1))


# ── Prefect ───────────────────────────────────────────────────────────────────────────────────────────────────────


@routes
def test_prefect_retries_with_nested_workflows(routes: dict[str, str]) -> None:
    #   parent (3 attempts) ─▶ [ before ─▶ child ─▶ after ]     the child's second task fails twice
    bodies: list[str] = []
    weather = iter([OSError("no answer"), OSError("no answer"), "fine"])

    @task.io
    async def flaky(x: str) -> str:
        answer = next(weather)
        if isinstance(answer, OSError):
            raise answer
        return f"{x}, {answer}"

    @workflow
    def child(x: str) -> str:
        bodies.append("child")
        return flaky(x)

    @workflow
    def parent(place: str) -> str:
        bodies.append("parent")
        return note(child(note(place)))

    @workflow
    def main() -> str:
        return parent.options(retries=2)("here")

    result = run(main.bind(), routes=routes)
    assert result.value == "here, fine"
    assert bodies == ["parent", "child"] * 3
    assert result.tasks["parent"].attempts == 3
    assert states(result)["parent/child/flaky"] == "succeeded"
    assert result.state == "succeeded"


@routes
def test_prefect_retries_that_run_out(routes: dict[str, str]) -> None:
    #   parent (3 attempts) ─▶ [ fail ]
    attempts: list[str] = []

    @task.io
    async def fail(x: str) -> str:
        attempts.append(x)
        raise OSError("no answer")

    @workflow
    def parent(place: str) -> str:
        return fail(place)

    @workflow
    def main() -> str:
        return parent.options(retries=2)("here")

    with pytest.raises(RunFailed, match="no answer"):
        run(main.bind(), routes=routes)
    assert attempts == ["here"] * 3
