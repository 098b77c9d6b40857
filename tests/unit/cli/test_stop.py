"""Signals: the first drains, the second cancels, the third ends the process; real processes, no timing assertions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any

import pytest

from flowlane.cli.stop import StopOnSignals
from flowlane.cli.terminal import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.cli.conftest import Write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# `hold` runs until the file "go" is there, so that a test decides when it ends.
FILE = """
import asyncio, os, time
from flowlane import task, workflow

@task.io
async def hold(x=0):
    open(f"began-{x}", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    return x

@task.io
async def block():
    open("began-0", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.02)          # the loop hears nothing meanwhile

@task.cpu
def spin():
    open("began-0", "w").close()
    open("pid", "w").write(str(os.getpid()))
    time.sleep(600)

@task.io
async def smother():
    while not (os.path.exists("pid") and open("pid").read()):
        await asyncio.sleep(0.01)
    open("smothered", "w").close()
    time.sleep(600)               # with the loop blocked, nothing but the third signal ends the run

@task.io
async def after(x):
    open("after", "w").close()

@workflow
def drained():
    return after(hold())

@workflow
def complete():
    return hold()

@workflow
def blocked():
    return after(block())

@workflow
def crunch():
    smother()
    return spin()
"""


class Running:
    """A ``flow run`` under way, its stderr collected by a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.err = ""
        self.reader = threading.Thread(target=self._read, args=(process.stderr,))
        self.reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.err += line

    def signal(self, signum: int, says: str) -> None:
        """Send `signum` and wait until stderr holds `says`."""
        self.process.send_signal(signum)
        until(lambda: says in self.err or self.process.poll() is not None)
        if says not in self.err:  # it has ended; what it said last may still be on its way
            self.reader.join()
        assert says in self.err, self.err

    def end(self) -> int:
        code = self.process.wait(40)
        self.reader.join()
        assert "Traceback" not in self.err, self.err
        return code


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture
def start(write: Write, tmp_path: Path, environ: dict[str, str]) -> Iterator[Callable[[str], Running]]:
    """Starts a workflow and waits until its first task has begun."""
    write("etl.py", FILE)
    started: list[Running] = []

    def start(workflow: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowlane", "run", f"etl.py:{workflow}"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        running = Running(process)
        started.append(running)
        until(lambda: (tmp_path / "began-0").exists() or process.poll() is not None)
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        running.reader.join()
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.stderr is not None
        running.process.stderr.close()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_lets_what_runs_finish_and_begins_nothing(
    start: Callable[[str], Running], tmp_path: Path, signum: int, code: int
) -> None:
    run = start("drained")
    run.signal(signum, "stopping: what runs may finish, nothing new begins")
    (tmp_path / "go").touch()
    assert run.end() == code
    assert not (tmp_path / "after").exists()
    assert "1 succeeded · 1 cancelled" in run.err
    assert "interrupted after" in run.err


def test_a_run_that_was_complete_all_the_same_succeeded(start: Callable[[str], Running], tmp_path: Path) -> None:
    run = start("complete")
    run.signal(signal.SIGINT, "stopping: ")
    (tmp_path / "go").touch()
    assert run.end() == 0


def test_the_second_signal_cancels_what_runs(start: Callable[[str], Running]) -> None:
    run = start("drained")
    run.signal(signal.SIGINT, "stopping: ")
    run.signal(signal.SIGINT, "stopping at once")
    assert run.end() == 130
    assert "2 cancelled" in run.err


def test_the_third_signal_ends_a_process_whose_loop_is_blocked(start: Callable[[str], Running]) -> None:
    run = start("blocked")
    run.signal(signal.SIGTERM, "stopping: ")
    run.signal(signal.SIGTERM, "stopping at once")
    run.signal(signal.SIGTERM, "ended; ")
    assert run.end() == 143


def test_the_third_signal_leaves_no_worker_behind(start: Callable[[str], Running], tmp_path: Path) -> None:
    run = start("crunch")
    until((tmp_path / "smothered").exists)
    worker = int((tmp_path / "pid").read_text())
    run.signal(signal.SIGINT, "stopping: ")
    run.signal(signal.SIGINT, "stopping at once")
    run.signal(signal.SIGINT, "ended; ")
    assert run.end() == 130
    until(lambda: not runs(worker))


def runs(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    import psutil  # type: ignore[import-untyped]  # ships no types

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_ignored_signals_stay_ignored_and_handlers_are_put_back() -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignals(Messages()):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {name: signal.getsignal(name) for name in before} == before


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def elsewhere() -> None:
        with StopOnSignals(Messages()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("signals", "called"), [(0, []), (1, ["drain"]), (2, ["cancel"])])
def test_a_signal_before_the_run_began_counts_when_it_begins(signals: int, called: list[str]) -> None:
    calls: list[str] = []

    class Handle:
        def drain(self) -> None:
            calls.append("drain")

        def cancel(self, grace: float) -> None:
            assert grace > 0
            calls.append("cancel")

    handle: Any = Handle()
    loop: Any = object()
    with StopOnSignals(Messages()) as stop:
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        stop.attach(loop, handle)
        stop.detach()
    assert calls == called
    assert stop.signum == (signal.SIGINT if signals else None)
