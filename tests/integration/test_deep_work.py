"""Work that returns work that returns work: names as long as the way to a task is deep.

level ─▶ more ─▷ level ─▶ more ─▷ … 60 times;  more/more/more is the task that the third one returned
"""

from __future__ import annotations

from typing import Any

import pytest

import flowlane
from flowlane import Bound, task, workflow

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
