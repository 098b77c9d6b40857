"""What is kept of one graph of an earlier session: the run's own, or one that a task has become.

A task is *kept* when it succeeded (or said that there was nothing to do), neither it nor anything it depends on has changed,
and its value is at hand for everybody who will read it. A value that nobody reads any more is not missed: its task stays done. A
value that somebody reads and that is damaged, gone or was never storable makes its task run again, and so may need values of
tasks above it in turn.

A task with ``at_most_once`` that had begun and is not known to have succeeded is *unknown*: only a person can say what became
of it.

- A task that has become others (a *container*) has no stored value. It is kept as a whole where nobody needs what it is made of;
  else it becomes them again, and they are asked one by one. Maps of one chain are kept together or not at all.
- One that ran because of how others failed runs again when these do, for they may end otherwise.
- What is tidied up is gone: where a teardown had run before its block was done, its set-up runs again.

Pure, but for looking into stored results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.core.states import DONE, REASONS, STATES, Reason, TaskState
from flowlane.description import below
from flowlane.errors import Failure, StoreError
from flowlane.runtime.beginning import StoredValue
from flowlane.storage.blob import bound_to, unseal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flowlane.core.plan import Plan
    from flowlane.program import Program
    from flowlane.storage.port import Store, StoredAttempt

__all__ = [
    "Kept",
    "Then",
    "became_others",
    "how_it_ended",
    "keep",
    "may_have_begun",
    "outcome_unknown",
    "said_skip",
    "stored_value",
]

_BEGAN: Final = frozenset(
    {
        TaskState.RUNNING,
        TaskState.FAILED,
        TaskState.TIMED_OUT,
        TaskState.CRASHED,
        TaskState.CANCELLED,
        TaskState.RETRYING,
    }
)
_OF_CONTAINERS: Final = frozenset({Reason.ELEMENTS_DONE, Reason.ELEMENTS_FAILED, Reason.ENOUGH})
_ENDED_WELL: Final = frozenset({*DONE, TaskState.SKIPPED})
#: Rules under which a task may run because of failures, or in spite of them, and read what then is there.
_OF_FAILURES: Final = frozenset(
    {"all_failed", "all_done", "one_failed", "one_done", "none_skipped", "all_done_min_one_success"}
)


class Then(NamedTuple):
    """What an earlier session has of a node.

    row        its latest attempt
    container  whether it had become others
    work       whether it had returned them, and that is stored
    """

    row: StoredAttempt
    container: bool = False
    work: bool = False


@dataclass(slots=True)
class Kept:
    """By node.

    rows    those that are kept: succeeded, cached or skipped
    chosen  which conditions on the value of one hold, where one that is not kept asks
    expand  containers that become others again, as they did then
    again   that had succeeded and run again all the same, in the order of finding out
    twice   that would run a second time, which they must not
    """

    rows: dict[int, StoredAttempt] = field(default_factory=dict[int, "StoredAttempt"])
    unknown: dict[int, Failure] = field(default_factory=dict[int, "Failure"])
    values: dict[int, StoredValue] = field(default_factory=dict[int, "StoredValue"])
    chosen: dict[int, int] = field(default_factory=dict[int, int])
    expand: list[int] = field(default_factory=list[int])
    again: list[int] = field(default_factory=list[int])
    twice: list[int] = field(default_factory=list[int])


def keep(
    program: Program,
    then: Mapping[int, Then],
    store: Store,
    *,
    affected: Collection[int] = (),
    touched: Collection[int] = (),
    rerun: Collection[int] = (),
    prefix: str = "",
) -> Kept:
    """Decide what of a graph is kept. `then` tells what an earlier session has, by node as it is numbered now.

    prefix    what names of its nodes begin with, for people
    affected  nodes that have changed, or that somebody wants to run again; what depends on them does, too
    touched   containers of which a part is to run again
    rerun     nodes with ``at_most_once`` that may run whatever became of them
    """
    return _Keeping(program, then, store, set(affected), set(touched), set(rerun), prefix).kept


class _Keeping:
    def __init__(
        self,
        program: Program,
        then: Mapping[int, Then],
        store: Store,
        affected: set[int],
        touched: set[int],
        rerun: set[int],
        prefix: str,
    ) -> None:
        self._prefix = prefix
        self._program = program
        self._then = then
        self._store = store
        self._touched = touched
        self._rerun = rerun
        self._looked: dict[int, tuple[StoredValue | None, str]] = {}
        self.kept = Kept()
        plan = program.plan
        affected |= {
            node for node, rule in plan.rules.items() if rule.name in _OF_FAILURES and self._saw_failures(node)
        }
        for node in plan.order:
            if node in plan.maps and touched.intersection(plan.maps[node].over):
                touched.add(node)  # it goes on element by element, and so do those that are to run again
        affected |= {each for node in touched for each in plan.dependants[node] if each not in touched}
        self._affected = below(plan, affected)
        for node in range(plan.size):
            found = then.get(node)
            if found is not None:
                self._take(node, found)
        chains = _chains(plan)
        while self._tidied_up() | self._broken(chains) | self._needed():
            pass
        kept = self.kept
        kept.expand = [
            node
            for node, found in then.items()
            if found.container and node not in kept.rows and node not in self._affected and node not in kept.unknown
        ]

    def _state(self, node: int) -> TaskState | None:
        found = self._then.get(node)
        return None if found is None else STATES[found.row.state]

    def _saw_failures(self, node: int) -> bool:
        """Whether it ended after others had failed, which will be tried again."""
        if self._state(node) not in _ENDED_WELL:
            return False
        for up in self._program.plan.upstreams[node]:
            found = self._then.get(up)
            if found is not None and STATES[found.row.state] not in _ENDED_WELL and not _not_needed(found.row):
                return True
        return False

    def _take(self, node: int, found: Then) -> None:
        """What becomes of a node, as far as it can be told without the others."""
        kept, row = self.kept, found.row
        state = STATES[row.state]
        once = node in self._program.once and node not in self._rerun
        if state in DONE:
            if node in self._affected:
                (kept.twice if once else kept.again).append(node)
            else:
                kept.rows[node] = row
        elif said_skip(row):
            if node not in self._affected:
                kept.rows[node] = row
        elif once and not self._stands_for_others(node, found) and may_have_begun(row):
            kept.unknown[node] = outcome_unknown(self._name(node), how_it_ended(state))
        if node in self._touched:
            kept.rows.pop(node, None)

    def _name(self, node: int) -> str:
        return self._prefix + self._program.names[node]

    def _stands_for_others(self, node: int, found: Then) -> bool:
        plan = self._program.plan
        return node in plan.maps or node in plan.grafts or (found.work and node not in self._affected)

    def _drop(self, node: int, why: str = "") -> None:
        """It is not kept after all."""
        kept = self.kept
        row = kept.rows.pop(node)
        kept.values.pop(node, None)
        kept.chosen.pop(node, None)
        found = self._then[node]
        if found.container or STATES[row.state] not in DONE:
            return
        if node in self._program.once and node not in self._rerun:
            kept.unknown[node] = outcome_unknown(self._name(node), why)
        else:
            kept.again.append(node)

    def _tidied_up(self) -> bool:
        """Where a teardown ran before its block was done, the set-up is not kept."""
        plan, kept = self._program.plan, self.kept
        changed = False
        for node, block in plan.teardowns.items():
            found = self._then.get(node)
            if found is None or not (found.row.started or STATES[found.row.state] in DONE):
                continue
            if all(each in kept.rows or self._stays_done(each) for each in block):
                continue
            for each in (node, *[up for up in plan.upstreams[node] if up not in block]):
                if each in kept.rows:
                    self._drop(each, "what it had set up is tidied up")
                    changed = True
        return changed

    def _stays_done(self, node: int) -> bool:
        """Whether a node that is not kept will come to the same end without anything running."""
        found = self._then.get(node)
        if found is None or node in self._affected or node in self._touched:
            return False
        state = STATES[found.row.state]
        return state is TaskState.SKIPPED or (found.container and state in DONE)

    def _broken(self, chains: Sequence[Sequence[int]]) -> bool:
        """Chains of maps that are not kept as a whole."""
        rows = self.kept.rows
        broken = [node for chain in chains if any(each not in rows for each in chain) for node in chain if node in rows]
        for node in broken:
            self._drop(node)
        return bool(broken)

    def _needed(self) -> bool:
        """Get the values that will be read. Whether one is not to be had, so that its task is not kept."""
        plan, kept, program = self._program.plan, self.kept, self._program
        changed = False
        for node in reversed(plan.order):  # so that who reads a value is decided before who made it
            row = kept.rows.get(node)
            if row is None or STATES[row.state] not in DONE:
                continue
            readers = [each for each in plan.dependants[node] if each not in kept.rows and each not in kept.unknown]
            asks = node in program.choices and any(
                guard.node == node for each in readers for guard in plan.guards.get(each, ())
            )
            if node not in plan.pinned and not asks and not any(node in plan.inputs[reader] for reader in readers):
                continue
            if node in kept.values:
                continue
            if self._then[node].container:
                self._drop(node)
                changed = True
                continue
            value, why = self._value(row, node)
            if value is not None and asks:
                try:
                    kept.chosen[node] = _chosen(program, node, value)
                except Exception as error:  # noqa: BLE001 - user code loads the value, and compares it
                    value, why = None, f"{type(error).__name__}: {error}"
            if value is not None:
                kept.values[node] = value
                continue
            self._drop(node, f"it has succeeded, but its value is lost: {why}")
            changed = True
        return changed

    def _value(self, row: StoredAttempt, node: int) -> tuple[StoredValue | None, str]:
        if node not in self._looked:
            self._looked[node] = stored_value(self._store, row)
        return self._looked[node]


def _chains(plan: Plan) -> list[list[int]]:
    """The maps of each chain that has more than one."""
    chain_of: dict[int, list[int]] = {}
    for node in plan.order:
        spec = plan.maps.get(node)
        if spec is not None:
            chain = chain_of[spec.over[0]] if spec.over else []
            chain.append(node)
            chain_of[node] = chain
    return [chain for node, chain in chain_of.items() if chain[0] == node and len(chain) > 1]


def _chosen(program: Program, node: int, value: StoredValue) -> int:
    found = value.fetch()
    passed: list[bool] = []
    for test in program.choices[node]:
        passed.append(bool(test.passes(found, passed)))
    return sum([1 << bit for bit, holds in enumerate(passed) if holds])


def said_skip(row: StoredAttempt) -> bool:
    """Whether a task ended skipped by its own word: what else is skipped follows from others, and will again."""
    return STATES[row.state] is TaskState.SKIPPED and REASONS[row.reason] is Reason.SKIP_RAISED


def became_others(row: StoredAttempt) -> bool:
    """Whether a row says by itself that its task has become others."""
    return STATES[row.state] is TaskState.EXPANDED or REASONS[row.reason] in _OF_CONTAINERS


def _not_needed(row: StoredAttempt) -> bool:
    return REASONS[row.reason] is Reason.NOT_NEEDED


def may_have_begun(row: StoredAttempt) -> bool:
    """Whether an attempt that did not succeed may have had effects."""
    state = STATES[row.state]
    return state is TaskState.UNKNOWN or (state in _BEGAN and bool(row.started)) or state is TaskState.EXPANDED


def stored_value(store: Store, row: StoredAttempt, data: bytes | None = None) -> tuple[StoredValue | None, str]:
    """A stored result, if it is whole; else why not. `data` is what the store has of it, where that was read already."""
    if row.result is None:
        return None, "it could not be stored"
    try:
        payload = unseal(store.read(row.result) if data is None else data, store.secret, bound_to(row.result))
    except StoreError as error:
        return None, error.message
    return StoredValue(store, row.result, row.size, None if data is None else payload), ""


def how_it_ended(state: TaskState) -> str:
    """For people: how a task ended of which nobody knows what it did."""
    return "it had begun when the run stopped" if state is TaskState.RUNNING else f"it ended {state}"


def outcome_unknown(name: str, why: str) -> Failure:
    """The failure of a task that is not run again, and is not known to have succeeded."""
    return Failure(
        "OutcomeUnknown",
        f"{why}; it is at_most_once, so it is not run again",
        notes=(f"hint: find out what it did; if it may run, resume with --rerun {name} (rerun=[{name!r}])",),
        ancestry=("Exception", "BaseException"),
    )
