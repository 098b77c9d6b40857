"""Verdicts: what a run's own figures say about how its tasks are declared. Each with the figures behind it.

Pure arithmetic over a `Record`. A verdict is about a task as declared, over all its nodes, and is given only where its
figures cannot be an accident: enough time in all, and a clear share. A run that is over in no time gets none.

What is compared:

- *body*: from the start of a task's function to its return, by the worker's clock.
- *cost* of shipping a task to another process: the time in which slots were held (by jobs handed over and not yet back)
  beyond the bodies, over the number of tasks, counted from the first start so that the start of workers is not in it. It
  contains pickling, messages, waking up, and our own share.
- *CPU share*: CPU time over body, as the executor measured it. Threads that wait for each other at the interpreter's lock
  each have a small share; so what they used together, over the time in which any of them ran, counts as well.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.runtime.measured import at
from flowlane.runtime.ports import NEVER
from flowlane.times import Occupancy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowlane.record import Record

__all__ = ["Verdict", "verdicts_of"]

#: ns that must be at stake (shipped, used or waited) before a verdict is worth reading.
_ENOUGH: Final = 50_000_000
#: Tasks of one name before their median says anything about shipping them.
_MANY: Final = 20
#: CPU time over body: above the first an io task computes, below the second a cpu task waits.
_BURNS: Final = 0.6
_WAITS: Final = 0.2
#: CPU time of a thread task's attempts together over the time in which any ran: one core, but for gaps.
_SATURATES: Final = 0.9


class Verdict(NamedTuple):
    """One finding.

    task      the task's name as declared
    code      "too_small", "burns_cpu", "waits" or "blocks_loop"
    sentence  what was found and what would be better, in words, figures included; begins with the task's name
    figures   name → seconds, share or count: what the sentence rests on
    """

    task: str
    code: str
    sentence: str
    figures: Mapping[str, float]


class _Group:
    """All attempts that ended, of one declared task on one executor. Times in ns."""

    __slots__ = ("bodies", "cpu", "cpu_wall", "ended", "kind", "lane", "started", "task")

    def __init__(self, task: str, lane: int, kind: str) -> None:
        self.task = task
        self.lane = lane
        self.kind = kind
        self.bodies = array("q")
        self.cpu = 0  # of attempts whose CPU time was measured
        self.cpu_wall = 0  # and their bodies
        self.started = array("q")  # and when
        self.ended = array("q")

    def together(self) -> float:
        """CPU time over the time in which any attempt ran: how many cores they kept busy between them."""
        return self.cpu / max(1, Occupancy(zip(self.started, self.ended, strict=True), 1).total)


def verdicts_of(record: Record) -> list[Verdict]:
    """All verdicts, the costliest first. O(n log n)."""
    found: list[tuple[int, Verdict]] = []
    costs: dict[int, int] = {}
    for group in _groups(record):
        name = record.lanes[group.lane]
        if group.kind == "cpu" and name in record.pickling:
            if group.lane not in costs:
                costs[group.lane] = _cost(record, group.lane)
            _too_small(group, costs[group.lane], found)
        if group.kind == "io" and name not in record.pickling:
            _burns_cpu(group, found)
        elif group.kind == "cpu":
            _waits(group, found)
    _blocks_loop(record, found)
    found.sort(key=lambda each: -each[0])
    return [verdict for _, verdict in found]


def _groups(record: Record) -> list[_Group]:
    groups: dict[tuple[str, int], _Group] = {}
    cpu, spans = record.measured.cpu, list(record.spans())
    for declared, elements in record.roster.ranges():
        if not elements or (lane := record.lane(elements[0])) < 0:
            continue
        key = (record.tasks[declared], lane)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(*key, record.kinds[declared])
        for element in elements:
            started, ended = spans[element]
            if started == NEVER or ended == NEVER:
                continue
            body = max(0, ended - started)
            group.bodies.append(body)
            used = at(cpu, element)
            if used is not None:
                group.cpu += used
                group.cpu_wall += body
                group.started.append(started)
                group.ended.append(ended)
    return [group for group in groups.values() if group.bodies]


def _cost(record: Record, lane: int) -> int:
    """ns that a task of this lane cost beyond its body; see the module's text."""
    launched = record.launched_ns
    ran = [
        (element, started, ended)
        for element, (started, ended) in enumerate(record.spans())
        if started != NEVER != ended and record.lane(element) == lane
    ]
    first = min([started for _, started, _ in ran])
    spans = ((max(first, launched[element]), ended) for element, _, ended in ran)
    held = Occupancy(spans, record.slots[record.lanes[lane]])
    beyond = held.total - sum([ended - started for _, started, ended in ran])
    pickled = [spent for element, _, _ in ran if (spent := at(record.measured.pickling, element)) is not None]
    return max(0, beyond // len(ran), sum(pickled) // len(ran))


def _too_small(group: _Group, cost: int, found: list[tuple[int, Verdict]]) -> None:
    count, body = len(group.bodies), int(median(group.bodies))
    if count < _MANY or body >= cost or cost * count < _ENOUGH:
        return
    sentence = (
        f"{group.task} is too small to ship: {_spell(body)} of work a task, {_spell(cost)} to ship it"
        f" ({count:,} tasks); give each task a batch, or run it inline or on threads"
    )
    figures = {"body_s": body / 1e9, "cost_s": cost / 1e9, "tasks": count}
    found.append((cost * count, Verdict(group.task, "too_small", sentence, figures)))


def _burns_cpu(group: _Group, found: list[tuple[int, Verdict]]) -> None:
    if group.cpu < _ENOUGH or not group.cpu_wall:
        return
    share, together = group.cpu / group.cpu_wall, group.together()
    if share <= _BURNS and together < _SATURATES:
        return
    used = (
        f"used the CPU for {_percent(share)} of its {_spell(group.cpu_wall)}"
        if share > _BURNS
        else f"kept {together:.1f} cores busy with {_spell(group.cpu)} of CPU time"
    )
    sentence = f"{group.task} is tagged io, but {used}; tag it @task.cpu, so that it runs on cores of its own"
    figures = {"cpu_s": group.cpu / 1e9, "wall_s": group.cpu_wall / 1e9, "share": share, "cores": together}
    found.append((group.cpu, Verdict(group.task, "burns_cpu", sentence, figures)))


def _waits(group: _Group, found: list[tuple[int, Verdict]]) -> None:
    if group.cpu_wall < _ENOUGH:
        return
    share = group.cpu / group.cpu_wall
    # More tasks at a time than there are cores have small shares each, though all they do is compute.
    if share >= _WAITS or group.together() >= 0.5 * (os.cpu_count() or 1):
        return
    waited = group.cpu_wall - group.cpu
    sentence = (
        f"{group.task} is tagged cpu, but used the CPU for {_percent(share)} of its {_spell(group.cpu_wall)}; it is io:"
        " tag it @task.io, and it waits without holding a worker"
    )
    figures = {"cpu_s": group.cpu / 1e9, "wall_s": group.cpu_wall / 1e9, "share": share}
    found.append((waited, Verdict(group.task, "waits", sentence, figures)))


_HELD: Final = re.compile(r"held the event loop for ([\d.,]+) (ms|s)\b(?: at (\S+:\d+))?")


def _blocks_loop(record: Record, found: list[tuple[int, Verdict]]) -> None:
    """From the notes of whoever watches the loop: the kept ones, so that the count may be low in a very long list."""
    times: Counter[str] = Counter()
    total: Counter[str] = Counter()
    worst: dict[str, tuple[int, str]] = {}
    for note in record.notes:
        match = _HELD.search(note.text)
        if match is None:
            continue
        number, unit, place = match.groups()
        ns = round(float(number.replace(",", "")) * (1_000_000 if unit == "ms" else 1_000_000_000))
        task = record.tasks[note.element]
        times[task] += 1
        total[task] += ns
        if ns > worst.get(task, (0, ""))[0]:
            worst[task] = (ns, place or "")
    for task, count in times.items():
        longest, place = worst.get(task, (0, ""))
        often = f", {_spell(total[task])} in {count} times" if count > 1 else ""
        sentence = (
            f"{task} held the event loop for {_spell(longest)}{f' at {place}' if place else ''}{often}; make it a plain"
            " `def`, which runs on threads, or await an async client"
        )
        figures = {"longest_s": longest / 1e9, "total_s": total[task] / 1e9, "times": count}
        found.append((total[task], Verdict(task, "blocks_loop", sentence, figures)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _spell(ns: int) -> str:
    """Two or three digits that mean something: "8 µs", "0.31 ms", "34 ms", "2.1 s"."""
    if ns < 100_000:
        return f"{ns / 1e3:.0f} µs"
    if ns < 10_000_000:
        return f"{ns / 1e6:.2g} ms"
    if ns < 1_000_000_000:
        return f"{ns / 1e6:.0f} ms"
    return f"{ns / 1e9:.1f} s"
