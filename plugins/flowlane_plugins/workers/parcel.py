"""A task's result that stays as it came from the worker: pickled bytes, large buffers in chunks of shared memory.

The engine never looks into it. Most results only go on to another worker, and get there as they are: pickled inside the arguments
of a call, a `Parcel` travels as its bytes, or as the references of its chunks, and is unpacked over there. Only a task on
another executor, or whoever asks for the run's result, makes the engine unpack it (`fetch`).

What stands for a value where it travels is a *payload*, plain data that `marshal` can carry:

    bytes                            one pickle
    (stream, lengths, ref, files)    a pickle with large buffers out of band, which lie one after the other in the chunk at `ref`.
                                     Where `stream` or `lengths` would be too long to travel they lie before them in
                                     the chunk, and how long they are stands in their place. `files` are modules to
                                     be loaded by path before

One chunk a value, so a list of a thousand arrays is one mapping. In it, everything begins at a multiple of 64 bytes:

    lengths, 8 bytes each (or nothing) | stream (or nothing) | buffer | buffer | …
"""

from __future__ import annotations

import pickle
import threading
from array import array
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from flowlane.errors import TransportError
from flowlane.loader import load_for
from flowlane.runtime.ports import RemoteValue
from flowlane_plugins.executors import pickling, transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.storage.blob import Payload as Packed
    from flowlane_plugins.executors.pickling import Bytes
    from flowlane_plugins.workers.chunks import ChunkRef
    from flowlane_plugins.workers.leases import Chunk
    from flowlane_plugins.workers.mappings import Arenas

__all__ = [
    "Apart",
    "Parcel",
    "Payload",
    "Place",
    "inline_size",
    "nbytes_of",
    "opened",
    "packed",
    "result_namer",
    "travelling",
    "unpack",
]

T = TypeVar("T")

Apart: TypeAlias = "tuple[bytes | int, tuple[int, ...] | int, ChunkRef, transport.Files]"
Payload: TypeAlias = "bytes | Apart"

_LENGTHS: Final = 256  # of buffers that travel in the message
_ALIGNED: Final = 64


class Travelling(threading.local):
    """What encoding and decoding on this thread need to know of each other's surroundings.

    met     while arguments are encoded: the Parcels met among them
    arenas  while arguments are decoded in a worker: where chunks are
    """

    met: list[Parcel] | None = None
    arenas: Arenas | None = None


travelling = Travelling()


class Parcel(RemoteValue):
    """A result, packed. `name` is the task's that made it; `chunks` are leases of the payload's chunks."""

    __slots__ = ("_fetched", "_value", "chunks", "name", "payload")

    def __init__(self, home: object, name: str, payload: Payload, chunks: tuple[Chunk, ...]) -> None:
        super().__init__(home, nbytes_of(payload))
        self.name = name
        self.payload = payload
        self.chunks = chunks
        self._fetched = False
        self._value: Any = None

    def fetch(self) -> Any:
        """The value, made on the first call and kept: large arrays lie, copy on write, in the chunk itself.

        Raises TransportError when it does not load in this process, or its memory is gone.
        """
        if not self._fetched:
            self._value = unpack(self.payload, self.name, self.chunks[0] if self.chunks else None)
            self._fetched = True
        return self._value

    def packed(self) -> Packed:
        """The bytes as they came from the worker, not decoded; large buffers stay in their chunk, mapped and leased."""
        from flowlane.storage import blob  # not at the top: workers import this module, and never need that one

        if isinstance(self.payload, bytes):
            return blob.pickled(self.payload, (), transport.files_in(self.payload))
        stream, buffers = opened(self.payload, f"the result of {self.name}", self.chunks[0], load=False)
        return blob.pickled(stream, buffers, self.payload[3])

    def __repr__(self) -> str:
        return f"<result of {self.name}, {self.nbytes:,} bytes, in its worker's memory>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        met = travelling.met
        if met is None:  # not on the way to a worker of ours: somebody pickles what has a Parcel in it
            return pickle.loads, (pickling.pickled(self.fetch()),)
        met.append(self)
        return _arrived, (self.payload, self.name)


def _arrived(payload: Payload, name: str) -> Any:
    """In a worker: the value of a Parcel among the arguments that are being decoded."""
    return unpack(payload, name, None if isinstance(payload, bytes) else Place(payload[2], travelling.arenas))


class Place:
    """Where a chunk is for a worker: the counterpart of a lease."""

    __slots__ = ("_arenas", "_ref")

    def __init__(self, ref: ChunkRef, arenas: Arenas | None) -> None:
        self._ref = ref
        self._arenas = arenas

    def map(self) -> memoryview:
        return self._known().map(self._ref)

    def view(self) -> memoryview:
        return self._known().view(self._ref)

    def _known(self) -> Arenas:
        if self._arenas is None:
            raise LookupError(f"arena {self._ref[0]} is not known here")
        return self._arenas


# ── payloads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def packed(
    pieces: Sequence[Bytes],
    buffers: Sequence[memoryview],
    files: transport.Files,
    put: Callable[[Sequence[Bytes], int], T],
    ref_of: Callable[[T], ChunkRef],
    what: str,
) -> tuple[Apart, T]:
    """The payload of what does not fit into a message, and its chunk, made by `put`.

    Raises TransportError when the system has no room for it; `what` says what it is.
    """
    streamed = sum([len(piece) for piece in pieces])
    lengths = tuple([len(buffer) for buffer in buffers])
    stream: bytes | int = streamed
    parts: list[Bytes] = []
    total = 0

    def lay(these: Sequence[Bytes], length: int) -> None:
        nonlocal total
        if total % _ALIGNED:
            pad = -total % _ALIGNED
            parts.append(bytes(pad))
            total += pad
        parts.extend(these)
        total += length

    if len(lengths) > _LENGTHS:
        lay((array("q", lengths).tobytes(),), 8 * len(lengths))
    if streamed > pickling.INLINE_MAX or not buffers:
        lay(pieces, streamed)
    else:
        stream = b"".join(pieces)
    for buffer in buffers:
        lay((buffer,), len(buffer))
    try:
        chunk = put(parts, total)
    except (OSError, MemoryError) as error:
        raise TransportError(
            f"{what} ({total:,} bytes) cannot be put into shared memory: {error or type(error).__name__}",
            hint="there is no memory left for it, or a limit on the size of files (ulimit -f) is lower; make it in parts, or"
            " let the task write a file and return its path",
        ) from error
    return (stream, lengths if len(lengths) <= _LENGTHS else len(lengths), ref_of(chunk), files), chunk


def opened(
    payload: Apart, what: str, place: Place | Chunk | None, *, load: bool = True
) -> tuple[bytes | memoryview, Sequence[memoryview]]:
    """A payload's pickle and its buffers, which are writable and private. Raises TransportError when they cannot be had.

    The modules that it needs are loaded as well, unless `load` says that nobody will decode it here.
    """
    stream, lengths, ref, files = payload
    pickle_: bytes | memoryview
    buffers: list[memoryview] = []
    try:
        if place is None:
            raise LookupError("its chunk was not kept")
        at = 0
        if isinstance(lengths, int):
            table = array("q")
            table.frombytes(place.view()[: 8 * lengths])
            at = 8 * lengths
            lengths = tuple(table)
        if isinstance(stream, int):
            at = at + _ALIGNED - 1 & -_ALIGNED
            pickle_ = place.view()[at : at + stream]
            at += stream
        else:
            pickle_ = stream
        if lengths:
            mapped = place.map()
            for length in lengths:
                at = at + _ALIGNED - 1 & -_ALIGNED
                buffers.append(mapped[at : at + length])
                at += length
    except (LookupError, OSError, MemoryError) as error:
        raise TransportError(
            f"{what} ({ref[2]:,} bytes) cannot be read from shared memory: {error or type(error).__name__}",
            hint="the process that made it, or the engine that ran it, is gone, or there is no memory left here",
        ) from error
    if files and load:
        load_for(files)
    return pickle_, buffers


def unpack(payload: Payload, name: str, place: Place | Chunk | None) -> Any:
    """The result of the task `name`, from its payload. Raises TransportError, with the way to what does not load."""
    stream, buffers = (payload, ()) if isinstance(payload, bytes) else opened(payload, f"the result of {name}", place)
    return pickling.unpickled(stream, result_namer(name), buffers)


def result_namer(name: str) -> Callable[[list[str]], str]:
    """Words the way into the result of the task `name`."""
    return lambda segments: f"the result of {name}{pickling.written(segments)}"


def inline_size(payload: Apart) -> int:
    """About how many bytes of a message `payload` takes."""
    stream, lengths, _, files = payload
    size = 100 + (len(stream) if isinstance(stream, bytes) else 9)
    size += 9 * len(lengths) if isinstance(lengths, tuple) else 9
    return size + sum([len(name) + len(path) + 20 for name, path in files])


def nbytes_of(payload: Payload) -> int:
    """How many bytes travel for `payload`, its chunk's included."""
    if isinstance(payload, bytes):
        return len(payload)
    return payload[2][2] + (len(payload[0]) if isinstance(payload[0], bytes) else 0)
