"""A stored run, looked at: its tasks by name, every attempt, who waits for whom, and who stopped whom.

What is stored is rows of numbers and, by session, a description of the tasks. `look` reads both once; everything after that
is pure, and describes the instant of reading: a run under way goes on meanwhile. Nothing of the user's is imported, and no value
is decoded.

A task without a row had not come to anything yet: it waits for others, or for a slot. Tasks that came into being while the run
went on are tasks like any other, numbered behind those it began with; one that has become others (a map, a workflow, work that
was returned) is a *container* of them, and is told by what they came to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from flowlane.core.elements import TREE
from flowlane.core.states import DONE, REASONS, STATES, Reason, RunState, TaskState
from flowlane.core.tally import failed_of_itself, tally
from flowlane.errors import Failure, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from flowlane.census import Census
    from flowlane.storage.port import Owner, ResultRef, Store, StoredAttempt, StoredRun, StoredSession

__all__ = ["STOPPED", "Attempt", "Past", "look", "owner_of", "state_of"]

#: The state of a run that is recorded as running and whose process is gone: killed, or its machine was.
STOPPED: Final = "stopped"

#: States of a task that keep others from running.
BAD: Final = frozenset(
    {
        TaskState.FAILED,
        TaskState.TIMED_OUT,
        TaskState.CRASHED,
        TaskState.UPSTREAM_FAILED,
        TaskState.CANCELLED,
        TaskState.UNKNOWN,
    }
)


def owner_of(store: Store, run: StoredRun) -> Owner | None:
    """The living process that is at `run`; asked only about a run that says it is running."""
    return store.owner(run.id) if run.state is RunState.RUNNING else None


def state_of(run: StoredRun, owner: Owner | None) -> str:
    """The state of a run for people, given who owns it."""
    return STOPPED if run.state is RunState.RUNNING and owner is None else str(run.state)


@dataclass(frozen=True)
class Attempt:
    """One attempt of one task, as it is stored. Times are ns of the epoch, 0 where it did not come to that.

    element  its number in that session
    session  the session that has this row
    adopted  another row has the result, or had: see `StoredAttempt`
    """

    task: str
    executor: str
    element: int
    session: int
    number: int
    state: TaskState
    reason: Reason
    ready: int
    started: int
    ended: int
    result: ResultRef | None
    size: int
    adopted: bool
    text: str | None  # the detail as it is stored

    @cached_property
    def detail(self) -> Mapping[str, Any]:
        """What else is known: worker, measures, error. Empty where nothing is."""
        try:
            found: Any = json.loads(self.text) if self.text else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]

    @property
    def waited(self) -> float | None:
        """Seconds from being ready to its start."""
        return max(0, self.started - self.ready) / 1e9 if self.ready and self.started else None

    @property
    def duration(self) -> float | None:
        """Seconds that it ran."""
        return max(0, self.ended - self.started) / 1e9 if self.started and self.ended else None

    @property
    def worker(self) -> str | None:
        """Who ran it, where that was told."""
        return _text(self.detail.get("worker"))

    @property
    def cpu(self) -> float | None:
        """Seconds of CPU time."""
        return _number(self.detail.get("cpu_s"))

    @property
    def peak_rss(self) -> int | None:
        """Bytes."""
        found = _number(self.detail.get("peak_rss"))
        return None if found is None else int(found)

    @property
    def unstored(self) -> str | None:
        """Why its result was not stored, for one that could not be."""
        return _text(self.detail.get("unstored"))

    @property
    def failure(self) -> Failure | None:
        """Its error."""
        error: Any = self.detail.get("error")
        if not isinstance(error, dict):
            return None
        get: Any = error.get  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        notes: Any = get("notes")
        return Failure(
            _text(get("type")) or "Error",
            _text(get("message")) or "",
            traceback=_text(get("traceback")) or "",
            where=_text(get("where")),
            notes=tuple([str(note) for note in notes]) if isinstance(notes, list) else (),  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        )

    # The name under which a summary asks for it.
    @property
    def name(self) -> str:
        return self.task

    @property
    def attempts(self) -> int:
        return self.number


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


class Past:
    """The latest session of a run.

    run          as the store has it
    state        its state for people: a RunState's, or "stopped"
    owner        the living process that is at it, or None
    session      the latest
    description  the tasks it began with
    census       all tasks
    """

    def __init__(
        self,
        run: StoredRun,
        owner: Owner | None,
        session: StoredSession,
        census: Census,
        rows: Iterable[StoredAttempt],
    ) -> None:
        self.run = run
        self.owner = owner
        self.state = state_of(run, owner)
        self.session = session
        self.census = census
        self.description = census.graph(0)
        self.names: Sequence[str] = _Names(census)
        self._root: dict[int, int] = {}  # of tasks that were asked for: the one that failed, -1 where unknown
        self._via: dict[int, int] = {}  # and the next on the way there
        self._rows: dict[int, list[StoredAttempt]] = {}
        for row in rows:
            if row.attempt or STATES[row.state] is not TaskState.EXPANDED:  # else it only says where it goes on from
                self._rows.setdefault(row.element, []).append(row)

    @property
    def size(self) -> int:
        """How many tasks there are."""
        return self.census.size

    def task(self, element: int) -> str:
        """The task's name as declared."""
        graph, node = self.census.declared(element)
        return graph.tasks[node]

    def kind(self, element: int) -> str | None:
        """ "io" or "cpu"; None of what is a workflow."""
        graph, node = self.census.declared(element)
        return None if graph.is_workflow(node) else graph.kinds[node]

    def executor(self, element: int) -> str | None:
        """Where it is routed to; None of what is a workflow, and runs nowhere."""
        graph, node = self.census.declared(element)
        return None if graph.is_workflow(node) else graph.executors[node]

    def upstreams(self, element: int) -> Sequence[int]:
        """What a task waits for."""
        return self.census.upstreams(element)

    def parts(self, element: int) -> list[int]:
        """What a task has become, directly; nothing for most."""
        return list(self.census.elements_of(element))

    def part_counts(self, element: int) -> dict[str, int]:
        """The same as state → how many, in the order of the states."""
        return _in_order([self.state_of(part) for part in self.census.elements_of(element)])

    def containers(self) -> list[int]:
        """Of the tasks that it began with those that have become others."""
        return [element for element in range(len(self.description.names)) if self.census.is_container(element)]

    def is_container(self, element: int) -> bool:
        return self.census.is_container(element)

    def number(self, name: str) -> int:
        """The element of the task called `name`. Raises UnknownName with the nearest."""
        try:
            return self.census.find(name)
        except LookupError:
            pass
        import difflib

        shown = name if len(name) <= 60 else f"{name[:60]}…"
        close = difflib.get_close_matches(name[:60], self.description.names, 1)
        raise UnknownName(
            f"there is no task '{shown}' in run {self.run.name}",
            hint=f"did you mean '{close[0]}'?" if close else f"`flow show {self.run.name} --all` lists its tasks",
        )

    def attempts(self, element: int) -> list[Attempt]:
        """The attempts of a task in this session, in order; that of a task that was restored is the one that succeeded."""
        return [attempt_of(row, self.census, self.session.number) for row in self._rows.get(element, ())]

    def last(self, element: int) -> Attempt | None:
        """A task's latest attempt."""
        rows = self._rows.get(element)
        return attempt_of(rows[-1], self.census, self.session.number) if rows else None

    def state_of(self, element: int) -> TaskState:
        """Where a task stands. READY is what has no row, and waits for nothing any more while the run is under way."""
        rows = self._rows.get(element)
        if rows:
            return STATES[rows[-1].state]
        if self.owner is not None and all(self.state_of_row(up) in DONE for up in self.upstreams(element)):
            return TaskState.READY
        return TaskState.PENDING

    def state_of_row(self, element: int) -> TaskState:
        """The same as far as rows tell it."""
        rows = self._rows.get(element)
        return STATES[rows[-1].state] if rows else TaskState.PENDING

    def restored(self, element: int) -> bool:
        """Whether an earlier session, or the run that this one was forked from, had finished the task."""
        rows = self._rows.get(element)
        return rows is not None and STATES[rows[-1].state] in DONE and 0 < rows[-1].ended < self.session.started

    def counts(self) -> dict[str, int]:
        """State → tasks, as ``core.tally`` has it; a task without a row counts as what `state_of` says."""
        number = {state: code for code, state in enumerate(STATES)}
        states = bytes([number[self.state_of(element)] for element in range(self.size)])
        containers = [element for element in range(self.size) if self.census.is_container(element)]
        return {str(state): count for state, count in tally(states, containers, set(self.failures())).items()}

    def failures(self) -> list[int]:
        """Tasks that ended badly by themselves, the first to do so first."""
        found = [element for element, rows in self._rows.items() if failed_of_itself(rows[-1].state, rows[-1].reason)]
        return sorted(found, key=lambda element: (self._rows[element][-1].ended, element))

    # ── who stopped whom ──────────────────────────────────────────────────────────────────────────────────────────

    def way(self, element: int) -> list[int]:
        """For a task that ended upstream_failed: the task that failed, and the way from it to this one, both included.

        Of several the one that failed first. The task alone where the record does not tell.
        """
        if self._cause(element) < 0:
            return [element]
        via = self._via
        way = [element]
        while via[way[-1]] != way[-1]:
            way.append(via[way[-1]])
        way.reverse()
        return way

    def _cause(self, element: int) -> int:
        """The task that stopped it, itself unless it ended upstream_failed; -1 where unknown. Every task is looked at once."""
        root, via = self._root, self._via
        stack = [element]
        while stack:
            at = stack[-1]
            if at in root:
                stack.pop()
                continue
            if not self._fails_by_others(at):
                root[at] = via[at] = at
                stack.pop()
                continue
            bad = [up for up in self._behind(at) if self.state_of_row(up) in BAD]
            left = [up for up in bad if up not in root]
            if left:
                stack += left
                continue
            stack.pop()
            known = [up for up in bad if root[up] >= 0]
            chosen = min(known, key=lambda up: self._rows[root[up]][-1].ended, default=None)
            root[at] = -1 if chosen is None else root[chosen]
            via[at] = at if chosen is None else chosen
        return root[element]

    def _fails_by_others(self, element: int) -> bool:
        rows = self._rows.get(element)
        if not rows:
            return False
        by_parts = REASONS[rows[-1].reason] is Reason.ELEMENTS_FAILED
        return by_parts or STATES[rows[-1].state] is TaskState.UPSTREAM_FAILED

    def _behind(self, element: int) -> Sequence[int]:
        """What its end may follow from: of what has become others those, else what it waited for, or what it is part of did."""
        found = self.parts(element)
        if found:
            return found
        found = list(self.upstreams(element))
        place = self.census.place(element)
        if place.kind == TREE:  # what failed is not among what it would have merged
            found += self.upstreams(place.owner)
        while not found and (owner := self.census.place(element).owner) >= 0:
            element = owner
            found = list(self.upstreams(element))
        return found

    def stopped_by(self) -> dict[int, list[int]]:
        """Failed task → those that did not run because of it."""
        stopped: dict[int, list[int]] = {}
        for element, rows in self._rows.items():
            if STATES[rows[-1].state] is TaskState.UPSTREAM_FAILED:
                stopped.setdefault(self._cause(element), []).append(element)
        return stopped

    def waits_for(self, element: int) -> list[int]:
        """Upstream tasks that are not done."""
        return [up for up in self.upstreams(element) if self.state_of_row(up) not in DONE]

    def blockers(self, element: int) -> list[int]:
        """Of everything that a task waits for, directly or not, what itself waits for nothing: there it is stuck."""
        found: list[int] = []
        seen = {element}
        stack = [element]
        while stack:
            at = stack.pop()
            for up in self.waits_for(at):
                if up not in seen:
                    seen.add(up)
                    stack.append(up)
                    if not self.waits_for(up):
                        found.append(up)
        return sorted(found)


class _Names(Sequence[str]):
    """The names of all tasks, made when they are asked for."""

    __slots__ = ("_census",)

    def __init__(self, census: Census) -> None:
        self._census = census

    def __getitem__(self, element: Any) -> Any:
        return self._census.name(element)

    def __len__(self) -> int:
        return self._census.size

    def __iter__(self) -> Iterator[str]:
        return map(self._census.name, range(self._census.size))


def _in_order(states: Iterable[TaskState]) -> dict[str, int]:
    found: dict[TaskState, int] = {}
    for state in states:
        found[state] = found.get(state, 0) + 1
    return {str(state): found[state] for state in STATES if state in found}


def attempt_of(row: StoredAttempt, census: Census, session: int) -> Attempt:
    """A stored row with its words."""
    graph, node = census.declared(row.element)
    return Attempt(
        task=census.name(row.element),
        executor="-" if graph.is_workflow(node) else graph.executors[node],
        element=row.element,
        session=session,
        number=row.attempt,
        state=STATES[row.state],
        reason=REASONS[row.reason],
        ready=row.ready,
        started=row.started,
        ended=row.ended,
        result=row.result,
        size=row.size,
        adopted=row.adopted,
        text=row.detail,
    )


def look(store: Store, run: StoredRun, task: str | None = None) -> Past:
    """Read the latest session of `run`; with `task` the latest that knows of it, as what a map has become is not told again when
    it is kept as a whole. Raises StoreError.
    """
    owner = owner_of(store, run)  # before the rows: one that ends in between is told as under way, not as dead
    latest = store.session(run.id)
    session, census = latest, _census(store, run, latest)
    if task is not None and not _knows(census, task):
        for number in range(latest.number - 1, 0, -1):
            earlier = store.session(run.id, number)
            known = _census(store, run, earlier)
            if _knows(known, task):
                session, census = earlier, known
                break
    return Past(run, owner, session, census, store.attempts(run.id, session.number))


def _census(store: Store, run: StoredRun, session: StoredSession) -> Census:
    from flowlane.census import Census
    from flowlane.description import Description

    return Census(Description.read(session.graph), store.blocks(run.id, session.number))


def _knows(census: Census, task: str) -> bool:
    try:
        census.find(task)
    except LookupError:
        return False
    return True


def every_attempt(store: Store, past: Past, task: str) -> list[Attempt]:
    """The attempts of a task over all sessions, in order; of a row that a later session only adopted, the original."""
    found: list[Attempt] = []
    for number in range(1, store.find(past.run.id).session + 1):
        session = past.session if number == past.session.number else store.session(past.run.id, number)
        census = past.census if session is past.session else _census(store, past.run, session)
        if not _knows(census, task):
            continue
        for row in store.attempts(past.run.id, number, census.find(task)):
            attempt = attempt_of(row, census, number)
            if not row.attempt and attempt.state is TaskState.EXPANDED:
                continue  # it only says where it goes on from
            copied = attempt.ended and attempt.ended < session.started and found and found[-1].ended == attempt.ended
            if not copied:
                found.append(attempt)
    return found
