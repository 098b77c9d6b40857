"""Values to bytes and back, and words for what went wrong on the way.

Plain pickle where it can; by value (cloudpickle) where it cannot, or where what it made refers to ``__main__``, which is
another module in a worker. Large buffers are left *apart* for those who have shared memory to put them in. A failure names the
way to the culprit: ``parse(cfg) .session._lock``; `culprit` and `explosion` search for it, and are imported only then.
"""

from __future__ import annotations

import functools
import pickle
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import TransportError
from flowlane.loader import user_frame
from flowlane.outofband import PROTOCOL, Bytes, Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.runtime.ports import Target

__all__ = [
    "INLINE_MAX",
    "Bytes",
    "Stopped",
    "argument_namer",
    "bad_argument",
    "bad_result",
    "by_value",
    "explosion",
    "frames",
    "may_be_work",
    "pickled",
    "pickled_apart",
    "refusal",
    "search",
    "unpickled",
    "written",
]

_WORK: Final = b"flowlane.declare."  # where calls, tasks and workflows are defined
_HEAD: Final = 4096  # bytes in which a pickle of one names that
INLINE_MAX: Final = 1 << 16  # bytes of a message that travels as it is
_MAIN: Final = b"__main__"
_CACHED: Final[Any] = type(functools.lru_cache(lambda: None))
# A piece longer than this is no frame of opcodes (pickle closes those at 64 KiB) but one of the user's own long texts.
_FRAME_MAX: Final = 1 << 18


class Stopped(BaseException):
    """Raised from outside in whatever runs just now, a value's loading perhaps. It says nothing about that value, and passes."""


def pickled(value: Any) -> bytes:
    """`value` as one pickle. Raises whatever pickling it raises."""
    try:
        payload = pickle.dumps(value, PROTOCOL)
    except (RecursionError, KeyboardInterrupt):
        raise
    except BaseException:  # noqa: BLE001 - what matters is whether it can be pickled by value
        return by_value(value)  # a lambda, a local class, a class of __main__ as a worker sees it
    if _MAIN in payload:
        # It refers, as far as we can see, to something of __main__, which a worker has not, or has otherwise.
        try:
            return by_value(value)
        except Exception:  # noqa: BLE001 - plain pickle could: let the other side try with that
            return payload
    return payload


def by_value(value: Any) -> bytes:
    """`value` pickled with the code of its functions and classes that no other process could import."""
    # Imported here because that takes 90 ms, and most processes never need it.
    import io

    from flowlane.byvalue import pickler_class

    pickler = pickler_class()

    class ByValue(pickler):  # type: ignore[misc,valid-type]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, _CACHED) and getattr(obj, "__module__", None) == "__main__":
                # It says "find me by my name", which in another process's __main__ nobody can.
                return _cached_again, (obj.__wrapped__, obj.cache_parameters())
            return pickler.reducer_override(self, obj)

    file = io.BytesIO()
    by_value_pickler: Any = ByValue(file, protocol=PROTOCOL)
    by_value_pickler.dump(value)
    return file.getvalue()


def _cached_again(fn: Callable[..., Any], parameters: dict[str, Any]) -> Callable[..., Any]:
    cached: Callable[..., Any] = functools.lru_cache(**parameters)(fn)
    return cached


def pickled_apart(value: Any) -> tuple[list[Bytes], list[memoryview]]:
    """`value` as one pickle in pieces, and its large buffers, which are not copied: both show the value's own memory.

    Raises whatever pickling it raises.
    """
    sink = Sink()
    try:
        pickle.dump(value, sink, PROTOCOL, buffer_callback=sink.stays)
    except (RecursionError, KeyboardInterrupt):
        raise
    except BaseException:  # noqa: BLE001 - as in `pickled`
        return _apart_by_value(value)
    for piece in frames(sink.pieces):
        if _MAIN in piece:
            try:
                return _apart_by_value(value)
            except Exception:  # noqa: BLE001 - as in `pickled`
                break
    return sink.pieces, sink.buffers


def _apart_by_value(value: Any) -> tuple[list[Bytes], list[memoryview]]:
    from flowlane.byvalue import pickler_class

    sink = Sink()
    pickler_class()(sink, protocol=PROTOCOL, buffer_callback=sink.stays).dump(value)
    return sink.pieces, sink.buffers


def frames(pieces: Sequence[Bytes]) -> Sequence[Bytes]:
    """Those of `pieces` in which the name of a module may stand."""
    if len(pieces) == 1:
        return pieces
    return [piece for piece in pieces if len(piece) <= _FRAME_MAX]


def may_be_work(stream: Bytes) -> bool:
    """Whether a pickled result may be more work, which the engine has to look into: every kind of work names its module early.

    True as well for the few values that happen to hold that name.
    """
    head = stream if isinstance(stream, bytes) else bytes(memoryview(stream)[:_HEAD])
    return head.find(_WORK, 0, _HEAD) >= 0


def unpickled(payload: Bytes, subject: Callable[[list[str]], str], buffers: Sequence[memoryview] = ()) -> Any:
    """The value again. Raises TransportError when it does not load; `subject` words the way to what does not."""
    try:
        return pickle.loads(payload, buffers=buffers)  # noqa: S301 - made by us
    except (TransportError, Stopped):  # e.g. a task among the values whose module does not load: it says it better
        raise
    except BaseException as error:
        raise explosion(payload, subject, buffers, error) from error


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def bad_argument(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> TransportError:
    """What to raise when pickling the arguments of a call raised `error`."""
    where, reason = _culprit_argument(target, args, kwargs, error)
    return refusal(
        f"{target.name}({where} cannot travel to a worker process: {reason}",
        error,
        hint=f"make it inside the task, or let the task run on threads: routes={{{target.name!r}: 'threads'}}",
    )


def bad_result(value: Any, name: str, error: BaseException) -> TransportError:
    """What to raise when pickling the result of the task `name` raised `error`."""
    if type(value) is CoroutineType:
        value.close()  # else Python warns that it was never awaited
        return refusal(
            f"task '{name}' is a plain function that returned a coroutine, which cannot travel back from its worker process",
            error,
            hint="return asyncio.run(...) of it; or declare the task `async def`, @task.io, so that it runs on asyncio",
        )
    path, reason = search(value, error)
    return refusal(
        f"the result of {name}{path} cannot travel back from its worker process: {reason}",
        error,
        hint=f"return plain data, or let the task run on threads: routes={{{name!r}: 'threads'}}",
    )


def explosion(
    payload: Bytes, subject: Callable[[list[str]], str], buffers: Sequence[memoryview], error: BaseException
) -> TransportError:
    """What to raise when loading `payload` raised `error`; user code runs once more to find where."""
    from flowlane_plugins.executors.culprit import one_line
    from flowlane_plugins.executors.explosion import exploding

    segments, culprit = exploding(_whole(payload, buffers) if buffers else bytes(payload))
    what = f" ({culprit})" if culprit else ""
    return refusal(
        f"{subject(segments)}{what} cannot be unpickled: {one_line(error)}",
        error,
        hint="pickle calls the class's __init__, __setstate__ or what __reduce__ names with what was stored",
    )


def argument_namer(payload: Bytes, fn: Callable[..., Any], name: str) -> Callable[[list[str]], str]:
    """Words the way into the pickled arguments of a call: a tuple, or a list that begins with those by keyword."""
    keyed = bytes(payload[-2:-1]) in (b"e", b"a")  # what comes last in the pickle of a list, and of nothing else

    def subject(segments: list[str]) -> str:
        from flowlane_plugins.executors.culprit import parameter_name

        if not segments or not segments[0][1:-1].isdigit():
            return f"an argument of {name}"
        index = int(segments[0][1:-1])
        if not keyed:
            return f"{name}({parameter_name(fn, index)}){written(segments[1:])}"
        if index:
            return f"{name}({parameter_name(fn, index - 1)}){written(segments[1:])}"
        return f"{name}({segments[1][2:-2] if len(segments) > 1 else '…'}){written(segments[2:])}"

    return subject


def search(value: Any, error: BaseException) -> tuple[str, str]:
    """The written way to what in `value` cannot be pickled, with a space before it, and the reason."""
    from flowlane_plugins.executors.culprit import unpicklable

    path, reason = unpicklable(value, _attempt, error)
    return (f" {path}" if path else ""), reason


def written(segments: list[str]) -> str:
    """The way to a culprit as text, with a space before it."""
    from flowlane_plugins.executors import culprit

    path = culprit.written(segments)
    return f" {path}" if path else ""


def refusal(message: str, cause: BaseException, *, hint: str) -> TransportError:
    """A TransportError about what `cause` says, placed where the user's own code raised it."""
    # The cause is kept for the user's own frames (a __getstate__ that raises); ours would only keep the values alive.
    tb = cause.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(("flowlane", "cloudpickle")):
        tb = tb.tb_next
    cause.__traceback__ = tb
    cause.__context__ = None
    if isinstance(cause, RecursionError):
        hint = "flatten it: pickle gives up on data nested more than a few hundred levels deep"
    return TransportError(message, where=user_frame(cause), hint=hint)


def _culprit_argument(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], error: BaseException
) -> tuple[str, str]:
    from flowlane_plugins.executors.culprit import one_line, parameter_name

    keyed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in keyed:
        own = _attempt(value)
        if own is not None:
            path, reason = search(value, own)
            return f"{parameter_name(target.fn, key)}){path}", reason
    return "…)", one_line(error)


def _attempt(value: Any) -> BaseException | None:
    """Pickle `value`; the error, or None: the question that the search for a culprit asks again and again."""
    try:
        pickled(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - any error means no
        return error
    return None


def _whole(payload: Bytes, buffers: Sequence[memoryview]) -> bytes:
    """A pickle with its buffers put in, for a search that knows only whole ones."""
    import pickletools

    steps = list(pickletools.genops(bytes(payload)))
    ends: list[int] = [position or 0 for _, _, position in steps[1:]]
    rest = iter(buffers)
    parts: list[Any] = []
    for (opcode, _, start), end in zip(steps, [*ends, len(payload)], strict=True):
        if opcode.name == "NEXT_BUFFER":
            buffer = next(rest)
            parts += [b"\x96", len(buffer).to_bytes(8, "little"), buffer]  # BYTEARRAY8
        elif opcode.name != "FRAME":  # which tells lengths that are no longer true, and need not be there
            parts.append(payload[start:end])
    return b"".join(parts)
