"""Limits of an engine under everything that can happen to an attempt: whatever it was, what it held is back afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Adaptive, Engine, Limit, RetryPolicy, Skip, Workflow, task

if TYPE_CHECKING:
    from flowlane.core.lanes import Slots
    from flowlane.runtime.dispatcher import Dispatcher

HELD: Counter[str] = Counter()
MOST: Counter[str] = Counter()


class Holding:
    """Counts, from inside a task, how much of which limits is in use."""

    def __init__(self, **weights: int) -> None:
        self.weights = weights

    def __enter__(self) -> None:
        HELD.update(self.weights)
        for name in self.weights:
            MOST[name] = max(MOST[name], HELD[name])

    def __exit__(self, *_: object) -> None:
        HELD.subtract(self.weights)


async def misbehave(how: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    if how == "fails":
        raise ValueError(how)
    if how == "skips":
        raise Skip(how)
    if how == "hangs":
        await asyncio.sleep(60)
    if how == "exits":
        raise SystemExit(3)
    return how


@task.io(limits=["api"])
async def light(how: str, seconds: float) -> str:
    with Holding(api=1):
        return await misbehave(how, seconds)


@task.io(limits={"disk": 1, "api": 3})
async def heavy(how: str, seconds: float) -> str:
    with Holding(api=3, disk=1):
        return await misbehave(how, seconds)


@task.io(limits={"api": 2}, cores=3)
def wide(how: str, seconds: float) -> str:
    with Holding(api=2):
        if how == "fails":
            raise ValueError(how)
        return how


def everything(engine: Engine) -> list[Slots]:
    dispatcher: Dispatcher = engine._dispatcher
    return [*dispatcher._lanes.values(), *[limit for _, limit in dispatcher._limits.values()]]


def random_run(draw: Random) -> Workflow:
    workflow = Workflow("any")
    handles: list[Any] = []
    for _ in range(draw.randint(10, 25)):
        kind = draw.choice([light, light, heavy, wide])
        how = draw.choice(["works", "works", "works", "fails", "skips", "hangs", "exits"])
        options: dict[str, Any] = {"timeout": 0.02, "retry": RetryPolicy(attempts=draw.randint(1, 3), backoff=0.001)}
        if draw.random() < 0.2:
            options["total_timeout"] = 0.03
        after = draw.sample(handles, min(len(handles), draw.choice([0, 0, 1, 2])))
        call = kind.options(**options, trigger=draw.choice(["all_success", "all_done"])).bind(how, draw.random() / 300)
        handles.append(workflow.add(call, after=after))
    return workflow.returns(None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("inline", [False, True])
async def test_nothing_is_kept_whatever_happens(seed: int, inline: bool) -> None:
    """Three runs at a time: some cancelled, some drained, one of them fails fast; attempts fail, skip, hang and exit."""
    draw = Random(seed)
    HELD.clear()
    MOST.clear()
    limits = [
        Limit(
            "api",
            Adaptive(3, 6) if seed % 2 else 4,
            rate="2000/s" if seed % 3 == 0 else None,
            burst=5 if seed % 3 == 0 else None,
        ),
        Limit("disk", 2),
    ]
    routes = {"io.async": "inline"} if inline else {}
    slots = {"asyncio": 8, "threads": 4} if not inline else {"threads": 4}
    async with Engine(slots=slots, limits=limits, routes=routes, grace=0.5) as engine:
        handles = []
        for _ in range(3):
            workflow = random_run(draw)
            handles.append(engine.start(workflow, on_failure=draw.choice(["continue", "continue", "fail_fast"])))
        for handle in handles:
            stop = draw.choice([handle.cancel, handle.drain, None, None])
            if stop is not None:
                asyncio.get_running_loop().call_later(draw.random() / 10, stop)
        for handle in handles:
            await handle.wait()
        for each in everything(engine):
            each.check()
            assert each.in_use == 0, each
            assert each.free == each.capacity, each
        assert len(everything(engine)) >= 3
    assert not any(HELD.values())
    assert MOST["api"] <= 6 and MOST["disk"] <= 2


async def test_two_runs_that_share_a_limit_both_make_progress() -> None:
    """Each wants the whole limit all the time, and the order of their ends shows that they took turns."""
    ended: list[str] = []

    @task.io(limits=["one"])
    async def step(run: str) -> None:
        await asyncio.sleep(0.001)
        ended.append(run)

    async with Engine(limits=[Limit("one", 1)]) as engine:
        handles: list[Any] = []
        for name in ("a", "b"):
            workflow = Workflow(name)
            for _ in range(30):
                workflow.add(step.bind(name))
            handles.append(engine.start(workflow))
        for handle in handles:
            await handle
    first_half = Counter(ended[:30])
    assert first_half["a"] >= 10 and first_half["b"] >= 10


async def test_a_limit_that_is_not_shared_is_one_for_each_run() -> None:
    together = asyncio.Barrier(2)

    @task.io(limits=[Limit("own", 1, shared=False)])
    async def meet() -> None:
        async with asyncio.timeout(20):
            await together.wait()

    async with Engine() as engine:
        handles: list[Any] = []
        for name in ("a", "b"):
            workflow = Workflow(name)
            workflow.add(meet.bind())
            handles.append(engine.start(workflow))
        for handle in handles:
            await handle


async def test_a_run_is_told_when_its_limit_is_not_the_engines() -> None:
    @task.io(limits=["api"])
    async def step() -> None: ...

    async with Engine(limits=[Limit("api", 2)]) as engine:
        workflow = Workflow("w")
        workflow.add(step.bind())
        await engine.start(workflow)
        other = Workflow("w")
        other.add(step.bind())
        with pytest.raises(Exception, match="limit 'api' is 2 at a time in this engine already, and 3 at a time here"):
            await engine.start(other, limits=[Limit("api", 3)])
