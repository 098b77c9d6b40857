"""Results that are used again by other runs, tasks that must not begin twice, and secrets that are kept out of everything."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Cache, Engine, FlowError, RunFailed, Secret, StoreError, TaskState, UsageError, run, task, workflow
from flowlane.loader import load_file
from flowlane_plugins.stores.memory import MemoryStore
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: Any = (
        SqliteStore(tmp_path / "flow" / "flow.db", secret=b"s" * 32) if request.param == "sqlite" else MemoryStore()
    )
    yield made
    made.close()


FILE = '''
from pathlib import Path

from flowlane import Cache, task, workflow

FACTOR = {factor}


def scaled(n):
    """{words}"""
    return n * FACTOR


def note(folder, text):
    with (folder / "ran").open("a") as file:
        file.write(text + "\\n")


@task.io(cache={cache})
async def fetch(n: int) -> int:
    return n


@task.{kind}(cache={cache}, {more})
def work(folder: Path, n: int) -> int:
    note(folder, f"work {{n}}")
    return scaled(n)


@task.io(cache=True)
def join(parts: list[int], extra: object = None) -> list[int]:
    return parts


@workflow
def flow(folder: Path, upto: int = 3, extra: object = None) -> list[int]:
    return join([work(folder, fetch(n)) for n in range(upto)], extra)
'''


def loaded(folder: Path, **more: Any) -> ModuleType:
    fields = {"factor": 10, "words": "", "cache": "True", "kind": "io", "more": "", **more}
    (folder / "cached.py").write_text(FILE.format(**fields))
    return load_file(folder / "cached.py")


@pytest.fixture(autouse=True)
def _own_path_and_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield
    sys.modules.pop("_flow_cached", None)


def ran(folder: Path) -> list[str]:
    file = folder / "ran"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(lines)


EVERYTHING = ["work 0", "work 1", "work 2"]


@pytest.mark.parametrize("kind", ["io", "cpu"])
async def test_the_same_inputs_and_the_same_code_are_not_run_again(tmp_path: Path, store: Any, kind: str) -> None:
    module = loaded(tmp_path, kind=kind)
    async with Engine(store=store) as engine:
        assert (await engine.start(module.flow, tmp_path)).value == [0, 10, 20]
        assert ran(tmp_path) == EVERYTHING
        again = await engine.start(module.flow, tmp_path)
        assert again.value == [0, 10, 20]
        assert again.counts == {TaskState.CACHED: 7}
        assert ran(tmp_path) == []
        more = await engine.start(module.flow, tmp_path, upto=4)
        assert more.value == [0, 10, 20, 30]
        assert ran(tmp_path) == ["work 3"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"words": "told in other words"}, []),
        ({"more": "timeout=60"}, []),
        ({"factor": 11}, EVERYTHING),
        ({"cache": "Cache(version=2)"}, EVERYTHING),
    ],
)
async def test_what_counts_as_the_same_code(
    tmp_path: Path, store: Any, change: dict[str, Any], expected: list[str]
) -> None:
    async with Engine(store=store) as engine:
        await engine.start(loaded(tmp_path).flow, tmp_path)
        ran(tmp_path)
        await engine.start(loaded(tmp_path, **change).flow, tmp_path)
    assert ran(tmp_path) == expected


async def test_what_is_too_old_is_made_anew(tmp_path: Path, store: Any) -> None:
    module = loaded(tmp_path, cache="Cache(ttl=1e-6)")
    async with Engine(store=store) as engine:
        for _ in range(2):
            await engine.start(module.flow, tmp_path)
            assert ran(tmp_path) == EVERYTHING


async def test_an_input_that_cannot_be_hashed_is_not_cached_and_told_of_once(tmp_path: Path, store: Any) -> None:
    module = loaded(tmp_path)
    async with Engine(store=store) as engine:
        for _ in range(2):
            result = await engine.start(module.flow, tmp_path, extra=threading.Lock())
            assert result.tasks["join"].state is TaskState.SUCCEEDED
            (note,) = [note for note in result.notes if "hashed" in note]
            assert note.startswith("join is not cached: extra is a ")


async def test_a_cached_result_that_was_damaged_is_made_anew(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "flow" / "flow.db"
    module = loaded(tmp_path)
    async with Engine(store=path) as engine:
        await engine.start(module.flow, tmp_path)
    ran(tmp_path)
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT id, result FROM attempts WHERE result IS NOT NULL").fetchall()
        assert len(rows) == 7
        db.executemany("UPDATE attempts SET result = ? WHERE id = ?", [(blob[:-1] + b"!", row) for row, blob in rows])
    db.close()
    async with Engine(store=path) as engine:
        result = await engine.start(module.flow, tmp_path)
    assert result.value == [0, 10, 20]
    assert ran(tmp_path) == EVERYTHING
    assert any("was not taken from the cache" in note for note in result.notes)


async def test_a_run_that_was_cached_can_be_resumed(tmp_path: Path, store: Any) -> None:
    module = loaded(tmp_path)
    async with Engine(store=store) as engine:
        await engine.start(module.flow, tmp_path)
        second = await engine.start(module.flow, tmp_path)
        third = await engine.resume(second.id, module.flow)
    assert third.value == [0, 10, 20]
    assert third.counts == {TaskState.CACHED: 7}
    assert third.restored == 7


def test_without_a_store_a_cache_has_no_effect(tmp_path: Path) -> None:
    module = loaded(tmp_path)
    for _ in range(2):
        assert run(module.flow, tmp_path).value == [0, 10, 20]
        assert ran(tmp_path) == EVERYTHING


# ── at most once ──────────────────────────────────────────────────────────────────────────────────────────────────


@task.io(at_most_once=True)
async def pay(folder: Path, amount: int) -> str:
    with (folder / "ran").open("a") as file:
        file.write(f"pay {amount}\n")
    if (folder / "bad").exists():
        raise ConnectionError("no answer")
    return f"paid {amount}"


@task.io
async def tell(folder: Path, receipt: str) -> str:
    if (folder / "mute").exists():
        raise ValueError("mute")
    return f"told: {receipt}"


@workflow
def paying(folder: Path) -> str:
    return tell(folder, pay(folder, 5))


async def test_a_task_that_has_begun_and_is_not_known_to_have_succeeded_is_asked_about(
    tmp_path: Path, store: Any
) -> None:
    (tmp_path / "bad").touch()
    async with Engine(store=store) as engine:
        first = await engine.start(paying, tmp_path).wait()
        assert ran(tmp_path) == ["pay 5"]
        (tmp_path / "bad").unlink()
        second = await engine.resume(first.id).wait()
        assert second.tasks["pay"].state is TaskState.UNKNOWN
        assert second.tasks["tell"].state is TaskState.UPSTREAM_FAILED
        with pytest.raises(RunFailed, match="at_most_once, so it is not run again"):
            second.check()
        assert ran(tmp_path) == []
        third = await engine.resume(first.id).wait()  # and again, as long as nobody says more
        assert third.tasks["pay"].state is TaskState.UNKNOWN
        assert (await engine.resume(first.id, rerun=["pay"])).value == "told: paid 5"
        assert ran(tmp_path) == ["pay 5"]


async def test_one_that_succeeded_is_kept_like_any_other(tmp_path: Path, store: Any) -> None:
    (tmp_path / "mute").touch()
    async with Engine(store=store) as engine:
        first = await engine.start(paying, tmp_path).wait()
        (tmp_path / "mute").unlink()
        assert (await engine.resume(first.id)).value == "told: paid 5"
        assert ran(tmp_path) == ["pay 5"]
        with pytest.raises(UsageError, match="'pay' has succeeded, is at_most_once, and would run a second time"):
            engine.resume(first.id, restart=["pay"])  # to restart it is not yet to say that it may
        with pytest.raises(UsageError, match="'tell' is not at_most_once"):
            engine.resume(first.id, rerun=["tell"])
        assert ran(tmp_path) == []
        assert (await engine.resume(first.id)).value == "told: paid 5"  # nothing was lost by asking
        assert (await engine.resume(first.id, restart=["pay"], rerun=["pay"])).value == "told: paid 5"
        assert ran(tmp_path) == ["pay 5"]


async def test_it_is_stored_that_it_may_have_begun_before_it_does(tmp_path: Path) -> None:
    class Refusing(MemoryStore):
        def write(self, *args: Any) -> None:
            raise StoreError("the disk is full")

    store = Refusing()
    async with Engine(store=store) as engine:
        result = await engine.start(paying, tmp_path).wait()
    assert result.state == "interrupted"
    assert ran(tmp_path) == []
    store.close()


# ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────

CANARY = "canary-7f3a2c-opensesame"


@task.io
async def login(folder: Path, token: Secret) -> str:
    if (folder / "bad").exists():
        raise ConnectionError(f"https://example.invalid/?token={token.reveal()} refused")
    return f"{len(token.reveal())} characters"


@task.cpu
def login_from_afar(folder: Path, token: Secret) -> str:
    if (folder / "bad").exists():
        raise ConnectionError(f"https://example.invalid/?token={token.reveal()} refused")
    return f"{len(token.reveal())} characters"


@workflow
def secretly(folder: Path, token: Secret) -> list[str]:
    return [login(folder, token), login_from_afar(folder, token)]


@pytest.mark.parametrize("source", ["env", "file"])
async def test_a_secret_is_nowhere_but_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CANARY", CANARY)
    (tmp_path / "canary").write_text(f"{CANARY}\n")
    name = "env:CANARY" if source == "env" else f"file:{tmp_path / 'canary'}"
    path = tmp_path / "flow" / "flow.db"
    (tmp_path / "bad").touch()
    async with Engine(store=path) as engine:
        handle = engine.start(secretly, tmp_path, token=name)  # type: ignore[arg-type]  # coerced
        events = [event async for event in handle.events()]
        first = await handle.wait()
        assert {each.type for each in first.failures.values()} == {"ConnectionError"}
        assert all("token=*** refused" in each.message for each in first.failures.values())
        told = "".join([each.traceback for each in first.failures.values()]) + repr(events) + caplog.text
        assert CANARY not in told
        (tmp_path / "bad").unlink()
        assert (await engine.resume(first.id)).value == [f"{len(CANARY)} characters"] * 2
    for file in (tmp_path / "flow").rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes()


def test_a_secret_is_named_not_given() -> None:
    with pytest.raises(ValueError, match="write env:NAME or file:PATH") as refused:
        Secret(CANARY)
    assert CANARY not in str(refused.value)
    with pytest.raises(FlowError) as bad:
        secretly.bind(Path(), CANARY).build()  # type: ignore[arg-type]
    assert CANARY not in str(bad.value)
    with pytest.raises(FlowError, match="NO_SUCH_VARIABLE"):
        Secret("env:NO_SUCH_VARIABLE").reveal()
    with pytest.raises(FlowError, match="cannot be read: no such file"):
        Secret("file:/nowhere/at/all").reveal()
    assert Secret("env:A") == Secret("env:A") != Secret("env:B")
    assert repr(Secret("env:A")) == "Secret('env:A')"
    assert Cache().ttl is None
