"""What a pool needs inside its worker processes: calls of functions that have no address, and initializers.

An initializer has to run in each worker before its first call. Workers come and go without telling, so every call
brings the initializer along, packed, and the first one in a process runs it. What is too big to bring along stays in an
unlinked file of the pool's process, and workers open it through ``/proc``; where there is none, it is brought along.

Initializers are handed locks and queues of multiprocessing more often than anything else, and those can be pickled only
while multiprocessing itself starts a process. `pack` pickles as if it did: semaphores travel by name, pipes and
shared memory as descriptors that the worker opens through ``/proc`` too. What the `fork` context makes has no name and
cannot travel; multiprocessing says so itself.

Proxies of a ``multiprocessing.Manager`` want the authentication key of the process that made it as soon as they are
unpickled. So where managers are in use, a `Key` comes along with every call, before the arguments.

Imported in workers: it must stay light.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Borrowed", "InitializerFailed", "Key", "Packed", "call", "call_prepared", "pack"]

_PROTOCOL: Final = 5
_INLINE: Final = 16_384  # bytes that go along with every call rather than into a file


class InitializerFailed(Exception):
    """The initializer raised in this worker; the text says what. For the pool: users see BrokenProcessPool."""


class Borrowed:
    """A descriptor of another process, or several uses of it. Works as the ``DupFd`` of multiprocessing's reductions."""

    __slots__ = ("fd", "process")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.process = os.getpid()

    def detach(self) -> int:
        """A descriptor of our own for the same file. Raises OSError for sockets, and when the other has closed it."""
        with open(f"/proc/{self.process}/fdinfo/{self.fd}", encoding="ascii") as lines:
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        mode = flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
        return os.open(f"/proc/{self.process}/fd/{self.fd}", mode | os.O_CLOEXEC)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_borrowed, (self.process, self.fd))


def _borrowed(process: int, fd: int) -> Borrowed:
    borrowed = Borrowed(fd)
    borrowed.process = process
    return borrowed


class Packed:
    """An initializer on its way. `token` names the pool; `payload` is bytes, or where to read them."""

    __slots__ = ("payload", "token")

    def __init__(self, token: str, payload: bytes | Borrowed) -> None:
        self.token = token
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        return (Packed, (self.token, self.payload))

    def unpack(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        """The initializer and its arguments."""
        payload = self.payload
        if isinstance(payload, Borrowed):
            with open(payload.detach(), "rb") as file:
                payload = file.read()
        initializer, initargs = pickle.loads(payload)  # noqa: S301 - made by `pack`
        return initializer, initargs


class Key:
    """The authentication key of this process, which becomes that of the process that unpickles it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import current_process

        return (_take_key, (bytes(current_process().authkey),))


def _take_key(key: bytes) -> None:
    from multiprocessing import current_process

    if current_process().authkey != key:
        current_process().authkey = key


# ── in the worker ─────────────────────────────────────────────────────────────────────────────────────────────────

# Process-wide on purpose, and at most one entry: a worker belongs to one pool. None: the initializer failed.
_prepared: dict[str, Context | None] = {}


def call(key: object, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG001
    """Call what travels as a value: a lambda, a bound method, a partial. `key` has done its work by now."""
    return fn(*args, **kwargs)


def call_prepared(
    key: object,  # noqa: ARG001 - as above
    packed: Packed,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call `fn` in a process in which the initializer has run. Raises InitializerFailed when it could not.

    The call sees the context variables that the initializer has set.
    """
    if packed.token not in _prepared:
        _prepared[packed.token] = None
        try:
            initializer, initargs = packed.unpack()
            initializer(*initargs)
        except BaseException as error:
            import logging

            logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
            _flush_queues()
            raise InitializerFailed(_words(error)) from error
        _prepared[packed.token] = copy_context()
    context = _prepared[packed.token]
    if context is None:
        raise InitializerFailed("the initializer has failed in this worker before")
    return context.copy().run(fn, *args, **kwargs)


def _flush_queues() -> None:
    """Wait for what is still on its way into queues of multiprocessing, a log's for one: the pool ends this process next."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a __str__ that raises
        return type(error).__name__


# ── in the pool's process ─────────────────────────────────────────────────────────────────────────────────────────


class _Lender:
    """What multiprocessing asks, while it pickles for a new process, how descriptors get there."""

    DupFd = Borrowed

    @staticmethod
    def duplicate_for_child(fd: int) -> int:
        return fd


def pack(token: str, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> tuple[Packed, BinaryIO | None]:
    """An initializer for all workers of the pool `token`, and the file that must stay open meanwhile, if there is one.

    Raises what pickle raises. Descriptors in `initargs` must stay open, too.
    """
    from importlib import import_module

    context: Any = import_module("multiprocessing.context")
    proc = sys.platform == "linux"
    before = context.get_spawning_popen()
    if proc:
        context.set_spawning_popen(_Lender())  # for this thread only
    try:
        payload = _pickled((initializer, initargs))
    finally:
        context.set_spawning_popen(before)
    if len(payload) <= _INLINE or not proc:
        return Packed(token, payload), None
    import tempfile

    file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the pool closes it
    view = memoryview(payload)
    while view:
        view = view[file.write(view) :]
    return Packed(token, Borrowed(file.fileno())), file


def _pickled(value: Any) -> bytes:
    """As `transport` does it, by value where plain pickle cannot, with multiprocessing's reductions added."""
    from multiprocessing.reduction import ForkingPickler

    try:
        payload = bytes(ForkingPickler.dumps(value, _PROTOCOL))
    except Exception as error:  # noqa: BLE001 - a lambda, a local class; or it cannot be pickled at all
        try:
            return _by_value(value)
        except Exception:  # noqa: BLE001 - what multiprocessing says of its locks is worth more than a second opinion
            raise error from None
    return _by_value(value) if b"__main__" in payload else payload


def _by_value(value: Any) -> bytes:
    import io
    from collections import ChainMap
    from multiprocessing.reduction import ForkingPickler

    from flowlane.byvalue import pickler_class

    base = pickler_class()
    forking: Any = ForkingPickler(io.BytesIO())
    tables = ChainMap({}, base.dispatch_table, forking.dispatch_table)
    pickler: Any = type("Pickler", (base,), {"dispatch_table": tables})
    file = io.BytesIO()
    pickler(file, _PROTOCOL).dump(value)
    return file.getvalue()
