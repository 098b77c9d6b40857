"""Runs that go on where a process stopped, in the middle of what comes into being: maps, trees, workflows, returned work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import (
    Call,
    Engine,
    Skip,
    UnknownName,
    WorkflowChanged,
    current_task,
    product,
    task,
    teardown,
    when,
    workflow,
)
from flowlane.census import Census
from flowlane.core.states import STATES
from flowlane.description import Description
from flowlane_plugins.stores.memory import MemoryStore
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane.declare.workflow import Bound
    from flowlane.storage.port import Store


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DYNAMIC_RESUME", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "flow" / "flow.db")
    yield made
    made.close()


def note(name: str) -> None:
    folder = Path(os.environ["DYNAMIC_RESUME"])
    with (folder / "began").open("a") as file:
        file.write(f"{name}\n")
    with (folder / "tasks").open("a") as file:
        file.write(f"{current_task().task}\n")
    if (folder / f"kill-{name}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / f"bad-{name}").exists():
        raise ValueError(f"{name} is bad")


def began(folder: Path) -> Counter[str]:
    """What began since this was asked last."""
    file = folder / "began"
    if not file.exists():
        return Counter()
    found = Counter(file.read_text().split())
    file.unlink()
    return found


def spoil(folder: Path, *names: str) -> None:
    """These tasks fail from now on, and no others."""
    for file in folder.glob("bad-*"):
        file.unlink()
    for name in names:
        (folder / f"bad-{name}").touch()


def once_each(*names: str) -> dict[str, int]:
    return dict.fromkeys(names, 1)


async def go(engine: Engine, definition: Any, **how: Any) -> Any:
    return await engine.resume("last", definition, **how).wait()


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def count(n: int) -> list[int]:
    note("count")
    file = Path(os.environ["DYNAMIC_RESUME"]) / "items"
    return [int(word) for word in file.read_text().split()] if file.exists() else list(range(n))


@task.io
async def fetch(x: int) -> int:
    note(f"fetch-{x}")
    return x * 2


@task.io
async def parse(x: int) -> int:
    note(f"parse-{x}")
    return x + 1


@task.io
async def add(values: list[int]) -> int:
    note(f"add-{'+'.join(map(str, values))}")
    return sum(values)


@task.io
async def last(value: Any) -> Any:
    note("last")
    return value


@task.io
async def odd(x: int) -> bool:
    note(f"odd-{x}")
    return x % 2 == 1


@task.io
async def even_only(x: int) -> int:
    note(f"even-{x}")
    if x % 2:
        raise Skip("odd")
    return x


@workflow
def chained(n: int = 4) -> Any:
    return last(parse.map(fetch.map(count(n))))


async def test_only_elements_that_failed_run_again(store: Store, here: Path) -> None:
    """
    count ─▶ fetch[0..3] ─▶ parse[0..3] ─▶ last
                  2 ✗            2 -         -
    """
    async with Engine(store=store) as engine:
        spoil(here, "fetch-2")
        assert (await engine.start(chained).wait()).state == "failed"
        began(here)
        spoil(here)
        result = await go(engine, chained)
        assert result.value == [1, 3, 5, 7]
        assert began(here) == once_each("fetch-2", "parse-4", "last")
        assert result.tasks["fetch[2]"].attempts == 1
        assert result.tasks["fetch[1]"].attempts == 0  # it was restored
        again = await go(engine, chained)
        assert (again.value, began(here)) == ([1, 3, 5, 7], {})


async def test_what_is_recalled_has_rows_of_its_own_that_lead_to_the_result(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "parse-4")
        await engine.start(chained).wait()
        spoil(here, "last")
        await go(engine, chained)
        run = store.find("last")
        census = Census(Description.read(store.session(run.id).graph), store.blocks(run.id))
        rows = {census.name(row.element): row for row in store.attempts(run.id) if row.attempt}
    assert {name for name, row in rows.items() if row.adopted and STATES[row.state] == "succeeded"} >= {
        "count", "fetch[0]", "fetch[2]", "parse[0]", "parse[3]"
    }  # fmt: skip
    assert rows["fetch[0]"].result is not None and rows["fetch[0]"].result[1] == 1
    assert (rows["parse[2]"].adopted, STATES[rows["last"].state]) == (False, "failed")
    assert set(map(census.find, rows)) == {row.element for row in rows.values()}


@workflow
def tree(n: int = 9) -> int:
    return add.reduce(fetch.map(list(range(n))), fan_in=3)


async def test_merges_that_were_made_are_not_made_again(store: Store, here: Path) -> None:
    """
    0 1 2   3 4 5   6 7 8
      6      24 ✗    42
            72
    """
    async with Engine(store=store) as engine:
        spoil(here, "add-6+8+10")
        await engine.start(tree).wait()
        began(here)
        spoil(here)
        assert (await go(engine, tree)).value == 72
    assert began(here) == once_each("add-6+8+10", "add-6+24+42")


@workflow
def keyed(first: int = 1) -> Any:
    return last(fetch.map({"eu": first, "us": 2}))


async def test_elements_with_keys_are_known_by_them(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "fetch-2")
        await engine.start(keyed).wait()
        began(here)
        spoil(here)
        assert (await go(engine, keyed)).value == {"eu": 2, "us": 4}
        assert began(here) == once_each("fetch-2", "last")
        assert (await go(engine, keyed, restart=["fetch[eu]"])).value == {"eu": 2, "us": 4}
        assert began(here) == once_each("fetch-1", "last")
        with pytest.raises(UnknownName, match=r"there is no task 'fetch\[asia\]'"):
            engine.resume("last", keyed, restart=["fetch[asia]"])
        with pytest.raises(UnknownName, match="one by one, not by patterns") as refused:
            engine.resume("last", keyed, restart=["fetch[*]"])
        assert "--all" in str(refused.value.hint)


@workflow
def of_several(n: int = 2) -> Any:
    first = fetch(n)
    maps = [parse.map([first, 7, first]), parse.map({"a": first}), last.starmap([(first,)])]
    return last([*maps, add.reduce([first, 8], fan_in=2), parse(9)])


async def test_a_list_that_holds_what_was_kept_is_gone_over_by_its_values(store: Store, here: Path) -> None:
    """fetch ─▶ [fetch, 7, fetch] ─▶ parse.map, ...   nothing of the maps had begun"""
    async with Engine(store=store) as engine:
        spoil(here, "parse-4", "parse-7", "last", "add-4+8", "parse-9")
        await engine.start(of_several).wait()
        began(here)
        spoil(here)
        assert (await go(engine, of_several)).value == [[5, 8, 5], {"a": 5}, [4], 12, 10]
    assert "fetch-2" not in began(here)


@task.io
async def twin(x: int) -> tuple[int, int]:
    note(f"twin-{x}")
    return x, x


@task.io
def plus(x: int, y: int) -> int:
    note(f"plus-{x}-{y}")
    return x + y


@task.io
async def total_of(values: list[int]) -> int:
    note(f"total-{values[0]}")
    return sum(values)


@pytest.mark.parametrize(
    ("over", "bad", "value"),
    [
        (lambda: parse.map([fetch(1), fetch(2)]), "parse-4", [3, 5]),
        (lambda: plus.starmap([(fetch(1), 5), (fetch(2), 6)]), "plus-4-6", [7, 10]),
        (lambda: plus.starmap([twin(1), twin(2)]), "plus-2-2", [2, 4]),
        (lambda: plus.starmap(product([fetch(1), 7], [fetch(2)])), "plus-7-4", [6, 11]),
        (lambda: plus.options(batch=2).starmap([(fetch(1), 5), twin(3)]), "plus-3-3", [7, 6]),
        (lambda: total_of.reduce([fetch(1), fetch(2), fetch(3)], fan_in=2), "total-6", 12),
    ],
)
async def test_items_that_are_results_of_others_are_those_that_were_stored(
    store: Store, here: Path, over: Any, bad: str, value: Any
) -> None:
    @workflow
    def mixed() -> Any:
        return over()

    spoil(here, bad)
    async with Engine(store=store) as engine:
        assert (await engine.start(mixed).wait()).state == "failed"
        began(here)
        spoil(here)
        result = await go(engine, mixed)
    assert result.value == value
    assert not [name for name in began(here) if name.startswith(("fetch", "twin"))]


async def test_a_map_that_goes_over_something_else_begins_anew(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "fetch-2")
        await engine.start(keyed).wait()
        began(here)
        spoil(here)
        with pytest.raises(WorkflowChanged, match="called with other arguments: fetch"):
            engine.resume("last", keyed.bind(7))
        assert (await go(engine, keyed.bind(7), accept_changes=True)).value == {"eu": 14, "us": 4}
    assert began(here) == once_each("fetch-7", "fetch-2", "last")


async def test_a_source_that_is_made_again_makes_its_map_begin_anew(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "fetch-2")
        await engine.start(chained).wait()
        began(here)
        spoil(here)
        (here / "items").write_text("2 1 0 5")
        assert (await go(engine, chained, restart=["count"])).value == [5, 3, 1, 11]
    assert began(here) == once_each(
        "count", *[f"fetch-{x}" for x in (2, 1, 0, 5)], *[f"parse-{x}" for x in (4, 2, 0, 10)], "last"
    )


@task.io(persist=False)
async def unstored(n: int) -> list[int]:
    note("unstored")
    return list(range(n))


@workflow
def over_unstored() -> Any:
    return last(fetch.map(unstored(3)))


async def test_a_source_that_was_not_stored_counts_as_another(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "fetch-1")
        await engine.start(over_unstored).wait()
        began(here)
        spoil(here)
        assert (await go(engine, over_unstored)).value == [0, 2, 4]
    assert began(here) == once_each("unstored", "fetch-0", "fetch-1", "fetch-2", "last")


async def test_a_part_of_a_chain_runs_again_with_what_takes_from_it(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        await engine.start(chained)
        began(here)
        assert (await go(engine, chained, restart=["fetch[1]"])).value == [1, 3, 5, 7]
    assert began(here) == once_each("fetch-1", "parse-2", "last")


# ── skips and conditions ──────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def is_big(x: int) -> bool:
    note("is_big")
    return x > 5


@workflow
def deciding(x: int = 9) -> Any:
    with when(is_big(x)):
        a = fetch(x)
    kept = even_only.map(list(range(4)))
    alone = even_only.options(name="alone")(7)
    return last.options(trigger="none_failed")([a, odd.filter(list(range(4))), kept, alone])


async def test_skipped_stays_skipped_and_chosen_stays_chosen(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "fetch-9")
        await engine.start(deciding).wait()
        began(here)
        spoil(here)
        result = await go(engine, deciding)
    assert result.value == [18, [1, 3], [0, 2], None]
    assert began(here) == once_each("fetch-9", "last")
    assert str(result.tasks["alone"].state) == "skipped"
    assert str(result.tasks["even_only[1]"].state) == "skipped"


# ── workflows, and work that is returned ──────────────────────────────────────────────────────────────────────────


@workflow
def inner(x: int) -> int:
    return add([parse(fetch(x)), fetch(x + 1)])


@workflow
def nested() -> Any:
    return last(inner.map([10, 20, 30]))


async def test_workflows_by_element_go_on_inside(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "parse-40")
        await engine.start(nested).wait()
        began(here)
        spoil(here)
        result = await go(engine, nested)
        assert result.value == [21 + 22, 41 + 42, 61 + 62]
        assert began(here) == once_each("parse-40", "add-41+42", "last")
        assert (await go(engine, nested, restart=["inner[0]/fetch"])).value == result.value
        assert began(here) == once_each("fetch-10", "parse-20", "add-21+22", "last")


@workflow
def nothing_to_do(x: int) -> Any:
    return x


@workflow
def some_empty() -> Any:
    return last(inner.map(nothing_to_do.map([10, 20])))


async def test_workflows_without_tasks_leave_those_that_follow_as_they_are(store: Store, here: Path) -> None:
    """
    nothing_to_do[0] (became nothing) ─▶ inner[0] (became fetch, parse, add)
    nothing_to_do[1] (became nothing) ─▶ inner[1] (became fetch, parse, add)
    """
    async with Engine(store=store) as engine:
        spoil(here, "parse-40")
        first = await engine.start(some_empty).wait()
        session = store.session(first.id)
        census = Census(Description.read(session.graph), store.blocks(first.id))
        assert [census.name(each) for each in range(census.size)] == list(first.tasks)
        assert {str(state): number for state, number in first.counts.items()} == store.find("last").counts
        began(here)
        spoil(here)
        assert (await go(engine, some_empty)).value == [21 + 22, 41 + 42]
        assert began(here) == once_each("parse-40", "add-41+42", "last")


@task.io
async def more(x: int) -> int | Call[int] | Bound[int]:
    note(f"more-{x}")
    return more.bind(x + 1) if x < 2 else inner.bind(x)


@workflow
def growing() -> Any:
    return last([more(0), more.options(name="other")(1)])


async def test_what_returned_more_work_need_not_say_it_again(store: Store, here: Path) -> None:
    """more ─▶ more/more ─▶ more/more/more ─▶ inner: fetch ─▶ parse ─▶ add"""
    async with Engine(store=store) as engine:
        spoil(here, "parse-4")
        await engine.start(growing).wait()
        assert began(here)["parse-4"] == 2
        spoil(here, "last")
        await go(engine, growing)
        assert began(here) == {"parse-4": 2, "add-5+6": 2, "last": 1}
        spoil(here)
        assert (await go(engine, growing)).value == [11, 11]
        assert began(here) == {"last": 1}


@pytest.mark.parametrize("begun", [False, True], ids=["before it has begun", "when it has just begun"])
async def test_a_run_that_is_drained_as_it_goes_on_forgets_no_work(store: Store, here: Path, begun: bool) -> None:
    """more ─▶ more/more ─▶ more/more/more ─▶ inner: fetch ─▶ parse ✗ ─▶ add"""
    async with Engine(store=store) as engine:
        spoil(here, "parse-4")
        await engine.start(growing).wait()
        began(here)
        spoil(here)
        if begun:  # its executors are open; what its tasks had returned becomes tasks in the next turns of the loop
            handle = engine.resume("last", growing)
            handle.drain()
            assert (await handle.wait()).state == "interrupted"
    async with Engine(store=store) as engine:
        if not begun:
            handle = engine.resume("last", growing)
            handle.drain()
            assert (await handle.wait()).state == "interrupted"
        assert began(here) == {}
        assert (await go(engine, growing)).value == [11, 11]
        assert began(here) == {"parse-4": 2, "add-5+6": 2, "last": 1}


@task.io
async def these(n: int) -> list[int]:
    return list(range(n))


@task.io
async def either(x: int, _: int) -> int:
    note(f"either-{x}")
    return x


@workflow
def one_by_one(n: int) -> Any:
    return either.options(in_flight=1).starmap(product(these(n), [0]))


async def test_as_many_elements_as_there_are_may_be_recalled_one_by_one(here: Path) -> None:
    """More than Python's stack is deep: each of them asks for the next item."""
    async with Engine(store=MemoryStore()) as engine:
        spoil(here, "either-999")
        await engine.start(one_by_one, 1000).wait()
        began(here)
        spoil(here)
        assert (await go(engine, one_by_one)).value == list(range(1000))
        assert began(here) == {"either-999": 1}


@task.io
async def holds_a_lock(x: int) -> int | Call[int]:
    import threading

    note("holds")
    return locked.bind(threading.Lock(), x)


@task.io
async def locked(lock: Any, x: int) -> int:
    note("locked")
    return x


@workflow
def unstorable() -> Any:
    return last(holds_a_lock(5))


async def test_work_that_cannot_be_stored_is_returned_again(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "locked")
        await engine.start(unstorable).wait()
        began(here)
        spoil(here)
        assert (await go(engine, unstorable)).value == 5
    assert began(here) == once_each("holds", "locked", "last")


# ── once, cached, tidied up ───────────────────────────────────────────────────────────────────────────────────────


@task.io(at_most_once=True)
async def charge(x: int) -> int:
    note(f"charge-{x}")
    return x


@workflow
def charging() -> Any:
    return last(charge.map([0, 1, 2]))


async def test_an_element_that_must_not_run_twice_is_unknown(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "charge-1")
        await engine.start(charging).wait()
        began(here)
        spoil(here)
        result = await go(engine, charging)
        assert (result.state, began(here)) == ("failed", {})
        assert str(result.tasks["charge[1]"].state) == "unknown"
        assert "--rerun charge[1]" in str(result.tasks["charge[1]"].failure.notes)
        assert (await go(engine, charging, rerun=["charge[1]"])).value == [0, 1, 2]
    assert began(here) == once_each("charge-1", "last")


@task.io(cache=True)
async def costly(x: int) -> int:
    note(f"costly-{x}")
    return x * 3


@workflow
def caching(n: int) -> Any:
    return costly.map(list(range(n)))


async def test_each_element_is_looked_up_in_the_cache(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        assert (await engine.start(caching, 3)).value == [0, 3, 6]
        result = await engine.start(caching, 5)
    assert result.value == [0, 3, 6, 9, 12]
    assert began(here) == once_each(*[f"costly-{x}" for x in range(5)])
    assert str(result.tasks["costly[1]"].state) == "cached"


@task.io(cache=True)
async def is_odd(x: int) -> bool:
    note(f"is-odd-{x}")
    return x % 2 == 1


@workflow
def called(n: int) -> Any:
    return [is_odd(x) for x in range(n)]


@workflow
def filtered(n: int) -> Any:
    return is_odd.filter(list(range(n)))


@pytest.mark.parametrize("first", ["called", "filtered"])
async def test_what_a_filter_lets_pass_is_not_what_its_task_returned(store: Store, here: Path, first: str) -> None:
    """Both are in the cache, and neither is taken for the other."""
    async with Engine(store=store) as engine:
        for definition in [called, filtered, called, filtered][first == "filtered" :]:
            value = [False, True, False, True] if definition is called else [1, 3]
            assert (await engine.start(definition, 4)).value == value
    assert began(here)["is-odd-1"] == 2


@task.io
async def start() -> str:
    note("start")
    return "db"


@task.io
async def stop(db: str) -> None:
    note("stop")


@task.io
async def load(x: int, db: str) -> int:
    note(f"load-{x}")
    return x


@workflow
def tidying() -> Any:
    db = start()
    with teardown(stop.bind(db)):
        loaded = load.map([0, 1, 2], db)
    return last(loaded)


async def test_what_was_tidied_up_is_set_up_again_where_work_is_left(store: Store, here: Path) -> None:
    async with Engine(store=store) as engine:
        spoil(here, "load-1")
        await engine.start(tidying).wait()
        assert began(here) == once_each("start", "stop", "load-0", "load-1", "load-2")
        spoil(here, "last")
        await go(engine, tidying)
        assert began(here) == once_each("start", "stop", "load-1", "last")
        spoil(here)
        assert (await go(engine, tidying)).value == [0, 1, 2]
        assert began(here) == once_each("last")


# ── killed ────────────────────────────────────────────────────────────────────────────────────────────────────────


@workflow
def everything() -> Any:
    """A chain with a tree on it, workflows by element, and returned work."""
    chain = parse.map(fetch.map(count(6)))
    total = add.reduce(chain, fan_in=2)
    return last([total, inner.map([100, 200]), more(1)])


def committed(path: Path) -> set[str]:
    """Names of tasks that a killed process left as succeeded, whatever their session."""
    store = SqliteStore(path)
    store.open()
    run = store.find("last")
    found: set[str] = set()
    for number in range(1, run.session + 1):
        census = Census(Description.read(store.session(run.id, number).graph), store.blocks(run.id, number))
        for row in store.attempts(run.id, number):
            if STATES[row.state] == "succeeded":
                found.add(census.name(row.element))
    store.close()
    return found


def lived(verb: str, path: Path, definition: str) -> int:
    """A process that starts or resumes a workflow of this file; its exit code."""
    argv = [sys.executable, __file__, verb, str(path), definition]
    return subprocess.run(argv, timeout=60, check=False, capture_output=True).returncode


DEATHS = {
    "in the middle of a map": "fetch-3",
    "in the middle of a chain": "parse-6",
    "in a tree": "add-4+12",
    "in a workflow by element": "parse-400",
    "in work that was returned": "parse-4",
    "when all of it is done": "last",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("at", DEATHS.values(), ids=DEATHS)
def test_a_killed_process_loses_nothing_and_nothing_committed_runs_again(here: Path, at: str) -> None:
    path = here / "flow" / "flow.db"
    tasks = here / "tasks"
    (here / f"kill-{at}").touch()
    done: set[str] = set()
    for verb in ("run", "resume", "resume"):
        assert lived(verb, path, "everything") == -signal.SIGKILL
        ran = set(tasks.read_text().split())
        tasks.unlink()
        assert sorted(ran & done) == [], "ran again although it was committed"
        done |= committed(path)
    (here / f"kill-{at}").unlink()
    assert lived("resume", path, "everything") == 0
    assert sorted(set(tasks.read_text().split()) & done) == []
    calls = began(here)
    assert set(calls) == {
        "count", *[f"fetch-{x}" for x in range(6)], *[f"parse-{2 * x}" for x in range(6)],
        "add-1+3", "add-5+7", "add-9+11", "add-4+12", "add-16+20",
        *[f"{name}" for x in (100, 200, 2) for name in (f"fetch-{x}", f"fetch-{x + 1}", f"parse-{2 * x}")],
        "add-201+202", "add-401+402", "add-5+6", "more-1", "more-2", "last",
    }  # fmt: skip


if __name__ == "__main__":
    verb, where, name = sys.argv[1:]
    with Engine(store=where) as each:
        chosen = globals()[name]
        handle = each.resume("last", chosen) if verb == "resume" else each.start(chosen)
        handle.result()
