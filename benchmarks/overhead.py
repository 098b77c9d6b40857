"""What the engine costs a task: no-op tasks in four shapes, against what a competent user would write by hand.

    python benchmarks/overhead.py                       every kind, shape and mode: a few minutes
    python benchmarks/overhead.py --kind asyncio --shape layers --repetitions 21

Each row interleaves the floor and flowlane in one process, round by round, and prints the median of the paired ratios
(flowlane's time over the floor's; below 1 the engine is faster than the hand-written loop) with the quartiles, and the
medians in µs a task. Only the ratios mean anything on a shared machine. Processes have more to tell: see `processes.py`,
which prints the same ratio the other way round.

Floors, all written with the standard library: `graphlib.TopologicalSorter` feeding

    asyncio    one asyncio Task each, results through an asyncio.Queue
    threads    a ThreadPoolExecutor of `--workers`
    processes  a ProcessPoolExecutor of `--workers`

Modes: `bare` (nobody listens), `logged` (every transition is written as a JSON line to a file; the time until the
last line is written counts) and `recorded` (logged, and stored in SQLite with results; the time until the last commit
counts). Building the floor's graph and declaring and compiling ours are not in these times: `--build`
prints them beside. `--memory` prints what a declared, compiled and finished run holds per task.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from graphlib import TopologicalSorter
from time import perf_counter
from typing import TYPE_CHECKING, Any

from contenders import declare, feed, flowlane, stdlib, uniform
from graphs import SHAPES, shape
from pairs import Table, parser, ratio, rounds
from workloads import anoop, noop

from flowlane import Engine, task

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from graphs import Edges

    from flowlane import Bound

KINDS = ("asyncio", "threads", "processes")

# The floor knows nothing of what it calls: its results are kept and handed on like anybody's.
anything: Callable[..., Coroutine[Any, Any, Any]] = anoop


# ── floors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def floor_asyncio(edges: Edges) -> float:
    begin = perf_counter()
    sorter = TopologicalSorter(dict(enumerate(edges)))
    sorter.prepare()
    results: dict[int, Any] = {}
    finished: asyncio.Queue[int] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def call(node: int) -> None:
        results[node] = await anything(*[results[up] for up in edges[node]])
        finished.put_nowait(node)

    while sorter.is_active():
        for node in sorter.get_ready():
            running = asyncio.create_task(call(node))
            tasks.add(running)
            running.add_done_callback(tasks.discard)
        sorter.done(await finished.get())
        while not finished.empty():
            sorter.done(finished.get_nowait())
    return perf_counter() - begin


def floor(stack: ExitStack, kind: str, workers: int) -> Callable[[Edges], float]:
    """Seconds for one run of a graph of no-ops."""
    if kind == "asyncio":
        return lambda edges: asyncio.run(floor_asyncio(edges))
    if kind == "processes":
        pool = stack.enter_context(stdlib(workers))
        return lambda edges: pool.prepare(uniform(noop, edges))()[0]
    threads = stack.enter_context(ThreadPoolExecutor(workers))

    def once(edges: Edges) -> float:
        graph = uniform(noop, edges)
        begin = perf_counter()
        feed(threads.submit, graph)
        return perf_counter() - begin

    return once


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────────


MODES = ("bare", "logged", "recorded")


def compare(kind: str, name: str, size: int, mode: str, repetitions: int, workers: int) -> dict[str, Any]:
    edges = shape(name, size)
    function = anoop if kind == "asyncio" else noop
    with ExitStack() as stack:
        by_hand = floor(stack, kind, workers)
        io = None if kind == "processes" else function
        engine = stack.enter_context(flowlane(workers, log=mode != "bare", store=mode == "recorded", io=io))
        once = engine.prepare(uniform(function, edges))
        samples = rounds({"floor": lambda: by_hand(edges), "flowlane": lambda: once()[0]}, repetitions)
    return {
        "kind": kind,
        "shape": name,
        "mode": mode,
        "tasks": len(edges),
        **ratio(samples["flowlane"], samples["floor"]).row(),
        "floor_us": round(statistics.median(samples["floor"]) / len(edges) * 1e6, 2),
        "flowlane_us": round(statistics.median(samples["flowlane"]) / len(edges) * 1e6, 2),
    }


def declared(edges: Edges) -> Bound[Any]:
    return declare(uniform(anoop, edges), {anoop: task.io(anoop)})


def build(table: Table, size: int) -> None:
    for name in ("wide", "chain", "layers"):
        edges = shape(name, size)
        begin = perf_counter()
        workflow = declared(edges)
        middle = perf_counter()
        program = Engine().compile(workflow)
        end = perf_counter()
        assert program.plan.size == size
        spent = {"declare_us": (middle - begin) / size * 1e6, "compile_us": (end - middle) / size * 1e6}
        table.row(
            {"build": name, "tasks": size, **{key: round(value, 2) for key, value in spent.items()}},
            f"build {name:7} {size:>7} tasks   declare {spent['declare_us']:5.2f} µs a task"
            f"   compile {spent['compile_us']:5.2f} µs a task",
        )


def memory(table: Table, size: int) -> None:
    Engine().compile(declared([[]]))  # what is imported for it belongs to no graph
    for name in ("wide", "layers"):
        edges = shape(name, size)
        gc.collect()
        tracemalloc.start()
        workflow = declared(edges)
        held = {"declared": traced()}

        async def once(workflow: Bound[Any] = workflow, held: dict[str, int] = held) -> None:
            async with Engine() as engine:
                program = engine.compile(workflow)
                held["compiled"] = traced()
                result = await engine.launch(program, keep_history=False).wait()
                held["result_held"] = traced()
                assert result.check()

        asyncio.run(once())
        held["peak"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        each = {key: round(value / size) for key, value in held.items()}
        table.row(
            {"memory": name, "tasks": size, **each},
            f"memory {name:7} {size:>7} tasks   bytes a task: declared {each['declared']}"
            f"   compiled {each['compiled']}   result held {each['result_held']}   peak {each['peak']}",
        )


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kind", choices=KINDS, action="append")
    arguments.add_argument("--shape", choices=SHAPES, action="append")
    arguments.add_argument("--mode", choices=MODES, action="append")
    arguments.add_argument("--size", type=int, help="tasks (default 10,000; processes 2,000)")
    arguments.add_argument("--build", action="store_true", help="only: time to declare and compile")
    arguments.add_argument(
        "--memory", action="store_true", help="only: memory a task at --size (default 10,000 and 100,000)"
    )
    args = arguments.parse_args(argv)
    if args.build or args.memory:
        table = Table(args.json)
        for size in [args.size] if args.size else [10_000, 100_000]:
            (build if args.build else memory)(table, size)
        return
    table = Table(args.json, f"{args.repetitions} rounds, {args.workers} workers")
    for kind in args.kind or KINDS:
        for name in args.shape or SHAPES:
            for mode in args.mode or MODES:
                size = args.size or (2_000 if kind == "processes" else 10_000)
                row = compare(kind, name, size, mode, args.repetitions, args.workers)
                low, high = row["quartiles"]
                table.row(
                    row,
                    f"{kind:9} {name:6} {mode:8} {row['ratio']:6.2f}×  [{low:.2f} … {high:.2f}]"
                    f"   floor {row['floor_us']:7.2f} µs   flowlane {row['flowlane_us']:7.2f} µs",
                )


if __name__ == "__main__":
    main()
