"""The fast path from history to JSON lines: a template per kind of transition, no dictionary, one format per event.

Each line is one that ``encode(event)`` could have written: the same fields, in the same order, with the same values; a
test holds them equal. Only seconds look different: they are written with nine decimals, which is what the nanoseconds
are (``0.000000801``, where ``repr`` has ``8.01e-07``). A reader gets the same float: both are the one nearest to that
decimal fraction.

What makes it fast:

- The template of a code is cut where the row's own words go, and an f-string puts the pieces together.
- The first piece holds the date down to the second, so the templates are renewed once a second.
- Many rows of a chunk are of one instant (a step makes tasks ready), or of the same attempt as the row before (a short
  task's start and end come together): what was written for that one is used again.
- A task's own words are escaped once, and kept while the task is likely to be heard of again.
- Rows that carry more than the common fields (an error, the root of a failure) are rare, and take the slow way.

One `LineRenderer` per run, used by one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import RULES
from flowlane.runtime.encode import encode, quote
from flowlane.runtime.events import LEVELS, SCHEMA_VERSION, SHAPES, Clock, HistoryChunk

if TYPE_CHECKING:
    from flowlane.runtime.ports import Chunk, Report, RunInfo

__all__ = ["LineRenderer"]

#: Tasks whose escaped words are kept, 130 B each. A task becomes ready long before it runs when many wait for slots.
_TASKS_KEPT: Final = 32_768
_WORKERS_KEPT: Final = 1_024

_SECOND: Final = 1_000_000_000  # ns
_EXACT: Final = 1 << 53  # ns; beyond, an int is rounded once when it is made a float, and once more when divided

# What a row of some code needs besides the common fields:
_FIRST: Final = 0  # nothing: no earlier state, nobody has worked on it
_PLAIN: Final = 1  # the time in its earlier state
_WORKED: Final = 2  # that, and the worker; the error, when there is one, takes the slow way
_ENDED: Final = 3  # that, and what was measured: the CPU time, of some executors more
_SLOW: Final = 4  # the way from a failure


class _Form(NamedTuple):
    """One code's template for one second of one run: `head` µs run task worker `first_attempt` time …"""

    shape: int
    head: str
    first_attempt: str
    later: str  # stands in for first_attempt, after ',"attempt":n'
    blamed: bool  # an error in the report belongs to it


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
        lines: list[str] = []
        add = lines.append
        origin, forms, run, tasks, workers = self._origin, self._forms, self._run_words, self._tasks, self._workers
        report_of = chunk.reports.get
        instant = element_before = attempt_before = -1
        micros = mono = task = worker = ""
        report: Report | None = None
        for (element, attempt, code, t), elapsed in zip(rows, chunk.elapsed, strict=True):
            if t != instant:
                instant = t
                us = (t + origin) // 1000
                if not 0 <= us < 1_000_000:
                    us = self._turn(t)
                    origin, forms = self._origin, self._forms
                micros = "%06d" % us  # noqa: UP031 - half the time of an f-string's :06d
                mono = str(t)
            shape, head, middle, later, blamed = forms[code]
            if attempt != 1:
                middle = f',"attempt":{attempt}{later}'
            if shape == _FIRST:
                task = tasks.get(element) or self._task(element)
                element_before = -1
                add(f'{head}{micros}{run}{task}null{middle}{mono},"elapsed_s":null}}\n')
                continue
            if element != element_before or attempt != attempt_before:
                element_before, attempt_before = element, attempt
                task = tasks.get(element) or self._task(element)
                report = report_of((element, attempt))
                worker = "null" if report is None else workers.get(report.worker) or self._worker(report.worker)
            if elapsed < 0 or shape == _SLOW or (blamed and report is not None and report.failure is not None):
                add(slowly.line(len(lines)))
                continue
            spent = f"0.{str(elapsed + _SECOND)[1:]}" if elapsed < _SECOND else _seconds(elapsed)
            if shape == _PLAIN:
                add(f'{head}{micros}{run}{task}null{middle}{mono},"elapsed_s":{spent}}}\n')
            elif shape == _WORKED or report is None or report.cpu < 0:
                add(f'{head}{micros}{run}{task}{worker}{middle}{mono},"elapsed_s":{spent}}}\n')
            else:
                add(f'{head}{micros}{run}{task}{worker}{middle}{mono},"elapsed_s":{spent}{_measured(report)}}}\n')
        return "".join(lines)

    def _turn(self, t: int) -> int:
        """Make the templates of the second that `t` is in; µs since its beginning."""
        second, ns = divmod(t + self._clock.offset, _SECOND)
        self._origin = self._clock.offset - second * _SECOND
        prefix = self._clock.prefix(second)
        self._forms = tuple([form._replace(head=f"{form.head}{prefix}") for form in _TEMPLATES])
        return ns // 1000

    def _task(self, element: int) -> str:
        run = self._run
        lane = (run.kinds[element], run.executors[element])
        lane_words = self._lanes.get(lane)
        if lane_words is None:
            lane_words = self._lanes[lane] = f',{_fields(kind=lane[0], executor=lane[1])},"worker":'
        self._tasks[element] = words = f"{quote(run.names[element])}{lane_words}"
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


def _seconds(ns: int) -> str:
    """`ns` in seconds, as a JSON number of the value ``ns / 1e9``."""
    if ns < _SECOND:
        return f"0.{str(ns + _SECOND)[1:]}"
    if ns < _EXACT:
        whole, ns = divmod(ns, _SECOND)
        return f"{whole}.{str(ns + _SECOND)[1:]}"
    return repr(ns / 1e9)


def _measured(report: Report) -> str:
    """The fields of ``events.measures`` for a report that tells CPU time, each after its comma."""
    bytes_in, bytes_out, pickling = report.bytes_in, report.bytes_out, report.pickling
    memory = f',"peak_rss":{report.rss}' if report.rss >= 0 else ""
    if bytes_in >= 0 and bytes_out >= 0 and pickling >= 0:
        return (
            f',"cpu_s":{_seconds(report.cpu)}{memory},"bytes_in":{bytes_in},"bytes_out":{bytes_out}'
            f',"pickling_s":{_seconds(pickling)}'
        )
    text = f',"cpu_s":{_seconds(report.cpu)}{memory}'
    if bytes_in >= 0:
        text += f',"bytes_in":{bytes_in}'
    if bytes_out >= 0:
        text += f',"bytes_out":{bytes_out}'
    if pickling >= 0:
        text += f',"pickling_s":{_seconds(pickling)}'
    return text


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
        forms.append(_Form(kind, head, f',"attempt":1{later}', later, shape.blamed))
    return tuple(forms)


_TEMPLATES: Final = _templates()
