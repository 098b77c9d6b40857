"""What the engine knows of shared memory: who made which chunk, who may still be reading it, and when it can be used again.

A chunk is the business of four: the worker that made it, the engine's values that refer to it, jobs on their way that carry it,
and workers whose tasks keep a piece of it in a global. It goes back to its maker when the last of these is done:

    Chunk (a lease)      ends by reference counting: values, calls on their way and mappings of the engine refer to it
    held / released      what workers tell with a job's result, before the job's own leases are dropped

When a worker is gone, what it held is free, and its arena stays open, pages given back, until its last chunk has no reader; then
workers that have its descriptor are told to drop it.

All calls come on the engine's thread; only a lease may end on any.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from flowlane_plugins.workers.chunks import ChunkRef, Store, give_back, owner_of
from flowlane_plugins.workers.mappings import Arenas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane_plugins.executors.pickling import Bytes

__all__ = ["Book", "Chunk"]


class Chunk:
    """A lease: while it lives, the chunk's bytes stay what they are."""

    __slots__ = ("_arenas", "_ended", "ref")

    def __init__(self, ref: ChunkRef, arenas: Arenas, ended: deque[ChunkRef]) -> None:
        self.ref = ref
        self._arenas = arenas
        self._ended = ended

    def __del__(self) -> None:
        self._ended.append(self.ref)

    @property
    def nbytes(self) -> int:
        return self.ref[2]

    def map(self) -> memoryview:
        """The bytes, writable, private; they keep this lease. Raises LookupError, OSError or MemoryError."""
        return self._arenas.map(self.ref, self)

    def view(self) -> memoryview:
        """The bytes themselves, for as long as this lease lives. Raises as `map` does."""
        return self._arenas.view(self.ref)


class _Ended(deque[ChunkRef]):
    """Leases that have ended; `wake` is called by the first, in whatever thread that is."""

    def __init__(self, wake: Callable[[], None] | None) -> None:
        super().__init__()
        self._wake = wake

    def append(self, ref: ChunkRef, /) -> None:
        super().append(ref)
        if self._wake is not None and len(self) == 1:
            self._wake()


class Book:
    """The engine's account of all chunks, its own store's included.

    `wake` is called, in any thread, when `news` has become true because leases have ended.
    """

    def __init__(self, store: Store | None = None, *, wake: Callable[[], None] | None = None) -> None:
        self.store = Store(0) if store is None else store
        self.arenas = Arenas(self.store)
        self._ended = _Ended(wake)  # leases that have ended since the last `to_free`
        self._live: dict[int, set[ChunkRef]] = {}  # arena → its chunks that are not free
        self._holders: dict[ChunkRef, set[int]] = {}
        self._waiting: set[ChunkRef] = set()  # not leased any more, but held
        self._sent: dict[int, set[int]] = {}  # worker → arenas whose descriptor it has from us
        self._orphans: set[int] = set()  # arenas whose worker is gone
        self._drops: dict[int, list[int]] = {}
        self._frees: dict[int, list[ChunkRef]] = {}

    def add(self, arena: int, fd: int, size: int) -> None:
        """Know an arena of a worker's. `fd` is ours to close."""
        self.arenas.add(arena, fd, size)

    # ── leases ────────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, pieces: Sequence[Bytes], length: int) -> Chunk:
        """Copy bytes of the engine's into a chunk of its own. Raises OSError or MemoryError."""
        self._settle()  # what has been freed meanwhile is warm
        return self._lease(self.store.gather(pieces, length))

    def take(self, refs: Iterable[Sequence[int]], wid: int) -> tuple[Chunk, ...]:  # noqa: ARG002 - refs name their owner
        """Leases of the chunks that came with a result of worker `wid`.

        To be taken for every result, even one that nobody wants: a lease that ends at once frees them.
        """
        return tuple([self._lease((ref[0], ref[1], ref[2])) for ref in refs])

    def read(self, ref: Sequence[int]) -> bytes:
        """A copy of a chunk's bytes. Raises LookupError, OSError or MemoryError."""
        return self.arenas.read((ref[0], ref[1], ref[2]))

    def held(self, wid: int, refs: Iterable[Sequence[int]]) -> None:
        """Worker `wid` keeps chunks that came with a job. To be told before that job's leases are dropped."""
        for ref in refs:
            self._holders.setdefault((ref[0], ref[1], ref[2]), set()).add(wid)

    def released(self, wid: int, refs: Iterable[Sequence[int]]) -> None:
        """Worker `wid` no longer keeps them."""
        for ref in refs:
            self._release((ref[0], ref[1], ref[2]), wid)

    # ── what others are to be told ────────────────────────────────────────────────────────────────────────────────

    @property
    def news(self) -> bool:
        """Whether `to_free` or `to_drop` may have something."""
        return bool(self._ended or self._frees or self._drops)

    def to_free(self) -> dict[int, list[ChunkRef]]:
        """Worker → chunks of its own that nobody reads any more, to be told to it. The engine's own are freed here."""
        self._settle()
        frees, self._frees = self._frees, {}
        return frees

    def to_drop(self) -> dict[int, list[int]]:
        """Worker → arenas of others that nobody reads any more: `Arenas.drop` them there, or their memory stays."""
        drops, self._drops = self._drops, {}
        return drops

    def sends(self, wid: int, chunks: Iterable[Chunk]) -> list[tuple[int, int, int]]:
        """Arenas of `chunks` that worker `wid` has not got yet: (id, descriptor, size). Sending is up to the caller, now.

        Raises LookupError when an arena is not known: its worker died before its descriptor came.
        """
        found: list[tuple[int, int, int]] = []
        sent = self._sent.setdefault(wid, set())
        for chunk in chunks:
            arena = chunk.ref[0]
            if arena not in sent and owner_of(arena) != wid:
                found.append((arena, self.arenas.fd(arena), 0))
                sent.add(arena)
        return found

    # ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def worker_gone(self, wid: int) -> None:
        """Worker `wid` is dead. To be told after `take` for all its results, those recovered from its page included."""
        self._settle()
        self._sent.pop(wid, None)
        self._frees.pop(wid, None)
        self._drops.pop(wid, None)
        for ref in [ref for ref, holders in self._holders.items() if wid in holders]:
            self._release(ref, wid)
        for arena in [arena for arena in {*self.arenas.ids(), *self._live} if owner_of(arena) == wid]:
            if self._live.get(arena) and self.arenas.known(arena):
                self._orphans.add(arena)
                self._give_back_between(arena)
            else:
                self._close(arena)

    def close(self) -> None:
        """Close all descriptors. What is mapped stays valid; what was not fetched cannot be fetched any more."""
        self.arenas.close()
        self.store.close()
        self._live.clear()
        self._holders.clear()
        self._waiting.clear()
        self._frees.clear()
        self._drops.clear()
        self._sent.clear()
        self._orphans.clear()

    def _lease(self, ref: ChunkRef) -> Chunk:
        self._live.setdefault(ref[0], set()).add(ref)
        return Chunk(ref, self.arenas, self._ended)

    def _settle(self) -> None:
        """Free what is not leased any more, or note that somebody holds it."""
        ended = self._ended
        while ended:
            ref = ended.popleft()
            if ref in self._holders:
                self._waiting.add(ref)
            else:
                self._free(ref)

    def _release(self, ref: ChunkRef, wid: int) -> None:
        holders = self._holders.get(ref)
        if holders is None:
            return
        holders.discard(wid)
        if not holders:
            del self._holders[ref]
            if ref in self._waiting:
                self._waiting.discard(ref)
                self._free(ref)

    def _free(self, ref: ChunkRef) -> None:
        arena = ref[0]
        live = self._live.get(arena)
        if live is None or ref not in live:  # after `close`
            return
        live.discard(ref)
        owner = owner_of(arena)
        if arena in self._orphans:
            if live:
                give_back(self.arenas.fd(arena), ref[1], ref[2])
            else:
                self._close(arena)
        elif arena == self.store.arena:
            self.store.free(ref)
        else:
            self._frees.setdefault(owner, []).append(ref)

    def _close(self, arena: int) -> None:
        self._live.pop(arena, None)
        self._orphans.discard(arena)
        self.arenas.drop(arena)
        for wid, sent in self._sent.items():
            if arena in sent:
                sent.discard(arena)
                self._drops.setdefault(wid, []).append(arena)

    def _give_back_between(self, arena: int) -> None:
        """Give back all pages of an orphaned arena but those of chunks that are still read: its pool, above all."""
        fd = self.arenas.fd(arena)
        at = 0
        for _, offset, length in sorted(self._live[arena]):
            give_back(fd, at, offset - at)
            at = offset + (length + 0xFFFF & -0x10000)
        give_back(fd, at, os.fstat(fd).st_size - at)
