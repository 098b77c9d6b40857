"""The executors for clusters beside the bare cluster: what the engine adds, and what passes through its process.

    python benchmarks/clusters.py overhead dask        # the same graph with bare futures, on the same two workers
    python benchmarks/clusters.py overhead ray --tasks 100 --ms 10
    python benchmarks/clusters.py bytes dask           # 100 MB between two tasks: bytes through this process's sockets

overhead   N tasks of the given length, added up by ten tasks, added up by one. Bare: all futures are submitted at once, and the
           last one is fetched. Ours: the engine submits what is ready. Both are warm, and take turns; a ratio is one of two
           rounds that follow each other, the figure is their median. `no-op` is the same with tasks that do nothing.
bytes      A task makes an array of 100 MB, another task reads it, and a number comes back. Counted are the bytes that the
           kernel has sent and received on TCP for each socket of this process (TCP_INFO), sampled every 5 ms so that
           sockets that come and go are seen. What Ray passes by shared memory would show in the growth of this
           process's memory, which is told as well.

Everything is on this machine: two workers with one thread each. Needs flowlane[dask] or flowlane[ray], and numpy.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from flowlane import Engine, Workflow, task

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = 10


def nap(ms: float) -> int:
    if ms:
        time.sleep(ms / 1000)
    return 1


def add(parts: list[int]) -> int:
    return sum(parts)


def add_all(*parts: int) -> int:
    return sum(parts)


def make(size: int) -> Any:
    import numpy as np

    return np.ones(size, dtype=np.uint8)


def read(array: Any) -> tuple[int, int]:
    return int(array[::4096].sum()), os.getpid()


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────

nap_task, add_task, make_task, read_task = (task.cpu(each) for each in (nap, add, make, read))


def graph(tasks: int, ms: float) -> Any:
    flow = Workflow("adding")
    leaves = [flow.add(nap_task.bind(ms)) for _ in range(tasks)]
    sums = [flow.add(add_task.bind(leaves[part::PARTS])) for part in range(PARTS)]
    return flow.returns(flow.add(add_task.bind(sums)))


def ours(engine: Engine, tasks: int, ms: float) -> int:
    value: int = engine.start(graph(tasks, ms)).result().value
    return value


# ── bare ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def bare_dask(client: Any, tasks: int, ms: float) -> int:
    leaves = [client.submit(nap, ms, pure=False) for _ in range(tasks)]
    sums = [client.submit(add, leaves[part::PARTS], pure=False) for part in range(PARTS)]
    value: int = client.submit(add, sums, pure=False).result()
    return value


def bare_ray(ray: Any, tasks: int, ms: float) -> int:
    napping, adding = ray.remote(nap), ray.remote(add_all)
    leaves = [napping.remote(ms) for _ in range(tasks)]
    sums = [adding.remote(*leaves[part::PARTS]) for part in range(PARTS)]
    value: int = ray.get(adding.remote(*sums))
    return value


@contextmanager
def cluster(kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What bare calls need, and the options of our executor, for two workers with one thread each."""
    if kind == "dask":
        import distributed

        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
            distributed.Client(local, set_as_default=False) as client,
        ):
            yield client, {"address": local.scheduler_address}
    else:
        import ray

        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield ray, {}
        finally:
            ray.shutdown()


def overhead(kind: str, tasks: int, ms: float, rounds: int) -> None:
    with cluster(kind) as (bare, options), Engine(routes={"cpu": kind}, options={kind: options}) as engine:
        run_bare = bare_dask if kind == "dask" else bare_ray
        for label, length in ((f"{ms:g} ms", ms), ("no-op", 0.0)):
            ratios: list[float] = []
            times: list[tuple[float, float]] = []
            for number in range(rounds + 1):
                began = time.perf_counter()
                assert run_bare(bare, tasks, length) == tasks
                middle = time.perf_counter()
                assert ours(engine, tasks, length) == tasks
                ended = time.perf_counter()
                if number:  # the first is to warm up
                    times.append((middle - began, ended - middle))
                    ratios.append((ended - middle) / (middle - began))
            bare_s, ours_s = (statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"{kind}  {tasks} tasks of {label:6}  bare {bare_s * 1e3:7.0f} ms   flowlane {ours_s * 1e3:7.0f} ms   "
                f"ratio {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
            )


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Wire:
    """Bytes sent and received by the TCP sockets of this process while the context is open."""

    def __enter__(self) -> Self:
        self._before = self._read()
        self._seen: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def total(self) -> int:
        self._seen |= self._read()
        return sum(self._seen.values()) - sum(min(self._before.get(n, 0), v) for n, v in self._seen.items())

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._seen |= self._read()

    @staticmethod
    def _read() -> dict[str, int]:
        """Socket → bytes acknowledged and received, by TCP_INFO (linux/tcp.h: two u64 at 120 and 128)."""
        found: dict[str, int] = {}
        for entry in Path("/proc/self/fd").iterdir():
            try:
                name = os.readlink(entry)
                if not name.startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                acknowledged, received = struct.unpack_from("<QQ", info, 120)
                found[name] = acknowledged + received
            except (OSError, struct.error):
                continue
        return found


def count_bytes(kind: str, mb: int) -> None:
    with cluster(kind) as (_, options), Engine(routes={"cpu": kind}, options={kind: options}) as engine:
        ours(engine, 10, 0)

        def pipeline(size: int) -> tuple[int, int]:
            flow = Workflow("pipe")
            array = flow.add(make_task.bind(size))
            value: tuple[int, int] = engine.start(flow.returns(flow.add(read_task.bind(array)))).result().value
            return value

        pipeline(1000)
        with Wire() as wire:
            check = [ours(engine, 10, 0) for _ in range(1)]
            small = wire.total()
        assert check == [10]
        memory = psutil.Process().memory_info().rss
        with Wire() as wire:
            total, _ = pipeline(mb * 1_000_000)
            moved = wire.total()
        assert total == -(-mb * 1_000_000 // 4096)
        grown = psutil.Process().memory_info().rss - memory
        print(
            f"{kind}  {mb} MB between two tasks: {moved:,} bytes through the engine's sockets, its memory grew by {grown:,}"
            f" (a graph of 21 small tasks: {small:,} bytes)"
        )
        with Wire() as wire:
            flow = Workflow("fetch")
            fetched = engine.start(flow.returns(flow.add(make_task.bind(mb * 1_000_000)))).result().value
            moved = wire.total()
        assert fetched.nbytes == mb * 1_000_000
        print(f"{kind}  {mb} MB fetched by the caller, to see that the count counts: {moved:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "bytes"])
    parser.add_argument("kind", choices=["dask", "ray"])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--ms", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=100)
    given = parser.parse_args()
    if given.what == "overhead":
        overhead(given.kind, given.tasks, given.ms, given.rounds)
    else:
        count_bytes(given.kind, given.mb)


if __name__ == "__main__":
    main()
