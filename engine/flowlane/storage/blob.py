"""How what is stored is sealed, and how a seal is checked before anything behind it is believed.

Two steps each way between a value and the store, because they happen on different threads:

    value ── pack ──→ Payload ── seal ──→ Blob         in the store
    value ←─ unpack ─ Payload ←─ unseal ─ bytes        from the store

`seal` puts a header before a payload, with a keyed MAC over everything, and `unseal` believes nothing before that holds: to
unpickle is to run code, so whoever could write a blob could run code as whoever reads it. So a blob that was made without the
store's secret is foreign.

    offset  0   8   magic: a byte beyond ASCII, "FLO", CR LF, ^Z, LF. It is no text, and a transfer as text breaks it at once
            8   1   version of this format
            9   1   codec (1 JSON, 2 pickle)
           10   2   flags (bit 0: the first part is files)
           12   4   number of parts
           16   8   bytes of the whole blob
           24   8   name of the key (a hash of it): tells what is foreign from what is damaged
           32  32   MAC: keyed BLAKE2b of everything before it, what it is bound to, and everything after it
           64   8   length of each part but the last
           then     the parts: [files] stream [buffer …]   each but the first begins at a multiple of 64

A blob is *bound* to its place: the row that it was written with, or the run whose parameters it has. That is not in it, and
goes into the MAC, so a blob that was moved to another place is as damaged as one with a flipped bit. So the same value in two
places is two blobs.

Numbers are little-endian. *Files* are modules loaded by path that must be there before the pickle is loaded, as JSON; the
*stream* is JSON text or one pickle. Nothing is copied to join parts.

Errors are sentences about "it", to stand after the words of a caller who knows what it is: "the result of load: it was cut
short". Nothing here touches a file or the clock, and all of it may be called from any thread.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from flowlane.errors import ResultDamaged
from flowlane.outofband import Bytes
from flowlane.storage.payload import Codec, Files, Payload, pack, pickled, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.storage.port import Blob, ResultRef

# The steps between value and payload are had from here as well: callers need both, and one door is enough.
__all__ = [
    "Bytes",
    "Codec",
    "Files",
    "Payload",
    "bound_to",
    "bound_to_run",
    "bound_to_work",
    "digest_of",
    "pack",
    "pickled",
    "seal",
    "unpack",
    "unseal",
]

MAGIC: Final = b"\x89FLO\r\n\x1a\n"
VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sBBHIQ8s")  # all that stands before the MAC
_MAC: Final = slice(_HEAD.size, _HEAD.size + 32)
_BODY: Final = 64  # where what comes after the MAC begins
_HAS_FILES: Final = 1
_ALIGNED: Final = 64  # a cache line, and what numpy and arrow wish for
_KEY_MIN: Final = 32


@functools.lru_cache(maxsize=8)
def _keyed(key: bytes) -> tuple[hashlib.blake2b, bytes]:
    """A MAC under `key` over nothing yet, to be copied, and the key's name."""
    if len(key) < _KEY_MIN:
        raise ValueError(f"a key has at least {_KEY_MIN} bytes, this one has {len(key)}")
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        key = hashlib.blake2b(key).digest()
    name = hashlib.blake2b(key=key, digest_size=8, person=b"flowlane key").digest()
    return hashlib.blake2b(key=key, digest_size=32, person=b"flowlane blob"), name


def bound_to(ref: ResultRef) -> bytes:
    """What a result is bound to: the row that it was written with, which rows that adopt it and the cache refer to."""
    run, session, element, attempt = ref
    return f"result {run} {session} {element} {attempt}".encode("utf-8", "surrogatepass")


def bound_to_run(run: str) -> bytes:
    """What the parameters of a run are bound to."""
    return b"params " + run.encode("utf-8", "surrogatepass")


def bound_to_work(run: str, session: int, start: int) -> bytes:
    """What the work is bound to that the graph was made of whose first task has number `start`."""
    return f"work {run} {session} {start}".encode("utf-8", "surrogatepass")


def seal(payload: Payload, key: bytes, bound: bytes) -> Blob:
    """The pieces of a blob: its header, then those of the payload, not copied. `key` has at least 32 bytes.

    `bound` tells its place (`bound_to`), and has to be told again to unseal it.

    Takes 1.5 µs and 1 ms a MB, for which it lets go of the GIL: made for the thread that writes.
    """
    codec, stream, buffers, files = payload
    pieces: list[Bytes] = [b"", *stream]  # the header's place, and what most payloads are
    total = _BODY + sum(map(len, stream))
    count, table = 1, b""
    if buffers or files:
        pieces, lengths = _laid_out(stream, buffers, files)
        total = _BODY + sum(map(len, pieces))
        count = len(lengths)
        pieces[0] = table = struct.pack(f"<{count - 1}Q", *lengths[:-1])
    mac, name = _keyed(key)
    mac = mac.copy()
    head = _HEAD.pack(MAGIC, VERSION, codec, _HAS_FILES if files else 0, count, total, name)
    mac.update(head + bound)  # the head tells how much follows: nothing can pass from one to the other
    for piece in pieces:
        mac.update(piece)
    pieces[0] = head + mac.digest() + table
    return pieces


def _laid_out(stream: Sequence[Bytes], buffers: Sequence[Bytes], files: Files) -> tuple[list[Bytes], list[int]]:
    """All pieces that follow the MAC, the first standing for the table of lengths, and the length of each part."""
    parts: list[Sequence[Bytes]] = [stream, *[(buffer,) for buffer in buffers]]
    if files:
        parts.insert(0, (json.dumps(files).encode(),))
    pieces: list[Bytes] = [bytes(8 * (len(parts) - 1))]
    lengths: list[int] = []
    at = _BODY + len(pieces[0])
    for part in parts:
        if lengths and at % _ALIGNED:
            pieces.append(bytes(-at % _ALIGNED))
            at += -at % _ALIGNED
        pieces.extend(part)
        lengths.append(sum(map(len, part)))
        at += lengths[-1]
    return pieces, lengths


def digest_of(blob: Blob) -> bytes:
    """32 bytes that name the content of a blob that `seal` made: its MAC. The same value, pickled alike under the same key for
    the same place, has the same name; to find another of that name takes the key.
    """
    return bytes(blob[0][_MAC])


def unseal(data: Bytes, key: bytes, bound: bytes) -> Payload:
    """The payload of a blob, as views of `data`. Raises ResultDamaged and nothing else unless `seal` made it with `key` for the
    place that `bound` tells.

    Nothing is decoded, and no length used, before the MAC holds. Takes 2 µs and 1 ms a MB, for which it lets go of the GIL.
    """
    mac, ours = _keyed(key)
    size = len(data)
    if data[: len(MAGIC)] != MAGIC[:size] or not size:
        raise ResultDamaged(
            "it is empty" if not size else "it is not a result that flowlane wrote: it begins with other bytes",
            hint="another program wrote to the store's files, or the disk lost them; run the task again",
        )
    if size < _BODY:
        raise _cut_short(size, "at least 64")
    view = memoryview(data)
    _, version, codec, flags, count, total, name = _HEAD.unpack_from(view)
    if version > VERSION:
        raise ResultDamaged(
            f"it was written by a newer flowlane: it has format {version}, and this one reads up to {VERSION}",
            hint="update flowlane, or run the task again",
        )
    if size < total:
        raise _cut_short(size, f"{total:,}")
    if size > total:
        raise ResultDamaged(
            f"it is longer than it was written: {size:,} bytes are there, of {total:,}", hint=_RUN_AGAIN
        )
    if name != ours:
        raise ResultDamaged(
            "it was not written by this store's owner, or its header is damaged: it names another key",
            hint="a result runs code when it is loaded, so only those sealed with the store's own secret are. Where the store was"
            " moved here, move its secret too; else run the task again",
        )
    mac = mac.copy()
    mac.update(bytes(view[: _HEAD.size]) + bound)
    mac.update(view[_BODY:])
    if not compare_digest(mac.digest(), view[_MAC]):
        raise ResultDamaged("it is damaged: its bytes are not those that were written", hint=_RUN_AGAIN)
    return _parts(view, codec, flags, count)


#: By number: half a microsecond less than asking the enum, for each of what may be a million results.
_CODECS: Final = {int(codec): codec for codec in Codec}

_RUN_AGAIN: Final = "the disk or another program changed it; run the task again"


def _cut_short(size: int, of: str) -> ResultDamaged:
    return ResultDamaged(f"it was cut short: {size:,} bytes are there, of {of}", hint=_RUN_AGAIN)


def _parts(view: memoryview, codec: int, flags: int, count: int) -> Payload:
    """The payload of a blob whose MAC holds. What does not fit together now, an owner's other program has written."""
    try:
        at = _BODY + 8 * (count - 1)
        if flags & ~_HAS_FILES or count <= flags or at > len(view):
            raise ValueError("unknown flags, or too many parts")
        parts: list[memoryview] = []
        for length in struct.unpack_from(f"<{count - 1}Q", view, _BODY):
            if at + length > len(view):
                raise ValueError("a part ends beyond the end")
            parts.append(view[at : at + length])
            at = at + length + _ALIGNED - 1 & -_ALIGNED
        parts.append(view[at:])
        files: Files = ()
        if flags & _HAS_FILES:
            files = tuple([(str(module), str(path)) for module, path in json.loads(bytes(parts.pop(0)))])
        known = _CODECS.get(codec)
        if known is None:
            raise ValueError(f"codec {codec}")
        return Payload(known, (parts[0],), parts[1:], files)
    except (ValueError, TypeError, RecursionError) as error:
        raise ResultDamaged(
            f"it is whole, but flowlane did not write it so: {error}",
            hint="another version of flowlane wrote it; run the task again",
        ) from error
