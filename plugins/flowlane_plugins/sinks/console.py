"""A line a transition, for where no live view can be shown: pipes, CI logs, dumb terminals.

    etl · run brisk-otter (7f3a2c) · 42 tasks · cpu 12 · io 30
         0.004  fetch[eu]  ready → running     asyncio
         0.120  fetch[eu]  running → retrying  raised after 0.116s on asyncio (loop)  attempt 1  OSError: 503
    parse#2 │ 118 rows

A line with a bar is what a task printed, where its executor captures that: told when the attempt has ended, before its
end, whole lines of one attempt together.

Names and messages are made inert: what is not printable is written as an escape, so no task can move the cursor, forge a line or
turn text around. Without `color` no ESC byte is ever written. Text that the stream's encoding does not know is written
with escapes rather than refused.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TextIO

from flowlane.core.states import RULES, Reason, TaskState
from flowlane.runtime.encode import encode, inert
from flowlane.runtime.events import HistoryChunk, outputs, run_finished, run_started
from flowlane_plugins.sinks.lines import LineRenderer

if TYPE_CHECKING:
    from flowlane.runtime.ports import Chunk, RunInfo, RunOutcome

__all__ = ["ConsoleSink", "encodable", "heading", "printed"]

_RESTORED: Final = str(Reason.RESTORED)
# By code: restored; a worker did it; it leaves RUNNING; nothing but name, time, worker and duration is told of it.
_KEPT: Final = tuple(rule.reason is Reason.RESTORED for rule in RULES)
_LEAVES: Final = tuple(rule.source is TaskState.RUNNING for rule in RULES)
_OF_WORKER: Final = tuple(TaskState.RUNNING in (rule.source, rule.target) for rule in RULES)
_USUAL: Final = tuple(
    rule.reason is not Reason.RESTORED and rule.target not in (TaskState.RETRYING, TaskState.UPSTREAM_FAILED)
    for rule in RULES
)
_MESSAGE_MAX: Final = 200  # characters of an error's message on its line; the whole is in the log and in the summary

_COLORS: Final = {
    "succeeded": "32",
    "failed": "31",
    "timed_out": "31",
    "crashed": "31",
    "retrying": "33",
    "upstream_failed": "35",
    "cancelled": "33",
    "running": "36",
    "cached": "32",
    "unknown": "31",
}


class ConsoleSink:
    """Writes to `stream`, which it never closes, as "console" lines for people or as "json" lines of schema v1.

    A stream that breaks (``| head``, a closed terminal) ends the output, is told once, and what is missing is counted
    in `lost`. At the end of a run only "json" writes something: the summary for people is not a sink's business.
    """

    def __init__(self, stream: TextIO, format: str = "console", color: bool = False) -> None:
        if format not in ("console", "json"):
            raise ValueError(f"format is {format!r}; 'console' and 'json' are known")
        self.lost = 0
        self._stream = stream
        self._json = format == "json"
        self._color = color
        self._runs: dict[str, LineRenderer] = {}
        self._faults: list[str] = []
        self._broken = False
        arrow, dot, bar = "→", "·", "│"
        if not encodable(stream, arrow + dot + bar):
            arrow, dot, bar = "->", "-", "|"
        self._arrow, self._dot, self._bar = arrow, dot, bar
        #: by code: what stands behind the name, as far as it is the same for all
        self._changes = [
            f"{self._paint(f'{rule.source} {arrow} {rule.target}', _COLORS.get(str(rule.target)))}  "
            + ("" if rule.target is TaskState.RUNNING else str(rule.reason))
            for rule in RULES
        ]

    def open(self, run: RunInfo) -> None:
        if self._json:
            self._runs[run.id] = LineRenderer(run)
            self._print(f"{encode(run_started(run))}\n")
        else:
            self._print(f"{heading(run, self._dot)}\n")

    def write(self, chunk: Chunk) -> None:
        if self._broken:
            self.lost += max(1, len(chunk.transitions))
        elif self._json:
            self._print(self._runs[chunk.run.id].render(chunk))
        else:
            run, rows = chunk.run, chunk.transitions
            if isinstance(chunk, HistoryChunk):
                lines = self._quickly(chunk)
            else:
                lines = [self._line(event, run.mono_ns) for event in chunk.events()]
            for index, report in outputs(chunk):
                text = printed(run.names[rows[index][0]], report.output or "", self._bar)
                lines[index] = f"{text}{lines[index]}"
            kept = sum([_KEPT[row[2]] for row in rows])
            if kept:
                when = f"{(rows[0][3] - run.mono_ns) / 1e9:>10.3f}"
                lines.insert(0, f"{when}  {kept:,} task{'' if kept == 1 else 's'} done before, and kept\n")
            self._print("".join(lines))

    def close(self, run: RunInfo, outcome: RunOutcome) -> None:
        if self._json:
            self._runs.pop(run.id, None)
            self._print(f"{encode(run_finished(run, outcome))}\n")

    def take_faults(self) -> list[str]:
        """What went wrong since the last call, for people. Called by the journal."""
        faults, self._faults = self._faults, []
        return faults

    def _quickly(self, chunk: HistoryChunk) -> list[str]:
        """`_line` of each event; of the usual rows of a first attempt without the event, at a fifth of the cost."""
        run, elapsed, report_of = chunk.run, chunk.elapsed, chunk.reports.get
        names, base, changes = run.names, run.mono_ns, self._changes
        known: dict[int, str] = {}  # a task has two rows or three, as a rule in one chunk
        lines: list[str] = []
        for index, (element, attempt, code, t) in enumerate(chunk.transitions):
            report = report_of((element, attempt))
            if attempt != 1 or not _USUAL[code] or (report is not None and report.failure is not None):
                lines.append(self._line(chunk.event(index), base))
                continue
            name = known.get(element)
            if name is None:
                name = known[element] = inert(names[element])
            line = f"{(t - base) / 1e9:>10.3f}  {name}  {changes[code]}"
            if _OF_WORKER[code]:
                executor = run.executors[element]
                place = inert(f"{executor} ({report.worker})" if report is not None and report.worker else executor)
                if _LEAVES[code]:
                    spent = elapsed[index]
                    line += f" after {_duration(spent / 1e9 if spent >= 0 else None)} on {place}"
                else:
                    line += place
            lines.append(f"{line}\n")
        return lines

    def _line(self, event: dict[str, Any], base: int) -> str:
        offset = f"{(event['mono_ns'] - base) / 1e9:>10.3f}"
        if event["event"] == "task.noted":
            return f"{offset}  {inert(event['task'])}  {self._paint(_short(event['note']), '33')}\n"
        if event["event"] == "lane.resized":
            who = event["lane"] or f"limit {event['limit']}"
            change = f"{event['before']} {self._arrow} {event['slots']} slots"
            return f"{offset}  {inert(who)}  {change}  {_short(event['note'])}\n"
        if event["event"] != "task.transition":
            return f"{offset}  {event['event']}  {event['lost']} events were lost: the log could not keep up\n"
        if event["reason"] == _RESTORED:  # told together: there may be a hundred thousand
            return ""
        target = event["to"]
        change = self._paint(f"{event['from']} {self._arrow} {target}", _COLORS.get(target))
        words = [offset, inert(event["task"]), change]
        attempt, error = event["attempt"], event.get("error")
        if event["from"] == "running":
            words.append(f"{event['reason']} after {_duration(event['elapsed_s'])} on {self._place(event)}")
        elif target == "running":
            words.append(self._place(event))
        else:
            words.append(event["reason"])
        if attempt > 1 or target == "retrying":
            words.append(f"attempt {attempt}")
        if error is not None:
            words.append(self._paint(_short(f"{error['type']}: {error['message']}"), "31"))
        elif "path" in event:
            words.append(inert(f" {self._arrow} ".join(event["path"])))
        return "  ".join(words) + "\n"

    def _place(self, event: dict[str, Any]) -> str:
        worker = event["worker"]
        return inert(f"{event['executor']} ({worker})" if worker else event["executor"])

    def _paint(self, text: str, color: str | None) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._color and color else text

    def _print(self, text: str) -> None:
        if self._broken:
            self.lost += text.count("\n")
            return
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # LANG=C: nothing of the text was written
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._broken = True
            self.lost += text.count("\n")
            self._faults.append(f"the output broke ({error}); nothing more is written to it")


def heading(run: RunInfo, dot: str = "·", kinds: Counter[str] | None = None) -> str:
    """``etl · run brisk-otter (7f3a2c) · 42 tasks · cpu 12 · io 30``. `kinds` counts the tasks, where somebody has done so."""
    kinds = Counter(run.kinds) if kinds is None else kinds
    tasks = kinds.total()
    each = [f"{kind} {count}" for kind, count in sorted(kinds.items())]
    parts = [run.workflow, f"run {run.name} ({run.id[:6]})", f"{tasks} task{'' if tasks == 1 else 's'}", *each]
    return inert(f" {dot} ".join(parts))


def printed(task: str, text: str, bar: str = "│") -> str:
    """What a task printed, as ``parse#2 │ text`` lines, inert. Of a line written over (a progress bar) the last state."""
    head = f"{inert(task)} {bar} "
    lines = [line.rstrip().rpartition("\r")[2].expandtabs(4) for line in text.rstrip().split("\n")]
    return "".join([f"{head}{inert(line)}\n" for line in lines])


def _duration(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.3f}s"


def _short(message: str) -> str:
    return inert(message if len(message) <= _MESSAGE_MAX else f"{message[:_MESSAGE_MAX]}...")


def encodable(stream: TextIO, text: str) -> bool:
    """Whether `stream` can write `text` as it is."""
    encoding = getattr(stream, "encoding", None)
    if not encoding:
        return True
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
