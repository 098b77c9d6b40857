"""The fast path from history to JSON lines: a template per kind of transition, no dictionary, no string per event.

The bytes are those of ``encode(event)`` for each event of the chunk; a test holds them equal. What makes it fast:

- The template of a code is cut where the row's own words go. Its pieces and the words are put on one list for the whole
  chunk, which is joined once (a %-format per row costs half as much again).
- The first piece holds the date down to the second, so the templates are renewed once a second.
- A task's own words are escaped once, and kept while the task is likely to be heard of again.
- Rows that carry more than the common fields (an error, the root of a failure) are rare, and take the slow way.

One `LineRenderer` per run, used by one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import RULES
from flowlane.runtime.encode import encode, quote
from flowlane.runtime.events import LEVELS, SCHEMA_VERSION, SHAPES, Clock, HistoryChunk, measures

if TYPE_CHECKING:
    from flowlane.runtime.ports import Chunk, RunInfo

__all__ = ["LineRenderer"]

#: Tasks whose escaped words are kept. More saves nothing where a task's rows come close together; each costs 250 B.
_TASKS_KEPT: Final = 4_096
_WORKERS_KEPT: Final = 1_024

# What a row of some code needs besides the common fields:
_FIRST: Final = 0  # nothing: no earlier state, nobody has worked on it
_PLAIN: Final = 1  # the time in its earlier state
_WORKED: Final = 2  # that, and the worker; the error, when there is one, takes the slow way
_ENDED: Final = 3  # that, and what was measured: the CPU time, of some executors more
_SLOW: Final = 4  # the way from a failure


class _Form(NamedTuple):
    """One code's template for one second of one run: `head` µs task [worker] `first_attempt` time …"""

    shape: int
    head: str
    first_attempt: str
    later: str  # stands in for first_attempt, after ',"attempt":n'


class LineRenderer:
    """Renders chunks of one run as JSON lines."""

    __slots__ = ("_clock", "_forms", "_lanes", "_origin", "_run", "_run_words", "_tasks", "_workers")

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._run_words = f'Z",{_fields(run=run.id, run_name=run.name, workflow=run.workflow)},"task":'
        self._clock = Clock(run)
        self._origin = 0  # add it to monotonic ns for the ns since the second that `_forms` are made for
        self._forms: tuple[_Form, ...] = ()
        self._tasks: dict[int, str] = {}
        self._lanes: dict[tuple[str, str], str] = {}  # (kind, executor) → their fields
        self._workers: dict[str, str] = {"": "null"}

    def render(self, chunk: Chunk) -> str:
        """All events of `chunk`, each on a line that ends with a newline."""
        rows = chunk.transitions
        if not rows:
            return "".join([f"{encode(event)}\n" for event in chunk.events()])
        if not self._forms:
            self._turn(rows[0][3])
        if len(self._tasks) > _TASKS_KEPT:
            self._tasks.clear()
        if len(self._workers) > _WORKERS_KEPT:
            self._workers = {"": "null"}
        slowly = _Slowly(chunk)
        origin, forms, tasks, workers, report_of = (
            self._origin,
            self._forms,
            self._tasks,
            self._workers,
            chunk.reports.get,
        )
        parts: list[str] = []
        index = -1
        for (element, attempt, code, t), elapsed in zip(rows, chunk.elapsed, strict=True):
            index += 1
            us = (t + origin) // 1000
            if not 0 <= us < 1_000_000:
                us = self._turn(t)
                origin, forms = self._origin, self._forms
            micros = "%06d" % us  # noqa: UP031 - half the time of an f-string's :06d
            shape, head, middle, later = forms[code]
            if attempt != 1:
                middle = f',"attempt":{attempt}{later}'
            task = tasks.get(element) or self._task(element)
            if shape == _FIRST:
                parts += (head, micros, task, "null", middle, str(t), ',"elapsed_s":null}\n')
                continue
            if elapsed < 0 or shape == _SLOW:
                parts.append(slowly.line(index))
                continue
            # Between 0.1 ms and 1 s the decimals of the int, zeros stripped, are what repr would find out the long way.
            if 100_000 <= elapsed < 1_000_000_000:
                spent = "0." + str(elapsed + 1_000_000_000)[1:].rstrip("0")
            else:
                spent = repr(elapsed / 1e9)
            if shape == _PLAIN:
                parts += (head, micros, task, "null", middle, str(t), ',"elapsed_s":', spent, "}\n")
                continue
            report = report_of((element, attempt))
            if report is None:
                parts += (head, micros, task, "null", middle, str(t), ',"elapsed_s":', spent, "}\n")
                continue
            if report.failure is not None and SHAPES[code].blamed:
                parts.append(slowly.line(index))
                continue
            worker = workers.get(report.worker) or self._worker(report.worker)
            if shape == _ENDED and (cpu := report.cpu) >= 0:
                if report.rss >= 0 or report.bytes_in >= 0 or report.bytes_out >= 0 or report.pickling >= 0:
                    spent = f"{spent},{_fields(**measures(report))}}}\n"
                else:
                    spent = f'{spent},"cpu_s":{cpu / 1e9!r}}}\n'
                parts += (head, micros, task, worker, middle, str(t), ',"elapsed_s":', spent)
            else:
                parts += (head, micros, task, worker, middle, str(t), ',"elapsed_s":', spent, "}\n")
        return "".join(parts)

    def _turn(self, t: int) -> int:
        """Make the templates of the second that `t` is in; µs since its beginning."""
        second, ns = divmod(t + self._clock.offset, 1_000_000_000)
        self._origin = self._clock.offset - second * 1_000_000_000
        prefix = self._clock.prefix(second)
        self._forms = tuple([_Form(shape, f"{head}{prefix}", *tails) for shape, head, *tails in _TEMPLATES])
        return ns // 1000

    def _task(self, element: int) -> str:
        run = self._run
        lane = (run.kinds[element], run.executors[element])
        lane_words = self._lanes.get(lane)
        if lane_words is None:
            lane_words = self._lanes[lane] = f',{_fields(kind=lane[0], executor=lane[1])},"worker":'
        self._tasks[element] = words = f"{self._run_words}{quote(run.names[element])}{lane_words}"
        return words

    def _worker(self, name: str) -> str:
        self._workers[name] = words = quote(name)
        return words


class _Slowly:
    """Lines of single rows of a chunk, by way of their event dictionaries."""

    __slots__ = ("_chunk", "_events")

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._events: list[dict[str, Any]] = []

    def line(self, index: int) -> str:
        if isinstance(self._chunk, HistoryChunk):
            return f"{encode(self._chunk.event(index))}\n"
        if not self._events:  # somebody else's chunk can only be asked for all its events
            self._events = list(self._chunk.events())
        return f"{encode(self._events[index])}\n"


def _fields(**fields: Any) -> str:
    return encode(fields)[1:-1]


def _templates() -> tuple[_Form, ...]:
    forms: list[_Form] = []
    for rule, shape, level in zip(RULES, SHAPES, LEVELS, strict=True):
        if shape.upstream:
            kind = _SLOW
        elif shape.first:
            kind = _FIRST
        elif not shape.reported:
            kind = _PLAIN
        else:
            kind = _ENDED if shape.cpu else _WORKED
        head = f'{{{_fields(event="task.transition", v=SCHEMA_VERSION, level=level)},"timestamp":"'
        words = encode({"from": rule.source, "to": rule.target, "reason": rule.reason})[1:-1]
        later = f',{words},"mono_ns":'
        forms.append(_Form(kind, head, f',"attempt":1{later}', later))
    return tuple(forms)


_TEMPLATES: Final = _templates()
