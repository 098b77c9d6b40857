"""Shared memory of one process: an arena, and the allocator that hands out chunks of it.

A large value never goes through a pipe: its bytes are copied once, into a *chunk*, and whoever reads it maps or copies that.
All chunks of a process lie in its *arena*, one file without a name (a memfd where there are memfds), so a fan-out of
thousands of arrays costs one descriptor in every process that reads them, and when the last of these ends, killed or
not, nothing is left. The file is sparse: room that was never written to costs nothing.

- A chunk is a power of two of bytes, at least 64 KiB. Small ones, up to 8 MiB, share 64 MiB blocks, which are mapped whole;
  larger ones stand alone.
- A chunk that is freed keeps its pages and is the next to be used again: fresh pages cost twice to seven times as much as
  warm ones. What is kept is bounded; beyond that the pages of what has been free for longest go back to the system.
- Fresh pages are *written*, not stored into: when there is no memory left, writing fails with an error, where storing kills the
  process (SIGBUS). Warm pages are stored into through a mapping, at the speed of memory.

Every process, worker or engine, has one `Store`, used by one thread, and only the owner of an arena writes to it. Who may read a
chunk, and when it is freed, is for the engine's `Book` to know.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flowlane_plugins.workers.page import make_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane_plugins.executors.pickling import Bytes

__all__ = ["SMALLEST", "UNTRACKED", "ChunkRef", "Store", "Windows", "chunk_size", "give_back", "owner_of"]

#: Where bytes lie: (arena, offset, length). Plain ints, so `marshal` and pickle carry it.
ChunkRef: TypeAlias = tuple[int, int, int]

SMALLEST: Final = 1 << 16  # below that a copy in the message is cheaper
_SHARING: Final = 1 << 23  # the largest chunk that shares a block
_BLOCK: Final = 1 << 26
_KEPT: Final = 1 << 28  # bytes of pages that a process keeps for reuse
_WINDOWS: Final = 32  # mappings kept; each costs a descriptor before Python 3.13
_WRITE: Final = 1 << 30  # one write moves at most 2 GiB
_SHIFT: Final = 20
_REMOVE: Final[int | None] = getattr(mmap, "MADV_REMOVE", None)
#: A mapping needs no descriptor of its own, but before 3.13 Python always keeps one.
UNTRACKED: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def owner_of(arena: int) -> int:
    """The worker that made `arena`; 0 is the engine."""
    return arena >> _SHIFT


def give_back(fd: int, offset: int, length: int) -> bool:
    """Return the pages of a stretch of an arena to the system; it then reads as zeros. False where that cannot be done."""
    if _REMOVE is None or length <= 0:
        return False
    try:
        with mmap.mmap(fd, length, offset=offset, **UNTRACKED) as mapping:
            mapping.madvise(_REMOVE)
    except (OSError, ValueError):  # a file system that knows no holes
        return False
    return True


class Windows:
    """Shared mappings of arenas, the most recently used few: the way in for copies, both ways."""

    __slots__ = ("_access", "_views")

    def __init__(self, *, write: bool) -> None:
        self._access = mmap.PROT_READ | mmap.PROT_WRITE if write else mmap.PROT_READ
        self._views: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def view(self, fd: int, ref: ChunkRef, size: int) -> memoryview:
        """The bytes at `ref`, in a chunk of `size` bytes, in the arena that `fd` is open on. Raises OSError.

        Valid for as long as somebody has it.
        """
        arena, offset, length = ref
        if size <= _SHARING:
            start, whole = offset & -_BLOCK, _BLOCK
        else:
            start, whole = offset, length
        views = self._views
        view = views.get((arena, start))
        if view is None or len(view) < whole:
            mapping = mmap.mmap(fd, whole, mmap.MAP_SHARED, self._access, offset=start, **UNTRACKED)
            view = views[arena, start] = memoryview(mapping)
            if len(views) > _WINDOWS:
                views.popitem(last=False)
        views.move_to_end((arena, start))
        return view[offset - start : offset - start + length]

    def forget(self, arena: int, offset: int | None = None) -> None:
        """Unmap the chunk at `offset`, if it stands alone and is mapped; or everything of `arena`."""
        if offset is not None:
            self._views.pop((arena, offset), None)
        else:
            for key in [key for key in self._views if key[0] == arena]:
                del self._views[key]


def chunk_size(length: int) -> int:
    """The size of the chunk that holds `length` bytes: a power of two."""
    return 1 << max(16, (length - 1).bit_length())


class Store:
    """The arena of one process and its allocator. `keep` bounds the bytes of free pages that are kept for reuse."""

    def __init__(self, wid: int, *, keep: int = _KEPT) -> None:
        self.arena: Final = wid << _SHIFT
        self._keep = keep
        self._fd = -1
        self._announced = True
        self._end = 0  # of what is laid out
        self._next = 0  # free room in the newest block, up to _block_end
        self._block_end = 0
        self._live: dict[int, int] = {}  # offset of a chunk in use → its size
        self._touched: dict[int, int] = {}  # offset → how many of its bytes, from its start, have pages
        self._warm: dict[int, OrderedDict[int, None]] = {}  # size → free chunks with pages, latest last
        self._bare: dict[int, list[int]] = {}  # size → free chunks without
        self._kept: OrderedDict[int, int] = OrderedDict()  # all warm chunks, longest free first → size
        self._kept_bytes = 0
        self._windows = Windows(write=True)

    @property
    def fd(self) -> int:
        """The arena's descriptor, -1 before the first chunk and after `close`."""
        return self._fd

    @property
    def live(self) -> int:
        """How many chunks are in use."""
        return len(self._live)

    @property
    def kept(self) -> int:
        """How many bytes of pages wait for reuse."""
        return self._kept_bytes

    def new_arenas(self) -> list[tuple[int, int, int]]:
        """Arenas that the other side was not told of yet: (id, descriptor, size). Telling is up to the caller, now."""
        if self._announced:
            return []
        self._announced = True
        return [(self.arena, self._fd, self._end)]

    def put(self, data: Bytes) -> ChunkRef:
        """Copy `data`, any contiguous bytes, into a chunk.

        Raises OSError or MemoryError when the system has no room for it; nothing is kept then.
        """
        with memoryview(data) as view, view.cast("B") as raw:
            return self.gather((raw,), len(raw))

    def gather(self, pieces: Sequence[Bytes], length: int) -> ChunkRef:
        """Copy `pieces`, `length` bytes altogether, one after the other into a chunk. Raises as `put` does."""
        size = chunk_size(length)
        offset = self._allocate(size)
        try:
            self._fill(offset, size, pieces, length)
        except BaseException:
            self._live.pop(offset)
            self._discard(offset, size)
            raise
        return (self.arena, offset, length)

    def free(self, ref: ChunkRef) -> None:
        """Take a chunk back. Nobody may read it any more."""
        offset = ref[1]
        size = self._live.pop(offset)
        self._warm.setdefault(size, OrderedDict())[offset] = None
        self._kept[offset] = size
        self._kept_bytes += self._touched[offset]
        while self._kept_bytes > self._keep:
            oldest, its_size = self._kept.popitem(last=False)
            del self._warm[its_size][oldest]
            self._kept_bytes -= self._touched[oldest]
            self._discard(oldest, its_size)

    def close(self) -> None:
        """Give up the arena. Other processes keep what they have of it."""
        self._windows.forget(self.arena)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._announced = True

    def _allocate(self, size: int) -> int:
        warm = self._warm.get(size)
        bare = self._bare.get(size)
        if warm:
            offset, _ = warm.popitem()
            del self._kept[offset]
            self._kept_bytes -= self._touched[offset]
        elif bare:
            offset = bare.pop()
        else:
            offset = self._lay_out(size)
            self._touched[offset] = 0
        self._live[offset] = size
        return offset

    def _lay_out(self, size: int) -> int:
        """A place for a new chunk at the end of what is laid out."""
        if self._fd < 0:
            self._fd = make_file("flowlane-arena", 0)
            self._announced = False
        if size > _SHARING:
            offset = self._end
            self._end += size
            return offset
        offset = (self._next + size - 1) & -size
        if offset + size > self._block_end:
            offset = (self._end + _BLOCK - 1) & -_BLOCK
            os.ftruncate(self._fd, offset + _BLOCK)  # the block is mapped whole, here and by readers
            self._end = self._block_end = offset + _BLOCK
        self._next = offset + size
        return offset

    def _fill(self, offset: int, size: int, pieces: Sequence[Bytes], length: int) -> None:
        touched = min(self._touched[offset], length)
        window = self._windows.view(self._fd, (self.arena, offset, touched), size) if touched else None
        at = 0
        for piece in pieces:
            with memoryview(piece) as raw:
                done = min(touched - at, len(raw)) if at < touched else 0
                if done and window is not None:
                    window[at : at + done] = raw[:done]
                while done < len(raw):
                    done += os.pwrite(self._fd, raw[done : done + _WRITE], offset + at + done)
                    self._touched[offset] = at + done
                at += len(raw)

    def _discard(self, offset: int, size: int) -> None:
        """Give the pages of a free chunk back."""
        if size > _SHARING:
            self._windows.forget(self.arena, offset)
        if give_back(self._fd, offset, self._touched[offset]):
            self._touched[offset] = 0
        self._bare.setdefault(size, []).append(offset)
