"""What a run would do if it were started now: which tasks run, which results are in the cache already, and why.

Nothing is run. Tasks are walked in topological order: the key of a cached task needs its arguments, so what is below a task that
runs is unknown until that has run. Results that are found are read where one of those further down needs them, as a run
would read them; so code of the user's may run to decode them.

A run may do better: two calls that are the same may share one result, and a task that returns what it returned before leads to
hits below it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from flowlane.errors import FlowError, with_article
from flowlane.loader import load_for
from flowlane.misses import Entries, parts_of
from flowlane.runtime.cache import key_of
from flowlane.runtime.codes import Codes
from flowlane.runtime.values import fill_arguments
from flowlane.storage.blob import bound_to, unpack, unseal
from flowlane.storage.digest import Unhashable

if TYPE_CHECKING:
    from flowlane.misses import Difference
    from flowlane.program import Program
    from flowlane.runtime.keeper import CacheKey
    from flowlane.storage.port import CacheEntry, Store

__all__ = ["Foreseen", "Grounds", "forecast"]


class Grounds(StrEnum):
    """Why a task runs, or does not."""

    CACHED = "cached"
    NOT_DECLARED = "not_declared"  # without cache= it always runs
    NEVER_RUN = "never_run"  # the cache has nothing of this task
    CODE_CHANGED = "code_changed"  # or the declared version
    INPUT_CHANGED = "input_changed"
    EXPIRED = "expired"
    INPUT_UNKNOWN = "input_unknown"  # a task that it reads from runs
    ELEMENTS_UNKNOWN = "elements_unknown"  # it is a map: each of its elements is looked up by itself, when it runs
    UNHASHABLE = "unhashable"  # an argument, so that nothing is ever found
    UNREADABLE = "unreadable"  # the result is there, and damaged or gone


class Foreseen(NamedTuple):
    """One task.

    entry       what the cache has: the result itself, or what is most like it
    difference  what is not the same about that
    through     elements that run and that it reads from
    text        more, in a sentence of the error's
    """

    element: int
    grounds: Grounds
    entry: CacheEntry | None = None
    difference: Difference | None = None
    through: tuple[int, ...] = ()
    text: str = ""

    @property
    def runs(self) -> bool:
        return self.grounds is not Grounds.CACHED


def forecast(program: Program, store: Store | None, now: int) -> list[Foreseen]:
    """What each task of `program` would do, in topological order. `now` in ns of the epoch."""
    return _Forecast(program, store, now).made()


class _Forecast:
    def __init__(self, program: Program, store: Store | None, now: int) -> None:
        self._program = program
        self._store = store
        self._now = now
        self._codes = Codes()
        self._known: dict[str, Entries] = {}
        self._values: list[Any] = [None] * len(program.names)
        self._found: dict[int, Foreseen] = {}
        readers = [0] * len(program.names)
        for node in program.caches:
            for up in program.plan.inputs[node]:
                readers[up] += 1
        self._readers = readers  # cached tasks that still want the value

    def made(self) -> list[Foreseen]:
        plan = self._program.plan
        found: list[Foreseen] = []
        for node in plan.order:
            each = self._foreseen(node)
            self._found[node] = each
            found.append(each)
            if node in self._program.caches:
                for up in plan.inputs[node]:
                    self._readers[up] -= 1
                    if not self._readers[up]:
                        self._values[up] = None
        return found

    def _foreseen(self, node: int) -> Foreseen:
        program = self._program
        rule = program.caches.get(node)
        if rule is None:
            return Foreseen(node, Grounds.NOT_DECLARED)
        task = program.targets[node].name
        through = tuple([up for up in program.plan.inputs[node] if self._found[up].runs])
        if self._store is None or not self._entries(task):
            return Foreseen(node, Grounds.NEVER_RUN, through=through)
        if node in program.maps:
            return Foreseen(node, Grounds.ELEMENTS_UNKNOWN, through=through)
        if through:
            return Foreseen(node, Grounds.INPUT_UNKNOWN, through=through)
        try:
            args, kwargs = fill_arguments(program.arguments[node], self._values)
            key = key_of(program.targets[node], self._codes, rule, args, kwargs)
        except Unhashable as error:
            return Foreseen(
                node, Grounds.UNHASHABLE, text=f"{error.path} is {with_article(error.type)}, which cannot be hashed"
            )
        except Exception as error:  # noqa: BLE001 - a hook of the user's
            text = f"hashing its arguments raised {type(error).__name__}: {error}"
            return Foreseen(node, Grounds.UNHASHABLE, text=text)
        return self._looked_up(node, task, key)

    def _looked_up(self, node: int, task: str, key: CacheKey) -> Foreseen:
        assert self._store is not None
        entries = self._entries(task)
        entry = entries.get(key.key)
        if entry is None:
            near = entries.nearest(parts_of(key.parts))
            assert near is not None
            only_inputs = not near.difference.code and near.difference.version is None
            grounds = Grounds.INPUT_CHANGED if only_inputs else Grounds.CODE_CHANGED
            return Foreseen(node, grounds, near.entry, near.difference)
        if 0 < entry.expires <= self._now:
            return Foreseen(node, Grounds.EXPIRED, entry)
        try:
            payload = unseal(self._store.read(entry.result), self._store.secret, bound_to(entry.result))
            if self._readers[node]:
                self._values[node] = unpack(payload, load_for)
        except FlowError as error:
            return Foreseen(node, Grounds.UNREADABLE, entry, text=error.message)
        return Foreseen(node, Grounds.CACHED, entry)

    def _entries(self, task: str) -> Entries:
        assert self._store is not None
        known = self._known.get(task)
        if known is None:
            known = self._known[task] = Entries(self._store.cache_entries(task))
        return known
