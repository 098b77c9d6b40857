"""The last thing a run says: one block when it went well, and when it did not, what failed, last on the screen.

Text for people, on stderr. A failed task is shown with the lines of the user's code that led to the error, who ran it,
what it printed last, and what it kept from running; at most three of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.cli.terminal import inert
from flowlane.cli.words import cut, duration, listed, name_of, path_of, size
from flowlane.core.states import TaskState
from flowlane.loader import is_user_code, shown_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowlane.cli.record import EventLog
    from flowlane.cli.terminal import Messages
    from flowlane.errors import Failure
    from flowlane.results import RunResult, TaskResult

__all__ = ["show_failure", "show_summary", "user_lines"]

_SHOWN: Final = 3  # failed tasks shown whole
_FRAMES: Final = 4  # lines of the user's code a failure
_MESSAGE_LINES: Final = 4
_LOOKED_AT: Final = 500  # tasks asked for their root cause: a failure at the head of a wide graph stops them all
_NOTES: Final = 8  # notes shown; more are repetitions as a rule
_HELD: Final = "held the event loop"
_HINTS: Final = 3  # verdicts shown
_OUTPUT_LINES: Final = (10, 2)  # last lines of a failed task's output: of the only one, of one of several
_MARKS: Final = {"succeeded": ("✔", "32"), "failed": ("✗", "31")}


def show_summary(
    messages: Messages,
    result: RunResult[Any],
    *,
    log: EventLog | None = None,
    resumable: bool = False,
    quiet: bool = False,
) -> None:
    """Print how the run ended. `log` is where it was recorded. With `quiet` a success prints nothing.

    `resumable` says that the run is in a store.
    """
    state = str(result.state)
    if quiet and state == "succeeded" and not result.notes:
        return
    mark, colour = _MARKS.get(state, ("■", "33"))
    took = duration(result.duration)
    ended = took if state == "succeeded" else f"{state} after {took}"
    counts = _counts(result)
    messages.write(
        f"{messages.paint(mark, '1;' + colour)} {inert(result.workflow)}  {result.name}  {ended}   {counts}\n"
    )
    if state == "succeeded" and result.restored < sum(result.counts.values()):
        path = result.critical_path
        if path:
            total = duration(sum(seconds for _, seconds in path))
            messages.write(f"  critical path {total}  {path_of([name for name, _ in path])}\n")
        shares = _shares(result)
        if shares:
            messages.write(f"  time: {shares}\n")
            if result.slots:
                messages.write(f"  slots: {_busy(result)}\n")
    for sentence in result.resizes:
        messages.write(f"  adapted  {inert(sentence)}\n")
    hints = [] if quiet else result.verdicts[:_HINTS]
    summed_up = {verdict.task for verdict in hints if verdict.code == "blocks_loop"}
    notes = [note for note in result.notes if not (_HELD in note and _task_of(note) in summed_up)]
    for note in notes[:_NOTES]:
        messages.write(f"  ! {cut(inert(note))}\n")
    if len(notes) > _NOTES:
        messages.write(f"  ! and {len(notes) - _NOTES} more notes\n")
    for verdict in hints:
        messages.write(f"  hint: {inert(verdict.sentence)}\n")
    _show_failures(messages, result, log)
    if resumable and state != "succeeded":
        messages.write(f"  resume   flow resume {result.name}\n")
    if log is not None and state != "succeeded":
        messages.write(f"  events   {inert(shown_path(log.path(result.id)))}\n")
    messages.flush()


def _task_of(note: str) -> str:
    """The declared name of the task that a note of an executor is about: "parse#2 held …" → "parse"."""
    return note.partition(f" {_HELD}")[0].partition("#")[0]


def _counts(result: RunResult[Any]) -> str:
    parts = [f"{count:,} {state}" for state, count in result.counts.items() if count]
    if kept := result.restored:
        parts.append(f"{kept:,} kept from before")
    retries = result.retries
    if retries:
        parts.append(f"{retries:,} {'retry' if retries == 1 else 'retries'}")
    return " · ".join(parts) or "no tasks"


def _busy(result: RunResult[Any]) -> str:
    """``processes 93% of 2 · threads 1% of 32``: how busy the slots were."""
    slots = result.slots
    return " · ".join(
        f"{inert(name)} {100 * min(share, 1):.0f}% of {slots[name]}" for name, share in result.utilisation.items()
    )


def _shares(result: RunResult[Any]) -> str:
    """``work 79% · waiting for a cpu slot 15% · engine 1%``, parts under half a percent left out."""
    times = result.times
    kinds: dict[str, set[str]] = {}
    for task in result.tasks.values():
        kinds.setdefault(task.executor, set()).add(task.kind)
    waits: dict[str, float] = {}
    for executor, seconds in times.slot.items():
        # "a cpu slot" says more than the executor's name, where all that it runs is of one kind
        of = kinds.get(executor, set())
        slot = next(iter(of)) if len(of) == 1 else inert(executor)
        waits[slot] = waits.get(slot, 0.0) + seconds
    parts = [("work", sum(times.work.values()))]
    parts += [(f"waiting for {'an' if slot[0] in 'aeiou' else 'a'} {slot} slot", s) for slot, s in waits.items()]
    parts += [("retrying", times.retry), ("pickling", times.pickling)]
    parts += [("handing over", times.handover), ("engine", times.engine)]
    total = sum(seconds for _, seconds in parts)
    if total <= 0:
        return ""
    return " · ".join(
        f"{name} {100 * seconds / total:.0f}%" for name, seconds in parts if name == "work" or seconds / total >= 0.005
    )


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _show_failures(messages: Messages, result: RunResult[Any], log: EventLog | None) -> None:
    failures = result.failures
    if not failures:
        return
    stopped = _stopped_by(result, failures)
    frames = _FRAMES if len(failures) == 1 else 1
    for name in list(failures)[:_SHOWN]:
        task = result.tasks[name]
        show_failure(messages, task, failures[name], frames)
        _show_output(messages, result, task, log, _OUTPUT_LINES[len(failures) > 1])
        if of := stopped.get(name):
            messages.write(f"  stopped  {listed(of)}\n")
    left = list(failures)[_SHOWN:]
    if left:
        messages.write(f"  and {len(left)} more: {listed(left)}\n")


class Tried(Protocol):
    """A task that failed, as far as it is told: a `TaskResult`, or one of a stored run."""

    @property
    def name(self) -> str: ...
    @property
    def attempts(self) -> int: ...
    @property
    def executor(self) -> str: ...
    @property
    def worker(self) -> str | None: ...
    @property
    def duration(self) -> float | None: ...
    @property
    def cpu(self) -> float | None: ...
    @property
    def peak_rss(self) -> int | None: ...


def show_failure(messages: Messages, task: Tried, failure: Failure, frames: int) -> None:
    """Print how a task failed: the error, the lines of the user's code that led to it (at most `frames`), and who ran it."""
    first, *rest = [cut(line) for line in inert(failure.message, newlines=True).splitlines()] or [""]
    attempts = f"   attempt {task.attempts}" if task.attempts > 1 else ""
    kind = f"{inert(failure.type)}: " if first else inert(failure.type)
    messages.write(f"{messages.paint(name_of(task.name), '1')}  {messages.paint(kind + first, '31')}{attempts}\n")
    for line in rest[:_MESSAGE_LINES]:
        messages.write(f"    {line}\n")
    if len(rest) > _MESSAGE_LINES:
        messages.write(f"    … {len(rest) - _MESSAGE_LINES} more lines\n")
    lines = user_lines(failure)[-frames:]
    width = max((len(place) for place, _ in lines), default=0)
    for place, source in lines:
        messages.write(f"  {inert(place):{width}}   {inert(source)}".rstrip() + "\n")
    for note in failure.notes[:_MESSAGE_LINES]:
        messages.write(f"  note     {cut(inert(note))}\n")
    if not task.worker:  # a map that could not be begun, arguments that nobody could be given: nothing ran
        return
    ran = [inert(task.executor)]
    if task.worker != task.executor:
        ran.append(inert(task.worker))
    if task.duration:
        ran.append(duration(task.duration))
    if task.cpu is not None:
        ran.append(f"cpu {duration(task.cpu)}")
    if task.peak_rss is not None:
        ran.append(f"peak {size(task.peak_rss)}")
    messages.write(f"  ran on   {', '.join(ran)}\n")


def _show_output(messages: Messages, result: RunResult[Any], task: TaskResult, log: EventLog | None, most: int) -> None:
    """The last lines that a failed task printed, where that was captured, and where the rest is."""
    lines = (task.output or "").rstrip().split("\n")
    if lines == [""]:
        return
    if len(lines) > most:
        place = f" in {inert(shown_path(log.output_path(result.id, task.name, task.attempts)))}" if log else ""
        messages.write(f"  printed  … {len(lines) - most:,} more lines{place}\n")
    for number, line in enumerate(lines[-most:]):
        label = "printed" if number == 0 and len(lines) <= most else ""
        shown = inert(line.rstrip().rpartition("\r")[2].expandtabs(4))
        messages.write(f"  {label:7}  {cut(shown)}".rstrip() + "\n")


def _stopped_by(result: RunResult[Any], failures: Mapping[str, Failure]) -> dict[str, list[str]]:
    """Failed task → names of the tasks that did not run because of it."""
    if not result.counts[TaskState.UPSTREAM_FAILED]:
        return {}
    names = [name for name, task in result.tasks.items() if task.state is TaskState.UPSTREAM_FAILED]
    if len(failures) == 1:
        return {next(iter(failures)): names}
    stopped: dict[str, list[str]] = {}
    for name in names[:_LOOKED_AT]:
        stopped.setdefault(result.upstream(name)[0], []).append(name)
    return stopped


_FRAME: Final = re.compile(r'^[ |+]*File "(.+)", line (\d+), in (.+)$')


def user_lines(failure: Failure) -> list[tuple[str, str]]:
    """("file:line in function", source text) of the error's frames in the user's own code, innermost last.

    Read from the traceback's text: it is all that travels from a worker process. Of a chain the last traceback counts,
    which is the error itself. Without a line of the user's own, the innermost line of whatever code it was.
    """
    frames: list[tuple[str, str, str]] = []
    pending: tuple[str, str, int] | None = None
    for line in failure.traceback.splitlines():
        match = _FRAME.match(line)
        if match is not None:
            file, number, function = match.groups()
            frames.append((file, f"{shown_path(file)}:{number} in {function}", ""))
            pending = (file, frames[-1][1], line.index("File "))
        elif line.startswith(("Traceback ", "  + Exception Group Traceback ")):
            frames.clear()
            pending = None
        elif pending is not None:
            its_file, its_place, indent = pending
            source = line.lstrip(" |").rstrip()  # the members of a group stand behind bars
            if (
                len(line.rstrip()) - len(source) > indent
            ):  # else it is the error: of a frame without a file there is no source
                frames[-1] = (its_file, its_place, source)
            pending = None
    own = list(dict.fromkeys((place, source) for file, place, source in frames if is_user_code(file, "")))
    if not own and failure.where is not None and " in " not in failure.where:
        return _place_only(failure)  # an error of ours names the user's line, where no frame of theirs is left
    return own or [(place, source) for _, place, source in frames[-1:]] or _place_only(failure)


def _place_only(failure: Failure) -> list[tuple[str, str]]:
    if failure.where is None:
        return []
    file, colon, rest = failure.where.rpartition(":")
    return [(f"{shown_path(file)}{colon}{rest}", "")]
