"""The functions that the benchmarks' tasks run, in a module of its own so that every pool can import them by name.

A function of the script that was started would be `__main__`'s: each pool ships those in a way of its own (flowlane by
value, `fork` not at all), and the ways would be measured instead of the pools. Workers import this module, so it stays
as light as they are: numpy comes in only where an array is handled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = [
    "aecho",
    "anoop",
    "checksum",
    "echo",
    "echo_after_work",
    "make",
    "noop",
    "payload",
    "read_and_make",
    "spin",
    "total",
    "write_in_place",
]


def noop(*_: object) -> None:
    """Nothing, in whatever place it is run."""


async def anoop(*_: object) -> None:
    """Nothing, asynchronously."""


def echo(item: Any) -> Any:
    """Its item."""
    return item


async def aecho(item: Any) -> Any:
    """Its item, asynchronously."""
    return item


def echo_after_work(item: int) -> int:
    """Its item, after some 20 µs of keeping a core busy."""
    spin(400)
    return item


def payload(size: int) -> bytes:
    """A value of `size` bytes, not the same object each time."""
    return bytes(size)


def spin(iterations: int, *_: object) -> int:
    """Keep one core busy for a number of turns that depends on nothing: work, not time, so that every pool does the same.

    The mask keeps the sum in one machine word; without it the price of a turn would grow with their number.
    """
    total = 0
    for turn in range(iterations):
        total = (total + turn) & 0xFFFF
    return total


# ── arrays: every element holds the number of steps taken so far, so that a checksum proves the way ───────────────────


def make(size: int, *_: object) -> Array:
    """An array of `size` bytes, all 0, and all of them written: `numpy.zeros` would leave that to its first reader."""
    import numpy

    return numpy.full(size // 8, 0.0)


def read_and_make(array: Array) -> Array:
    """Read all of the input, and make a new array of the same size."""
    import numpy

    return numpy.full_like(array, array.mean() + 1)


def write_in_place(array: Array) -> Array:
    """Change all of the input where it lies, and hand it on."""
    array += 1
    return array


def checksum(array: Array) -> float:
    """Read all of it: the mean."""
    return float(array.mean())


def total(*parts: Any) -> float:
    """The sum of a few numbers: the end of a fan-out."""
    return float(sum(parts))
