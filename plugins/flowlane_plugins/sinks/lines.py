"""The fast path from history to JSON lines: a template per kind of transition, no dictionary, one format per line.

Each line is one of those that JSON has for the event: the fields of ``encode(event)`` in their order, with the values that
a reader gets from it; a test holds them equal. Only seconds are spelt differently. They are written with nine decimals,
which is what the nanoseconds are (``0.000000801``, where ``repr`` has ``8.01e-07``), at half the cost. Read as floats the
two are equal: each is the float nearest to that decimal fraction, up to the 104 days where ns still fit a float.

What makes it fast:

- The template of a code is cut where the row's own words go, and an f-string puts the pieces together.
- The first piece holds the date down to the second, so the templates are renewed once a second.
- Two cases make up nearly all of a busy log, and are written in place: a task becomes ready (many do at one instant, and
  share all but their own words), and a short task's start with its end right behind it (two lines in one go).
- A task's own words are escaped once, and kept while the task is likely to be heard of again.
- Rows that carry more than the common fields (an error, the root of a failure) are rare, and take the slow way.

One `LineRenderer` per run, used by one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import RULES, Reason, TaskState, code_of
from flowlane.runtime.encode import encode, quote
from flowlane.runtime.events import LEVELS, SCHEMA_VERSION, SHAPES, Clock, HistoryChunk

if TYPE_CHECKING:
    from flowlane.core.messages import Transition
    from flowlane.runtime.ports import Chunk, Report, RunInfo

__all__ = ["LineRenderer"]

#: Tasks whose escaped words are kept, 200 B each: where many wait for slots, a task runs long after it became ready.
_TASKS_KEPT: Final = 16_384
_WORKERS_KEPT: Final = 1_024

_SECOND: Final = 1_000_000_000  # ns
_EXACT: Final = 1 << 53  # ns; beyond, an int is rounded once when it is made a float, and once more when divided

_READY: Final = code_of(TaskState.PENDING, TaskState.READY, Reason.UPSTREAM_DONE)
_STARTED: Final = code_of(TaskState.READY, TaskState.RUNNING, Reason.STARTED)
_RETURNED: Final = code_of(TaskState.RUNNING, TaskState.SUCCEEDED, Reason.RETURNED)

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
        elapsed, report_of, tasks = chunk.elapsed, chunk.reports.get, self._tasks
        slowly = _Slowly(chunk)
        lines: list[str] = []
        add = lines.append
        instant: int | None = None  # that of `opening` and `closing`
        opening = closing = ""
        index, last = 0, len(rows) - 1
        while index <= last:
            row = rows[index]
            element, attempt, code, t = row
            if attempt == 1:
                if code == _READY:
                    if t != instant:
                        instant = t
                        opening, closing = self._ready(t)
                    add(f"{opening}{tasks.get(element) or self._task(element)}{closing}")
                    index += 1
                    continue
                if code == _STARTED and index < last:
                    report = report_of((element, 1))
                    both = self._short(row, rows[index + 1], elapsed[index], elapsed[index + 1], report)
                    if both:
                        add(both)
                        index += 2
                        continue
            add(self._line(row, elapsed[index], report_of((element, attempt))) or slowly.line(index))
            index += 1
        return "".join(lines)

    def _ready(self, t: int) -> tuple[str, str]:
        """What stands before and behind the words of each task that becomes ready at `t`."""
        us = (t + self._origin) // 1000
        if not 0 <= us < 1_000_000:
            us = self._turn(t)
        form = self._forms[_READY]
        return f"{form.head}{us:06d}{self._run_words}", f'null{form.first_attempt}{t},"elapsed_s":null}}\n'

    def _short(self, start: Transition, then: Transition, waited: int, worked: int, report: Report | None) -> str:
        """The lines of two rows, the first a first attempt's start; "" unless the second is its success, in the same second."""
        element, _, _, began = start
        who, attempt, code, ended = then
        if code != _RETURNED or who != element or attempt != 1 or report is None or waited < 0:
            return ""
        us, us_end = (began + self._origin) // 1000, (ended + self._origin) // 1000
        if not 0 <= us <= us_end < 1_000_000:
            return ""
        # %-formats: they fill up with zeros in half the time that format specifiers take
        micros, micros_end = "%06d" % us, "%06d" % us_end  # noqa: UP031
        run = self._run_words
        task = self._tasks.get(element) or self._task(element)
        worker = self._workers.get(report.worker) or self._worker(report.worker)
        spent = f"0.{str(waited + _SECOND)[1:]}" if waited < _SECOND else _seconds(waited)
        _, head, middle, _, _ = self._forms[_STARTED]
        _, head_end, middle_end, _, _ = self._forms[_RETURNED]
        return (
            f'{head}{micros}{run}{task}{worker}{middle}{began},"elapsed_s":{spent}}}\n'
            f"{head_end}{micros_end}{run}{task}{worker}{middle_end}{ended}"
            f',"elapsed_s":0.{str(worked + _SECOND)[1:]}{_measured(report)}}}\n'
        )

    def _line(self, row: Transition, elapsed: int, report: Report | None) -> str:
        """The line of any row; "" when it has to take the slow way."""
        element, attempt, code, t = row
        us = (t + self._origin) // 1000
        if not 0 <= us < 1_000_000:
            us = self._turn(t)
        shape, head, middle, later, blamed = self._forms[code]
        if attempt != 1:
            middle = f',"attempt":{attempt}{later}'
        words = self._tasks.get(element) or self._task(element)
        stem = f"{head}{us:06d}{self._run_words}{words}"
        if shape == _FIRST:
            return f'{stem}null{middle}{t},"elapsed_s":null}}\n'
        if elapsed < 0 or shape == _SLOW or (blamed and report is not None and report.failure is not None):
            return ""
        spent = _seconds(elapsed)
        if shape == _PLAIN or report is None:
            return f'{stem}null{middle}{t},"elapsed_s":{spent}}}\n'
        worker = self._workers.get(report.worker) or self._worker(report.worker)
        measured = _measured(report) if shape == _ENDED else ""
        return f'{stem}{worker}{middle}{t},"elapsed_s":{spent}{measured}}}\n'

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
    """The fields of ``events.measures``, each behind a comma."""
    cpu, bytes_in, bytes_out, pickling = report.cpu, report.bytes_in, report.bytes_out, report.pickling
    if 0 <= cpu < _SECOND and bytes_in >= 0 and bytes_out >= 0 and 0 <= pickling < _SECOND and report.rss < 0:
        # nearly every task of the `processes` executor
        figures = (cpu, bytes_in, bytes_out, pickling)
        return ',"cpu_s":0.%09d,"bytes_in":%d,"bytes_out":%d,"pickling_s":0.%09d' % figures  # noqa: UP031
    if cpu < 0 and report.failure is None:
        return ""
    text = f',"cpu_s":{_seconds(cpu)}' if cpu >= 0 else ""
    if report.rss >= 0:
        text += f',"peak_rss":{report.rss}'
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
