"""How a value becomes bytes, and bytes a value again: see ``blob`` for the seal that makes those bytes worth believing.

`pack` decides how. Small plain values are JSON, which needs nobody's code to be read again and which people can read; all else
is pickle protocol 5, large buffers (arrays) out of band. JSON is taken only where what comes back is the same: exact types, no
nan or infinity, no lone surrogates, no container met twice. `pickled` takes over what a worker process has pickled, as it is.

Only what refers to its classes and functions *by name* is let through. A class of ``__main__``, or one that cloudpickle took
along by value, would come back in a later process as another class, or not at all. So there is no codec for cloudpickle.

Errors are sentences about "it", to stand after the words of a caller who knows what it is: "the result of load: it cannot be
pickled". Nothing here touches a file or the clock, and all of it may be called from any thread.
"""

from __future__ import annotations

import json
import pickle
import sys
from enum import IntEnum
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from flowlane.errors import Failure, FlowError, TransportError
from flowlane.outofband import PROTOCOL, Bytes, Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Codec", "Files", "Payload", "pack", "pickled", "unpack"]

#: Modules that were loaded by path and that a pickle refers to: (module name, path).
Files: TypeAlias = "tuple[tuple[str, str], ...]"


class Codec(IntEnum):
    """How a payload's stream is to be read. The numbers are stored: they never change their meaning."""

    JSON = 1
    PICKLE = 2


_JSON: Final = Codec.JSON
_PICKLE: Final = Codec.PICKLE


class Payload(NamedTuple):
    """A value, encoded. All pieces are flat: one dimension of bytes.

    stream   JSON text or one pickle, in one piece or several
    buffers  what the pickle left out of band, in its order
    files    modules to be loaded by path before it
    """

    codec: Codec
    stream: Sequence[Bytes]
    buffers: Sequence[Bytes] = ()
    files: Files = ()

    @property
    def nbytes(self) -> int:
        """About how many bytes it takes when it is sealed."""
        return sum(map(len, self.stream)) + sum(map(len, self.buffers))

    def detached(self) -> Payload:
        """The same with a copy of its own of all memory that somebody could still write to.

        For a payload of `pack` whose value goes on to others before it is sealed *and* written: what they change in a large
        array would be stored, or make what is stored look damaged. Costs nothing where there is no such memory, else a copy
        (30 ms for 100 MB).
        """
        if self.codec is _JSON or (all(map(_settled, self.stream)) and all(map(_settled, self.buffers))):
            return self
        return self._replace(stream=tuple(map(_settle, self.stream)), buffers=tuple(map(_settle, self.buffers)))


def _settled(piece: Bytes) -> bool:
    return type(piece) is bytes or (type(piece) is memoryview and type(piece.obj) is bytes)


def _settle(piece: Bytes) -> Bytes:
    return piece if _settled(piece) else bytes(piece)


# ── a value to a payload ──────────────────────────────────────────────────────────────────────────────────────────

# What is still JSON: what somebody may want to read. It is written here, on the event loop, for about 0.3 µs an item, which
# pickle does in a tenth of that.
_ITEMS: Final = 16  # of one container
_PIECES: Final = 3 * _ITEMS  # of text, of all: two an item, unless it is an int
_TEXT: Final = 4096  # characters of one str
# Beyond 64 bits other readers of JSON round, and digits cost more than linear time.
_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 63) - 1


def pack(value: Any) -> Payload:
    """Encode `value`. Raises TransportError when it cannot be stored, whatever its own methods raise.

    Large arrays are not copied: see `Payload.detached`. Takes 1 µs for a plain scalar, 0.3 µs an item for small plain lists
    and dicts, and 2 µs more than pickle for all else.
    """
    text = _json(value)
    if text is not None:
        return Payload(_JSON, (text,))
    sink = Sink()
    try:
        pickle.dump(value, sink, PROTOCOL, buffer_callback=sink.stays)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _unpicklable(error) from error
    pieces = sink.pieces
    if not _mentioned(pieces, _MARKS):
        return Payload(_PICKLE, pieces, sink.buffers)
    _refuse_by_value(pieces)
    return Payload(_PICKLE, pieces, sink.buffers, _files_in(pieces))


def pickled(stream: Bytes, buffers: Sequence[Bytes] = (), files: Files = ()) -> Payload:
    """Take over what a worker process has pickled: one pickle, its out-of-band buffers, the modules that it needs by path.

    Nothing is unpickled or copied: whatever lends the memory (a chunk) must last until the blob is written. The stream is looked
    through, which takes 2 ms a MB of it and holds the GIL. Raises TransportError when a class or function is in it by value.
    """
    pieces = (stream,)
    if _mentioned(pieces, _MARKS):
        _refuse_by_value(pieces)
    return Payload(_PICKLE, pieces, buffers, files)


def _json(value: Any) -> bytes | None:
    """`value` as JSON text, or None where it would not come back the same or is too large.

    It is looked at and written in one go, item by item: another thread that changes the value meanwhile cannot slip in what was
    not looked at. So json's own encoder, which takes tuples and subclasses for lists, is no use here.
    """
    try:
        if type(value) is dict or type(value) is list:
            pieces: list[str] = []
            text = "".join(pieces) if _written(value, pieces, set()) else None
        else:
            text = _scalar(value)
        return None if text is None else text.encode()
    except UnicodeEncodeError:  # lone surrogates, of which json would join two to one character
        return None
    except RuntimeError:  # the stack is deep already, or another thread changes a dict
        return None


def _scalar(value: Any) -> str | None:
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
    if kind is str:
        return encode_basestring(value) if len(value) <= _TEXT else None
    if kind is int:
        return repr(value) if _LEAST <= value <= _MOST else None
    if value is None:
        return "null"
    if kind is float:  # nan has a sign and a payload, and infinity is not JSON: of both the difference is nan
        return repr(value) if value - value == 0.0 else None
    if kind is bool:
        return "true" if value else "false"
    return None


def _written(value: Any, pieces: list[str], seen: set[int]) -> bool:
    """Append `value` to `pieces`; false where it is not plain. `seen` are the containers met so far: one that is met again must
    stay one object, or never ends.
    """
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType] - truly anything
    if kind is dict or kind is list:
        if len(value) > _ITEMS or id(value) in seen:
            return False
        seen.add(id(value))
        return _write_dict(value, pieces, seen) if kind is dict else _write_list(value, pieces, seen)
    text = _scalar(value)
    if text is None:
        return False
    pieces.append(text)
    return True


def _write_dict(value: dict[Any, Any], pieces: list[str], seen: set[int]) -> bool:
    before = "{"
    for key, item in value.items():
        if type(key) is not str or len(pieces) > _PIECES:
            return False
        if type(item) is int and _LEAST <= item <= _MOST:  # what most are: without a call
            pieces.append(f"{before}{encode_basestring(key)}:{item}")
        else:
            pieces.append(f"{before}{encode_basestring(key)}:")
            if not _written(item, pieces, seen):
                return False
        before = ","
    pieces.append("}" if before == "," else "{}")
    return True


def _write_list(value: list[Any], pieces: list[str], seen: set[int]) -> bool:
    before = "["
    for item in value:
        if len(pieces) > _PIECES:
            return False
        if type(item) is int and _LEAST <= item <= _MOST:
            pieces.append(f"{before}{item}")
        else:
            pieces.append(before)
            if not _written(item, pieces, seen):
                return False
        before = ","
    pieces.append("]" if before == "," else "[]")
    return True


# ── what a pickle refers to ───────────────────────────────────────────────────────────────────────────────────────

# How names of modules stand in a pickle. Where none of these occurs there is nothing to be refused and no file to be named; where
# one does it may be text of the user's, and `_globals` tells.
_MAIN_MARKS: Final = tuple(
    [b"\x8c" + bytes([len(name)]) + name for name in (b"__main__", b"__mp_main__", b"cloudpickle.cloudpickle")]
)
# Modules that are others in any other process: the latter is what multiprocessing's spawn calls the parent's __main__.
_MAINS: Final = ("__main__", "__mp_main__")
# What cloudpickle calls to make a class, function or module again. It has other helpers, which make plain objects.
_MAKERS: Final = frozenset(
    ("_make_function", "_make_skeleton_class", "_make_skeleton_enum", "_make_typevar", "dynamic_subimport")
)
_LOADED_BY_PATH: Final = "_flow_"  # how names of modules begin that ``loader`` loads by path, with their path in:
_PATH: Final = "__flow_path__"
_MARKS: Final = (*_MAIN_MARKS, _LOADED_BY_PATH.encode())
# A piece of a pickle longer than this is no frame of opcodes (those end at 64 KiB) but one long text of the user's own.
_FRAME_MAX: Final = 1 << 18
_COPIED: Final = 1 << 18
_OVERLAP: Final = 512  # no mark is longer, nor the name of a file


def _refuse_by_value(pieces: Sequence[Bytes]) -> None:
    """Raise TransportError when a pickle refers to what a later process cannot find, or finds otherwise."""
    if not _mentioned(pieces, _MAIN_MARKS):
        return
    for module, name in _globals(pieces):
        if module in _MAINS:
            what = f"{name} of {module}"
        elif module == "cloudpickle.cloudpickle" and name in _MAKERS:
            what = "a class or function of a script, a notebook or another function"
        else:
            continue
        raise TransportError(
            f"it refers to {what}, which no later process can find",
            hint="run the file with `flow run`, or move the class or function to a module",
        )


def _files_in(pieces: Sequence[Bytes]) -> Files:
    """The modules loaded by path that a pickle seems to refer to. One too many does no harm."""
    found: list[tuple[str, str]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith(_LOADED_BY_PATH) and _mentioned(pieces, (name.encode(),)):
            path = getattr(module, _PATH, None)
            if isinstance(path, str):
                found.append((name, path))
    return tuple(found)


def _mentioned(pieces: Sequence[Bytes], marks: Sequence[bytes]) -> bool:
    """Whether one of `marks` occurs where the name of a module may stand."""
    for piece in pieces:
        size = len(piece)
        if size > _FRAME_MAX and len(pieces) > 1:
            continue
        if isinstance(piece, memoryview):  # cannot be searched; copied bit by bit it stays in the processor's cache
            for at in range(0, size, _COPIED):
                stretch = bytes(piece[at : at + _COPIED + _OVERLAP])
                if any(stretch.find(mark) >= 0 for mark in marks):
                    return True
        else:
            for mark in marks:
                if piece.find(mark) >= 0:  # `in` first tries whether it is a number, at twice the cost
                    return True
    return False


def _globals(pieces: Sequence[Bytes]) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a pickle of protocol 4 or later looks up, in order; nothing is loaded.
    Takes 1 µs an opcode: only for a pickle that has one of the marks.

    Whatever a pickler looks up it writes as two texts, each in full or as the memo's, directly before the opcode that takes
    them off. So it is enough to follow the last two texts and the memo.
    """
    import pickletools  # takes 5 ms, and hardly any value needs it

    memo: list[Any] = []
    below: Any = None  # a str, or None where it is not a text
    top: Any = None
    argument: Any
    for opcode, argument, _ in pickletools.genops(b"".join(pieces)):
        match opcode.name:
            case "MEMOIZE":
                memo.append(top)
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                below, top = top, argument
            case "BINGET" | "LONG_BINGET":
                below, top = top, memo[argument]
            case "FRAME":
                pass
            case "STACK_GLOBAL":
                yield below or "", top or ""
                below = top = None
            case _:
                below = top = None


# ── a payload to a value ──────────────────────────────────────────────────────────────────────────────────────────


def unpack(payload: Payload, load_files: Callable[[Files], object] | None = None) -> Any:
    """The value. User code runs: give it what `unseal`, `pack` or `pickled` returned, nothing else.

    `load_files` is called before with the modules that are loaded by path, if there are any; what it raises passes. Arrays can be
    written to: they lie in the payload's own buffers where those are writable (so hand a writable mapping to `unseal` only if
    nobody else uses it), else in copies. Raises TransportError when the value does not load.
    """
    codec, stream, buffers, files = payload
    if codec is _JSON:
        return json.loads(b"".join(stream))
    if files and load_files is not None:
        load_files(files)
    loader = _Loader(stream, [bytearray(buffer) if _read_only(buffer) else buffer for buffer in buffers])
    try:
        return loader.load()
    except (
        KeyboardInterrupt,
        FlowError,
    ):  # e.g. of a task among the values whose module does not load: it says it better
        raise
    except BaseException as error:
        raise _unloadable(error, loader.missing, dict(files)) from error


def _read_only(buffer: Bytes) -> bool:
    return type(buffer) is bytes or (type(buffer) is memoryview and buffer.readonly)


class _Loader(pickle.Unpickler):
    """An unpickler that remembers what it could not find."""

    missing: tuple[str, str] | None = None

    def __init__(self, stream: Sequence[Bytes], buffers: Sequence[Bytes]) -> None:
        super().__init__(_Reader(stream), buffers=buffers)

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return super().find_class(module_name, global_name)
        except BaseException:
            self.missing = (module_name, global_name)
            raise


class _Reader:
    """A pickle as the file that an unpickler reads; long texts go from where they lie right to where they belong."""

    __slots__ = ("_at", "_view")

    def __init__(self, stream: Sequence[Bytes]) -> None:
        self._view = memoryview(stream[0] if len(stream) == 1 else b"".join(stream))
        self._at = 0

    def read(self, size: int, /) -> bytes:
        begin = self._at
        self._at = begin + size
        return bytes(self._view[begin : begin + size])

    def readinto(self, target: Any, /) -> int:
        piece = self._view[self._at : self._at + len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def readline(self) -> bytes:
        raise pickle.UnpicklingError("a pickle of protocol 5 has no lines")


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _unpicklable(error: BaseException) -> TransportError:
    """What to raise when pickling a value raised `error`."""
    if isinstance(error, RecursionError):
        return TransportError(
            "it cannot be pickled: it is nested too deeply",
            hint="flatten it: pickle gives up on data nested more than a few hundred levels deep",
        )
    return TransportError(
        f"it cannot be pickled: {_said(error)}",
        where=_place(error),
        hint="return plain data: what stands for a process, a connection or a function made on the way is not the same later",
    )


def _unloadable(error: BaseException, missing: tuple[str, str] | None, files: dict[str, str]) -> TransportError:
    """What to raise when loading a pickle raised `error`; `missing` is what was looked up then."""
    if missing is None:
        return TransportError(
            f"it cannot be unpickled: {_said(error)}",
            where=_place(error),
            hint="pickle calls the class's __init__, __setstate__ or what __reduce__ names with what was stored; run the task"
            " again when that has changed",
        )
    module, name = missing
    shown = files.get(module, module)
    again = "or run the task again"
    if isinstance(error, ModuleNotFoundError):
        return TransportError(
            f"it needs {name} of {shown}, and that is not there: {_said(error)}",
            hint=f"install or put back the module (where it was renamed, leave one of the old name), {again}",
        )
    if module in sys.modules and isinstance(error, AttributeError):
        return TransportError(
            f"it needs {name} of {shown}, which has no {name} any more",
            hint=f"put it back (where it was renamed, leave an alias: {name} = NewName), {again}",
        )
    return TransportError(
        f"it needs {name} of {shown}, which cannot be imported: {_said(error)}",
        where=_place(error),
        hint=f"repair the module, {again}",
    )


def _said(error: BaseException) -> str:
    """The first line of what an error says, with its type unless these are pickle's own words. Never raises."""
    failure = Failure.of(error)
    text = failure.message.strip().partition("\n")[0]
    if isinstance(error, (pickle.PicklingError, TypeError, ImportError)) and text:
        return text
    return f"{failure.type}: {text}" if text else failure.type


def _place(error: BaseException) -> str | None:
    """Where code of the user's raised `error`; None when pickle itself did."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__") == __name__:
        tb = tb.tb_next
    return None if tb is None else Failure.of(error).where
