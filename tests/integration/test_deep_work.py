"""Work that returns work that returns work: names as long as the way to a task is deep.

level ─▶ more ─▷ level ─▶ more ─▷ … 60 times;  more/more/more is the task that the third one returned
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import flowlane
from flowlane import Bound, Call, task, workflow

DEEP = 60


@task.io
async def more(n: int) -> int | Bound[int]:
    return level.bind(n - 1) if n else 0


@workflow
def level(n: int) -> int:
    return more(n)


def test_every_task_of_deep_work_is_found_by_its_name() -> None:
    result: Any = flowlane.run(level, n=DEEP)
    names = ["/".join(["more"] * depth) for depth in range(1, DEEP + 2)]
    assert list(result.tasks) == names
    assert [result.tasks[name].name for name in names] == names
    for unknown in ("/".join(["more"] * (DEEP + 2)), "more/less", "/".join(["more"] * DEEP) + "[0]"):
        with pytest.raises(KeyError):
            result.tasks[unknown]


@task.io
async def rest(events: list[str]) -> str:
    await asyncio.sleep(0.3)
    return events[0]


@task.cpu(executor="threads")
def split(text: str) -> str | Call[str]:
    until = time.thread_time() + 0.06
    while time.thread_time() < until:
        pass
    return rest.bind([text])


@workflow
def parted() -> str:
    return closing(split("x"))


@task.io
async def closing(text: str) -> str:
    return text


def test_what_returned_work_is_not_charged_with_its_time() -> None:
    """The attempt of `split` computes; what it has become sleeps five times as long.

    split ─▷ rest ─▶ closing
    """
    result = flowlane.run(parted)
    assert [name for name, _ in result.critical_path] == ["split", "split/rest", "closing"]
    times = dict(result.critical_path)
    assert times["split"] < times["split/rest"]
    assert result.times.work["threads"] < result.times.work["asyncio"]
    assert "waits" not in {verdict.code for verdict in result.verdicts if verdict.task == "split"}


@workflow
def broken() -> str:
    raise ValueError("not today")


@task.io(retries=1)
async def second_time(folder: str) -> str | Bound[str]:
    if not Path(folder, "been").exists():
        Path(folder, "been").touch()
        return broken.bind()
    await asyncio.sleep(0.05)
    return "x"


@workflow
def tried_again(folder: str) -> str:
    return second_time(folder)


def test_an_attempt_after_one_that_returned_work_has_its_own_time(tmp_path: Path) -> None:
    """Red when the end of the first attempt is taken for that of the second."""
    result = flowlane.run(tried_again, str(tmp_path))
    assert (result.value, result.tasks["second_time"].attempts) == ("x", 2)
    ((name, seconds),) = result.critical_path
    assert (name, seconds > 0.04) == ("second_time", True)
