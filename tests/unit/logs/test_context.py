from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from typing import Any

import structlog

from flowlane.runtime import context


def merged() -> dict[str, Any]:
    return dict(structlog.contextvars.merge_contextvars(None, "info", {"event": "x"}))


def test_structlog_finds_run_task_and_attempt() -> None:
    def in_task() -> dict[str, Any]:
        context.bind("7f3a2c", "parse#2", 3)
        return merged()

    found = contextvars.Context().run(in_task)
    assert found == {"event": "x", "run": "7f3a2c", "task": "parse#2", "attempt": 3}
    assert contextvars.Context().run(merged) == {"event": "x"}


def test_what_the_task_binds_itself_comes_beside_it() -> None:
    def in_task() -> tuple[dict[str, Any], dict[str, Any]]:
        context.bind("r", "t", 1)
        structlog.contextvars.bind_contextvars(url="http://x")
        with structlog.contextvars.bound_contextvars(step=2):
            inside = merged()
        return inside, merged()

    inside, outside = contextvars.Context().run(in_task)
    assert inside == {"event": "x", "run": "r", "task": "t", "attempt": 1, "url": "http://x", "step": 2}
    assert outside == {"event": "x", "run": "r", "task": "t", "attempt": 1, "url": "http://x"}


def test_clearing_hides_ours_too_and_the_next_bind_brings_it_back() -> None:
    def in_task() -> tuple[dict[str, Any], dict[str, Any]]:
        context.bind("r", "t", 1)
        structlog.contextvars.clear_contextvars()
        cleared = merged()
        context.bind("r", "t", 2)
        return cleared, merged()

    cleared, bound = contextvars.Context().run(in_task)
    assert cleared == {"event": "x"}
    assert bound == {"event": "x", "run": "r", "task": "t", "attempt": 2}


async def test_tasks_side_by_side_keep_apart() -> None:
    async def task(n: int) -> dict[str, Any]:
        context.bind("r", f"t{n}", n)
        await asyncio.sleep(0)
        return merged()

    found = await asyncio.gather(*[asyncio.create_task(task(n)) for n in range(3)])
    assert [(each["task"], each["attempt"]) for each in found] == [("t0", 0), ("t1", 1), ("t2", 2)]


def test_in_a_thread_with_a_copied_context() -> None:
    found: list[dict[str, Any]] = []

    def in_thread() -> None:
        context.bind("r", "t", 1)
        found.append(merged())

    thread = threading.Thread(target=contextvars.Context().run, args=(in_thread,))
    thread.start()
    thread.join()
    assert found[0]["task"] == "t"
    assert context.TASK.get(None) != "t"


def test_a_real_logger_of_the_tasks_own_shows_them() -> None:
    entries = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, entries])

    def in_task() -> None:
        context.bind("r", "t", 1)
        logger.info("hello", n=1)

    contextvars.Context().run(in_task)
    assert entries.entries == [{"event": "hello", "n": 1, "log_level": "info", "run": "r", "task": "t", "attempt": 1}]


def test_binding_imports_no_structlog() -> None:
    program = "import sys; from flowlane.runtime import context; context.bind('r', 't', 1); sys.exit('structlog' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
