"""Drives one executor of this process on a loop of its own, without an engine, and hears what it says."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import os
import subprocess
import sys
import textwrap
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from flowlane.runtime.context import bind
from flowlane.runtime.ports import NOTED, STARTED, Job, Report, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

ROOT = Path(__file__).parents[2]
LOOPS = ["asyncio", "debug", "uvloop"]


def on_loop(kind: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` on a loop of that kind."""
    factory: Any = None
    if kind == "uvloop":
        factory = pytest.importorskip("uvloop", reason="uvloop is not installed").new_event_loop
    with asyncio.Runner(debug=kind == "debug", loop_factory=factory) as runner:
        runner.run(main())


class Heard:
    """What an executor reported, in order; and makes jobs for it."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._refs = itertools.count(1)

    def deliver(self, reports: Sequence[Report]) -> None:
        self.reports.extend(reports)

    def job(self, fn: Callable[..., Any], *args: Any, name: str | None = None) -> Job:
        ref = next(self._refs)
        name = name or f"{fn.__name__}#{ref}"
        target = Target(fn.__name__, fn, asyncio.iscoroutinefunction(fn), None)
        context = contextvars.copy_context()
        context.run(bind, "run-1", name, 1)
        return Job(ref, target, args, {}, "run-1", name, 1, None, context)

    def of(self, job: Job) -> list[Report]:
        return [report for report in tuple(self.reports) if report.ref == job.ref]

    def notes(self, job: Job) -> list[str]:
        return [report.note for report in self.of(job) if report.kind == NOTED]

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.002)

    async def started(self, job: Job) -> None:
        await self.until(lambda: any(report.kind == STARTED for report in self.of(job)))

    async def final(self, job: Job) -> Report:
        """Its final report; nothing may have come after it."""
        await self.until(lambda: any(report.kind not in (STARTED, NOTED) for report in self.of(job)))
        *before, last = self.of(job)
        assert last.kind not in (STARTED, NOTED), "told after the end"
        assert all(report.kind in (STARTED, NOTED) for report in before), "more than one end"
        return last


@asynccontextmanager
async def opened(executor: Any, grace: float = 0.1) -> AsyncIterator[Heard]:
    heard = Heard()
    await executor.open(heard.deliver)
    try:
        yield heard
    finally:
        await executor.close(grace)


class Listener(logging.Handler):
    """What the library logs, heard on the thread that logs it. `told` is set by the first record."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.told.set()

    def __enter__(self) -> Self:
        logging.getLogger("flowlane").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("flowlane").removeHandler(self)


def start_script(folder: Path, text: str) -> subprocess.Popen[str]:
    """Start `text` as a program of its own, in which flowlane and its plug-ins can be imported."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    path = os.pathsep.join([str(ROOT / "engine"), str(ROOT / "plugins")])
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends(process: subprocess.Popen[str], within: float) -> str | None:
    """What the program wrote, both streams, when it ends within so many seconds; else None, and it is killed."""
    try:
        out, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    return out + err
