"""Tasks that make and read large values, for the fault tests."""

from __future__ import annotations

import os
import signal
import time

import numpy

from flowlane import task

KEPT = []


@task.cpu
def ramp(size):
    return numpy.arange(size, dtype="f8")


@task.cpu
def ramp_by(size):
    return os.getpid(), numpy.arange(size, dtype="f8")


@task.cpu
def filled(size, value):
    return numpy.full(size, value, dtype="f8")


@task.cpu
def plus_one(array):
    return array + 1


@task.cpu
def total(array):
    return float(array.sum()) if hasattr(array, "sum") else None


@task.cpu
def total_of_pair(pair):
    return float(pair[1].sum())


@task.io
def total_here(array, nested):
    assert nested["again"][0].sum() == array.sum()
    return os.getpid(), float(array.sum())


@task.cpu
def scribble(array, number):
    assert array.flags.writeable
    array[number] = -number
    return float(array.sum())


@task.cpu
def keep(array):
    KEPT.append((array, float(array[0])))
    return len(KEPT)


@task.cpu
def kept_are_whole():
    return all(bool((array == value).all()) for array, value in KEPT)


@task.cpu
def kill(pair, marker):
    """Kills the worker that made `pair`, or this one."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        try:
            os.kill(pair[0], signal.SIGKILL)
        except ProcessLookupError:
            pass
    return True


@task.cpu
def frame(size):
    import pandas

    return pandas.DataFrame(
        {
            "number": numpy.arange(size),
            "value": numpy.arange(size) / 7,
            "name": [f"name {n % 13}" for n in range(size)],
        }
    )


@task.cpu
def grouped(frame):
    return frame.groupby("name")["value"].sum().to_dict()


@task.cpu
def mixed(frame):
    return {"frame": frame, "text": "x" * 200_000, "fortran": numpy.asfortranarray(numpy.ones((400, 300)))}


class Shy:
    """Refuses to be loaded in one process."""

    def __init__(self, pid):
        self.pid = pid
        self.ballast = b"x" * 1_000

    def __setstate__(self, state):
        self.__dict__.update(state)
        if os.getpid() == self.pid:
            raise RuntimeError("loaded in the engine")


@task.cpu
def shy(pid):
    return Shy(pid)


@task.cpu
def look(value):
    return "seen" if isinstance(value, Shy) else "?"


@task.cpu
def rows(count: int) -> list[tuple[int, str]]:
    return [(number, str(number)) for number in range(count)]


@task.cpu
def rest(given: list[tuple[int, str]], seconds: float) -> list[tuple[int, str]]:
    time.sleep(seconds)
    return given
