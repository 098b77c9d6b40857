"""Tasks that need something: cores, memory. Loaded by path, here and in worker processes."""

from __future__ import annotations

import os
import sys
import time

from flowlane import RetryPolicy, task

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def environment():
    return {name: os.environ.get(name) for name in VARIABLES}


def pool_sizes():
    from flowlane_plugins.workers.threadpools import loaded_pools

    return [pool.get() for pool in loaded_pools()]


@task.cpu
def look(number):
    """(pid, thread variables, sizes of the pools that are loaded, whether numpy is)."""
    return os.getpid(), environment(), pool_sizes(), "numpy" in sys.modules


@task.cpu(cores=2)
def look_wide(number):
    return look.fn(number)


def load_numpy(number):
    import numpy

    return number, numpy.__version__


@task.cpu
def loads_numpy(number):
    load_numpy(number)
    return look.fn(number)


@task.cpu(cores=2)
def multiplies(size):
    """Threads of this process, and CPU time over wall time, of products of matrices."""
    import numpy

    matrix = numpy.ones((size, size))
    matrix @ matrix
    threads = len(os.listdir("/proc/self/task"))
    cpu, wall = time.process_time(), time.monotonic()
    for _ in range(4):
        matrix @ matrix
    return threads, (time.process_time() - cpu) / (time.monotonic() - wall), pool_sizes()


@task.cpu(cores=2)
def spans(number):
    begun = time.monotonic_ns()
    time.sleep(0.03)
    return begun, time.monotonic_ns()


@task.cpu
def short(number):
    begun = time.monotonic_ns()
    while time.monotonic_ns() - begun < 500_000:
        pass
    return begun, time.monotonic_ns()


def take(size):
    """Fill memory, by and by, for at most 20 seconds."""
    blocks = []
    for _ in range(0, size, 1 << 20):
        blocks.append(b"\1" * (1 << 20))
        time.sleep(0.0002)
    time.sleep(20 if size > 200 << 20 else 0)
    return len(blocks)


@task.cpu(memory="100 MB")
def takes(size):
    return take(size)


@task.cpu(memory="100 MB", retry=RetryPolicy(attempts=3, backoff=0.0))
def takes_again(size):
    return take(size)


@task.cpu(memory="100 MB", retry=RetryPolicy(attempts=2, backoff=0.0))
def takes_less_then(path):
    """Too much at the first attempt."""
    first = not os.path.exists(path)
    with open(path, "a", encoding="utf-8"):
        pass
    return take((400 if first else 10) << 20)


@task.cpu
def hoards(size):
    """Leave memory behind in its worker; its pid."""
    global KEPT
    KEPT = b"\1" * size
    return os.getpid()


KEPT = b""


@task.cpu(memory="50 MB")
def modest(number):
    time.sleep(0.1)
    return os.getpid(), len(KEPT)


@task.io(memory="10 MB")
def unwatched(number):
    return number
