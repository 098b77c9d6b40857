"""Workers that cannot start: told once, with what they said, and nothing on anybody's terminal."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import flowlane.testing
from flowlane.loader import address_of, load_file
from flowlane.runtime.ports import CRASHED, Job, Report, Target
from flowlane_plugins.workers.nest import Nest
from flowlane_plugins.workers.pool import Pool
from flowlane_plugins.workers.spawned import Spawned

OPTIONS: dict[str, Any] = {"preload": (), "max_tasks": None, "max_rss": None, "grace": 1.0, "output_limit": 1000}


@pytest.mark.parametrize("nest", [Nest, Spawned])
async def test_workers_that_cannot_start_say_why(nest: Any, capfd: pytest.CaptureFixture[str]) -> None:
    if not nest.supported():
        pytest.skip("not here")
    jobs = load_file(Path(flowlane.testing.__file__).with_name("jobs.py"), "_flow_contract_jobs")
    target = Target("add", jobs.add, False, address_of(jobs.add))
    got: list[Report] = []
    pool = Pool(2, got.extend, object(), partial(nest, entry="flowlane_no_such_module:live"), **OPTIONS)
    try:
        pool.submit([Job(ref, target, (1,), {}, run="run", task=f"add#{ref}", attempt=1) for ref in range(3)])
        async with asyncio.timeout(30):
            while len(got) < 3:
                await asyncio.sleep(0.01)
    finally:
        await pool.close(1.0)
    assert [report.kind for report in got] == [CRASHED] * 3
    failure = got[0].failure
    assert failure is not None
    assert "has no worker" in failure.message
    assert "No module named 'flowlane_no_such_module'" in failure.message
    assert capfd.readouterr() == ("", "")
