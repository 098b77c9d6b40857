"""How a call travels to another process, and how its outcome travels back.

Everything is encoded to bytes by *us*, job by job and at both ends, and a pool or pipe only ever carries those bytes.
So nothing that a task does with arguments, results or exceptions can harm the carrier: the process pools of the
standard library, loky and pebble all break for good on, say, an exception class whose ``__init__`` takes two arguments.

- A *function* travels by name (module, qualified name, path of its file), and by value only where it has no address.
- *Values* are pickled; by value (cloudpickle) only where plain pickle cannot, or where what it made refers to
  ``__main__``, which is another module in a worker. What cannot travel raises TransportError, which names the way to
  the culprit: ``parse(cfg) .session._lock``.
- A *failure* always travels as data: type, message, notes, traceback text with its chain of causes, ancestry. The
  exception object comes along when it was seen to survive the trip.

Used by the engine's process and by workers, and by whatever carries the bytes; so it knows no pool and imports little:
cloudpickle, inspect and the search for culprits only when they are needed.
"""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flowlane.errors import Failure, TransportError, qualified_name, shown_name
from flowlane.loader import Address, resolve, user_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.ports import Target

__all__ = [
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
    "load_files",
]

#: Modules that were loaded by path and that a payload refers to: (module name, path).
Files: TypeAlias = "tuple[tuple[str, str], ...]"

_PROTOCOL: Final = 5
_MAIN: Final = b"__main__"
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
            function = _by_value(target.fn)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            path, reason = _search(target.fn, error)
            raise _refusal(
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
        load_files(files)
        fn: Callable[..., Any] = _decode(function, lambda segments: f"{name}{_written(segments)}")
        return fn, name, run
    return resolve(Address(*function)), name, run


def files_in(payload: bytes) -> Files:
    """The modules loaded by path that `payload` seems to refer to: a worker must load them before it decodes."""
    if _LOADED_BY_PATH not in payload:
        return ()
    found: list[tuple[str, str]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("_flow_") and name.encode() in payload:
            path = getattr(module, "__flow_path__", None)
            if isinstance(path, str):
                found.append((name, path))
    return tuple(found)


def load_files(files: Files) -> None:
    """Load what `files_in` found and is not loaded here yet. Raises TransportError."""
    for module, path in files:
        resolve(Address(module, "__name__", path))


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_arguments(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The arguments of one call as bytes. Raises TransportError that names the parameter and the way to the culprit."""
    try:
        return _encode([dict(kwargs), *args])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where, reason = _culprit_argument(target, args, kwargs, error)
        raise _refusal(
            f"{target.name}({where} cannot travel to a worker process: {reason}",
            error,
            hint=f"make it inside the task, or let the task run on threads: routes={{{target.name!r}: 'threads'}}",
        ) from error


def decode_arguments(payload: bytes, fn: Callable[..., Any], name: str) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments from what `encode_arguments` made.

    Raises TransportError, in terms of `fn`'s parameters and `name`, the task's, when a value explodes while loading.
    """

    def subject(segments: list[str]) -> str:
        from flowlane_plugins.executors.culprit import parameter_name

        if not segments or not segments[0][1:-1].isdigit():
            return f"an argument of {name}"
        index = int(segments[0][1:-1])
        if index:
            return f"{name}({parameter_name(fn, index - 1)}){_written(segments[1:])}"
        return f"{name}({segments[1][2:-2] if len(segments) > 1 else '…'}){_written(segments[2:])}"

    values: list[Any] = _decode(payload, subject)
    return values[1:], values[0]


def encode_result(value: Any, name: str) -> bytes:
    """A task's result as bytes. `name` is the task's. Raises TransportError with the way to the culprit."""
    try:
        return _encode(value)
    except BaseException as error:
        path, reason = _search(value, error)
        raise _refusal(
            f"the result of {name}{path} cannot travel back from its worker process: {reason}",
            error,
            hint=f"return plain data, or let the task run on threads: routes={{{name!r}: 'threads'}}",
        ) from error


def decode_result(payload: bytes, name: str) -> Any:
    """The result from what `encode_result` made. Raises TransportError when it explodes while loading."""
    return _decode(payload, lambda segments: f"the result of {name}{_written(segments)}")


def _encode(value: Any) -> bytes:
    try:
        payload = pickle.dumps(value, _PROTOCOL)
    except (RecursionError, KeyboardInterrupt):
        raise
    except BaseException:  # noqa: BLE001 - what matters is whether it can be pickled by value
        return _by_value(value)  # a lambda, a local class, a class of __main__ as a worker sees it
    if _MAIN in payload:
        # It refers, as far as we can see, to something of __main__, which a worker has not, or has otherwise.
        try:
            return _by_value(value)
        except Exception:  # noqa: BLE001 - plain pickle could: let the other side try with that
            return payload
    return payload


def _by_value(value: Any) -> bytes:
    # Imported here because that takes 90 ms, and most processes never need it.
    import cloudpickle  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    payload: bytes = cloudpickle.dumps(value, protocol=_PROTOCOL)  # pyright: ignore[reportUnknownMemberType]
    return payload


def _decode(payload: bytes, subject: Callable[[list[str]], str]) -> Any:
    try:
        return pickle.loads(payload)  # noqa: S301 - made by us
    except BaseException as error:
        if isinstance(error, TransportError):  # a task among the values whose module does not load: it says it better
            raise
        from flowlane_plugins.executors.culprit import one_line
        from flowlane_plugins.executors.explosion import exploding

        segments, culprit = exploding(payload)
        what = f" ({culprit})" if culprit else ""
        raise _refusal(
            f"{subject(segments)}{what} cannot be unpickled: {one_line(error)}",
            error,
            hint="pickle calls the class's __init__, __setstate__ or what __reduce__ names with what was stored",
        ) from error


def _attempt(value: Any) -> BaseException | None:
    """Encode `value`; the error, or None: the question that the search for a culprit asks again and again."""
    try:
        _encode(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - any error means no
        return error
    return None


def _search(value: Any, error: BaseException) -> tuple[str, str]:
    """The written way to what in `value` cannot be pickled, with a space before it, and the reason."""
    from flowlane_plugins.executors.culprit import unpicklable

    path, reason = unpicklable(value, _attempt, error)
    return (f" {path}" if path else ""), reason


def _culprit_argument(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> tuple[str, str]:
    from flowlane_plugins.executors.culprit import one_line, parameter_name

    keyed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in keyed:
        own = _attempt(value)
        if own is not None:
            path, reason = _search(value, own)
            return f"{parameter_name(target.fn, key)}){path}", reason
    return "…)", one_line(error)


def _written(segments: list[str]) -> str:
    from flowlane_plugins.executors.culprit import written

    path = written(segments)
    return f" {path}" if path else ""


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_failure(error: BaseException) -> bytes:
    """A task's exception as bytes. Never raises, whatever the exception's methods do."""
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
    return pickle.dumps((facts, _surviving(error, facts[1])), _PROTOCOL)


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
        payload = _encode(error)
        back: Any = pickle.loads(payload)  # noqa: S301 - made by us
        same = type(back) is type(error) and str(back) == message
    except BaseException:  # noqa: BLE001 - two-argument __init__, a lock as attribute, an exploding __reduce__, …
        return None
    return payload if same else None


def _text(text: str) -> str:
    return str.__str__(text)  # a str subclass (from the user's __str__) may itself not be picklable


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refusal(message: str, cause: BaseException, *, hint: str) -> TransportError:
    # The cause is kept for the user's own frames (a __getstate__ that raises); ours would only keep the values alive.
    tb = cause.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(("flowlane", "cloudpickle")):
        tb = tb.tb_next
    cause.__traceback__ = tb
    cause.__context__ = None
    if isinstance(cause, RecursionError):
        hint = "flatten it: pickle gives up on data nested more than a few hundred levels deep"
    return TransportError(message, where=user_frame(cause), hint=hint)
