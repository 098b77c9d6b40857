"""What a process task costs: ProcessPoolExecutor's time over ours for tasks that do nothing. Higher is better.

    python benchmarks/processes.py                             four shapes, bare, logged and recorded: some minutes
    python benchmarks/processes.py --shape chain --options '{"start_method": "spawn"}'
    python benchmarks/processes.py --peer loky --peer ray      side by side with other pools

Shapes: wide (10,000 independent tasks), layers (10,000 in layers of 100, three upstreams each), chain (2,000, each waiting
for the one before), tree (a binary reduction of 10,000).

Each round runs both floors, then flowlane bare (nobody listens) and logged (every transition as a JSON line; the time ends
when the last line is in the file) and recorded (logged, and stored in SQLite), and each peer, in an order that turns.
A row is the median of the ratios within a
round, with quartiles, and the median µs a task. The floors are `graphlib` feeding a ProcessPoolExecutor, one submit a task,
with the start methods fork (its fastest) and spawn (what a program with threads has to use); see `contenders.py` for
what is
inside the times: no pool's start, no declaring and no compiling.

`--options` are keywords of our executor, for telling one of its ways from another; they stand in every row.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from contenders import PEERS, Contender, flowlane, open_peers, stdlib, uniform
from graphs import SHAPES, shape
from pairs import Table, parser, ratio, rounds
from workloads import noop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contenders import Prepared

MODES = ("bare", "logged", "recorded")
SIZES = {"wide": 10_000, "layers": 10_000, "chain": 2_000, "tree": 10_000}


def timed(prepared: Prepared) -> Callable[[], float]:
    return lambda: prepared()[0]


def compare(table: Table, name: str, size: int, contenders: Sequence[Contender], args: Any) -> None:
    graph = uniform(noop, shape(name, size))
    tasks = len(graph.calls)
    floors = [contender.name for contender in contenders if contender.name.startswith("stdlib-")]
    samples = rounds({c.name: timed(c.prepare(graph)) for c in contenders}, args.repetitions)
    spent = {who: statistics.median(seconds) / tasks * 1e6 for who, seconds in samples.items()}
    for who, seconds in samples.items():
        if who in floors:
            continue
        for floor in floors:
            times = ratio(samples[floor], seconds)
            table.row(
                {
                    "shape": name,
                    "tasks": tasks,
                    "who": who,
                    "floor": floor,
                    **times.row(),
                    "us": round(spent[who], 2),
                    "floor_us": round(spent[floor], 2),
                    "options": args.options if who.startswith("flowlane") else {},
                },
                f"{name:6} {who:15} {times!s:26} {spent[who]:8.2f} µs a task   {floor} {spent[floor]:8.2f} µs",
            )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shape", choices=SHAPES, action="append")
    arguments.add_argument("--mode", choices=MODES, action="append")
    arguments.add_argument("--floor", choices=["fork", "spawn"], action="append")
    arguments.add_argument("--peer", choices=list(PEERS), action="append", default=[])
    arguments.add_argument("--size", type=int, help="tasks (default 10,000; chain 2,000)")
    args = arguments.parse_args(argv)
    modes = args.mode or MODES
    table = Table(args.json, f"{args.repetitions} rounds, {args.workers} workers, options {args.options}")
    with ExitStack() as stack:
        contenders = [stack.enter_context(stdlib(args.workers, floor)) for floor in args.floor or ["fork", "spawn"]]
        contenders += open_peers(stack, args.peer, args.workers, table.say).values()
        contenders += [
            stack.enter_context(
                flowlane(args.workers, options=args.options, log=mode != "bare", store=mode == "recorded")
            )
            for mode in modes
        ]
        for name in args.shape or SHAPES:
            compare(table, name, args.size or SIZES[name], contenders, args)


if __name__ == "__main__":
    main()
