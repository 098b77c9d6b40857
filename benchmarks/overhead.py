"""What the engine costs a task: no-op tasks in four shapes, against what a competent user would write by hand.

    python benchmarks/overhead.py                       every kind, shape and mode: a few minutes
    python benchmarks/overhead.py --kind asyncio --shape layers --repetitions 21

Each row interleaves the floor and flowlane in one process, pair by pair, and prints the median of the paired ratios
(flowlane's time over the floor's; below 1 the engine is faster than the hand-written loop) with the quartiles, and the
medians in µs a task. Only the ratios mean anything on a shared machine.

Floors, all written here with the standard library: `graphlib.TopologicalSorter` feeding

    asyncio    one asyncio Task each, results through an asyncio.Queue
    threads    a ThreadPoolExecutor of 2
    processes  a ProcessPoolExecutor of 2

Modes: `bare` (nobody listens) and `recorded` (every transition is written as a JSON line to a file; the time until the
last line is written counts). Building the floor's graph and declaring and compiling ours are not in these times: `--build`
prints them beside. `--memory` prints what a declared, compiled and finished run holds per task.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import queue
import statistics
import sys
import tempfile
import tracemalloc
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from graphlib import TopologicalSorter
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from flowlane import Engine, Workflow, task
from flowlane_plugins.sinks.structured import JsonLinesSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.program import Program

Edges = list[list[int]]


def noop(*_: object) -> None:
    """Nothing, in whatever place it is run."""


async def anoop(*_: object) -> None:
    """Nothing, asynchronously."""


async_noop = task.io(anoop)
thread_noop = task.io(noop)
process_noop = task.cpu(noop)
TASKS: dict[str, Any] = {"asyncio": async_noop, "threads": thread_noop, "processes": process_noop}


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def shape(name: str, size: int, width: int = 100) -> Edges:
    """`upstreams[v]`, every one below v. layers: `width` tasks each, three upstreams; tree: a binary reduction."""
    if name == "wide":
        return [[] for _ in range(size)]
    if name == "chain":
        return [[node - 1] if node else [] for node in range(size)]
    if name == "layers":
        return [
            [(node // width - 1) * width + (node + step) % width for step in (-1, 0, 1)] if node >= width else []
            for node in range(size)
        ]
    level = list(range((size + 1) // 2))
    edges: Edges = [[] for _ in level]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = []
        for pair in pairs:
            if len(pair) == 2:
                edges.append(pair)
                level.append(len(edges) - 1)
            else:
                level.append(pair[0])
    return edges


# ── floors ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def floor_asyncio(edges: Edges) -> None:
    sorter = TopologicalSorter(dict(enumerate(edges)))
    sorter.prepare()
    results: dict[int, Any] = {}
    finished: asyncio.Queue[int] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def call(node: int) -> None:
        results[node] = await anoop(*[results[up] for up in edges[node]])
        finished.put_nowait(node)

    while sorter.is_active():
        for node in sorter.get_ready():
            running = asyncio.create_task(call(node))
            tasks.add(running)
            running.add_done_callback(tasks.discard)
        sorter.done(await finished.get())
        while not finished.empty():
            sorter.done(finished.get_nowait())


def floor_pool(pool: Executor, edges: Edges) -> None:
    sorter = TopologicalSorter(dict(enumerate(edges)))
    sorter.prepare()
    results: dict[int, Any] = {}
    finished: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
    while sorter.is_active():
        for node in sorter.get_ready():
            future = pool.submit(noop, *[results[up] for up in edges[node]])
            future.add_done_callback(lambda done, node=node: finished.put((node, done)))  # type: ignore[misc]
        node, future = finished.get()
        results[node] = future.result()
        sorter.done(node)
        while not finished.empty():
            node, future = finished.get()
            results[node] = future.result()
            sorter.done(node)


# ── flowlane ──────────────────────────────────────────────────────────────────────────────────────────────────────


def declare(kind: str, edges: Edges) -> Workflow:
    node = TASKS[kind]
    workflow = Workflow("bench")
    handles: list[Any] = []
    for ups in edges:
        handles.append(workflow.add(node.bind(*[handles[up] for up in ups])))
    return workflow


async def ours(engine: Engine, program: Program) -> None:
    result = await engine.launch(program, keep_history=False).wait()
    result.check()


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def paired(
    kind: str, edges: Edges, recorded: bool, repetitions: int, workers: int
) -> tuple[list[float], list[float]]:
    """Seconds of floor and of flowlane, in turn."""
    floors: list[float] = []
    mine: list[float] = []
    pool: Executor | None = None
    if kind == "threads":
        pool = ThreadPoolExecutor(workers)
    elif kind == "processes":
        pool = ProcessPoolExecutor(workers)
    with tempfile.TemporaryDirectory() as folder:
        slots = {"processes": workers} if kind == "processes" else None
        async with Engine(slots=slots) as engine:
            program = engine.compile(declare(kind, edges).returns(None))
            warm = engine.compile(declare(kind, [[] for _ in range(8)]).returns(None))
            await ours(engine, warm)
            if pool is not None:
                floor_pool(pool, [[] for _ in range(8)])
            for number in range(repetitions + 1):
                gc.collect()
                begin = perf_counter()
                if pool is None:
                    await floor_asyncio(edges)
                else:
                    floor_pool(pool, edges)
                floors.append(perf_counter() - begin)
                gc.collect()
                if recorded:
                    recording = Engine(slots=slots, sinks=[JsonLinesSink(Path(folder) / f"{number}.jsonl")])
                    async with recording:
                        await ours(recording, warm)
                        begin = perf_counter()
                        await ours(recording, program)
                        mine.append(perf_counter() - begin)
                else:
                    begin = perf_counter()
                    await ours(engine, program)
                    mine.append(perf_counter() - begin)
    if pool is not None:
        pool.shutdown()
    return floors[1:], mine[1:]


def compare(kind: str, name: str, size: int, recorded: bool, repetitions: int, workers: int) -> dict[str, Any]:
    edges = shape(name, size)
    floors, mine = asyncio.run(paired(kind, edges, recorded, repetitions, workers))
    ratios = sorted(own / floor for own, floor in zip(mine, floors, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {
        "kind": kind,
        "shape": name,
        "mode": "recorded" if recorded else "bare",
        "tasks": len(edges),
        "pairs": len(ratios),
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "floor_us": round(statistics.median(floors) / len(edges) * 1e6, 2),
        "flowlane_us": round(statistics.median(mine) / len(edges) * 1e6, 2),
    }


def build(size: int) -> None:
    for name in ("wide", "chain", "layers"):
        edges = shape(name, size)
        begin = perf_counter()
        workflow = declare("asyncio", edges)
        declared = perf_counter()
        program = Engine().compile(workflow.returns(None))
        compiled = perf_counter()
        assert program.plan.size == size
        print(
            f"build {name:7} {size:>7} tasks   declare {(declared - begin) / size * 1e6:5.2f} µs a task"
            f"   compile {(compiled - declared) / size * 1e6:5.2f} µs a task"
        )


def memory(size: int) -> None:
    for name in ("wide", "layers"):
        edges = shape(name, size)
        gc.collect()
        tracemalloc.start()
        workflow = declare("asyncio", edges)
        gc.collect()
        declared = tracemalloc.get_traced_memory()[0]

        async def once(workflow: Workflow = workflow) -> tuple[int, int]:
            async with Engine() as engine:
                program = engine.compile(workflow.returns(None))
                gc.collect()
                compiled = tracemalloc.get_traced_memory()[0]
                result = await engine.launch(program, keep_history=False).wait()
                gc.collect()
                assert result.check()
                return compiled, tracemalloc.get_traced_memory()[0]

        compiled, finished = asyncio.run(once())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(
            f"memory {name:7} {size:>7} tasks   bytes a task: declared {declared / size:.0f}"
            f"   compiled {compiled / size:.0f}   result held {finished / size:.0f}   peak {peak / size:.0f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", choices=list(TASKS), action="append")
    parser.add_argument("--shape", choices=["wide", "chain", "layers", "tree"], action="append")
    parser.add_argument("--mode", choices=["bare", "recorded"], action="append")
    parser.add_argument("--size", type=int, help="tasks (default 10,000; processes 2,000)")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    parser.add_argument("--build", action="store_true", help="only: time to declare and compile")
    parser.add_argument(
        "--memory", action="store_true", help="only: memory a task at --size (default 10,000 and 100,000)"
    )
    args = parser.parse_args(argv)
    if not args.json:
        print(f"Python {platform.python_version()}, {platform.machine()}, {args.repetitions} pairs a row")
    if args.build or args.memory:
        for size in [args.size] if args.size else [10_000, 100_000]:
            (build if args.build else memory)(size)
        return
    for kind in args.kind or list(TASKS):
        for name in args.shape or ["wide", "chain", "layers", "tree"]:
            for mode in args.mode or ["bare", "recorded"]:
                size = args.size or (2_000 if kind == "processes" else 10_000)
                row = compare(kind, name, size, mode == "recorded", args.repetitions, args.workers)
                if args.json:
                    print(json.dumps(row), flush=True)
                else:
                    low, high = row["quartiles"]
                    print(
                        f"{kind:9} {name:6} {mode:8} {row['ratio']:6.2f}×  [{low:.2f} … {high:.2f}]"
                        f"   floor {row['floor_us']:7.2f} µs   flowlane {row['flowlane_us']:7.2f} µs",
                        flush=True,
                    )


if __name__ == "__main__":
    sys.exit(main())
