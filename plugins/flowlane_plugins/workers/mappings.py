"""Chunks as memory of this process: which arenas it knows, and what it has mapped of them.

What a task gets is its own to change. A large chunk is mapped privately, copy on write: nothing is copied until somebody writes,
and nobody else sees what was written. A chunk up to 1 MiB is copied outright, which costs less than the page faults of a mapping.

A mapping lives for as long as anything refers to it: an array, a view of that array, a data frame. That is also how long its
chunk may not be used again, since pages not written to yet still show the file. So mappings count their own end: in a
worker `release` tells after a job which chunks are still held (an array kept in a global), and later which are no longer; in
the engine the mapping keeps the chunk's lease.

Used by one thread; only the end of a mapping may come on any.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flowlane_plugins.workers.chunks import UNTRACKED, ChunkRef, Windows, chunk_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane_plugins.workers.chunks import Store

__all__ = ["Arenas"]

_COPIED: Final = 1 << 20
# Mappings at a time; beyond it chunks are copied. Before Python 3.13 each takes one of often no more than 1,024
# descriptors; later they only count
# against the system's 65,530 mappings a process, and what is held must fit into one record.
_MAPPINGS: Final = 1_000 if UNTRACKED else 128
_NONE: Final[tuple[ChunkRef, ...]] = ()


class _Mapping(mmap.mmap):
    """A private mapping that says when it ends, and keeps `lease` until then."""

    __slots__ = ("ended", "lease", "ref")

    ref: ChunkRef
    lease: object
    ended: deque[ChunkRef]

    def __del__(self) -> None:
        self.ended.append(self.ref)


class Arenas:
    """The arenas that this process can read, and what of them is mapped.

    own     this process's own store, whose chunks it reads like any other's
    arrive  called with an unknown arena's id, to wait for its descriptor; False when it will not come
    """

    def __init__(self, own: Store | None = None, arrive: Callable[[int], bool] | None = None) -> None:
        self._own = own
        self._arrive = arrive
        self._fds: dict[int, int] = {}
        self._windows = Windows(write=False)
        self._mapped: dict[ChunkRef, int] = {}  # chunk → mappings of it that live
        self._fresh: list[ChunkRef] = []  # mapped since the last `release`
        self._held: set[ChunkRef] = set()  # told as held
        self._ended: deque[ChunkRef] = deque()

    # ── descriptors ───────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, arena: int, fd: int, size: int) -> None:  # noqa: ARG002 - told for whoever maps arenas whole
        """Know `arena`, whose descriptor `fd` is now ours to close."""
        self.drop(arena)
        self._fds[arena] = fd

    def known(self, arena: int) -> bool:
        """Whether chunks of `arena` can be read."""
        return arena in self._fds or (self._own is not None and self._own.arena == arena and self._own.fd >= 0)

    def fd(self, arena: int) -> int:
        """The descriptor of `arena`; waits for it if that is how we were made. Raises LookupError when there is none."""
        fd = self._fds.get(arena)
        if fd is not None:
            return fd
        if self._own is not None and self._own.arena == arena and self._own.fd >= 0:
            return self._own.fd
        if self._arrive is not None and self._arrive(arena):
            return self._fds[arena]
        raise LookupError(f"arena {arena} is not known here")

    def ids(self) -> list[int]:
        """The arenas of others that are known."""
        return list(self._fds)

    def drop(self, arena: int) -> None:
        """Forget `arena`. What is mapped of it stays."""
        self._windows.forget(arena)
        fd = self._fds.pop(arena, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Forget all arenas. What is mapped stays."""
        for arena in list(self._fds):
            self.drop(arena)
        if self._own is not None:
            self._windows.forget(self._own.arena)
            self._own = None

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def map(self, ref: ChunkRef, lease: object = None) -> memoryview:
        """The chunk's bytes, writable; what is written stays here. `lease` is kept for as long as they show the chunk.

        Raises LookupError when its arena is not known, OSError or MemoryError when the system refuses.
        """
        arena, offset, length = ref
        fd = self.fd(arena)
        if length > _COPIED and self._count() < _MAPPINGS:
            try:
                mapping = _mapped(fd, offset, length)
            except (OSError, MemoryError):  # too many descriptors or mappings: a copy needs neither
                pass
            else:
                mapping.ref, mapping.lease, mapping.ended = ref, lease, self._ended
                self._mapped[ref] = self._mapped.get(ref, 0) + 1
                self._fresh.append(ref)
                return memoryview(mapping)
        return memoryview(bytearray(self.view(ref)))

    def view(self, ref: ChunkRef) -> memoryview:
        """The chunk's bytes themselves, read-only, for a short look: they change when the chunk is used again.

        Raises as `map` does.
        """
        return self._windows.view(self.fd(ref[0]), ref, chunk_size(ref[2]))

    def read(self, ref: ChunkRef) -> bytes:
        """A copy of the chunk's bytes. Raises as `map` does."""
        return bytes(self.view(ref))

    # ── what is held ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        """Whether `release` may have anything to tell."""
        return bool(self._fresh or self._ended)

    def release(self) -> tuple[Sequence[ChunkRef], Sequence[ChunkRef]]:
        """To be called after a job, when nothing of ours refers to its values any more: (held, released).

        `held` are chunks mapped for it that something of the task's still refers to; `released` are those that an earlier
        call told as held, and that nothing refers to now.
        """
        if not self.busy:
            return _NONE, _NONE
        self._count()
        released = [ref for ref in self._held if ref not in self._mapped]
        self._held.difference_update(released)
        held = [ref for ref in dict.fromkeys(self._fresh) if ref in self._mapped and ref not in self._held]
        self._held.update(held)
        self._fresh.clear()
        return held, released

    def _count(self) -> int:
        """How many chunks are mapped, after counting what has ended."""
        ended = self._ended
        while ended:
            ref = ended.popleft()
            left = self._mapped[ref] - 1
            if left:
                self._mapped[ref] = left
            else:
                del self._mapped[ref]
        return len(self._mapped)


def _mapped(fd: int, offset: int, length: int) -> _Mapping:
    access: Any = mmap.PROT_READ | mmap.PROT_WRITE
    return _Mapping(fd, length, mmap.MAP_PRIVATE, access, offset=offset, **UNTRACKED)
