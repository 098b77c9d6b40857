"""METG(50 %): the smallest tasks with which a pool keeps half of its cores at useful work. Lower is better.

    python benchmarks/metg.py                                   four patterns, flowlane and the standard library's pool
    python benchmarks/metg.py --pattern fft --peer pebble --width 64

The method is Task Bench's (SC'20): graphs of `--width` points by `--steps` timesteps in the patterns trivial, stencil_1d, fft
and nearest (radix 5), every task spinning for the same number of turns of a loop; the number is bisected until half of
what the cores can do goes into the loop (see `granularity.py`). What the cores can do is measured beside every probe: as many
bare processes as workers, spinning at once. The work is counted in turns, never in time, so that a pool does not look
busy by being slowed down.

A row shows METG in milliseconds as Task Bench defines it, cores × wall time / tasks at the crossing: half of it is work, half
overhead. It is the median over rounds; the ratio is that of the standard library's pool over it within a round. Inside the
time of a probe is what `contenders.py` says: from the first submit to the last result, nothing of starting, declaring or
compiling.
"""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any

from contenders import PEERS, flowlane, open_peers, stdlib, uniform
from granularity import Probe, metg
from graphs import PATTERNS, pattern
from pairs import Table, parser, ratio
from workloads import spin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contenders import Contender
    from graphs import Edges

# Turns that one bare process spins for in a measurement of the cores: some 10 to 20 ms, long against handing it over.
_TURNS = 300_000

# Where the first search begins: about a millisecond of work.
_START = 20_000.0


class Cores:
    """What the cores do when nothing but the loop runs on them, in turns a second over all workers."""

    def __init__(self, stack: ExitStack, workers: int) -> None:
        self.workers = workers
        self._pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")))
        self.speed()

    def speed(self) -> float:
        begin = perf_counter()
        for done in [self._pool.submit(spin, _TURNS) for _ in range(self.workers)]:
            done.result()
        return self.workers * _TURNS / (perf_counter() - begin)


def prober(contender: Contender, edges: Edges, cores: Cores, samples: int) -> Callable[[float], Probe]:
    """Probes of one contender and pattern: the middle one, by efficiency, of a few."""

    def probe(turns: float) -> Probe:
        turns = float(max(1, round(turns)))
        once = contender.prepare(uniform(spin, edges, int(turns)))
        tasks = len(edges)
        tried: list[Probe] = []
        for _ in range(samples):
            speed = cores.speed()
            seconds, _value = once()
            tried.append(Probe(turns, tasks * turns / seconds / speed, seconds * cores.workers / tasks))
        return sorted(tried, key=lambda one: one.efficiency)[len(tried) // 2]

    return probe


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, repetitions=5)
    arguments.add_argument("--pattern", choices=PATTERNS, action="append")
    arguments.add_argument("--width", type=int, default=16, help="points of a timestep (default %(default)s)")
    arguments.add_argument("--steps", type=int, default=60, help="timesteps (default %(default)s)")
    arguments.add_argument("--radix", type=int, default=5, help="of nearest (default %(default)s)")
    arguments.add_argument("--target", type=float, default=0.5, help="efficiency (default %(default)s)")
    arguments.add_argument("--samples", type=int, default=3, help="runs of one probe (default %(default)s)")
    arguments.add_argument("--peer", choices=list(PEERS), action="append", default=[])
    args = arguments.parse_args(argv)
    table = Table(
        args.json,
        f"{args.repetitions} rounds, {args.workers} workers, {args.width} points × {args.steps} steps, "
        f"options {args.options}",
    )
    with ExitStack() as stack:
        cores = Cores(stack, args.workers)
        contenders: list[Contender] = [stack.enter_context(stdlib(args.workers))]
        contenders += open_peers(stack, args.peer, args.workers, table.say).values()
        contenders.append(stack.enter_context(flowlane(args.workers, options=args.options)))
        for name in args.pattern or PATTERNS:
            compare(table, name, contenders, cores, args)


def compare(table: Table, name: str, contenders: Sequence[Contender], cores: Cores, args: Any) -> None:
    edges = pattern(name, args.width, args.steps, args.radix)
    floor = contenders[0].name
    found: dict[str, list[float | None]] = {contender.name: [] for contender in contenders}
    starts = dict.fromkeys(found, _START)
    for number in range(args.repetitions):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            probe = prober(contender, edges, cores, args.samples)
            answer, tried = metg(probe, starts[contender.name], target=args.target)
            found[contender.name].append(answer)
            starts[contender.name] = tried[-1].work  # the next round begins where this one ended
    for who, answers in found.items():
        values = [value for value in answers if value is not None]
        fields: dict[str, Any] = {"pattern": name, "who": who, "tasks": len(edges), "target": args.target}
        fields["options"] = args.options if who == "flowlane" else {}
        if len(values) < len(answers):
            table.row({**fields, "metg_ms": None}, f"{name:10} {who:12} never: the target was not reached")
            continue
        fields["metg_ms"] = round(statistics.median(values) * 1e3, 4)
        fields["rounds_ms"] = [round(value * 1e3, 4) for value in values]
        text = f"{name:10} {who:12} METG({args.target:.0%}) {fields['metg_ms']:8.4f} ms"
        floors = [value for value in found[floor] if value is not None]
        if who != floor and len(floors) == len(values):
            times = ratio(floors, values)
            fields.update(times.row(), floor=floor)
            text += f"   {floor} over it {times}"
        table.row(fields, text)


if __name__ == "__main__":
    main()
