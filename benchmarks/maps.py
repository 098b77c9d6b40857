"""What an element of a map costs: against bare coroutines, against `multiprocessing.Pool`, and from 1,000 elements to a million.

    python benchmarks/maps.py                           asyncio, processes, wide and nested maps: some minutes
    python benchmarks/maps.py --part asyncio --size 10000 --size 100000 --mode recorded
    python benchmarks/maps.py --part flat               1k to 1M elements over three stages: time and memory (3 to 5 minutes)

Parts:

    asyncio    maps of one and of three chained stages, 1,000 items under way, over coroutines that return their item. The floors:
               *tasks*, the same coroutines as asyncio Tasks, gathered in lots of 1,000 (stage by stage); *awaited*, one after
               the other in a loop. `over` is the difference to *tasks*, in µs an element, formed within each round.
    processes  one map over 2 worker processes against `multiprocessing.Pool(2).imap_unordered` (fork) with several chunk sizes,
               in the same round; the ratio is ours over the best of them. Functions: nothing, and 20 µs of work.
    wide       a map of 100,000 and a reduction of all at once; a reduction as a tree, `fan_in=8`
    nested     a workflow that maps 100 items, mapped over 100 items, so that 10,000 elements are in maps of maps
    flat       each size in a process of its own, because memory that was once taken is seldom given back: µs and bytes an
               element beyond the values, which are one shared object. The ratio of the dearest size to the cheapest.

Modes: bare (nobody listens), logged (each transition a JSON line in a file; the time ends when the last is written), recorded
(logged, and stored in SQLite with results; the time ends with the last commit). Declaring and compiling are outside.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pairs import Table, parser, ratio, rounds
from workloads import aecho, echo, echo_after_work

from flowlane import Engine, task, workflow

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from flowlane.program import Program

PARTS = ("asyncio", "processes", "wide", "nested", "flat")
MODES = ("bare", "logged", "recorded")
WINDOW = 1_000
CHUNKS = (1, 16, 64, 256, 1_024)
FLAT = (1_000, 10_000, 100_000, 1_000_000)

fetch = task.io(aecho)
crunch = task.cpu(echo)
work = task.cpu(echo_after_work)


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def engine(mode: str, *, workers: int = 2) -> Generator[Callable[[Any], Callable[[], float]]]:
    """An Engine; gives a function from a bound workflow to what runs it once and returns seconds."""
    from flowlane_plugins.sinks.structured import JsonLinesSink

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "events.jsonl" if mode != "bare" else None
        store = Path(folder) / "flow.db" if mode == "recorded" else None
        sinks = [JsonLinesSink(log)] if log is not None else []
        with Engine(slots={"processes": workers}, sinks=sinks, store=store) as opened:

            def once(program: Program) -> float:
                begin = perf_counter()
                result = opened.launch(program, keep_history=False).result()
                seconds = perf_counter() - begin
                result.check()
                if log is not None:
                    log.unlink()  # the sink opens it anew for every run
                return seconds

            def prepare(bound: Any) -> Callable[[], float]:
                program = opened.compile(bound)
                return lambda: once(program)

            yield prepare


def chained(items: Any, stages: int) -> Any:
    @workflow
    def body() -> Any:
        handle: Any = fetch.options(in_flight=WINDOW).map(items)
        for _ in range(stages - 1):
            handle = fetch.map(handle)
        return handle

    return body.bind()


# ── asyncio ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_tasks(size: int, stages: int) -> float:
    async def all_of_them() -> list[Any]:
        values: Sequence[Any] = range(size)
        for _ in range(stages):
            landed: list[Any] = []
            for low in range(0, size, WINDOW):
                landed += await asyncio.gather(*[aecho(value) for value in values[low : low + WINDOW]])
            values = landed
        return list(values)

    begin = perf_counter()
    asyncio.run(all_of_them())
    return perf_counter() - begin


def awaited(size: int, stages: int) -> float:
    async def all_of_them() -> list[Any]:
        values: Sequence[Any] = range(size)
        for _ in range(stages):
            values = [await aecho(value) for value in values]
        return list(values)

    begin = perf_counter()
    asyncio.run(all_of_them())
    return perf_counter() - begin


def on_asyncio(table: Table, sizes: Sequence[int], modes: Sequence[str], repetitions: int) -> None:
    for size in sizes:
        for stages in (1, 3):
            with ExitStack() as stack:
                ours = {mode: stack.enter_context(engine(mode))(chained(range(size), stages)) for mode in modes}
                floors = {"tasks": partial(as_tasks, size, stages), "awaited": partial(awaited, size, stages)}
                samples = rounds({**floors, **ours}, repetitions)
            each = 1e6 / size / stages
            floor = statistics.median(samples["tasks"]) * each
            bare = statistics.median(samples["awaited"]) * each
            for mode in modes:
                times = ratio(samples[mode], samples["tasks"])
                pairs = zip(samples[mode], samples["tasks"], strict=True)
                over = statistics.median([ours - floor for ours, floor in pairs]) * each
                us = statistics.median(samples[mode]) * each
                table.row(
                    {
                        "part": "asyncio",
                        "stages": stages,
                        "size": size,
                        "mode": mode,
                        **times.row(),
                        "us": round(us, 2),
                        "over_us": round(over, 2),
                        "tasks_us": round(floor, 2),
                        "awaited_us": round(bare, 2),
                    },
                    f"asyncio {stages} × {size:>9,} {mode:8} {times!s:26} {us:6.2f} µs an element, over {over:6.2f} µs"
                    f"   tasks {floor:5.2f} µs   awaited {bare:5.2f} µs",
                )


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def on_processes(table: Table, size: int, modes: Sequence[str], repetitions: int, workers: int) -> None:
    for name, node, function in (("nothing", crunch, echo), ("20 µs", work, echo_after_work)):
        with ExitStack() as stack:
            pool = stack.enter_context(multiprocessing.get_context("fork").Pool(workers))

            def drained(chunk: int, pool: Any = pool, function: Callable[[int], int] = function) -> float:
                begin = perf_counter()
                for _ in pool.imap_unordered(function, range(size), chunk):
                    pass
                return perf_counter() - begin

            @workflow
            def crunching(node: Any = node) -> Any:
                return node.options(in_flight=size).map(range(size))

            ours = {mode: stack.enter_context(engine(mode, workers=workers))(crunching.bind()) for mode in modes}
            theirs = {f"chunks of {chunk}": partial(drained, chunk) for chunk in CHUNKS}
            samples = rounds({**theirs, **ours}, repetitions)
        best = min(theirs, key=lambda each: statistics.median(samples[each]))
        for mode in modes:
            times = ratio(samples[mode], samples[best])
            us = statistics.median(samples[mode]) / size * 1e6
            floors = {each: round(statistics.median(samples[each]) / size * 1e6, 2) for each in theirs}
            table.row(
                {
                    "part": "processes",
                    "work": name,
                    "size": size,
                    "mode": mode,
                    **times.row(),
                    "us": us,
                    "pool": floors,
                },
                f"processes {name:8} {size:>8,} {mode:8} {times!s:26} {us:6.2f} µs an element"
                f"   Pool, {best}: {floors[best]:.2f} µs, one by one: {floors['chunks of 1']:.2f} µs",
            )


# ── wide and nested ───────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def add(values: list[int]) -> int:
    return sum(values)


@task.io
async def listed(size: int) -> list[int]:
    return list(range(size))


@workflow
def wide(size: int, fan_in: int) -> Any:
    items = fetch.options(in_flight=WINDOW).map(range(size))
    return add.reduce(items, fan_in=fan_in) if fan_in else add(items)


@workflow
def within(size: int) -> Any:
    return add(fetch.map(listed(size)))


@workflow
def nested(outer: int, inner: int) -> Any:
    return within.map([inner] * outer)


def of_shape(table: Table, name: str, bound: Any, elements: int, modes: Sequence[str], repetitions: int) -> None:
    with ExitStack() as stack:
        ours = {mode: stack.enter_context(engine(mode))(bound) for mode in modes}
        samples = rounds({"tasks": lambda: as_tasks(elements, 1), **ours}, repetitions)
    for mode in modes:
        times = ratio(samples[mode], samples["tasks"])
        us = statistics.median(samples[mode]) / elements * 1e6
        table.row(
            {"part": name, "elements": elements, "mode": mode, **times.row(), "us": round(us, 2)},
            f"{name:22} {elements:>8,} {mode:8} {times!s:26} {us:6.2f} µs an element",
        )


# ── flat ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def resident() -> int:
    """Bytes of memory that this process has in use now; Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def alone(size: int, stages: int) -> dict[str, float]:
    """One size, in this process: µs and bytes an element. Every value is None: a result takes 8 bytes of a list."""

    async def once(number: int) -> tuple[float, int]:
        async with Engine() as opened:
            program = opened.compile(chained(itertools.repeat(None, number), stages))
            gc.collect()
            before = resident()
            begin = perf_counter()
            result = await opened.launch(program, keep_history=False).wait()
            seconds = perf_counter() - begin
            gc.collect()
            held = resident() - before
            assert result.check()
            return seconds, held

    asyncio.run(once(2 * WINDOW))  # what is imported and allocated once is nobody's
    times = [asyncio.run(once(size)) for _ in range(max(1, min(5, 100_000 // size)))]
    return {
        "us": statistics.median([seconds for seconds, _ in times]) / size / stages * 1e6,
        "bytes": max(held for _, held in times) / size / stages,
    }


def flat(table: Table, sizes: Sequence[int], stages: int, repetitions: int) -> None:
    us: dict[int, list[float]] = {size: [] for size in sizes}
    held: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repetitions):
        for size in sizes:
            command = [sys.executable, __file__, "--alone", str(size), "--stages", str(stages)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(out)
            us[size].append(found["us"])
            held[size].append(found["bytes"])
    for size in sizes:
        middle, memory = statistics.median(us[size]), statistics.median(held[size])
        table.row(
            {"part": "flat", "size": size, "stages": stages, "us": middle, "all_us": us[size], "bytes": memory},
            f"flat {stages} × {size:>9,}   {middle:6.2f} µs an element [{min(us[size]):.2f} … {max(us[size]):.2f}]"
            f"   {memory:6.0f} B an element",
        )
    most = [max(each) / min(each) for each in zip(*us.values(), strict=True)]
    table.row(
        {"part": "flat", "dearest_over_cheapest": most},
        f"flat {stages}: dearest size over cheapest, by round: {', '.join(f'{each:.2f}' for each in most)}",
    )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, repetitions=5)
    arguments.add_argument("--part", choices=PARTS, action="append", help="default: all but flat")
    arguments.add_argument("--mode", choices=MODES, action="append")
    arguments.add_argument("--size", type=int, action="append", help="elements of a map")
    arguments.add_argument("--stages", type=int, default=3, help="of flat (default %(default)s)")
    arguments.add_argument("--alone", type=int, help="used by flat: one size, as JSON")
    args = arguments.parse_args(argv)
    if args.alone:
        print(json.dumps(alone(args.alone, args.stages)))
        return
    modes = args.mode or MODES
    table = Table(args.json, f"{args.repetitions} rounds, {args.workers} workers")
    for part in args.part or PARTS[:-1]:
        if part == "asyncio":
            on_asyncio(table, args.size or [10_000], modes, args.repetitions)
        elif part == "processes":
            for size in args.size or [20_000]:
                on_processes(table, size, modes, args.repetitions, args.workers)
        elif part == "wide":
            for size in args.size or [100_000]:
                of_shape(table, "wide", wide.bind(size, 0), size, modes, args.repetitions)
                of_shape(table, "wide, tree of 8", wide.bind(size, 8), size, modes, args.repetitions)
        elif part == "nested":
            of_shape(table, "nested, 100 × 100", nested.bind(100, 100), 10_000, modes, args.repetitions)
        else:
            flat(table, args.size or FLAT, args.stages, args.repetitions)


if __name__ == "__main__":
    main()
