"""A result that stays on the cluster where it was made, and the reference to it that the engine holds in its place.

On the worker a result becomes a `Kept`: pickled there and then, large buffers apart (PEP 574). Dask or Ray store it and carry
it from worker to worker as they do their own objects, without running any code of the user's; it is opened where a task
needs it, inside that task's attempt. So a result that cannot be pickled fails the task that made it, one that does not load
fails the task that reads it, and both errors name the way to the culprit. Every task gets a value of its own: large
buffers are copied when it is opened, so that what a task gets does not depend on which worker it happens to run on.

In the engine's process a `Reference` stands for it. Among the arguments of a call, also deep inside lists and dicts, it is
pickled as a number (`encoded`); the references themselves travel beside the arguments, at the top, where Dask and Ray look for
them, and on the worker each number becomes the value again (`decoded`). Whoever else pickles a Reference gets its value.

A small result (`CARRIED_MAX`) is not left behind: it comes with the record, and goes with the arguments (`Carried`). That
is less to keep track of for everybody, and no loss of a worker can take it away.

Imported by workers, so it stays light.
"""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

from flowlane.loader import load_for
from flowlane.runtime.ports import RemoteValue
from flowlane_plugins.executors import pickling, transport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.ports import Target
    from flowlane.storage.blob import Payload as Packed
    from flowlane_plugins.executors.pickling import Bytes

__all__ = ["CARRIED_MAX", "Carried", "Kept", "Reference", "decoded", "encoded", "keep"]

#: Bytes up to which a result travels with the record of its task.
CARRIED_MAX: Final = 4096


class _Travelling(threading.local):
    """What pickling on this thread needs to know of its surroundings.

    numbers  while arguments are encoded: the references met, each with its number; None at any other time
    values   while arguments are decoded: what was kept, by number
    """

    numbers: dict[int, tuple[int, Reference]] | None = None
    values: Sequence[Kept] = ()


_travelling = _Travelling()
_settling = threading.Lock()  # for the moment in which a value that was fetched is kept


class Kept:
    """A pickled result: `stream` and `buffers`, and `files`, modules loaded by path that it needs. `name` is the task's."""

    __slots__ = ("buffers", "files", "name", "nbytes", "stream")

    def __init__(self, name: str, stream: Bytes, buffers: Sequence[Bytes], files: transport.Files) -> None:
        self.name = name
        self.stream = stream
        self.buffers = buffers
        self.files = files
        self.nbytes = len(stream) + sum([memoryview(buffer).nbytes for buffer in buffers])

    def value(self) -> Any:
        """The value, anew each time. Raises TransportError, with the way to what does not load."""
        if self.files:
            load_for(self.files)
        name = self.name
        own = [memoryview(bytearray(buffer)) for buffer in self.buffers]
        return pickling.unpickled(
            self.stream, lambda segments: f"the result of {name}{pickling.written(segments)}", own
        )

    def __sizeof__(self) -> int:  # what Dask weighs its memory and its transfers by
        return 200 + self.nbytes

    def __repr__(self) -> str:
        return f"<result of {self.name}, {self.nbytes:,} bytes>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        stream: Any = self.stream if isinstance(self.stream, bytes) else bytes(self.stream)
        if protocol.__index__() < 5:
            return Kept, (self.name, stream, [bytes(buffer) for buffer in self.buffers], self.files)
        return Kept, (self.name, stream, [pickle.PickleBuffer(buffer) for buffer in self.buffers], self.files)


def keep(value: Any, name: str) -> Kept:
    """`value`, the result of the task `name`, ready to stay. Raises TransportError with the way to what cannot be pickled."""
    try:
        pieces, buffers = pickling.pickled_apart(value)
    except BaseException as error:
        raise pickling.bad_result(value, name, error) from error
    return Kept(name, pieces[0] if len(pieces) == 1 else b"".join(pieces), buffers, transport.files_in(*pieces))


class Reference(RemoteValue):
    """A result on a cluster. A subclass says how to `bring` it here.

    name   the task's that made it
    maker  the task's name in its workflow, for messages
    gone   somebody has found that the cluster has it no more
    """

    __slots__ = ("_fetched", "_problem", "_value", "gone", "maker", "name")

    def __init__(self, home: object, nbytes: int, name: str, maker: str) -> None:
        super().__init__(home, nbytes)
        self.name = name
        self.maker = maker
        self.gone = False
        self._fetched = False
        self._problem: Exception | None = None
        self._value: Any = None

    def bring(self) -> Kept:
        """What was kept, here. Blocks while it travels. Raises LostResult, which names it, when it is gone."""
        raise NotImplementedError

    def vanished(self) -> bool:
        """Whether it is known to be gone from the cluster. Does not block."""
        return self.gone

    def fetch(self) -> Any:
        """The value: brought and loaded on the first call, then kept. Raises TransportError."""
        if self._problem is not None:
            raise self._problem
        if not self._fetched:
            try:
                value = self.bring().value()
            except Exception as error:
                self._problem = error
                raise
            with _settling:  # two threads may have fetched it: it is one object for all the same
                if not self._fetched:
                    self._value, self._fetched = value, True
        return self._value

    def is_far(self) -> bool:
        """Whether it has still to be fetched."""
        return not self._fetched and self._problem is None

    def packed(self) -> Packed:
        """What was kept, brought here and not decoded. Raises TransportError."""
        from flowlane.storage import blob  # not at the top: workers import this module, and never need that one

        kept = self.bring()
        return blob.pickled(kept.stream, kept.buffers, kept.files)

    def __repr__(self) -> str:
        return f"<result of {self.maker}, {self.nbytes:,} bytes, on the cluster>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        numbers = _travelling.numbers
        if numbers is None:  # not on the way to a worker: somebody pickles what has a reference in it
            return pickle.loads, (pickling.pickled(self.fetch()),)
        number, _ = numbers.setdefault(id(self), (len(numbers), self))
        return _arrived, (number,)


class Carried(Reference):
    """A result that came along. It is still packed: nobody here may ever look into it."""

    __slots__ = ("_kept",)

    def __init__(self, home: object, maker: str, kept: Kept) -> None:
        super().__init__(home, kept.nbytes, kept.name, maker)
        self._kept = kept

    def bring(self) -> Kept:
        return self._kept

    def is_far(self) -> bool:
        return False

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if _travelling.numbers is None:
            return super().__reduce_ex__(protocol)
        return _came_along, (self._kept,)


def _came_along(kept: Kept) -> Any:
    """On a worker: the value of a small result among the arguments that are being decoded."""
    return kept.value()


def _arrived(number: int) -> Any:
    """On a worker: the value of a reference among the arguments that are being decoded."""
    return _travelling.values[number].value()


def encoded(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bytes, list[Reference]]:
    """The arguments of one call as bytes, and the references that stand in them.

    Raises TransportError that names the parameter and the way to the culprit.
    """
    numbers: dict[int, tuple[int, Reference]] = {}
    _travelling.numbers = numbers
    try:
        payload = transport.encode_arguments(target, args, kwargs)
    finally:
        _travelling.numbers = None
    return payload, [met[1] for met in numbers.values()]


def decoded(
    payload: bytes, values: Sequence[Kept], fn: Callable[..., Any], name: str
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments from what `encoded` made, `values` standing in for the references.

    Raises TransportError when one does not load.
    """
    _travelling.values = values
    try:
        return transport.decode_arguments(payload, fn, name)
    finally:
        _travelling.values = ()
