"""Reads a run's ``events.jsonl`` as a stranger would, and complains about whatever cannot be the story of a sound run.

It knows the documented event schema and nothing else: it imports nothing of flowlane, and `LEGAL` is written by hand
from the documentation, not taken from the engine's own table. Where the two differ, one of them is wrong, and that is
what this reader is for.

    story = read(path)                    # raises ValueError for what is no log at all
    assert complaints(story, edges) == [] # edges: task -> the tasks it waits for

What it holds a log against:

- every line is one JSON object of schema version 1 and of one run; `run.started` comes first, `run.finished` last;
- every task walks from pending to exactly one final state, each step legal, each beginning where the last one ended;
- a task's times never run backwards, and `elapsed_s` is the difference between them;
- attempts count 1, 2, 3, …, a new one only after `retrying`; 0 stands for a task that never had one;
- a task keeps its kind and its executor; an outcome names the worker it came from;
- nothing began before all it waits for had succeeded, nothing ended upstream_failed without a cause;
- the number of tasks and the counts by state are those that the run events tell; what has become other tasks (`expanded`) adds
  to the number that the run began with, and is counted by what they came to, unless it failed with an error of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

__all__ = ["FINAL", "LEGAL", "Story", "complaints", "parse", "read"]

FINAL: Final = frozenset({"succeeded", "failed", "timed_out", "crashed", "upstream_failed", "cancelled", "skipped"})

_STOPPED: Final = frozenset({"cancel_requested", "fail_fast", "drained"})

#: (from, to) -> the reasons that a log may give for the step.
LEGAL: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("pending", "ready"): frozenset({"upstream_done"}),
    ("pending", "upstream_failed"): frozenset({"upstream_failed"}),
    ("pending", "cancelled"): _STOPPED,
    ("ready", "running"): frozenset({"started"}),
    ("ready", "failed"): frozenset({"rejected"}),
    ("ready", "retrying"): frozenset({"rejected", "worker_died"}),
    ("ready", "crashed"): frozenset({"worker_died"}),
    ("ready", "timed_out"): frozenset({"total_timeout"}),
    ("ready", "cancelled"): _STOPPED,
    ("running", "succeeded"): frozenset({"returned"}),
    ("running", "failed"): frozenset({"raised"}),
    ("running", "retrying"): frozenset({"raised", "attempt_timeout", "worker_died"}),
    ("running", "timed_out"): frozenset({"attempt_timeout", "total_timeout"}),
    ("running", "crashed"): frozenset({"worker_died"}),
    ("running", "cancelled"): frozenset({"cancel_requested", "fail_fast"}),  # a drain lets what runs end
    ("retrying", "ready"): frozenset({"backoff_elapsed"}),
    ("retrying", "timed_out"): frozenset({"total_timeout"}),
    ("retrying", "cancelled"): _STOPPED,
    ("pending", "skipped"): frozenset({"upstream_skipped", "not_chosen"}),
    ("running", "skipped"): frozenset({"skip_raised"}),
    ("ready", "expanded"): frozenset({"became_more"}),
    ("running", "expanded"): frozenset({"returned_work"}),
    ("expanded", "succeeded"): frozenset({"elements_done", "enough"}),
    ("expanded", "retrying"): frozenset({"elements_failed"}),
    ("expanded", "failed"): frozenset({"elements_failed", "raised"}),
    ("expanded", "upstream_failed"): frozenset({"upstream_failed"}),
    ("expanded", "skipped"): frozenset({"upstream_skipped"}),
    ("expanded", "timed_out"): frozenset({"total_timeout"}),
    ("expanded", "cancelled"): _STOPPED,
}

_COMMON: Final = ("event", "v", "level", "timestamp", "run", "run_name", "workflow")
_TASK: Final = ("task", "kind", "executor", "worker", "attempt", "from", "to", "reason", "mono_ns", "elapsed_s")


@dataclass
class Story:
    """A log, line by line, and what `parse` found wrong with the lines themselves."""

    events: list[dict[str, Any]]
    broken: list[str] = field(default_factory=list[str])

    @property
    def transitions(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("event") == "task.transition"]

    def by_task(self) -> dict[str, list[dict[str, Any]]]:
        """Each task's transitions in the order of the log."""
        tasks: dict[str, list[dict[str, Any]]] = {}
        for event in self.transitions:
            tasks.setdefault(str(event.get("task")), []).append(event)
        return tasks

    def final_states(self) -> dict[str, str]:
        """Each task's last state."""
        return {task: str(events[-1].get("to")) for task, events in self.by_task().items()}


def read(path: Path) -> Story:
    """The log in the file at `path`. Raises OSError when there is none."""
    return parse(path.read_bytes().decode("utf-8").split("\n"))


def parse(lines: Iterable[str]) -> Story:
    """A log from its lines. A line that is no event is told in `Story.broken` and left out."""
    story = Story([])
    rows = list(lines)
    if rows and rows[-1] == "":
        rows.pop()  # the newline at the end of the last line
    for number, row in enumerate(rows, 1):
        try:
            event: Any = json.loads(row, parse_constant=_refuse)
        except ValueError as error:
            story.broken.append(f"line {number} is not JSON: {error}")
            continue
        if isinstance(event, dict):
            story.events.append(cast("dict[str, Any]", event))
        else:
            story.broken.append(f"line {number} is no JSON object")
    return story


def complaints(story: Story, edges: Mapping[str, Collection[str]] | None = None) -> list[str]:
    """Everything that is wrong, in plain words; [] for a sound log.

    With `edges` (task -> the tasks it waits for, every task present) order and completeness are checked as well.
    """
    found = [*story.broken, *_frame(story)]
    tasks = story.by_task()
    for task, events in tasks.items():
        found += _path(task, events)
    if edges is not None:
        found += _order(tasks, edges)
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _frame(story: Story) -> list[str]:
    """The run's own events, and what all events have in common."""
    found: list[str] = []
    events = story.events
    for event in events:
        missing = [name for name in _COMMON if name not in event]
        if missing:
            found.append(f"an event {event.get('event')!r} has no {', '.join(missing)}")
        if event.get("v") != 1:
            found.append(f"an event {event.get('event')!r} is of schema version {event.get('v')!r}")
        stamp = event.get("timestamp")
        if not (isinstance(stamp, str) and stamp.endswith("Z") and _is_date(stamp)):
            found.append(f"an event {event.get('event')!r} has the timestamp {stamp!r}")
    runs = {str(event.get("run")) for event in events}
    if len(runs) != 1:
        found.append(f"the log tells of {len(runs)} runs")
    kinds = [event.get("event") for event in events]
    if kinds[:1] != ["run.started"] or kinds.count("run.started") != 1:
        found.append("the log does not begin with its only run.started")
    if kinds[-1:] != ["run.finished"] or kinds.count("run.finished") != 1:
        found.append("the log does not end with its only run.finished")
    if "log.lost" in kinds:
        found.append("events were lost")
    if found:
        return found
    told = events[0].get("tasks")
    states = story.final_states()
    grown = any(event.get("to") == "expanded" for event in story.transitions)
    if not (type(told) is int and told < len(states) if grown else told == len(states)):
        found.append(f"run.started tells of {told!r} tasks, the log of {len(states)}")
    counts = {state: count for state, count in dict(events[-1].get("counts") or {}).items() if count}
    told_by_others = {event["task"] for event in story.transitions if event["to"] == "expanded"}
    told_by_others -= {event["task"] for event in story.transitions if event.get("error")}
    counted = dict(Counter([state for task, state in states.items() if task not in told_by_others]))
    if counts != counted:
        found.append(f"run.finished counts {counts}, the log {counted}")
    sound = set(states.values()) <= {"succeeded", "skipped"}
    if (events[-1].get("state") == "succeeded") != sound:
        found.append(f"the run is {events[-1].get('state')!r}, its tasks are {dict(Counter(states.values()))}")
    return found


def _is_date(stamp: str) -> bool:
    try:
        datetime.fromisoformat(stamp)
    except ValueError:
        return False
    return True


def _path(task: str, events: list[dict[str, Any]]) -> list[str]:
    """One task's way from pending to its end."""
    found: list[str] = []
    state, time, attempt, started = "pending", None, 1, 0
    for event in events:
        missing = [name for name in _TASK if name not in event]
        if missing:
            found.append(f"{task}: a transition has no {', '.join(missing)}")
            continue
        source, target, reason = event["from"], event["to"], event["reason"]
        step = f"{task}: {source} → {target} ({reason})"
        if state in FINAL:
            found.append(f"{step} comes after its final state {state}")
        elif source != state:
            found.append(f"{step} begins in {source}, but the task is {state}")
        if (source, target) not in LEGAL:
            found.append(f"{step} is no legal step")
        elif reason not in LEGAL[source, target]:
            found.append(f"{step} gives a reason that this step cannot have")

        now, elapsed = event["mono_ns"], event["elapsed_s"]
        if type(now) is not int:
            found.append(f"{step} has the time {now!r}")
        elif time is None:
            if elapsed is not None:
                found.append(f"{step} is the first, but {elapsed!r} s have elapsed")
        elif now < time:
            found.append(f"{step} goes back in time by {time - now} ns")
        elif type(elapsed) not in (int, float) or abs(elapsed - (now - time) / 1e9) > 2e-6:
            found.append(f"{step} says {elapsed!r} s have elapsed, its times {(now - time) / 1e9}")
        time = now if type(now) is int else time

        number = event["attempt"]
        lowest = 0 if source == "pending" and target in FINAL else 1  # 0: there never was an attempt
        if type(number) is not int or number < lowest:
            found.append(f"{step} has attempt {number!r}")
        elif number and number != attempt and not (number == attempt + 1 and source == "retrying"):
            found.append(f"{step} has attempt {number} after attempt {attempt}")
        else:
            attempt = max(attempt, number)
        if target == "running":
            if type(number) is int and number <= started:
                found.append(f"{step} begins attempt {number} after attempt {started} had begun")
            started = number if type(number) is int else started
        # Not every pool can tell who began a task; when its outcome has come, who ran it is known.
        if reason in ("returned", "raised") and not (isinstance(event["worker"], str) and event["worker"]):
            found.append(f"{step} names no worker")
        if target in ("failed", "crashed") and not isinstance(event.get("error"), dict):
            found.append(f"{step} does not say what went wrong")
        if target == "upstream_failed" and not (event.get("root") and event.get("path")):
            found.append(f"{step} does not say what failed")
        state = target
    if state not in FINAL:
        found.append(f"{task}: its story ends in {state}")
    changing = [name for name in ("kind", "executor") if len({str(event.get(name)) for event in events}) != 1]
    return [*found, *(f"{task}: its {name} changes" for name in changing)]


def _order(tasks: Mapping[str, list[dict[str, Any]]], edges: Mapping[str, Collection[str]]) -> list[str]:
    """Nothing began before what it waits for had succeeded."""
    found = [f"{task}: not in the log" for task in edges if task not in tasks]
    found += [f"{task}: in the log, but no task of the workflow" for task in tasks if task not in edges]
    ended: dict[str, tuple[str, int]] = {}
    for task, events in tasks.items():
        last = events[-1]
        if last.get("to") in FINAL and type(last.get("mono_ns")) is int:
            ended[task] = (str(last["to"]), int(last["mono_ns"]))
    for task, upstreams in edges.items():
        events = tasks.get(task, [])
        for event in events:
            now = event.get("mono_ns")
            if event.get("to") not in ("ready", "running") or type(now) is not int:
                continue
            for upstream in upstreams:
                state, end = ended.get(upstream, ("", 0))
                if state != "succeeded":
                    found.append(f"{task}: {event['to']} although {upstream} is {state or 'not at its end'}")
                elif now < end:
                    found.append(f"{task}: {event['to']} {end - now} ns before {upstream} had succeeded")
        blamed = bool(events) and events[-1].get("to") == "upstream_failed"
        if blamed and all(ended.get(upstream, ("", 0))[0] == "succeeded" for upstream in upstreams):
            found.append(f"{task}: upstream_failed although nothing upstream failed")
    return found
