"""Whether anything grows: a million tiny tasks through one Engine, and what it and its processes hold along the way.

    python benchmarks/soak.py                                  10⁶ process tasks in runs of 50,000
    python benchmarks/soak.py --executor threads --tasks 200000
    python benchmarks/soak.py --values 4096                    results of 4 kB each, so that values travel too

After every `--every` tasks, between two runs and after a garbage collection, a row shows

    engine, workers   resident memory in MB; the second of all processes under ours together, nurseries and trackers too
    descriptors       of the engine and of all processes under it
    threads           of the engine
    processes         under ours
    shared            entries in /dev/shm, and MB of shared memory of any kind (memfds too), of the whole machine: what other
                      programs do shows here

The last rows give the slope of each by least squares: over all samples but the first, which ends the warm-up, and over the last
half of them, when allocators have grown to what the work needs. Flat means: in the last half next to nothing a task for memory,
and exactly 0 for everything that is counted.
"""

from __future__ import annotations

import gc
import os
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
from contenders import declare, uniform
from pairs import Table, parser, slope
from workloads import anoop, noop, payload

from flowlane import Engine, task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.program import Program

COUNTED = ("descriptors", "threads", "processes", "shm")
MEMORY = ("engine_mb", "workers_mb", "shared_mb")


def sample() -> dict[str, float]:
    """What this process and those under it hold now."""
    gc.collect()
    me = psutil.Process()
    engine = me.memory_info()
    workers = 0
    descriptors = me.num_fds()
    children = me.children(recursive=True)
    processes = 0
    for child in children:
        try:
            held = child.memory_info()
            opened = child.num_fds()
        except psutil.Error:  # gone since it was listed
            continue
        processes += 1
        workers += held.rss
        descriptors += opened
    try:
        shm = len(os.listdir("/dev/shm"))
    except OSError:
        shm = 0
    return {
        "engine_mb": engine.rss / 1e6,
        "workers_mb": workers / 1e6,
        "shared_mb": getattr(psutil.virtual_memory(), "shared", 0) / 1e6,
        "descriptors": descriptors,
        "threads": me.num_threads(),
        "processes": processes,
        "shm": shm,
    }


def program_of(engine: Engine, executor: str, size: int, values: int) -> Program:
    """A run's program. Compiled anew for each run: what compiling leaves behind is part of the soak."""
    function: Callable[..., Any] = {"asyncio": anoop, "threads": noop}.get(executor, payload if values else noop)
    kinds: dict[Callable[..., Any], Any] = {} if executor == "processes" else {function: task.io(function)}
    arguments = (values,) if function is payload else ()
    return engine.compile(declare(uniform(function, [[] for _ in range(size)], *arguments), kinds))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, repetitions=None)
    arguments.add_argument("--executor", choices=["processes", "threads", "asyncio"], default="processes")
    arguments.add_argument("--tasks", type=int, default=1_000_000, help="all in all (default %(default)s)")
    arguments.add_argument("--run", type=int, default=50_000, help="tasks of one run (default %(default)s)")
    arguments.add_argument("--every", type=int, default=100_000, help="tasks between samples (default %(default)s)")
    arguments.add_argument("--values", type=int, default=0, help="bytes that each process task returns (default none)")
    args = arguments.parse_args(argv)
    about = (
        f"{args.executor}, {args.tasks:,} tasks in runs of {args.run:,}, {args.workers} workers, options {args.options}"
    )
    table = Table(args.json, about)
    options = {"processes": dict(args.options)} if args.options else None
    slots = {"processes": args.workers} if args.executor == "processes" else None
    samples: list[tuple[int, dict[str, float]]] = []
    done = 0
    due = args.every
    begin = perf_counter()
    with Engine(slots=slots, options=options) as engine:
        while done < args.tasks:
            size = min(args.run, args.tasks - done)
            program = program_of(engine, args.executor, size, args.values)
            engine.launch(program, keep_history=False).result()
            del program
            done += size
            if done >= due or done >= args.tasks:
                due += args.every
                now = sample()
                samples.append((done, now))
                table.row(
                    {"tasks": done, **{key: round(value, 2) for key, value in now.items()}},
                    f"{done:>9,} tasks   engine {now['engine_mb']:7.1f} MB   workers {now['workers_mb']:7.1f} MB   "
                    f"descriptors {now['descriptors']:.0f}   threads {now['threads']:.0f}   "
                    f"processes {now['processes']:.0f}   shared {now['shm']:.0f} entries, {now['shared_mb']:.1f} MB",
                )
    seconds = perf_counter() - begin
    settled = samples[1:]
    for part, held in (("all", settled), ("last half", settled[len(settled) // 2 :])):
        slopes = {key: slope([(at, now[key]) for at, now in held]) for key in (*MEMORY, *COUNTED)}
        bytes_a_task = {key.removesuffix("_mb"): round(slopes[key] * 1e6, 2) for key in MEMORY}
        counted = {key: round(slopes[key] * args.every, 4) for key in COUNTED}
        table.row(
            {
                "slope": part,
                "samples": len(held),
                "bytes_a_task": bytes_a_task,
                "counted": counted,
                "tasks": args.every,
            },
            f"slope, {part}, {len(held)} samples: bytes a task: {_listed(bytes_a_task)}; "
            f"every {args.every:,} tasks: {_listed(counted)}",
        )
    table.row(
        {"executor": args.executor, "tasks": done, "us_a_task": round(seconds / done * 1e6, 2)},
        f"{seconds / done * 1e6:.1f} µs a task, compiling and sampling included",
    )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


if __name__ == "__main__":
    main()
