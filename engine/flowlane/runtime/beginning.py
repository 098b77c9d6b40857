"""What a run begins with: nothing, or what an earlier session had finished; and results that wait in a store to be read.

Made by who resumes a run (``flowlane.resume``), read by the runner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from flowlane.runtime.ports import RemoteValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.errors import Failure
    from flowlane.storage.blob import Payload
    from flowlane.storage.port import ResultRef, Store

__all__ = ["NOTHING_DONE", "Beginning", "StoredValue"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """By element: what has ended, and the values that somebody will read.

    unknown  element → why it cannot go on
    """

    restored: Sequence[int] = ()
    cached: Sequence[int] = ()
    unknown: Mapping[int, Failure] = field(default_factory=dict[int, "Failure"])
    values: Mapping[int, StoredValue] = field(default_factory=dict[int, "StoredValue"])


NOTHING_DONE: Final = Beginning()


class StoredValue(RemoteValue):
    """A result in a store, read and checked when it is first needed."""

    __slots__ = ("_fetched", "_ref", "_store", "_value")

    def __init__(self, store: Store, ref: ResultRef, nbytes: int) -> None:
        super().__init__(store, nbytes)
        self._store = store
        self._ref = ref
        self._fetched = False
        self._value: Any = None

    def fetch(self) -> Any:
        """The value. Raises StoreError (ResultDamaged when it is not what was written) or TransportError (it does not load)."""
        if not self._fetched:
            from flowlane.loader import load_for
            from flowlane.storage.blob import unpack

            self._value = unpack(self.packed(), load_for)
            self._fetched = True
        return self._value

    def packed(self) -> Payload:
        """The result as it is in the store."""
        from flowlane.storage.blob import bound_to, unseal

        return unseal(self._store.read(self._ref), self._store.secret, bound_to(self._ref))

    def __repr__(self) -> str:
        return f"<a stored result, {self.nbytes:,} bytes>"
