"""Adaptive slots against a real server on the loopback that serves eight at a time: where they come to rest, and what is told."""

from __future__ import annotations

import asyncio
import json
import threading
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Adaptive, DefinitionError, Engine, Limit, SettingsError, task, workflow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

KNEE = 8
SERVICE = 0.008


class Server:
    """Answers a line with a line, `KNEE` at a time after `SERVICE` seconds each; the others queue. In a thread of its own."""

    def __init__(self) -> None:
        self.port = 0
        self.most = 0  # connections at once
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="knee", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._places = asyncio.Semaphore(KNEE)
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stop.wait()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            line = await reader.readline()
            async with self._places:
                await asyncio.sleep(SERVICE)
            writer.write(line)
            await writer.drain()
        finally:
            self._now -= 1
            writer.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@task.io
async def ask(number: int, port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{number}\n".encode())
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(answer)


@task.io(limits=["server"])
async def ask_within_limit(number: int, port: int) -> int:
    return await ask.fn(number, port)


@workflow
def crawl(count: int, port: int) -> list[int]:
    return ask.map(list(range(count)), port)


@workflow
def crawl_within_limit(count: int, port: int) -> list[int]:
    return ask_within_limit.map(list(range(count)), port)


async def told(engine: Engine, bound: Any) -> tuple[Any, list[dict[str, Any]]]:
    handle = engine.start(bound)
    events = [event async for event in handle.events() if event["event"] == "lane.resized"]
    return await handle, events


def settled(events: list[dict[str, Any]]) -> float:
    """The slots that it mostly had, in the second half of what it did."""
    return median([event["slots"] for event in events[len(events) // 2 :]])


@pytest.mark.timeout(120)
async def test_a_lane_that_starts_beyond_the_knee_comes_down_to_it(server: Server) -> None:
    async with Engine(slots={"asyncio": Adaptive(2, 64, start=24)}) as engine:
        result, events = await told(engine, crawl.bind(3_500, server.port))
    assert result.value == list(range(3_500))
    assert server.most <= 64
    assert events[0]["before"] == 24
    assert all(2 <= event["slots"] <= 64 and event["slots"] != event["before"] for event in events)
    assert [event["before"] for event in events[1:]] == [event["slots"] for event in events[:-1]]
    assert KNEE / 4 <= settled(events) <= KNEE * 4
    (sentence,) = result.resizes
    assert sentence.startswith(f"asyncio 24 → {events[-1]['slots']} slots: {events[-1]['note']}")
    assert 2 <= result.slots["asyncio"] <= 64


@pytest.mark.timeout(120)
async def test_a_limit_that_starts_low_grows_and_the_lane_does_not_matter(server: Server) -> None:
    limit = Limit("server", Adaptive(1, 100, start=2))
    async with Engine(slots={"asyncio": 200}, limits=[limit]) as engine:
        result, events = await told(engine, crawl_within_limit.bind(1_500, server.port))
    assert result.value == list(range(1_500))
    assert {(event["lane"], event["limit"]) for event in events} == {(None, "server")}
    assert KNEE / 4 <= max(event["slots"] for event in events) <= 100
    assert result.resizes[0].startswith("limit server 2 → ")
    assert json.loads(json.dumps(events[0]))["in_use"] >= 1


# ── who may, and who may not ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("numbers", [(0, 4), (5, 4), (1, 4, 9), (True, 4), (1, 2.5)])
def test_bounds_that_are_none_are_told_with_their_place(numbers: tuple[Any, ...]) -> None:
    with pytest.raises(DefinitionError, match=r"Adaptive.*numbers that do not fit") as caught:
        Adaptive(*numbers)
    assert caught.value.where is not None and "test_adaptive.py" in caught.value.where


def test_unless_given_the_start_is_in_the_middle() -> None:
    assert Adaptive(4, 256).bounds.start == 32
    assert Adaptive(1, 1).bounds.start == 1


@task.cpu
def nothing() -> None:
    return None


@workflow
def empty() -> None:
    nothing()


def test_an_executor_that_measures_its_appetite_does_not_adapt() -> None:
    engine = Engine(slots={"processes": Adaptive(1, 4)})
    with engine, pytest.raises(SettingsError, match="'processes' cannot adapt") as caught:
        engine.start(empty)
    assert caught.value.hint == "Adaptive is for executors that wait: asyncio, threads"
