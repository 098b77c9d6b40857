"""Kills at random moments: of workers under load, and of the engine. The short forms run always, the long ones on demand.

The figures of the last long run are in docs/how-processes-work.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flowlane import Engine, RetryPolicy, Workflow

if TYPE_CHECKING:
    from types import ModuleType

GONE = 10.0  # seconds, on a machine that others use too; on an idle one it is a fraction of one
MODES = ["busy", "idle", "spin", "daemons"]


def workers() -> list[psutil.Process]:
    """Processes that run tasks: the nursery's children."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process().children():
            if "nursery" in " ".join(child.cmdline()):
                found += child.children()
    return found


async def kill_while(handle: Any, kills: int, seed: int) -> int:
    """SIGKILL one worker after another at random moments while a run lasts; how many were killed."""
    dice = random.Random(seed)
    done = 0
    while done < kills and handle.state == "running":
        await asyncio.sleep(dice.uniform(0.0, 0.02))
        alive = workers()
        if alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(alive).send_signal(signal.SIGKILL)
                done += 1
    return done


async def storm(tasks: ModuleType, journal: Path, kills: int, seed: int) -> None:
    """Waves of tasks of 0 to 4 ms under kills. Each wave's values must be right, and nothing may have run too often."""
    done = charged = 0
    dice = random.Random(seed)
    async with Engine(slots={"processes": 2}) as engine:
        while done < kills:
            journal.write_text("")
            workflow = Workflow("storm")
            call = tasks.innocent.options(retry=RetryPolicy(attempts=100))
            naps = [dice.choice([0.0, 0.0, 0.0, 0.001, 0.004]) for _ in range(600)]
            handles = [workflow.add(call.bind(n, str(journal), nap)) for n, nap in enumerate(naps)]
            handle = engine.start(workflow.returns(handles))
            killed = await kill_while(handle, kills - done, seed + done)
            result = await handle.wait()
            done += killed
            failed = {name: task.failure for name, task in result.tasks.items() if task.failure is not None}
            # a task may be unlucky twice in a row: that makes it poison, by rule, and is its own affair
            assert all(failure.type == "PoisonTask" for failure in failed.values()), failed
            if not failed:
                assert result.value == [n * n for n in range(len(naps))]
            extra = sum(task.attempts - 1 for task in result.tasks.values()) + len(failed)
            charged += extra
            started = Counter(line.split()[1] for line in journal.read_text().splitlines() if line.startswith("start"))
            # Who began more often than it was charged is an innocent that was run again.
            for number, (name, task) in enumerate(result.tasks.items()):
                assert started[str(number)] <= task.attempts, (name, started[str(number)], task.attempts)
            assert extra <= killed
    assert done >= kills


def test_kills_under_load_cost_nobody_but_the_killed(tasks: ModuleType, tmp_path: Path) -> None:
    asyncio.run(storm(tasks, tmp_path / "journal", 25, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_kills_under_load(tasks: ModuleType, tmp_path: Path) -> None:
    asyncio.run(storm(tasks, tmp_path / "journal", 1000, seed=2))


# ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────────


def family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def lives(process: psutil.Process) -> bool:
    """Zombies are dead: whoever inherited them (this machine's init) takes its time to say so."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_engine(folder: Path, mode: str, delay: float, *, stop_nursery: bool) -> list[psutil.Process]:
    """Start an engine, kill it `delay` seconds after it is at work; those of its processes that do not die of it."""
    folder.mkdir()
    script = Path(__file__).with_name("storm.py")
    with open(folder / "log", "wb") as log:
        engine = subprocess.Popen([sys.executable, str(script), str(folder), mode], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not (folder / "ready").exists():
            assert engine.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        before = family(engine.pid)
        assert before
        if stop_nursery:
            for child in before:
                if "nursery" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGSTOP)
                    break
    finally:
        engine.kill()
        engine.wait()
    deadline = time.monotonic() + GONE
    while (alive := [process for process in before if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return alive


@pytest.mark.skipif(sys.platform != "linux", reason="what a dead engine leaves is the nursery's to end")
@pytest.mark.parametrize("stop_nursery", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_engine_leaves_no_process(tmp_path: Path, mode: str, stop_nursery: bool) -> None:
    assert kill_engine(tmp_path / "engine", mode, 0.0, stop_nursery=stop_nursery) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_two_hundred_killed_engines_leave_no_process(tmp_path: Path) -> None:
    dice = random.Random(3)
    for number in range(200):
        mode = MODES[number % len(MODES)]
        left = kill_engine(tmp_path / str(number), mode, dice.uniform(0, 0.1), stop_nursery=number % 8 >= 4)
        assert left == [], (number, mode)


# ── taking jobs back ──────────────────────────────────────────────────────────────────────────────────────────────


def test_short_jobs_never_wait_behind_a_long_one(tasks: ModuleType, tmp_path: Path) -> None:
    """The same function, first quick, then slow: the frame behind a slow job is taken back, and each job runs once."""
    journal = tmp_path / "journal"

    async def main() -> None:
        async with Engine(slots={"processes": 2}) as engine:
            warm = Workflow("warm")
            handles = [warm.add(tasks.innocent.bind(n)) for n in range(300)]
            await engine.start(warm.returns(handles))
            dice = random.Random(4)
            for _ in range(5):
                journal.write_text("")
                workflow = Workflow("mixed")
                slow = dice.randrange(200)
                handles = [
                    workflow.add(tasks.innocent.bind(n, str(journal), 0.4 if n == slow else 0.0)) for n in range(200)
                ]
                result = await engine.start(workflow.returns(handles))
                assert result.value == [n * n for n in range(200)]
                lines = [line.split() for line in journal.read_text().splitlines()]
                starts = Counter(words[1] for words in lines if words[0] == "start")
                assert starts == {str(n): 1 for n in range(200)}
                assert lines[-1][:2] == ["end", str(slow)], "somebody waited for the slow one"

    asyncio.run(main())


def test_a_cancel_in_the_middle_of_frames_answers_every_job(tasks: ModuleType) -> None:
    async def main() -> None:
        async with Engine(slots={"processes": 2}) as engine:
            dice = random.Random(5)
            for _ in range(20):
                workflow = Workflow("cancelled")
                handles = [workflow.add(tasks.innocent.bind(n, None, 0.0005)) for n in range(400)]
                handle = engine.start(workflow.returns(handles))
                await asyncio.sleep(dice.uniform(0, 0.05))
                handle.cancel(grace=1.0)
                result = await handle.wait()
                assert sum(result.counts.values()) == 400
            workflow = Workflow("after")
            handles = [workflow.add(tasks.innocent.bind(n)) for n in range(50)]
            assert (await engine.start(workflow.returns(handles))).value == [n * n for n in range(50)]

    asyncio.run(main())
