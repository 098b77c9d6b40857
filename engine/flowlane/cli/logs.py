"""``flow logs``: what happened in a run, from its event log, and what its tasks printed.

The log is beside the store, and written by `flow run` only: a run that a program made tells its events to that program. Lines are
shown by the sink that shows them while a run is under way, so they read the same.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

import click

from flowlane.cli.eventfile import Told, event_of, run_info, whole_lines
from flowlane.cli.record import EventLog, file_name
from flowlane.cli.terminal import DataOutput, Messages, inert
from flowlane.errors import UsageError
from flowlane.loader import shown_path
from flowlane.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flowlane.runtime.ports import RunInfo, Sink
    from flowlane.storage.port import Store, StoredRun

__all__ = ["command"]

_LOOK_EVERY: Final = 0.2  # seconds between two looks for more
_LINE_MAX: Final = 500


@click.command("logs", short_help="print the events of a stored run, or what its tasks printed")
@click.argument("run", metavar="[RUN[/TASK]]", default="last")
@click.argument("task", metavar="[TASK]", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--output", is_flag=True, help="What tasks printed, instead of events.")
@click.option("--json", "as_json", is_flag=True, help="The lines of the log as they are, one JSON object each.")
def command(run: str, task: str | None, follow: bool, output: bool, as_json: bool) -> int:
    """Print what happened in RUN ("last" unless given), or to one TASK of it: a line a transition."""
    from flowlane.cli.state import existing_store

    settings = load_settings()
    messages = Messages()
    if output and (follow or as_json):
        raise UsageError("--output cannot be combined with --follow or --json", hint="leave out one of them")
    with DataOutput() as data, existing_store(settings) as store:
        name, _, behind = run.partition("/")
        task = task or behind
        found = store.find(name)
        log = EventLog(settings.state_dir.value)
        if task:
            _check_task(store, found, task)
        if output:
            _print_output(data, messages, store, found, task, log)
            return 0
        path = log.path(found.id)
        under_way = _UnderWay(store, found, path)
        if not os.path.exists(path) and not (follow and under_way.soon()):
            raise _no_log(found, path)
        wait = under_way.more if follow else None
        try:
            torn = _print_lines(data, path, task, wait) if as_json else _print_events(data, path, task, wait)
        except OSError as error:
            raise UsageError(f"{shown_path(path)} cannot be read: {(error.strerror or str(error)).lower()}") from None
        if follow and under_way.stopped():
            messages.line(f"the process of run {inert(found.name)} is gone, and did not say how it ended")
        if torn:
            messages.line(f"{torn:,} lines of {inert(shown_path(path))} are not what was written, and left out")
    return 0


def _check_task(store: Store, run: StoredRun, task: str) -> None:
    from flowlane.past import look

    look(store, run, task).number(task)


def _no_log(run: StoredRun, path: str) -> UsageError:
    return UsageError(
        f"run {run.name} has no event log: {shown_path(path)} is not there",
        hint="only `flow run` and `flow resume` write one; `flow show` tells what the store has",
    )


class _UnderWay:
    """Whether more may come."""

    def __init__(self, store: Store, run: StoredRun, path: str) -> None:
        self._store = store
        self._run = run
        self._path = path
        self._last = False

    def soon(self) -> bool:
        """Wait for the log of a run that has just begun; false when it ends without one."""
        while not os.path.exists(self._path):
            if self._store.owner(self._run.id) is None:
                return False
            time.sleep(_LOOK_EVERY)
        return True

    def stopped(self) -> bool:
        """Whether the run's process went without a word."""
        from flowlane.past import STOPPED, owner_of, state_of

        run = self._store.find(self._run.id)
        return state_of(run, owner_of(self._store, run)) == STOPPED

    def more(self) -> bool:
        """Called at the end of the file. Once nobody is at the run, what was written before that is read, and no more."""
        if self._last:
            return False
        self._last = self._store.owner(self._run.id) is None
        if not self._last:
            time.sleep(_LOOK_EVERY)
        return True


def _of_task(event: dict[str, Any] | None, task: str) -> bool:
    return not task or (event is not None and event.get("task") == task)


def _print_lines(data: DataOutput, path: str, task: str, wait: Callable[[], bool] | None) -> int:
    """The lines as they are; how many were left out because they are no event."""
    torn = 0
    for lines in whole_lines(path, wait):
        kept: list[str] = []
        for line in lines:
            event = event_of(line)
            plain = line.isascii() and line.decode("ascii").isprintable()
            if event is None or not plain:
                torn += bool(line)
            elif _of_task(event, task):
                kept.append(f"{line.decode('ascii')}\n")
        if kept:
            data.write("".join(kept))
        if data.gone:
            break
    return torn


def _print_events(data: DataOutput, path: str, task: str, wait: Callable[[], bool] | None) -> int:
    """The same for people."""
    torn = 0
    shown = _Shown(data)
    for lines in whole_lines(path, wait):
        events = [event_of(line) for line in lines]
        torn += sum([event is None and bool(line) for event, line in zip(events, lines, strict=True)])
        shown.show([event for event in events if event is not None], task)
        if data.gone:
            break
    return torn


class _Shown:
    """Hands events to the console's sink, which writes them to a page, and that to stdout."""

    def __init__(self, data: DataOutput) -> None:
        self._data = data
        self._run: RunInfo | None = None

    def show(self, events: Sequence[dict[str, Any]], task: str) -> None:
        from flowlane.runtime.registry import make_sink

        page = self._data.page()
        sink = make_sink("console", page, color=not page.plain)
        for run, stretch in self._stretches(events):
            if stretch[0]["event"] == "run.started":
                if not task:
                    sink.open(run)
                continue
            self._tell(
                sink, run, [event for event in stretch if event["event"] != "run.finished" and _of_task(event, task)]
            )
            if stretch[-1]["event"] == "run.finished" and not task:
                page.line(_end(stretch[-1]))
        text = page.text()
        if text:
            self._data.write(text)

    def _tell(self, sink: Sink, run: RunInfo, events: Sequence[dict[str, Any]]) -> None:
        if events:
            sink.write(Told(run, events))

    def _stretches(self, events: Sequence[dict[str, Any]]) -> Iterator[tuple[RunInfo, Sequence[dict[str, Any]]]]:
        """Events by session: a ``run.started`` by itself, then what follows up to the end or the next one."""
        stretch: list[dict[str, Any]] = []
        for event in events:
            if event["event"] == "run.started":
                if stretch and self._run is not None:
                    yield self._run, stretch
                stretch = []
                self._run = run_info(event)
                yield self._run, [event]
                continue
            if self._run is None:  # the beginning of the log is missing: times count from its first line
                self._run = run_info({**event, "run_name": event.get("run_name", ""), "kinds": {}})
            stretch.append(event)
            if event["event"] == "run.finished":
                yield self._run, stretch
                stretch = []
        if stretch and self._run is not None:
            yield self._run, stretch


def _end(event: dict[str, Any]) -> str:
    """``failed after 2.9 s   parse#2: ValueError: …``"""
    from flowlane.cli.words import cut, duration

    took, error = event.get("duration_s"), event.get("error")
    words = f"{event['state']} after {duration(took)}" if isinstance(took, (int, float)) else str(event["state"])
    return f"{words}   {cut(inert(error))}" if isinstance(error, str) else words


# ── what tasks printed ────────────────────────────────────────────────────────────────────────────────────────────────


def _print_output(data: DataOutput, messages: Messages, store: Store, run: StoredRun, task: str, log: EventLog) -> None:
    """What tasks printed, task by task in the order of declaration, attempt by attempt."""
    from flowlane.past import look

    past = look(store, run)
    folder = os.path.dirname(log.output_path(run.id, "-", 1))
    try:
        there = set(os.listdir(folder))
    except OSError:
        there = set[str]()
    printed = 0
    for name in [task] if task else past.names:
        attempts = sorted(_numbers(there, name))
        for number in attempts:
            printed += 1
            if not task or len(attempts) > 1:
                data.write(f"── {inert(name)}  attempt {number}\n" if len(attempts) > 1 else f"── {inert(name)}\n")
            with open(
                log.output_path(run.id, name, number), encoding="utf-8", errors="backslashreplace", newline="\n"
            ) as file:
                for line in file:
                    data.write(f"{inert(line.rstrip().rpartition(chr(13))[2].expandtabs(4))}\n")
            if data.gone:
                return
    if not printed:
        messages.line(f"no output of {inert(task) if task else 'its tasks'} was captured in run {run.name}")


def _numbers(there: set[str], task: str) -> list[int]:
    """The attempts of a task whose output is there."""
    found: list[int] = []
    number = 1
    stem = file_name(task)
    while number < 256:
        if f"{stem}.{number}.txt" in there:
            found.append(number)
        number += 1
    return found
