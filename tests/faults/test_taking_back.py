"""The race in taking jobs back from a worker, with a worker that stalls where it hurts most."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.loader import address_of, load_file
from flowlane.runtime.ports import INTERRUPTED, NOTED, STARTED, SUCCEEDED, Job, Report, Target
from flowlane_plugins.workers import dispatch
from flowlane_plugins.workers import pool as pool_module
from flowlane_plugins.workers.nest import Nest
from flowlane_plugins.workers.page import SKIP_FROM, SKIP_TO
from flowlane_plugins.workers.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not Nest.supported(), reason="the nursery is Linux's")

OPTIONS: dict[str, Any] = {"preload": (), "max_tasks": None, "max_rss": None, "grace": 1.0, "output_limit": 1000}


async def test_a_second_taking_back_waits_until_the_first_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when `WorkerHandle.let_go` does not look at the numbers that are to be skipped."""
    stall, gate, ran = tmp_path / "stall", tmp_path / "gate", tmp_path / "ran"
    monkeypatch.setenv("FLOWLANE_TEST_STALL", str(stall))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    # On a slow machine too, jobs travel together, and nobody but this test takes any back.
    monkeypatch.setattr(pool_module, "_LONG", 1 << 60)
    monkeypatch.setattr(dispatch, "FRAME", 1 << 60)
    module = load_file(Path(__file__).with_name("stalling.py"), "_flow_stalling")
    target = Target("quick", module.quick, False, address_of(module.quick))
    got: list[Report] = []

    def finals() -> dict[int, Report]:
        return {report.ref: report for report in got if report.kind not in (STARTED, NOTED)}

    async def until(true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.0005)

    def job(ref: int, gate: Path | None = None) -> Job:
        return Job(ref, target, (ref, str(ran), str(gate or "")), {}, run="run", task=f"quick#{ref}", attempt=1)

    pool = Pool(1, got.extend, object(), partial(Nest, entry="stalling:live"), **OPTIONS)
    try:
        for ref in range(5):  # known to be short from now on: further jobs travel together
            pool.submit([job(ref)])
            await until(lambda ref=ref: ref in finals())  # type: ignore[misc]
        (worker,) = pool._workers.values()
        gate.touch()
        stall.write_text(str(worker.given + 1))
        cells = worker.page.cells
        pool.submit([job(10, gate), *[job(ref) for ref in range(11, 16)]])
        await until(lambda: "10" in ran.read_text().split())
        pool.interrupt([12], 1.0)  # 12 to 15 are taken back, and 13 to 15 are queued again
        await until(lambda: worker.withdrawal is None)
        assert cells[SKIP_FROM] < cells[SKIP_TO], "nothing was taken back"
        gate.unlink()
        await until(lambda: 11 in finals())
        pool.interrupt([14], 1.0)  # while the worker has not yet passed over those
        await until(lambda: worker.withdrawal is None)
        stall.unlink()
        await until(lambda: {10, 11, 12, 13, 14, 15} <= set(finals()))
    finally:
        await pool.close(1.0)
    kinds = {ref: report.kind for ref, report in finals().items()}
    assert {ref: kind for ref, kind in kinds.items() if kind is not SUCCEEDED} == {12: INTERRUPTED, 14: INTERRUPTED}
    times = Counter(ran.read_text().split())
    assert times == {str(ref): 1 for ref in [0, 1, 2, 3, 4, 10, 11, 13, 15]}
    assert {report.worker for report in finals().values() if report.kind is SUCCEEDED} == {f"pid {worker.pid}"}
