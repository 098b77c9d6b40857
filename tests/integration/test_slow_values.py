"""Values that take their time to get here: the loop goes on meanwhile, and everything else of the run with it.

The executor is a real one, in this process. Fetching one of its values waits until a task on the loop says that it has had turns
since fetching began: a loop that is held up never gets there.
"""

from __future__ import annotations

import asyncio
import threading
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Call, Engine, RunCancelled, RunFailed, product, task, when, workflow
from flowlane.runtime.ports import SUCCEEDED, Capabilities, Job, RemoteValue, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from flowlane.storage.blob import Payload

PATIENCE = 30.0


class Way:
    """What fetching and the ticking task tell each other."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ticked = threading.Event()
        self.threads: set[str] = set()

    def go(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        if not self.ticked.wait(PATIENCE):
            raise TimeoutError("the loop stood still")


WAY = Way()


class Slow(RemoteValue):
    __slots__ = ("here", "value")

    def __init__(self, home: object, value: Any) -> None:
        super().__init__(home, 8)
        self.value = value
        self.here = False

    def is_far(self) -> bool:
        return not self.here

    def fetch(self) -> Any:
        if not self.here:
            WAY.go()
            self.here = True
        return self.value

    def packed(self) -> Payload:
        from flowlane.storage.blob import pack

        WAY.go()
        return pack(self.value)


class Far:
    """Runs jobs on the loop, and keeps all that they return."""

    capabilities = Capabilities(frozenset({"sync"}), 4, remote_values=True, far_values=True)

    def __init__(self) -> None:
        self.made: list[Slow] = []

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self.deliver = deliver

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            asyncio.get_running_loop().call_soon(self._call, job)

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        pass

    async def close(self, grace: float) -> None:
        pass

    def _call(self, job: Job) -> None:
        started = monotonic_ns()
        args = [arg.value if isinstance(arg, Slow) else arg for arg in job.args]
        value = Slow(self, job.target.fn(*args, **job.kwargs))
        self.made.append(value)
        self.deliver([Report(job.ref, SUCCEEDED, started, monotonic_ns(), value)])


@pytest.fixture(autouse=True)
def _anew() -> None:
    global WAY
    WAY = Way()


@task.io
async def tick() -> int:
    """Has some turns of the loop after somebody has begun to fetch."""
    while not WAY.begun.is_set():
        await asyncio.sleep(0.001)
    for _ in range(5):
        await asyncio.sleep(0)
    WAY.ticked.set()
    return 5


@task.cpu
def number() -> int:
    return 3


@task.cpu
def numbers() -> list[int]:
    return [1, 2, 3]


@task.cpu
def yes(n: int) -> bool:
    return n > 1


@task.io(executor="inline")
def add(*values: int) -> int:
    return sum(values)


@task.io(executor="inline")
def double(n: int) -> int:
    return 2 * n


@workflow
def a_reader_elsewhere() -> tuple[int, int]:
    made = number()
    return add(made, made), tick()


@workflow
def two_readers() -> tuple[int, int, int]:
    made = number()
    return add(made), double(made), tick()


@workflow
def the_result() -> int:
    return number()


@workflow
def ticking() -> int:
    return tick()


@workflow
def a_source() -> tuple[list[int], int]:
    return double.map(numbers()), tick()


@workflow
def a_filter() -> tuple[list[int], int]:
    return yes.filter([1, 2, 3]), tick()


@task.cpu
def pair() -> tuple[int, int]:
    return 3, 4


@workflow
def nested() -> dict[str, list[int]]:
    return {"made": [number(), 4]}


@task.io(executor="inline")
def becomes_more() -> Call[dict[str, list[int]]]:
    return nested.bind()


@task.io(executor="inline")
def added_up(values: dict[str, list[int]]) -> int:
    return sum(values["made"])


@workflow
def what_a_workflow_returned() -> tuple[int, int]:
    return added_up(becomes_more()), tick()


@workflow
def a_choice_by_it() -> tuple[int, int]:
    with when(becomes_more()):
        chosen = double(4)
    return chosen, tick()


@workflow
def a_list_of_several() -> tuple[list[int], int]:
    return double.map([number(), number()]), tick()


@workflow
def tuples_of_them() -> tuple[list[int], int]:
    return add.starmap([(number(), 1), (number(), 2)]), tick()


@workflow
def all_combinations() -> tuple[list[int], int]:
    return add.starmap(product([number()], numbers())), tick()


@workflow
def taken_apart() -> tuple[list[int], int]:
    return add_far.starmap([pair(), pair()]), tick()


@task.cpu
def add_far(*values: int) -> int:
    return sum(values)


@pytest.mark.parametrize(
    ("flow", "value"),
    [
        (a_reader_elsewhere, (6, 5)),
        (two_readers, (3, 6, 5)),
        (a_source, ([2, 4, 6], 5)),
        (a_filter, ([2, 3], 5)),
        (what_a_workflow_returned, (7, 5)),
        (a_choice_by_it, (8, 5)),
        (a_list_of_several, ([6, 6], 5)),
        (tuples_of_them, ([4, 5], 5)),
        (all_combinations, ([4, 5, 6], 5)),
        (taken_apart, ([7, 7], 5)),
    ],
)
def test_the_loop_goes_on_while_a_value_is_on_its_way(flow: Any, value: Any) -> None:
    with Engine(executors={"far": Far()}, routes={"cpu": "far"}) as engine:
        assert engine.start(flow).result(60).value == value
        assert WAY.threads == {"flowlane-fetch"}
    assert not [thread for thread in threading.enumerate() if thread.name == "flowlane-fetch" and _lives(thread)]


def _lives(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return thread.is_alive()


def test_the_loop_goes_on_while_the_result_of_a_run_is_on_its_way() -> None:
    with Engine(executors={"far": Far()}, routes={"cpu": "far"}) as engine:
        other = engine.start(ticking)  # the run itself has nothing left to do by then
        assert engine.start(the_result).result(60).value == 3
        assert other.result(60).value == 5


@task.io(executor="inline")
def forget_them(values: list[int]) -> int:
    return 0


@workflow
def read_there() -> int:
    made = number()
    return forget_them(add_far.map([made, number()], made))


def test_what_is_read_where_it_was_made_does_not_come_here_as_an_item_or_beside_one() -> None:
    """
    number ─┬▶ add_far[0..1] ─▶ forget_them (inline)
            └▶ (the other argument of each)
    """
    far = Far()
    WAY.ticked.set()
    with Engine(executors={"far": far}, routes={"cpu": "far"}) as engine:
        assert engine.start(read_there).result(60).value == 0
    fetched = [value.value for value in far.made if value.here]
    assert fetched == [6, 6]


@workflow
def stored() -> tuple[int, int]:
    return number(), tick()


def test_the_loop_goes_on_while_a_result_is_brought_to_the_store(tmp_path: Path) -> None:
    with Engine(executors={"far": Far()}, routes={"cpu": "far"}, store=tmp_path / "flow.db") as engine:
        result = engine.start(stored).result(60)
        assert result.value == (3, 5)
        assert WAY.threads == {"flowlane-fetch"}


@task.io
async def stop(engine_cancels: Any = None) -> int:
    while not WAY.begun.is_set():
        await asyncio.sleep(0.001)
    CANCEL[0]()
    return 0


CANCEL: list[Callable[[], object]] = []


@workflow
def stopped() -> tuple[int, int]:
    return add(number()), stop()


def test_a_task_that_waits_for_a_value_can_be_stopped_and_never_began() -> None:
    with Engine(executors={"far": Far()}, routes={"cpu": "far"}) as engine:
        handle = engine.start(stopped)
        CANCEL[:] = [handle.cancel]
        with pytest.raises(RunCancelled) as raised:
            handle.result(60)
        add_ = raised.value.result.tasks["add"]
        assert (str(add_.state), add_.attempts, add_.duration) == ("cancelled", 1, None)
        WAY.ticked.set()


class Broken(Far):
    def _call(self, job: Job) -> None:
        value = Bad(self, None)
        self.deliver([Report(job.ref, SUCCEEDED, monotonic_ns(), monotonic_ns(), value)])


class Bad(Slow):
    __slots__ = ()

    def fetch(self) -> Any:
        self.here = True
        raise ValueError("it does not load")


@workflow
def unloadable() -> int:
    return add(number())


def test_what_fetching_raised_is_the_failure_of_who_needs_it() -> None:
    with (
        Engine(executors={"far": Broken()}, routes={"cpu": "far"}) as engine,
        pytest.raises(RunFailed, match="a value that 'add' reads could not be fetched: ValueError: it does not load"),
    ):
        engine.start(unloadable).result(60)
