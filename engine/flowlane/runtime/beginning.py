"""What a run begins with: nothing, or what an earlier session had finished; and results that are in a store, to be read there.

Made by who resumes a run (``flowlane.resume``), read by the runner.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from flowlane.errors import LostResult, StoreError
from flowlane.runtime.ports import RemoteValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.errors import Failure
    from flowlane.program import Program
    from flowlane.runtime.growth import Growth
    from flowlane.storage.blob import Payload
    from flowlane.storage.port import ResultRef, Store

__all__ = ["NOTHING_DONE", "Beginning", "Memory", "Recalled", "StoredCopy", "StoredValue", "Work"]


_settling = threading.Lock()  # for the moment in which a value that was read is kept


class Recalled(NamedTuple):
    """What is new to a run about elements that came into being, and had ended in an earlier session.

    done  elements of maps among them: they need their items no more
    """

    done: list[int]
    values: dict[int, StoredValue]
    failures: dict[int, Failure]


class Work(NamedTuple):
    """What a task had returned instead of a value: more work, and that as it is stored."""

    work: Any
    payload: Payload


class Memory(Protocol):
    """What earlier sessions had finished of that which comes into being while a run goes on. Of one run, on its loop's thread."""

    def attach(self, scheduler: Scheduler, growth: Growth) -> None:
        """Get to know the run, before it begins."""
        ...

    def recall(self, element: int) -> int:
        """How an element had ended that has come into being: see ``core.scheduler.Scheduler``."""
        ...

    def grafted(self, start: int, owner: int, program: Program) -> None:
        """`owner` is about to become a graph, from element `start` on."""
        ...

    def work(self, element: int) -> Work | None:
        """What an element that is about to run had returned in an earlier session, and need not run again to say."""
        ...

    def take(self) -> Recalled:
        """What has come of `recall` since it was asked last."""
        ...


@dataclass(frozen=True, slots=True)
class Beginning:
    """By element: what has ended, and the values that somebody will read.

    unknown  element → why it cannot go on
    chosen   element → which conditions on its value hold, as bits
    memory   of what comes into being later; None where nothing is to be recalled
    """

    restored: Sequence[int] = ()
    cached: Sequence[int] = ()
    skipped: Sequence[int] = ()
    unknown: Mapping[int, Failure] = field(default_factory=dict[int, "Failure"])
    chosen: Mapping[int, int] = field(default_factory=dict[int, int])
    values: Mapping[int, StoredValue] = field(default_factory=dict[int, "StoredValue"])
    memory: Memory | None = None


NOTHING_DONE: Final = Beginning()


class StoredValue(RemoteValue):
    """A result in a store, read and checked when it is first needed. Any thread may fetch it."""

    __slots__ = ("_fetched", "_payload", "_ref", "_store", "_value")

    def __init__(self, store: Store, ref: ResultRef, nbytes: int, payload: Payload | None = None) -> None:
        super().__init__(store, nbytes)
        self._store = store
        self._ref = ref
        self._payload = payload  # where it was read with others
        self._fetched = False
        self._value: Any = None

    def fetch(self) -> Any:
        """The value. Raises StoreError (ResultDamaged when it is not what was written) or TransportError (it does not load)."""
        if not self._fetched:
            from flowlane.loader import load_for
            from flowlane.storage.blob import unpack

            value = unpack(self.packed(), load_for)
            with _settling:  # a thread may have fetched it meanwhile: it is one object for all the same
                if not self._fetched:
                    self._value, self._fetched, self._payload = value, True, None
        return self._value

    def is_far(self) -> bool:
        return not self._fetched

    def packed(self) -> Payload:
        """The result as it is in the store."""
        payload = self._payload
        if payload is not None:
            return payload
        from flowlane.storage.blob import bound_to, unseal

        return unseal(self._store.read(self._ref), self._store.secret, bound_to(self._ref))

    def __repr__(self) -> str:
        return f"<a stored result, {self.nbytes:,} bytes>"


class StoredCopy(StoredValue):
    """In a store, what may be lost where it stayed. `after`: it is there when the keeper has written more rows than that."""

    __slots__ = ("_gone", "after")

    def __init__(self, store: Store, ref: ResultRef, nbytes: int, after: int) -> None:
        super().__init__(store, ref, nbytes)
        self.after = after
        self._gone = False

    def vanished(self) -> bool:
        return self._gone

    def fetch(self) -> Any:
        """The value. Raises LostResult when it cannot be read here either, TransportError when it does not load."""
        try:
            return super().fetch()
        except StoreError as error:
            self._gone = True
            raise LostResult(
                f"a result is gone from the cluster, and not to be had from the store: {error.message}"
            ) from error
