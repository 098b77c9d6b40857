"""METG: the smallest granularity at which a pool still puts half of the cores to use. Pure: what to try next, and the answer.

METG(50 %) is Task Bench's measure (Slaughter et al., SC'20, section 4). A *probe* runs a graph whose tasks all do the same
amount of work, and yields

    efficiency    work done a second, over what the cores do when nothing but the work runs (1 = no overhead)
    granularity   cores × wall time / tasks: how long a task occupies a core, its share of the overhead included

`metg` looks for the amount of work at which efficiency crosses the target, and gives the granularity there. The work in
a task of METG size is the target's share of that: half, for 50 %.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Probe", "metg"]

# Doublings or halvings before giving up on one end: with a start of about a millisecond, from a microsecond to a second.
_OCTAVES: Final = 10


class Probe(NamedTuple):
    """One amount of work, tried."""

    work: float
    efficiency: float
    granularity: float


def metg(
    probe: Callable[[float], Probe], start: float, *, target: float = 0.5, within: float = 1.1
) -> tuple[float | None, list[Probe]]:
    """The granularity at which efficiency crosses `target`, and every probe made on the way.

    Begins with `start` units of work, doubles or halves until the target lies between two probes, then divides their
    distance (geometrically) until they are within a factor `within`, and interpolates. The granularity is None when even the
    largest work tried stays below the target; when even the smallest tried reaches it, that one's is the answer: an upper
    bound.
    """
    tried = [probe(start)]
    reached = tried[0].efficiency >= target
    for _ in range(_OCTAVES):
        tried.append(probe(tried[-1].work * (0.5 if reached else 2)))
        if (tried[-1].efficiency >= target) is not reached:
            break
    else:
        return (tried[-1].granularity if reached else None), tried
    low, high = sorted(tried[-2:], key=lambda one: one.work)
    while high.work / low.work > within:
        middle = probe(math.sqrt(low.work * high.work))
        tried.append(middle)
        if middle.efficiency >= target:
            high = middle
        else:
            low = middle
    share = (target - low.efficiency) / (high.efficiency - low.efficiency)
    return low.granularity * (high.granularity / low.granularity) ** share, tried
