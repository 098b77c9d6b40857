"""Large values between process tasks: MB a second through a chain of numpy arrays, and from one array to many readers.

    python benchmarks/arrays.py                               1, 10 and 100 MB, with flowlane and the standard library's pool
    python benchmarks/arrays.py --mb 10 --kind chain --peer ray --peer distributed

Kinds:

    chain     `make` → n × `read_and_make` → `checksum`: each task reads all of the array it is given and makes a new one
              of the same size. This is what most tasks do.
    in-place  the same with `write_in_place`: each task changes the array it is given and returns it. Told apart because
              writing to a shared page is what a zero-copy transport is slowest at.
    fan-out   one array to 8 readers (`checksum`), whose numbers are added up

MB/s counts hand-overs: an array made by one task and read by another. A chain of n steps has n + 1 of them, and the work of
n + 1 steps too (the first task only makes, the last only reads), so nothing needs to be taken off at its ends. The time is
that of the whole graph, last result included, and numbers only are returned to the caller. A graph is run once before
anything counts: workers have numpy loaded, and whatever a pool keeps for the next time it has. The end's checksum proves
that each step was done once. Chains are as long, and fan-outs follow each other as often, as makes a sample take about half
a second, by contender (a rate does not depend on it); `inline` is the same work as plain calls in one process: the price
of the copying itself. Ratios are those of rates within a round over the standard library's pool (fork). No store is
involved.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any

from contenders import PEERS, Graph, flowlane, open_peers, stdlib
from pairs import Table, parser, ratio, rounds
from workloads import checksum, make, read_and_make, total, write_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contenders import Call, Contender, Prepared
    from graphs import Edges

KINDS = ("chain", "in-place", "fan-out")
READERS = 8

# Seconds that one sample should take, and the longest chain: results of all steps may be alive at once.
_SAMPLE = 0.5
_LONGEST_MB = 2_000
_MOST_STEPS = 400

# Who hands out arrays that cannot be written to: a task that tries raises ValueError.
_READ_ONLY = ("ray",)


def chain(size: int, steps: int, in_place: bool) -> Graph:
    step = write_in_place if in_place else read_and_make
    calls: list[Call] = [(make, (size,)), *[(step, ())] * steps, (checksum, ())]
    return Graph(calls, [[node - 1] if node else [] for node in range(len(calls))])


def fan_out(size: int, times: int) -> Graph:
    """`times` fan-outs, one after the other."""
    calls: list[Call] = []
    upstreams: Edges = []
    for _ in range(times):
        first = len(calls)
        calls += [(make, (size,)), *[(checksum, ())] * READERS, (total, ())]
        upstreams += [[first - 1] if first else [], *[[first]] * READERS, list(range(first + 1, first + READERS + 1))]
    return Graph(calls, upstreams)


def graph_of(kind: str, size: int, length: int) -> tuple[Graph, float, int]:
    """The graph, what comes out at its end, and how often it hands an array over."""
    if kind == "fan-out":
        return fan_out(size, length), 0, READERS * length
    return chain(size, length, kind == "in-place"), length, length + 1


class Inline:
    """Plain calls, one after the other, an array dropped when its last reader has read it."""

    name = "inline"

    def prepare(self, graph: Graph) -> Prepared:
        last = {up: node for node, ups in enumerate(graph.upstreams) for up in ups}

        def once() -> tuple[float, Any]:
            results: dict[int, Any] = {}
            begin = perf_counter()
            for node, ((function, arguments), ups) in enumerate(zip(graph.calls, graph.upstreams, strict=True)):
                results[node] = function(*arguments, *[results[up] for up in ups])
                for up in ups:
                    if last[up] == node:
                        del results[up]
            return perf_counter() - begin, results[len(graph.calls) - 1]

        return once


def proved(prepared: Prepared, expected: float, handovers: int) -> Callable[[], float]:
    """Seconds for one hand-over, after a look at the value."""

    def once() -> float:
        seconds, value = prepared()
        if value != expected:
            raise RuntimeError(f"the end of the graph should give {expected} and gave {value}")
        return seconds / handovers

    return once


def length_for(contender: Contender, kind: str, size: int) -> int:
    """How long a graph takes about a sample's time. Trying it warms up as well."""
    length = 2
    longest = min(_MOST_STEPS, max(length, _LONGEST_MB * 1_000_000 // size))
    while True:
        graph, _, _ = graph_of(kind, size, length)
        prepared = contender.prepare(graph)
        prepared()
        seconds = prepared()[0]
        if seconds > _SAMPLE / 4 or length >= longest:
            return max(2, min(longest, round(length * _SAMPLE / seconds)))
        length = min(longest, length * 4)


def compare(table: Table, kind: str, mb: float, contenders: Sequence[Contender], args: Any) -> None:
    size = int(mb * 1e6) // 8 * 8
    lengths: dict[str, int] = {}
    each: dict[str, Callable[[], float]] = {}
    for contender in contenders:
        if kind == "in-place" and contender.name in _READ_ONLY:
            table.say(f"{kind:8} {mb:6g} MB  {contender.name}: its arrays are read-only, the task fails")
            continue
        length = lengths[contender.name] = args.steps or length_for(contender, kind, size)
        graph, expected, handovers = graph_of(kind, size, length)
        each[contender.name] = proved(contender.prepare(graph), expected, handovers)
    samples = rounds(each, args.repetitions)
    for who, seconds in samples.items():
        rate = size / 1e6 / statistics.median(seconds)
        fields: dict[str, Any] = {"kind": kind, "mb": mb, "who": who, "mb_s": round(rate, 1), "steps": lengths[who]}
        text = f"{kind:8} {mb:6g} MB  {who:12} {rate:10,.0f} MB/s"
        if who == "flowlane":
            fields["options"] = args.options
        if who not in ("inline", "stdlib-fork"):
            times = ratio(samples["stdlib-fork"], seconds)
            fields.update(times.row(), floor="stdlib-fork")
            text += f"   {times}"
        table.row(fields, text)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kind", choices=KINDS, action="append")
    arguments.add_argument("--mb", type=float, action="append", help="sizes of an array (default 1, 10 and 100)")
    arguments.add_argument("--steps", type=int, help="of a chain, or fan-outs (default: half a second's)")
    arguments.add_argument("--peer", choices=list(PEERS), action="append", default=[])
    args = arguments.parse_args(argv)
    try:
        import numpy
    except ImportError:
        arguments.exit(message="numpy is not installed, and this measures its arrays\n")
    about = f"numpy {numpy.__version__}; {args.repetitions} rounds, {args.workers} workers, options {args.options}"
    table = Table(args.json, about)
    with ExitStack() as stack:
        contenders: list[Contender] = [Inline(), stack.enter_context(stdlib(args.workers))]
        contenders += open_peers(stack, args.peer, args.workers, table.say).values()
        contenders.append(stack.enter_context(flowlane(args.workers, options=args.options)))
        for kind in args.kind or KINDS:
            for mb in args.mb or [1, 10, 100]:
                compare(table, kind, mb, contenders, args)


if __name__ == "__main__":
    main()
