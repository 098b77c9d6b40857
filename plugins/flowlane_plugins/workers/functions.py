"""The functions that jobs call, as workers know them: numbered, introduced to each worker once, with what their jobs cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowlane_plugins.executors import transport
from flowlane_plugins.executors.pickling import INLINE_MAX
from flowlane_plugins.workers.records import FORGET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowlane.runtime.ports import Target
    from flowlane_plugins.workers.handle import WorkerHandle
    from flowlane_plugins.workers.leases import Book, Chunk

__all__ = ["Cost", "Function", "Functions"]

_KEPT: Final = 1_000
_BYTES_KEPT: Final = 64 << 20  # of functions that travel by value, with all that they carry


class Cost:
    """How long a function's jobs take, in ns: 0 until the first has ended. Rises at once, falls slowly."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0

    def note(self, took: int) -> None:
        known = self.ns
        self.ns = took + 1 if took > 4 * known else (7 * known + took) // 8 + 1


class Function:
    """The function of one task in one run. `header` is transport's, or the chunk where that lies."""

    __slots__ = ("cost", "fid", "header", "target")

    def __init__(self, fid: int, target: Target, header: bytes | Chunk, cost: Cost) -> None:
        self.fid = fid
        self.target = target  # kept alive: it is found again by its id
        self.header = header
        self.cost = cost


class Functions:
    """All that were lately called, up to a thousand or 64 MiB. Costs outlive the runs."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._known: dict[tuple[int, str], Function] = {}
        self._costs: dict[Any, Cost] = {}
        self._fids = 0
        self._bytes = 0
        self._forgotten: list[int] = []
        self._last: tuple[Target, str, Function] | None = None  # the one found last

    def find(self, target: Target, run: str) -> Function | None:
        last = self._last  # a run calls the same few, many times in a row
        if last is not None and last[0] is target and last[1] == run:
            return last[2]
        function = self._known.get((id(target), run))
        if function is not None:
            self._last = (target, run, function)
        return function

    def add(self, target: Target, run: str, in_use: Iterable[int]) -> Function:
        """Get to know a function; `in_use` are fids that must not be forgotten for it.

        Raises TransportError when it cannot travel.
        """
        header: Any = transport.encode_header(target, run)
        self._bytes += len(header)
        if len(header) > INLINE_MAX:
            header = self._book.put((header,), len(header))
        if len(self._known) >= _KEPT or self._bytes > _BYTES_KEPT:
            needed = set(in_use)
            for key in [key for key, known in self._known.items() if known.fid not in needed]:
                self._forgotten.append(self._known.pop(key).fid)
            self._bytes = 0
            self._last = None
        place = target.address or id(target.fn)
        cost = self._costs.get(place)
        if cost is None:
            if len(self._costs) >= _KEPT:
                self._costs.clear()
            cost = self._costs[place] = Cost()
        self._fids += 1
        function = self._known[id(target), run] = Function(self._fids, target, header, cost)
        return function

    def let_forget(self, workers: Iterable[WorkerHandle]) -> None:
        """Tell workers what we have forgotten."""
        if not self._forgotten:
            return
        for worker in workers:
            fids = [fid for fid in self._forgotten if fid in worker.functions]
            if fids:
                worker.later.append((FORGET, fids))
                worker.functions.difference_update(fids)
        self._forgotten.clear()
