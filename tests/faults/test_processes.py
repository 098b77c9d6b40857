"""Worker processes against real faults. Numbers in brackets are rows of the matrix in docs/how-processes-work.md.

Every test runs on both ways of starting workers, beside innocent tasks in the same pool, and `nothing_is_left` looks for
what is left. What really ran is read from a journal that the tasks write themselves.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane import RetryPolicy
from flowlane.core.states import TaskState

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from flowlane.results import RunResult

    Perform = Callable[..., RunResult[Any]]

INNOCENTS = 20


def nurseries() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "flowlane-nursery" in child.cmdline()]


def innocents(tasks: ModuleType, journal: Path | None = None) -> list[Any]:
    return [tasks.innocent.bind(n, str(journal) if journal else None) for n in range(INNOCENTS)]


def unharmed(result: RunResult[Any], journal: Path | None = None) -> None:
    """All innocents succeeded at their first attempt, and ran once."""
    seen = [task for name, task in result.tasks.items() if name.partition("#")[0] == "innocent"]
    assert len(seen) == INNOCENTS
    assert {task.state for task in seen} == {TaskState.SUCCEEDED}
    assert {task.attempts for task in seen} == {1}
    if journal is not None:
        lines = [line.split() for line in journal.read_text().splitlines()]
        started = Counter(words[1] for words in lines if words[0] == "start" and words[1].isdigit())
        assert started == {str(n): 1 for n in range(INNOCENTS)}


DEATHS = {
    "segfault": "was killed by SIGSEGV",
    "abort": "was killed by SIGABRT",
    "exit": "exited with code 3",
    "exit 0": "exited with code 0",
    "kill": "was killed by SIGKILL",
    "terminate": "was killed by SIGTERM",
}


# ── deaths [5–7] ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", DEATHS)
def test_a_dying_worker_costs_only_the_task_it_had_started(
    tasks: ModuleType, perform: Perform, how: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    calls = innocents(tasks, journal)
    calls.insert(7, tasks.die.bind(how))
    result = perform(*calls)
    unharmed(result, journal)
    died = result.tasks["die"]
    assert died.state is TaskState.CRASHED
    assert died.failure is not None
    assert died.failure.type == "WorkerCrashed"
    assert DEATHS[how] in died.failure.message
    assert "while it ran" in died.failure.message
    assert any(note.startswith("hint: ") for note in died.failure.notes)


def test_the_crash_tells_signal_pid_phase_and_memory(tasks: ModuleType, perform: Perform, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    result = perform(tasks.die.bind("kill", str(journal)))
    pid = journal.read_text().split()[-1]
    failure = result.tasks["die"].failure
    assert failure is not None
    assert f"worker process {pid} was killed by SIGKILL while it ran (peak memory " in failure.message
    assert "out of memory" in failure.notes[0]
    assert (result.tasks["die"].peak_rss or 0) > 2**20


def test_a_crashed_task_is_retried_when_its_policy_says_so(tasks: ModuleType, perform: Perform, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    result = perform(tasks.die_once.options(retries=2).bind(str(marker)), *innocents(tasks))
    unharmed(result)
    assert result.tasks["die_once"].state is TaskState.SUCCEEDED
    assert result.tasks["die_once"].attempts == 2


def test_a_second_death_alone_in_a_fresh_worker_is_poison(tasks: ModuleType, perform: Perform, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    call = tasks.die.options(retry=RetryPolicy(attempts=9)).bind("kill", str(journal))
    result = perform(call, *innocents(tasks))
    unharmed(result)
    died = result.tasks["die"]
    assert died.state is TaskState.CRASHED
    assert died.attempts == 2
    assert died.failure is not None
    assert died.failure.type == "PoisonTask"
    pids = [line.split()[-1] for line in journal.read_text().splitlines()]
    assert len(pids) == len(set(pids)) == 2


def test_many_that_die_leave_the_pool_alive(tasks: ModuleType, perform: Perform) -> None:
    calls = innocents(tasks)
    for place, how in enumerate(DEATHS):
        calls.insert(3 * place, tasks.die.bind(how))
    result = perform(*calls)
    unharmed(result)
    assert result.counts[TaskState.CRASHED] == len(DEATHS)


def test_an_argument_that_kills_whoever_loads_it_is_charged_before_its_body(
    tasks: ModuleType, perform: Perform
) -> None:
    result = perform(tasks.take.bind(tasks.KillsOnLoad()), *innocents(tasks))
    unharmed(result)
    failure = result.tasks["take"].failure
    assert failure is not None
    assert "its body had not begun" in failure.message
    assert result.tasks["take"].duration is None


# ── memory [8–9] ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_error_fails_the_task_and_the_worker_lives(tasks: ModuleType, perform: Perform) -> None:
    result = perform(tasks.allocate.bind(1 << 42, 1 << 33), tasks.whoami.bind(), *innocents(tasks), slots=1)
    unharmed(result)
    failure = result.tasks["allocate"].failure
    assert failure is not None
    assert failure.type == "MemoryError"


# ── what does not end [10–11] ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["sleep", "regex", "stop", "deaf", "swallow", "python"])
def test_what_hangs_dies_at_its_deadline(tasks: ModuleType, perform: Perform, how: str, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    begin = time.monotonic()
    result = perform(tasks.hang.options(timeout=0.5).bind(how, str(marker)), *innocents(tasks), grace=0.2)
    unharmed(result)
    hung = result.tasks["hang"]
    assert hung.state is TaskState.TIMED_OUT
    assert hung.failure is not None
    assert "timeout of 0.5 s" in hung.failure.message
    assert time.monotonic() - begin < 20  # it would hang for a minute
    pid = int(marker.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_task_told_to_stop_may_clean_up(tasks: ModuleType, perform: Perform, tmp_path: Path) -> None:
    marker = tmp_path / "cleaned"
    result = perform(tasks.tidy.options(timeout=0.3).bind(str(marker)), *innocents(tasks))
    unharmed(result)
    assert result.tasks["tidy"].state is TaskState.TIMED_OUT
    assert marker.read_text() == "cleaned up"


def test_without_grace_there_is_no_clean_up(tasks: ModuleType, perform: Perform, tmp_path: Path) -> None:
    marker = tmp_path / "cleaned"
    result = perform(tasks.tidy.options(timeout=0.3).bind(str(marker)), grace=0)
    assert result.tasks["tidy"].state is TaskState.TIMED_OUT
    assert not marker.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a stopped process is seen in /proc")
def test_a_worker_stopped_before_it_begins_does_not_hold_its_jobs(tasks: ModuleType, method: str) -> None:
    import asyncio

    from flowlane import Engine, Workflow

    async def main() -> list[int]:
        async with Engine(slots={"processes": 1}, options={"processes": {"start_method": method}}) as engine:
            first = Workflow("first")
            pid = (await engine.start(first.returns(first.add(tasks.whoami.bind())))).value
            os.kill(pid, signal.SIGSTOP)
            second = Workflow("second")
            again = (await engine.start(second.returns(second.add(tasks.whoami.bind())))).value
            return [pid, again]

    pid, again = asyncio.run(main())
    assert pid != again


# ── exceptions [12, 17] ───────────────────────────────────────────────────────────────────────────────────────────


def test_exceptions_of_awkward_shapes_keep_type_text_and_traceback(tasks: ModuleType, perform: Perform) -> None:
    result = perform(*[tasks.fail.bind(shape) for shape in tasks.SHAPES], *innocents(tasks))
    unharmed(result)
    failed = [task for name, task in result.tasks.items() if name.startswith("fail")]
    for shape, task in zip(tasks.SHAPES, failed, strict=True):
        assert task.state is TaskState.FAILED, shape
        failure = task.failure
        assert failure is not None
        original = tasks._shapes()[shape]
        assert failure.type.rpartition(".")[2] == type(original).__name__, shape
        assert "tasks.py" in failure.traceback, shape
        if shape not in ("bad str", "unicode"):
            assert failure.message == str(original), shape


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_a_task_that_wants_to_leave_fails_alone(tasks: ModuleType, perform: Perform, name: str) -> None:
    result = perform(tasks.leave.bind(name), *innocents(tasks))
    unharmed(result)
    failure = result.tasks["leave"].failure
    assert failure is not None
    assert (failure.type, failure.message) == (name, "7")


# ── values [13–16] ────────────────────────────────────────────────────────────────────────────────────────────────


def test_arguments_that_cannot_travel_fail_their_own_task(tasks: ModuleType, perform: Perform) -> None:
    import threading

    result = perform(
        tasks.take.bind({"deep": [threading.Lock()]}),
        tasks.take.bind([1, tasks.ExplodesOnLoad()]),
        *innocents(tasks),
    )
    unharmed(result)
    unpicklable, explosive = result.tasks["take"].failure, result.tasks["take#2"].failure
    assert unpicklable is not None
    assert "take(value) ['deep'][0] cannot travel" in unpicklable.message
    assert explosive is not None
    assert "take(value) [1]" in explosive.message
    assert "cannot be unpickled" in explosive.message


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("lock", "['deep'][0]"),
        ("explodes", "cannot be unpickled"),
        ("generator", "generator"),
        ("nested", "flatten it"),
    ],
)
def test_results_that_cannot_travel_fail_their_own_task(
    tasks: ModuleType, perform: Perform, what: str, said: str
) -> None:
    result = perform(tasks.give.bind(what), *innocents(tasks))
    unharmed(result)
    failure = result.tasks["give"].failure
    assert failure is not None
    assert failure.type == "TransportError"
    assert said in "\n".join([failure.message, *failure.notes])


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 20) + 1, 100_000_000])
def test_results_of_every_size_come_back(tasks: ModuleType, perform: Perform, size: int) -> None:
    result = perform(tasks.give.bind(str(size)))
    assert result.value == [bytes(size)]


@pytest.mark.slow
def test_results_of_several_gigabytes_come_back(tasks: ModuleType, perform: Perform) -> None:
    size = 3 * 1024**3
    if psutil.virtual_memory().available < 5 * size:
        pytest.skip("needs 15 GB of free memory")
    result = perform(tasks.give.bind(str(size)))
    assert len(result.value[0]) == size


# ── what tasks do to their process [18–19] ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("low", [0, 3])
def test_a_task_may_close_all_descriptors(tasks: ModuleType, perform: Perform, low: int) -> None:
    result = perform(tasks.close_descriptors.bind(low, 64), *innocents(tasks))
    unharmed(result)
    assert result.value[0] == "closed"


def test_the_next_task_does_not_meet_another_directory(tasks: ModuleType, perform: Perform, tmp_path: Path) -> None:
    result = perform(tasks.change_directory.bind(str(tmp_path)), tasks.where.bind(), slots=1)
    assert result.value == [str(tmp_path), os.getcwd()]


def test_a_task_that_forks_and_returns_twice_answers_once(tasks: ModuleType, perform: Perform) -> None:
    result = perform(*[tasks.fork_and_return.bind(n) for n in range(5)], *innocents(tasks), slots=1)
    unharmed(result)
    assert result.value[:5] == list(range(5))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_pools_may_be_nested(tasks: ModuleType, perform: Perform, start: str) -> None:
    result = perform(tasks.nested_pool.bind(start), *innocents(tasks))
    unharmed(result)
    assert result.value[0] == [1, 2, 3]


def test_a_run_may_be_nested(tasks: ModuleType, perform: Perform) -> None:
    result = perform(tasks.nested_run.bind(), *innocents(tasks))
    unharmed(result)
    assert result.value[0] == 49


@pytest.mark.parametrize("session", [False, True])
def test_what_a_task_left_running_does_not_outlive_the_engine(
    tasks: ModuleType, perform: Perform, session: bool, tmp_path: Path
) -> None:
    if session and "spawn" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        pytest.skip("a process in a session of its own is only found by the nursery, which inherits orphans")
    marker = tmp_path / "pid"
    result = perform(tasks.daemonise.options(timeout=1.0).bind(str(marker), session), grace=0.1)
    assert result.tasks["daemonise"].state is TaskState.TIMED_OUT
    pid = int(marker.read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(pid)


# ── recycling ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_are_replaced_after_their_share(tasks: ModuleType, perform: Perform) -> None:
    result = perform(*[tasks.whoami.bind() for _ in range(12)], slots=1, max_tasks=3)
    assert len(result.value) == 12
    assert max(Counter(result.value).values()) <= 3


def test_workers_are_replaced_when_they_have_grown(tasks: ModuleType, perform: Perform) -> None:
    calls = [tasks.innocent.bind(n, None, 0.005) for n in range(3)]
    result = perform(*calls, *[tasks.whoami.bind() for _ in range(3)], slots=1, max_rss=1)
    assert result.value[:3] == [0, 1, 4]


# ── output ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_an_attempt_prints_is_its_own(tasks: ModuleType, perform: Perform) -> None:
    result = perform(
        tasks.speak.bind("one", "an error"), tasks.whoami.bind(), tasks.speak.bind("zwei ü \x1b[31m"), slots=1
    )
    assert result.tasks["speak"].output == "one\nan error\nstraight to the descriptor\na program\n"
    assert result.tasks["whoami"].output is None
    assert (result.tasks["speak#2"].output or "").startswith("zwei ü \x1b[31m\nstraight")


def test_what_a_dying_task_printed_is_kept(tasks: ModuleType, perform: Perform) -> None:
    result = perform(tasks.speak_and_die.bind("last words"), *innocents(tasks))
    unharmed(result)
    output = result.tasks["speak_and_die"].output or ""
    assert output.startswith("last words\n")
    assert "Segmentation fault" in output
    assert output.rstrip().endswith("in speak_and_die")  # where, in Python, and no frames of ours


def test_what_a_task_may_print_is_bounded(tasks: ModuleType, perform: Perform) -> None:
    result = perform(tasks.flood.bind(5_000_000), tasks.speak.bind("after"), slots=1, output_limit=10_000)
    output = result.tasks["flood"].output or ""
    assert 10_000 <= len(output) < 10_100
    assert "… 4990000 bytes left out …" in output
    assert (result.tasks["speak"].output or "").startswith("after\n")


# ── the nursery and the engine [3–4] ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="the nursery is Linux's")
def test_killing_the_nursery_loses_no_task(tasks: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import asyncio

    from flowlane import Engine, Workflow

    journal = tmp_path / "journal"

    async def main() -> RunResult[Any]:
        workflow = Workflow("faults")
        handles = [workflow.add(tasks.innocent.bind(n, str(journal), 0.02)) for n in range(100)]
        async with Engine(slots={"processes": 2}) as engine:
            handle = engine.start(workflow.returns(handles))
            for _ in range(3):
                while not (nursery := nurseries()) or len(nursery[0].children()) < 2:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.2)
                nursery[0].send_signal(signal.SIGKILL)
                await asyncio.sleep(0.1)
            return await handle.wait()

    result = asyncio.run(main())
    assert result.value == [n * n for n in range(100)]
    assert {task.attempts for task in result.tasks.values()} == {1}
    started = Counter(line.split()[1] for line in journal.read_text().splitlines() if line.startswith("start"))
    assert len(started) == 100
    assert sum(started.values()) <= 100 + 3 * 2  # what had begun began again
    assert "begun again" in caplog.text
