"""Pairs: how the benchmarks compare two ways of doing the same on a machine that is not quiet.

The same row moves by half from one minute to the next, so a time alone says nothing. A *round* lets every contender do the
work once, one directly after the other, and the order turns by one from round to round, so that none always comes first.
A ratio is only ever formed between samples of one round; what is shown is the median of those ratios with their
quartiles. The first round warms up caches, pools and files, and is thrown away.

A contender is called with nothing, does the work once, and returns its own seconds: so each decides what belongs inside
its time, and says so where it is written. Garbage is collected before each call, not in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Ratio", "Table", "parser", "percentile", "ratio", "rounds", "slope"]


class Ratio(NamedTuple):
    """The median of paired ratios, with quartiles."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:6.2f}×  [{self.low:.2f} … {self.high:.2f}]"

    def row(self) -> dict[str, Any]:
        """As fields of a JSON row."""
        return {
            "ratio": round(self.median, 3),
            "quartiles": [round(self.low, 3), round(self.high, 3)],
            "pairs": self.pairs,
        }


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """`over` divided by `under`, sample by sample; both in the order of rounds. Raises ValueError unless equally long."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    if not ratios:
        raise ValueError("a ratio needs at least one pair")
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(middle, low, high, len(ratios))


def rounds(contenders: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Contender → its seconds, one sample a round, after one round that does not count."""
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repetitions + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            seconds = contenders[name]()
            if number:
                samples[name].append(seconds)
    return samples


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed: a value that did occur, not one between."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How steeply y grows with x, by least squares; 0 for fewer than two different x."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(set(xs)) < 2:
        return 0.0
    return statistics.linear_regression(xs, ys).slope


# ── what every script takes and prints ────────────────────────────────────────────────────────────────────────────────


def parser(doc: str | None, *, repetitions: int | None = 11, workers: int = 2) -> argparse.ArgumentParser:
    """A parser with what all scripts share; its description is the module's own text. No repetitions: no such option."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repetitions is not None:
        made.add_argument(
            "--repetitions", type=int, default=repetitions, help="rounds that count (default %(default)s)"
        )
    made.add_argument("--workers", type=int, default=workers, help="workers of every pool (default %(default)s)")
    made.add_argument("--options", type=json.loads, default={}, help="JSON: keywords of our processes executor")
    made.add_argument("--json", action="store_true", help="one JSON object a row")
    return made


class Table:
    """Rows as they come, for people or as JSON lines; what they were measured on comes first."""

    def __init__(self, as_json: bool, about: str = "") -> None:
        self._as_json = as_json
        machine = {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "cores": _cores(),
        }
        if as_json:
            print(json.dumps({"platform": machine, "about": about}), flush=True)
        else:
            place = f"{machine['system']}, {machine['machine']}, {machine['cores']} cores"
            print(f"{machine['implementation']} {machine['python']}, {place}{'; ' if about else ''}{about}", flush=True)

    def row(self, fields: Mapping[str, Any], text: str) -> None:
        """One row: `fields` for machines, `text` for people."""
        print(json.dumps(fields) if self._as_json else text, flush=True)

    def say(self, text: str) -> None:
        """A remark: on standard error where rows are for machines."""
        print(text, file=sys.stderr if self._as_json else sys.stdout, flush=True)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
