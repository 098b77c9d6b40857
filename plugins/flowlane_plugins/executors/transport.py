"""How a call travels to another process, and how its outcome travels back.

Everything is encoded to bytes by *us*, job by job and at both ends, and a pool or pipe only ever carries those bytes.
So nothing that a task does with arguments, results or exceptions can harm the carrier: the process pools of the
standard library, loky and pebble all break for good on, say, an exception class whose ``__init__`` takes two arguments.

- A *function* travels by name (module, qualified name, path of its file), and by value only where it has no address.
- *Values* are pickled (see `pickling`). What cannot travel raises TransportError, which names the way to the culprit:
  ``parse(cfg) .session._lock``. Our own workers, which have shared memory for large ones, use `workers.cargo` instead.
- A *failure* always travels as data: type, message, notes, traceback text with its chain of causes, ancestry. The
  exception object comes along when it was seen to survive the trip.

Used by the engine's process and by workers, and by whatever carries the bytes; so it knows no pool and imports little:
cloudpickle, inspect and the search for culprits only when they are needed.
"""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flowlane.errors import Failure, FlowError, qualified_name, shown_name
from flowlane.loader import Address, load_for, resolve
from flowlane_plugins.executors import pickling
from flowlane_plugins.executors.pickling import INLINE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.ports import Target

__all__ = [
    "INLINE_MAX",
    "Files",
    "decode_arguments",
    "decode_failure",
    "decode_header",
    "decode_result",
    "encode_arguments",
    "encode_failure",
    "encode_header",
    "encode_result",
    "files_in",
]

#: Modules that were loaded by path and that a payload refers to: (module name, path).
Files: TypeAlias = "tuple[tuple[str, str], ...]"

_PROTOCOL: Final = 5
_LOADED_BY_PATH: Final = b"_flow_"  # the prefix of loader.module_name_for


# ── functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_header(target: Target, run: str) -> bytes:
    """What all jobs of one task in one run share: its function, its name, the run.

    Raises TransportError when the function cannot travel at all.
    """
    address = target.address
    if address is not None:
        function: tuple[str, str, str | None] | bytes = (address.module, address.qualname, address.path)
        files: Files = ()
    else:
        try:
            function = pickling.by_value(target.fn)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            path, reason = pickling.search(target.fn, error)
            raise pickling.refusal(
                f"{target.name}{path} cannot travel to a worker process: {reason}",
                error,
                hint="a function of a script, a notebook or another function travels with all that it refers to; move"
                " it to a module, or make what it needs inside it",
            ) from error
        files = files_in(function)
    return pickle.dumps((function, files, target.name, run), _PROTOCOL)


def decode_header(header: bytes) -> tuple[Callable[..., Any], str, str]:
    """The function, imported or unpickled, the task's name and the run's id.

    Raises TransportError; what the user's module raised is its cause.
    """
    function, files, name, run = pickle.loads(header)  # noqa: S301 - made by us, see the module's text
    if isinstance(function, bytes):
        load_for(files)
        fn: Callable[..., Any] = pickling.unpickled(function, lambda segments: f"{name}{pickling.written(segments)}")
        return fn, name, run
    return resolve(Address(*function)), name, run


def files_in(*pieces: pickling.Bytes) -> Files:
    """The modules loaded by path that a payload, in one or more pieces, seems to refer to: to be loaded before it is decoded."""
    looked_into = [piece for piece in pickling.frames(pieces) if _LOADED_BY_PATH in piece]
    if not looked_into:
        return ()
    found: list[tuple[str, str]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("_flow_") and any(name.encode() in piece for piece in looked_into):
            path = getattr(module, "__flow_path__", None)
            if isinstance(path, str):
                found.append((name, path))
    return tuple(found)


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_arguments(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments of one call as bytes. Raises TransportError that names the parameter and the way to the culprit."""
    try:
        return pickling.pickled([dict(kwargs), *args])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise pickling.bad_argument(target, args, kwargs, error) from error


def decode_arguments(payload: bytes, fn: Callable[..., Any], name: str) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments from what `encode_arguments` made.

    Raises TransportError, in terms of `fn`'s parameters and `name`, the task's, when a value explodes while loading.
    """
    values: list[Any] = pickling.unpickled(payload, pickling.argument_namer(payload, fn, name))
    return values[1:], values[0]


def encode_result(value: Any, name: str) -> bytes:
    """A task's result as bytes. `name` is the task's. Raises TransportError with the way to the culprit."""
    try:
        return pickling.pickled(value)
    except BaseException as error:
        raise pickling.bad_result(value, name, error) from error


def decode_result(payload: bytes, name: str) -> Any:
    """The result from what `encode_result` made. Raises TransportError when it explodes while loading."""
    return pickling.unpickled(payload, lambda segments: f"the result of {name}{pickling.written(segments)}")


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_failure(error: BaseException, *, alone: bool = False) -> bytes:
    """A task's exception as bytes. Never raises, whatever the exception's methods do.

    With `alone` its description travels without the exception object, which may hold as much as it likes.
    """
    kind = type(error)
    try:
        failure = Failure.of(error)
        facts = (
            _text(failure.type),
            _text(failure.message),
            _text(failure.traceback),
            None if failure.where is None else _text(failure.where),
            tuple([_text(note) for note in failure.notes]),
            tuple([_text(base) for base in failure.ancestry]),
        )
    except BaseException as broken:  # noqa: BLE001 - its __str__ or __notes__ raise: what is left is its type
        name = _text(shown_name(kind))
        message = f"<no message: describing it raised {_text(type(broken).__name__)}>"
        ancestry = tuple([_text(qualified_name(base)) for base in kind.__mro__[:-1]])
        facts = (name, message, f"{name}: {message}\n", None, (), ancestry)
    return pickle.dumps((facts, None if alone else _surviving(error, facts[1])), _PROTOCOL)


def decode_failure(payload: bytes) -> Failure:
    """The failure from what `encode_failure` made, with its exception object if that survives here too."""
    (kind, message, traceback, where, notes, ancestry), survivor = pickle.loads(payload)  # noqa: S301 - made by us
    exception: BaseException | None = None
    if survivor is not None:
        try:
            exception = pickle.loads(survivor)  # noqa: S301 - made by us
        except BaseException:  # noqa: BLE001 - it survived in the worker but not here (a module that is not installed)
            exception = None
        if not isinstance(exception, BaseException):
            exception = None
    return Failure(kind, message, traceback=traceback, where=where, notes=notes, ancestry=ancestry, exception=exception)


def _surviving(error: BaseException, message: str) -> bytes | None:
    """`error` pickled, if it comes back as the same class with the same message; otherwise None."""
    try:
        payload = pickling.pickled(error)
        back: Any = pickle.loads(payload)  # noqa: S301 - made by us
        said = back.message if isinstance(back, FlowError) else str(back)  # the text of ours has place and hint besides
        same = type(back) is type(error) and said == message
    except BaseException:  # noqa: BLE001 - two-argument __init__, a lock as attribute, an exploding __reduce__, …
        return None
    return payload if same else None


def _text(text: str) -> str:
    return str.__str__(text)  # a str subclass (from the user's __str__) may itself not be picklable
