"""What is promised of every run, checked from outside: from events, commands and history, with tables of its own.

`Watcher` is given to a Simulation as `on_step`. It keeps its own books (who is out on which lane, who has ended, which
values live) and shares nothing with the scheduler but the messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowlane.core import (
    RULES,
    Abandoned,
    Cached,
    Crashed,
    Failed,
    Finish,
    Interrupt,
    Interrupted,
    Launch,
    Release,
    ResultLost,
    SetTimer,
    Succeeded,
    Wake,
)
from flowlane.testing import Simulation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.core import Event, Lane, Plan, Step
    from flowlane.testing import Outcome, SimulatedRun

FINAL = {"succeeded", "failed", "timed_out", "crashed", "upstream_failed", "cancelled", "cached", "unknown"}
DONE = {"succeeded", "cached"}

# Written down by hand from the documentation of the states, not from RULES.
NEXT = {
    "pending": {"ready", "upstream_failed", "cancelled", "succeeded", "cached", "unknown", "timed_out"},
    "ready": {"running", "retrying", "failed", "crashed", "timed_out", "cancelled", "cached", "pending"},
    "running": {"succeeded", "failed", "timed_out", "crashed", "cancelled", "retrying"},
    "retrying": {"ready", "timed_out", "cancelled"},
    "succeeded": {"pending"},
    "cached": {"pending"},
}


@dataclass
class Books:
    """What the watcher knows of one run."""

    states: list[str]
    attempts: list[int]
    times: list[int]
    paths: list[list[str]]
    out: dict[int, int] = field(default_factory=dict[int, int])  # element → attempt, from its Launch to its final event
    asked: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    released: set[int] = field(default_factory=set[int])
    gone: set[int] = field(default_factory=set[int])  # lost, until they are made again
    uncounted: dict[int, int] = field(default_factory=dict[int, int])  # attempts that no policy counts
    remade: dict[int, int] = field(default_factory=dict[int, int])
    due: dict[int, int] = field(default_factory=dict[int, int])  # element → earliest time of its next attempt
    finished: str | None = None


class Watcher:
    """Raises AssertionError at the first step that breaks a promise. `codes` collects the rules that were seen."""

    def __init__(self, *, deep: bool = True) -> None:
        self.books: dict[SimulatedRun, Books] = {}
        self.codes: set[int] = set()
        self.most: dict[int, int] = {}  # id of a lane → the largest capacity that it was seen with
        self.deep = deep  # also let every scheduler check itself after every step: quadratic
        self.log: list[tuple[int, list[tuple[int, int, int, int]]]] = []

    def __call__(self, run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        plan = run.scheduler.plan
        if run not in self.books:
            n = plan.size
            self.books[run] = Books(["pending"] * n, [0] * n, [0] * n, [["pending"] for _ in range(n)])
        books = self.books[run]
        self.log.append((run.scheduler.token, step.transitions))
        for event in events:
            self._hear(books, event)
        for transition in step.transitions:
            self._move(books, plan, *transition)
        for command in step.commands:
            assert books.finished is None, f"{command} after Finish"
            match command:
                case Launch(lane, elements):
                    for element in elements:
                        assert plan.lane[element] == lane
                        assert books.states[element] == "ready"
                        assert element not in books.out
                        books.out[element] = books.attempts[element]
                case Interrupt(lane, elements, _):
                    assert elements
                    for element in elements:
                        assert plan.lane[element] == lane
                        attempt = (element, books.out[element])  # only what is out may be asked
                        assert attempt not in books.asked
                        books.asked.add(attempt)
                case Release(elements):
                    self._release(books, plan, elements)
                case Finish(end):
                    books.finished = str(end)
                    assert all(state in FINAL for state in books.states)
                    assert not books.out
                case Wake(tokens):
                    assert tokens
                    assert run.scheduler.token not in tokens
                case SetTimer(at):
                    assert at >= 0
        for element, state in enumerate(books.states):
            assert not (state == "running" and element not in books.out)
            assert not (state == "retrying" and element in books.out), "a retry holds a slot"
        self._count_slots()
        if self.deep:
            for other in self.books:
                other.scheduler.check()

    def _hear(self, books: Books, event: Event) -> None:
        if (
            isinstance(event, Succeeded | Cached | Failed | Crashed | Interrupted | Abandoned | ResultLost)
            and books.out.get(event.element) == event.attempt
        ):
            del books.out[event.element]
            if isinstance(event, ResultLost):
                books.gone |= {each for each in event.lost if books.states[each] in DONE}

    def _move(self, books: Books, plan: Plan, element: int, attempt: int, code: int, at: int) -> None:
        self.codes.add(code)
        source, target, reason = map(str, RULES[code])
        assert (reason in {"restored", "process_died"}) == (source == "pending" and target in {*DONE, "unknown"})
        assert books.states[element] == source, f"element {element} is {books.states[element]}, not {source}"
        assert target in NEXT[source], f"{source} → {target}"
        if target == "ready":
            books.attempts[element] += 1
            assert all(books.states[up] in DONE for up in plan.upstreams[element])
            assert at >= books.due.pop(element, 0), "the backoff was cut short"
        policy = plan.policies[plan.policy[element]]
        if reason == "result_lost":
            if source == "ready":
                books.uncounted[element] = books.uncounted.get(element, 0) + 1
            else:
                books.uncounted[element] = books.attempts[element]
                books.remade[element] = books.remade.get(element, 0) + 1
                assert books.remade[element] <= policy.remakes, "made again without end"
                books.released.discard(element)
        if target in DONE:
            books.gone.discard(element)
        if target == "retrying" and not policy.jitter:
            books.due[element] = at + policy.delay(attempt - books.uncounted.get(element, 0), 1.0)
        if target == "upstream_failed":
            assert any(books.states[up] in FINAL - DONE for up in plan.upstreams[element])
        if target == "running" and attempt:
            for up in plan.inputs[element]:
                assert up not in books.released, "it begins although what it reads was released"
        assert attempt == books.attempts[element] <= policy.attempts + books.uncounted.get(element, 0)
        assert at >= books.times[element], "an element's history goes back in time"
        books.states[element] = target
        books.times[element] = at
        books.paths[element].append(target)

    def _release(self, books: Books, plan: Plan, elements: Sequence[int]) -> None:
        for element in elements:
            assert element not in books.released, "released twice"
            assert books.states[element] in DONE
            assert element not in plan.pinned
            readers = [below for below in plan.dependants[element] if element in plan.inputs[below]]
            assert all(books.states[below] in FINAL for below in readers), "released before its last reader ended"
            books.released.add(element)

    def _out(self) -> dict[int, int]:
        """id of a lane → attempts out on it."""
        out: dict[int, int] = {}
        for run, books in self.books.items():
            for element in books.out:
                lane = run.lanes[run.scheduler.plan.lane[element]]
                out[id(lane)] = out.get(id(lane), 0) + 1
        return out

    def _count_slots(self) -> None:
        out = self._out()
        for lane in {id(lane): lane for run in self.books for lane in run.lanes}.values():
            held = out.get(id(lane), 0)
            # A lane that shrank may have more out than it would grant now, and what it has set aside is taken.
            most = self.most[id(lane)] = max(lane.capacity, self.most.get(id(lane), 0))
            assert held <= most, f"{held} out on {lane}"
            assert held == lane.in_use, f"{held} out, but {lane}"

    def conclude(self) -> None:
        """After the simulation: everything has ended, and nothing was kept."""
        for run, books in self.books.items():
            plan = run.scheduler.plan
            assert books.finished is not None
            assert books.finished == run.state
            for element, state in enumerate(books.states):
                assert state == run.scheduler.state(element)
                assert sum(state in FINAL for state in books.paths[element]) == 1 + books.remade.get(element, 0)
                kept = state in DONE and element not in plan.pinned
                assert (element in books.released) == kept
            for lane in run.lanes:
                lane.check()
                assert lane.free == lane.capacity, f"slots were lost: {lane}"


def watched(
    *jobs: tuple[Plan, Sequence[Lane], Outcome, int],
    seed: int | None = None,
    latency: int = 0,
    requests: Sequence[tuple[int, Event, int]] = (),
) -> tuple[list[SimulatedRun], Watcher]:
    """Run (plan, lanes, outcome, start) together under a Watcher; `requests` are (run, event, at)."""
    watcher = Watcher()
    world = Simulation(seed=seed, latency=latency, grace=40, on_step=watcher)
    runs = [world.start(plan, lanes, outcome, at=at) for plan, lanes, outcome, at in jobs]
    for index, event, at in requests:
        runs[index].send(event, at)
    world.run()
    watcher.conclude()
    return runs, watcher
