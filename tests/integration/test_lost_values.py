"""Values that stay where they were made, on a machine that forgets them: who made them runs again, and who needs them waits.

The executor here is a real one, in this process: it keeps what its tasks return, and forgets what a task tells it to.
"""

from __future__ import annotations

import asyncio
import json
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Call, Engine, Failure, LostResult, RunFailed, StoreError, task, workflow
from flowlane.runtime.ports import FAILED, NEVER, SUCCEEDED, Capabilities, Job, RemoteValue, Report
from flowlane.storage.blob import pack
from flowlane_plugins.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from flowlane.storage.blob import Payload
    from flowlane.storage.port import ResultRef


class Held(RemoteValue):
    __slots__ = ("gone", "maker", "value")

    def __init__(self, home: object, maker: str, value: Any) -> None:
        super().__init__(home, 8)
        self.maker = maker
        self.value = value
        self.gone = False

    def vanished(self) -> bool:
        return self.gone

    def fetch(self) -> Any:
        if self.gone:
            raise LostResult(f"the result of {self.maker} is gone")
        return self.value


class Forgetful:
    """Calls jobs one turn of the loop later, keeps what they return, and forgets it when a task says ``forget(name)``."""

    capabilities = Capabilities(frozenset({"sync"}), 2, remote_values=True)
    kind: type[Held] = Held

    def __init__(self) -> None:
        self.kept: list[Held] = []
        self.begun: list[str] = []
        self.forgotten: list[str] = []

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self.deliver = deliver

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            asyncio.get_running_loop().call_soon(self._call, job)

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        pass

    async def close(self, grace: float) -> None:
        self.kept.clear()

    def _call(self, job: Job) -> None:
        started = monotonic_ns()
        try:
            args = [_here(arg) for arg in job.args]
            kwargs = {name: _here(arg) for name, arg in job.kwargs.items()}
        except LostResult as error:
            self.deliver([Report(job.ref, FAILED, NEVER, monotonic_ns(), failure=Failure.of(error))])
            return
        self.begun.append(job.task)
        try:
            value = self.kind(self, job.task, job.target.fn(*args, **kwargs))
        except Exception as error:
            self.deliver([Report(job.ref, FAILED, started, monotonic_ns(), failure=Failure.of(error))])
            return
        self.kept.append(value)
        self.deliver([Report(job.ref, SUCCEEDED, started, monotonic_ns(), value)])


def _here(arg: Any) -> Any:
    if isinstance(arg, list):
        return [_here(each) for each in arg]
    if isinstance(arg, Held) and arg.gone:  # whatever was fetched of it is not there, but with the engine
        raise LostResult(f"the result of {arg.maker} is gone")
    return arg.value if isinstance(arg, Held) else arg


FAR = Forgetful()


def forget(name: str, times: int = 1) -> None:
    """Lose the latest result of the task `name`, unless it was lost so often."""
    held = [each for each in FAR.kept if each.maker == name]
    if held and len(held) <= times:
        held[-1].gone = True
        FAR.forgotten.append(name)


@pytest.fixture(autouse=True)
def _anew() -> None:
    global FAR
    FAR = Forgetful()


def played(flow: Any, **more: Any) -> Any:
    with Engine(executors={"far": FAR}, routes={"cpu": "far"}, **more) as engine:
        return engine.start(flow).result(20)


@task.cpu
def number(n: int = 1) -> int:
    return n


@task.cpu
def double(n: int) -> int:
    return 2 * n


@task.io(executor="inline")
def lose(name: str, after: Any = None, times: int = 1) -> int:
    forget(name, times)
    return 0


@task.cpu
def add(*numbers: int) -> int:
    return sum(numbers)


@task.io(executor="inline")
def add_here(*numbers: int) -> int:
    return sum(numbers)


@workflow
def a_node() -> int:
    made = number(3)
    return add(made, lose("number", made))


@workflow
def read_elsewhere() -> int:
    made = number(3)
    return add_here(made, lose("number", made))


@workflow
def a_line() -> int:
    made = double(double(number(3)))
    return add(made, lose("double#2", made))


@pytest.mark.parametrize(
    ("flow", "value", "begun"),
    [
        (a_node, 3, ["number", "number", "add"]),
        (read_elsewhere, 3, ["number", "number"]),
        # what was released comes first
        (a_line, 12, ["number", "double", "double#2", "number", "double", "double#2", "add"]),
    ],
)
def test_who_made_it_runs_again_and_the_reader_loses_no_attempt(flow: Any, value: int, begun: list[str]) -> None:
    result = played(flow)
    assert (result.value, FAR.begun) == (value, begun)
    told = {name: one.attempts for name, one in result.tasks.items()}
    assert told["number"] == 2


@task.cpu
def spoil(n: int, name: str) -> int:
    forget(name)
    return n


@workflow
def elements() -> list[int]:
    #   [1, 2, 3] ─▶ number[i] ─▶ spoil[i] ─▶ add[i]      each spoils what spoil[1] reads
    numbers = number.map([1, 2, 3])
    return add.map(spoil.map(numbers, name="number[1]"))


@workflow
def fixed_argument() -> list[int]:
    #   number ─▶ spoil ┄▶
    #   number ─────────────▶ add_to[i]
    base = number(10)
    return plus.map([1, 2, 3], base, spoil(5, "number"))


@task.cpu
def plus(n: int, base: int, other: int) -> int:
    return n + base + other


@task.cpu
def numbers() -> list[int]:
    return [1, 2, 3]


@workflow
def listed_items() -> list[int]:
    #   number#2 is an item of the map, and lost before that element begins
    return plus.map([number(1), number(2)], 10, spoil(5, "number#2"))


@workflow
def starred_items() -> list[int]:
    #   pair#3 is lost before it is taken apart
    return sum_of.starmap([pair(1), pair(2), pair(3)], spoils="pair#3")


@task.cpu
def pair(n: int) -> tuple[int, int]:
    return n, n


@task.cpu
def sum_of(a: int, b: int, spoils: str) -> int:
    forget(spoils)
    return a + b


@workflow
def a_source() -> list[int]:
    made = numbers()
    with_loss = ordered(made, lose("numbers", made))
    return double.map(with_loss)


@task.cpu
def ordered(values: list[int], lost: int) -> list[int]:
    return values


@workflow
def merged() -> int:
    #   number[i], merged two by two; the first merge loses what the second one is to merge
    return pairs.reduce(number.map([1, 2, 3, 4]), fan_in=2)


@task.cpu
def pairs(values: list[int]) -> int:
    forget("number[3]")
    forget("number[2]")
    return sum(values)


@pytest.mark.parametrize(
    ("flow", "value"),
    [
        (elements, [1, 2, 3]),
        (fixed_argument, [16, 17, 18]),
        (listed_items, [16, 17]),
        (starred_items, [2, 4, 6]),
        (a_source, [2, 4, 6]),
        (merged, 10),
    ],
)
def test_elements_of_maps_their_arguments_and_what_is_merged(flow: Any, value: Any) -> None:
    assert played(flow).value == value
    again = {name for name in FAR.begun if FAR.begun.count(name) > 1}
    assert again


@task.cpu(at_most_once=True)
def number_once() -> int:
    return 1


@workflow
def once() -> int:
    made = number_once()
    return add(made, lose("number_once", made))


@workflow
def whole() -> int:
    made = number.map([1, 2])
    return total(made, lose("number[1]", made))


@task.cpu
def total(values: list[int], lost: int) -> int:
    return sum(values)


@task.cpu
def stingy(n: int) -> int:
    if FAR.begun.count("stingy") > 1:
        raise ValueError("not twice")
    return n


@workflow
def refusing() -> int:
    made = stingy(3)
    return add(made, lose("stingy", made))


@pytest.mark.parametrize(
    ("flow", "task_name", "why"),
    [
        (once, "add", "number_once is at_most_once, so it does not run again"),
        (whole, "total", "number is made of the values of others, and is not made again as a whole"),
    ],
)
def test_what_cannot_be_made_again_is_told_with_the_reason(flow: Any, task_name: str, why: str) -> None:
    with pytest.raises(RunFailed) as raised:
        played(flow)
    failure = raised.value.failures[task_name]
    assert failure.type == "LostResult"
    assert failure.notes[0] == f"it is not made again: {why}"


def test_a_value_that_is_not_made_again_stops_its_readers() -> None:
    with pytest.raises(RunFailed) as raised:
        played(refusing)
    assert set(raised.value.failures) == {"stingy"}
    assert str(raised.value.result.tasks["add"].state) == "upstream_failed"


# ── what there is another of ──────────────────────────────────────────────────────────────────────────────────────────


class Fetched(Held):
    """Keeps what was fetched of it."""

    __slots__ = ("here",)

    def __init__(self, home: object, maker: str, value: Any) -> None:
        super().__init__(home, maker, value)
        self.here = False

    def is_far(self) -> bool:
        return not self.here

    def fetch(self) -> Any:
        value = self.value if self.here else super().fetch()
        self.here = True
        return value

    def packed(self) -> Payload:
        return pack(self.value)


class Keeping(Forgetful):
    capabilities = Capabilities(frozenset({"sync"}), 2, remote_values=True, far_values=True)
    kind = Fetched


@workflow
def read_here_first() -> int:
    #   number ──▶ add_here ──▶ lose ──▶ add (far)
    made = number(3)
    return add(made, lose("number", add_here(made)))


def test_what_was_brought_here_before_it_was_lost_is_not_made_again() -> None:
    global FAR
    FAR = Keeping()
    assert played(read_here_first).value == 3
    assert (FAR.forgotten, FAR.begun) == (["number"], ["number", "add"])


COMMITTED: asyncio.Event


@task.io
async def lose_stored(name: str, after: Any = None) -> int:
    """Lose a result that the store has."""
    await asyncio.wait_for(COMMITTED.wait(), 20)
    forget(name)
    return 0


@workflow
def stored_node() -> int:
    made = number(3)
    return add(made, lose_stored("number"))


@workflow
def stored_and_read_elsewhere() -> int:
    made = number(3)
    return add_here(made, lose_stored("number"))


@workflow
def stored_map() -> int:
    made = number.map([1, 2])
    return total(made, lose_stored("number[1]"))


@workflow
def stored_and_read_by_elements() -> list[int]:
    return plus.map([1, 2], number(10), lose_stored("number"))


@workflow
def stored_once() -> int:
    return add(number_once(), lose_stored("number_once"))


@workflow
def several() -> list[int]:
    return [number(3), number(4)]


@task.io
async def becomes_several() -> Call[list[int]]:
    return several.bind()


@workflow
def stored_in_a_workflow() -> int:
    made = becomes_several()
    return total(made, lose_stored("becomes_several/number"))


@workflow
def stored_result() -> tuple[int, int]:
    return number(3), lose_stored("number")


async def stored(flow: Any, waits_for: str, store: MemoryStore) -> Any:
    """Carry out `flow`; what is to be lost is lost when the store has the result of `waits_for`."""
    global COMMITTED
    COMMITTED = asyncio.Event()
    async with Engine(executors={"far": FAR}, routes={"cpu": "far"}, store=store) as engine:
        handle = engine.start(flow)
        async for event in handle.events():
            if (event.get("task"), event.get("to")) == (waits_for, "succeeded"):
                COMMITTED.set()
        return await handle


@pytest.mark.parametrize("far", [Forgetful, Keeping])
@pytest.mark.parametrize(
    ("flow", "lost", "value"),
    [
        (stored_node, "number", 3),
        (stored_and_read_elsewhere, "number", 3),
        (stored_map, "number[1]", 3),
        (stored_and_read_by_elements, "number", [11, 12]),
        (stored_once, "number_once", 1),
        (stored_in_a_workflow, "becomes_several/number", 7),
        (stored_result, "number", (3, 0)),
    ],
)
async def test_what_the_store_has_is_read_there_and_not_made_again(
    flow: Any, lost: str, value: Any, far: type[Forgetful]
) -> None:
    global FAR
    FAR = far()
    result = await stored(flow, lost, MemoryStore())
    assert result.value == value
    assert FAR.forgotten == [lost]
    assert FAR.begun.count(lost) == result.tasks[lost].attempts == 1


class Damaged(MemoryStore):
    def read(self, ref: ResultRef) -> bytes | memoryview:
        raise StoreError("the disk is gone")


@pytest.mark.parametrize("flow", [stored_node, stored_and_read_elsewhere])
async def test_what_the_store_cannot_give_back_is_made_again(flow: Any) -> None:
    result = await stored(flow, "number", Damaged())
    assert result.value == 3
    assert FAR.begun.count("number") == 2


class Cursed(Forgetful):
    """Loses every result of the task `number` before it is read."""

    def _call(self, job: Job) -> None:
        super()._call(job)
        if job.task == "number":
            self.kept[-1].gone = True


@workflow
def endless() -> int:
    return add(number(3))


def test_no_value_is_made_again_without_end() -> None:
    global FAR
    FAR = Cursed()
    with pytest.raises(RunFailed) as raised:
        played(endless)
    assert FAR.begun == ["number"] * 4
    note = raised.value.failures["add"].notes[0]
    assert note == "it is not made again: number has run again 3 times for it, which is as often as it may"


def test_a_stored_run_tells_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from flowlane.cli.main import main

    monkeypatch.chdir(tmp_path)
    result = played(a_node, store=".flow/flow.db")
    told: dict[str, Any] = {}
    for name in ("number", "add"):
        assert main(["why", result.id, name, "--json"]) == 0
        told[name] = json.loads(capsys.readouterr().out)
    assert told["number"]["facts"]["made_again"] == 1
    assert "its result was lost once with the machine that held it" in " ".join(told["number"]["why"])
    assert told["add"]["facts"]["waited_again"] == 1
    assert "it had to wait once more for what it reads: LostResult" in " ".join(told["add"]["why"])
