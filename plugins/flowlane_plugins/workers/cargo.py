"""How calls and results of our own workers travel: `transport`'s rules, with large data in shared memory.

A buffer of 64 KiB or more (an array's data) is pickled out of band and copied once, into a chunk; a pickle of more than that
lies in the chunk as well. What remains is a payload (see `parcel`) that fits into the ring of a worker's page. The engine
decodes only tiny plain results; everything else it hands on as a `Parcel`.

A result that explodes when it is loaded must fail the task that made it, not the next one that reads it. So the worker loads
once, as a trial, what it has pickled, unless that is plain data, which cannot explode, or longer than 1 MiB, which takes too
long: those results are trusted, and a bad one fails its readers.

The fast ways through here matter: tasks of a few microseconds are what people have thousands of.
"""

from __future__ import annotations

from pickle import dumps, loads
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.errors import TransportError
from flowlane_plugins.executors import pickling, transport
from flowlane_plugins.executors.pickling import INLINE_MAX
from flowlane_plugins.workers.parcel import Parcel, Place, nbytes_of, opened, packed, result_namer, travelling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.ports import Target
    from flowlane_plugins.executors.pickling import Bytes
    from flowlane_plugins.workers.chunks import ChunkRef, Store
    from flowlane_plugins.workers.leases import Book, Chunk
    from flowlane_plugins.workers.mappings import Arenas
    from flowlane_plugins.workers.parcel import Payload

__all__ = ["Call", "decode_call", "encode_call", "encode_value", "take"]

_PROTOCOL: Final = 5
_ATOMS: Final = frozenset({type(None), bool, int, float, complex})
_SHORT: Final = 1_000  # characters of a string that is not looked into: nobody's class is called by text alone
_TRIED: Final = 1 << 20
_TINY: Final = 256
_BY_CLASS: Final = b"\x93"  # STACK_GLOBAL: without that byte a pickle refers to no class, and cannot run anybody's code

_NOTHING: Final = dumps((), _PROTOCOL)
_NONE: Final = dumps(None, _PROTOCOL)
_NO_REFS: Final[tuple[ChunkRef, ...]] = ()
_NO_CHUNKS: Final[tuple[Chunk, ...]] = ()
_NO_FILES: Final[transport.Files] = ()
_NONE_ENCODED: Final = (_NONE, _NO_REFS)


class Call(NamedTuple):
    """The arguments of one call, packed.

    payload  for `decode_call`
    chunks   leases of all chunks that it refers to, also through Parcels among the arguments: to be kept until the job has ended
    files    modules to be loaded by path before it is decoded
    nbytes   how much there is to decode, chunks included
    """

    payload: Payload
    chunks: tuple[Chunk, ...]
    files: transport.Files
    nbytes: int


_NO_ARGUMENTS: Final = Call(_NOTHING, _NO_CHUNKS, _NO_FILES, len(_NOTHING))


# ── calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_call(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], book: Book) -> Call:
    """The arguments of one call. Raises TransportError that names the parameter and the way to the culprit."""
    values: Any
    if not kwargs:
        if not args:
            return _NO_ARGUMENTS
        values = tuple(args)
        for value in args:
            kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
            if kind not in _ATOMS and not (kind is str and len(value) < _SHORT):
                break
        else:
            inline = dumps(values, _PROTOCOL)
            if len(inline) <= INLINE_MAX:
                return Call(inline, _NO_CHUNKS, _NO_FILES, len(inline))
    else:
        values = [dict(kwargs), *args]
    met: list[Parcel] = []
    travelling.met = met
    try:
        pieces, buffers = pickling.pickled_apart(values)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise pickling.bad_argument(target, args, kwargs, error) from error
    finally:
        travelling.met = None
    chunks = tuple(dict.fromkeys([chunk for parcel in met for chunk in parcel.chunks])) if met else _NO_CHUNKS
    nbytes = sum([chunk.nbytes for chunk in chunks]) if chunks else 0
    files = transport.files_in(*pieces)
    if not buffers and len(pieces) == 1 and len(pieces[0]) <= INLINE_MAX:
        inline = bytes(pieces[0])
        return Call(inline, chunks, files, nbytes + len(inline))
    payload, own = packed(pieces, buffers, _NO_FILES, book.put, _ref_of, f"what is passed to {target.name}")
    return Call(payload, (own, *chunks), files, nbytes + nbytes_of(payload))


def _ref_of(chunk: Chunk) -> ChunkRef:
    return chunk.ref


def decode_call(
    payload: Payload, fn: Callable[..., Any], name: str, arenas: Arenas
) -> tuple[Sequence[Any], dict[str, Any]]:
    """In a worker: positional and keyword arguments from the payload of `encode_call`.

    Raises TransportError, in terms of `fn`'s parameters and `name`, the task's, when a value does not load.
    """
    if payload == _NOTHING:
        return (), {}
    travelling.arenas = arenas
    stream: Bytes
    buffers: Sequence[memoryview] = ()
    if isinstance(payload, bytes):
        stream = payload
    else:
        stream, buffers = opened(payload, f"an argument of {name}", Place(payload[2], arenas))
    try:
        values: tuple[Any, ...] | list[Any]
        values = loads(stream, buffers=buffers) if buffers else loads(stream)  # noqa: S301 - made by us
    except (TransportError, pickling.Stopped):  # e.g. a result among them that does not load: it says whose it is
        raise
    except BaseException as error:
        raise pickling.explosion(stream, pickling.argument_namer(stream, fn, name), buffers, error) from error
    return (values, {}) if isinstance(values, tuple) else (values[1:], values[0])


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_value(value: Any, name: str, store: Store) -> tuple[Payload, Sequence[ChunkRef]]:
    """In a worker: the result of the task `name`, as its payload and the references of its chunks.

    Raises TransportError with the way to what cannot be pickled, or was, and does not load again.
    """
    if value is None:
        return _NONE_ENCODED
    kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
    if kind in _ATOMS or (kind is str and len(value) < _SHORT):
        inline = dumps(value, _PROTOCOL)
        if len(inline) <= INLINE_MAX:
            return inline, _NO_REFS
    try:
        pieces, buffers = pickling.pickled_apart(value)
    except BaseException as error:
        raise pickling.bad_result(value, name, error) from error
    if len(pieces) == 1 and not buffers and len(pieces[0]) <= INLINE_MAX and _BY_CLASS not in pieces[0]:
        return bytes(pieces[0]), _NO_REFS
    if sum([len(piece) for piece in pieces]) <= _TRIED:
        stream = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if _BY_CLASS in stream:
            pickling.unpickled(stream, result_namer(name), buffers)
        if not buffers and len(stream) <= INLINE_MAX:
            return bytes(stream), _NO_REFS
        pieces = [stream]
    files = transport.files_in(*pieces)
    payload, ref = packed(pieces, buffers, files, store.gather, _same, f"the result of {name}")
    return payload, (ref,)


def _same(ref: ChunkRef) -> ChunkRef:
    return ref


def take(payload: Payload, chunks: tuple[Chunk, ...], name: str, home: object) -> Any:
    """In the engine: the result of the task `name` where it is tiny and plain, or may be more work, otherwise a `Parcel`.

    `chunks` are its leases.
    """
    if payload == _NONE:
        return None
    if isinstance(payload, bytes) and len(payload) <= _TINY and _BY_CLASS not in payload:
        try:
            return loads(payload)  # noqa: S301 - made by us, and plain
        except Exception:  # noqa: BLE001, S110 - not by anything that pickles today; whoever fetches it is told
            pass
    parcel = Parcel(home, name, payload, chunks)
    try:
        return parcel.fetch() if _may_be_work(payload, chunks) else parcel
    except Exception:  # noqa: BLE001 - user code runs while it loads; whoever fetches it is told
        return parcel


def _may_be_work(payload: Payload, chunks: tuple[Chunk, ...]) -> bool:
    if isinstance(payload, bytes):
        return pickling.may_be_work(payload)
    if isinstance(payload[0], bytes):
        return pickling.may_be_work(payload[0])
    stream, _ = opened(payload, "a result", chunks[0] if chunks else None, load=False)
    return pickling.may_be_work(stream)
