"""Whatever can run a graph of plain functions in processes: flowlane, the standard library's pool, and peers.

A contender is opened once (its workers are started and have answered) and then *prepares* graphs: what comes back does
the work once and returns its seconds and the value of the graph's last task. Inside that time is everything from the
first submit until the last result is known; outside are opening, building and, for flowlane, declaring and compiling.

    flowlane     `Engine.launch` of a compiled program to its result. With `log`: every transition as a JSON line; the time
                 ends when the last line is in the file, and the number of lines is checked. With `store`: the run is kept in
                 an SQLite file as well, results included; describing it for the store is inside the time.
    stdlib-*     ProcessPoolExecutor fed by `graphlib.TopologicalSorter`, one submit a task, with the start method named:
                 what a competent user writes, and the floor that ratios refer to
    loky pebble  the same loop over their pools
    distributed  a LocalCluster, upstreams as futures: its own way of placing and moving
    ray          upstreams as object references, likewise

Peers that are not installed are left out with a message.
"""

from __future__ import annotations

import os
import queue
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from workloads import noop

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from graphs import Edges

    from flowlane import Bound, Engine
    from flowlane.program import Program

__all__ = [
    "PEERS",
    "Call",
    "Contender",
    "Graph",
    "Prepared",
    "declare",
    "feed",
    "flowlane",
    "open_peers",
    "stdlib",
    "uniform",
]

Prepared = Callable[[], tuple[float, Any]]
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Graph(NamedTuple):
    """What each task calls, and on whose results: ``function(*arguments, *results of upstreams)``."""

    calls: Sequence[Call]
    upstreams: Edges


class Contender(Protocol):
    """Something that is open and runs graphs."""

    name: str

    def prepare(self, graph: Graph) -> Prepared: ...


def uniform(function: Callable[..., Any], upstreams: Edges, *arguments: Any) -> Graph:
    """The graph in which every task calls the same."""
    return Graph([(function, arguments)] * len(upstreams), upstreams)


def warmed(contender: Contender, function: Callable[..., Any] = noop) -> Contender:
    """`contender`, once all its workers have worked."""
    once = contender.prepare(uniform(function, [[] for _ in range(64)]))
    for _ in range(2):
        once()
    return contender


# ── flowlane ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def declare(graph: Graph, kinds: Mapping[Callable[..., Any], Any] | None = None) -> Bound[Any]:
    """The graph as a bound workflow that returns its last task's value. `kinds`: function → Task; cpu tasks without."""
    from flowlane import Workflow, task

    tasks: dict[Callable[..., Any], Any] = dict(kinds or {})
    workflow = Workflow("bench")
    handles: list[Any] = []
    for (function, arguments), ups in zip(graph.calls, graph.upstreams, strict=True):
        node = tasks.get(function)
        if node is None:
            node = tasks[function] = task.cpu(function)
        handles.append(workflow.add(node.bind(*arguments, *[handles[up] for up in ups])))
    return workflow.returns(handles[-1])


class _Flowlane:
    def __init__(self, name: str, engine: Engine, kinds: Mapping[Callable[..., Any], Any], log: Path | None) -> None:
        self.name = name
        self._engine = engine
        self._kinds = kinds
        self._log = log

    def prepare(self, graph: Graph) -> Prepared:
        program = self._engine.compile(declare(graph, self._kinds))
        # Each task is told of three times (ready, running, succeeded), the run twice.
        return lambda: self._run(program, 3 * len(graph.calls) + 2)

    def _run(self, program: Program, lines: int) -> tuple[float, Any]:
        begin = perf_counter()
        result = self._engine.launch(program, keep_history=False).result()
        seconds = perf_counter() - begin
        if self._log is not None:
            with self._log.open("rb") as file:
                written = sum(1 for _ in file)
            if written != lines:
                raise RuntimeError(f"the log should hold {lines} lines and holds {written}")
            os.unlink(self._log)  # the sink opens it anew for every run
        return seconds, result.value


@contextmanager
def flowlane(
    workers: int,
    *,
    options: Mapping[str, Any] | None = None,
    log: bool = False,
    store: bool = False,
    io: Callable[..., Any] | None = None,
) -> Generator[Contender]:
    """An Engine with `workers` worker processes. `options` are keywords of the processes executor; `io` is the one
    function that is an io task, and no process is started then."""
    from flowlane import Engine, task
    from flowlane_plugins.sinks.structured import JsonLinesSink

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl" if log else None
        sinks = [JsonLinesSink(path)] if path is not None else []
        given = {"processes": dict(options)} if options else None
        kept = Path(folder) / "flow.db" if store else None
        with Engine(slots={"processes": workers}, sinks=sinks, options=given, store=kept) as engine:
            kinds = {io: task.io(io)} if io is not None else {}
            name = "flowlane" + " logged" * log + " stored" * store
            yield warmed(_Flowlane(name, engine, kinds, path), io or noop)


# ── pools with a submit ───────────────────────────────────────────────────────────────────────────────────────────────


def feed(submit: Callable[..., Any], graph: Graph) -> Any:
    """Run the graph through a pool's `submit`, which gives futures. The value of the last task."""
    calls, upstreams = graph
    sorter = TopologicalSorter(dict(enumerate(upstreams)))
    sorter.prepare()
    results: dict[int, Any] = {}
    finished: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def landed(node: int, done: Any) -> None:
        finished.put((node, done))

    while sorter.is_active():
        for node in sorter.get_ready():
            function, arguments = calls[node]
            future = submit(function, *arguments, *[results[up] for up in upstreams[node]])
            future.add_done_callback(partial(landed, node))
        node, future = finished.get()
        results[node] = future.result()
        sorter.done(node)
        while not finished.empty():
            node, future = finished.get()
            results[node] = future.result()
            sorter.done(node)
    return results[len(calls) - 1]


class _Pool:
    def __init__(self, name: str, submit: Callable[..., Any]) -> None:
        self.name = name
        self._submit = submit

    def prepare(self, graph: Graph) -> Prepared:
        def once() -> tuple[float, Any]:
            begin = perf_counter()
            value = feed(self._submit, graph)
            return perf_counter() - begin, value

        return once


@contextmanager
def stdlib(workers: int, method: str = "fork") -> Generator[Contender]:
    """ProcessPoolExecutor. Open it before anything that has threads: `fork` copies the process as it is."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        yield warmed(_Pool(f"stdlib-{method}", pool.submit))


@contextmanager
def _loky(workers: int) -> Generator[Contender]:
    pool = import_module("loky").ProcessPoolExecutor(workers)
    try:
        yield warmed(_Pool("loky", pool.submit))
    finally:
        pool.shutdown(kill_workers=True)


@contextmanager
def _pebble(workers: int) -> Generator[Contender]:
    pool = import_module("pebble").ProcessPool(max_workers=workers)

    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        return pool.schedule(function, args=arguments)

    try:
        yield warmed(_Pool("pebble", submit))
    finally:
        pool.stop()
        pool.join()


# ── peers that place tasks themselves ─────────────────────────────────────────────────────────────────────────────────


class _Referring:
    """Submits all tasks at once, upstreams as references, and waits for all."""

    def __init__(
        self,
        name: str,
        submit: Callable[..., Any],
        wait: Callable[[list[Any]], object],
        fetch: Callable[[Any], Any],
    ) -> None:
        self.name = name
        self._submit = submit
        self._wait = wait
        self._fetch = fetch

    def prepare(self, graph: Graph) -> Prepared:
        def once() -> tuple[float, Any]:
            begin = perf_counter()
            references: list[Any] = []
            for (function, arguments), ups in zip(graph.calls, graph.upstreams, strict=True):
                references.append(self._submit(function, *arguments, *[references[up] for up in ups]))
            self._wait(references)
            value = self._fetch(references[-1])
            return perf_counter() - begin, value

        return once


@contextmanager
def _distributed(workers: int) -> Generator[Contender]:
    dask = import_module("distributed")
    cluster = dask.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50, memory_limit=0
    )
    with cluster, dask.Client(cluster) as client:

        def submit(function: Callable[..., Any], *arguments: Any) -> Any:
            return client.submit(function, *arguments, pure=False)

        yield warmed(_Referring("distributed", submit, dask.wait, lambda future: future.result()))


@contextmanager
def _ray(workers: int) -> Generator[Contender]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(  # its workers are told of no path of ours
        [os.path.dirname(os.path.abspath(__file__)), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ray = import_module("ray")
    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    remotes: dict[Callable[..., Any], Any] = {}

    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        remote = remotes.get(function)
        if remote is None:
            remote = remotes[function] = ray.remote(function)
        return remote.remote(*arguments)

    def wait(references: list[Any]) -> None:
        ray.wait(references, num_returns=len(references), fetch_local=False)

    try:
        yield warmed(_Referring("ray", submit, wait, ray.get))
    finally:
        ray.shutdown()


PEERS: Final[dict[str, Callable[[int], AbstractContextManager[Contender]]]] = {
    "loky": _loky,
    "pebble": _pebble,
    "distributed": _distributed,
    "ray": _ray,
}


def open_peers(
    stack: ExitStack, names: Sequence[str], workers: int, say: Callable[[str], object]
) -> dict[str, Contender]:
    """Open the peers of these names on `stack`; says which are not installed and leaves them out."""
    opened: dict[str, Contender] = {}
    for name in names:
        try:
            import_module(name)
        except ImportError:
            say(f"{name}: not installed, left out")
        else:
            opened[name] = stack.enter_context(PEERS[name](workers))
    return opened
