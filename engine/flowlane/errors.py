"""Every error flowlane raises on purpose, and :class:`Failure`, a task's own error as data.

Two families. A *definition* or *usage* error is raised before anything starts: it says what the user wrote
(`where` is ``file:line``), what is wrong, and what would be right (`hint`). A task's error during a run is never
raised where it happens: it becomes a :class:`Failure`, travels with the run, and is raised once, inside
:class:`RunFailed`, to whoever waits for the run. Beside them stand `Skip` and `RetryAfter`, which are no errors of ours: tasks
raise them to tell us something.

This module imports next to nothing, so every layer and every worker process may use it.
"""

from __future__ import annotations

import re
import traceback as _traceback
from typing import TYPE_CHECKING, Any, Final, cast

from flowlane.redaction import redacted

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "ArgumentError",
    "CycleError",
    "DefinitionError",
    "EngineClosed",
    "Failure",
    "FlowError",
    "HandleError",
    "ItemsError",
    "LoadError",
    "LostResult",
    "MemoryExceeded",
    "NameTaken",
    "ParameterError",
    "PoisonTask",
    "RepeatLimit",
    "ResultDamaged",
    "RetryAfter",
    "RouteError",
    "RunCancelled",
    "RunFailed",
    "RunLocked",
    "SettingsError",
    "Skip",
    "StoreError",
    "TransportError",
    "UnknownName",
    "UnknownRun",
    "UsageError",
    "WorkerCrashed",
    "WorkflowChanged",
]


_LONGEST_WAIT = 1e9  # seconds
_PATHS: Final = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")  # which are not imported for this
_ITEM_MAX: Final = 120  # characters of an item that are shown
_ITEM_READ: Final = 4_096  # and looked through for secrets
_ITEM_BITS: Final = 256
_ITEM_PARTS: Final = 4
_AN = re.compile("[aeio]|u(?:n(?!i)|p)", re.IGNORECASE)  # an Upload, but a uint8, a UserDict


class FlowError(Exception):
    """Base of all errors of ours.

    `message` is one sentence that names the user's object; `where` is ``"file:line"`` or None; `hint` is the fix or
    None. `exit_code` is what the command line exits with.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f"\n  at {self.where}"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class DefinitionError(FlowError):
    """A task, workflow or graph is declared wrongly; nothing was started."""


class ArgumentError(DefinitionError, TypeError):
    """A call does not fit the signature of the task or workflow."""


class HandleError(DefinitionError, TypeError, AttributeError):
    """A handle (the result of a task that has not run yet) was used as if it were the value.

    It is an AttributeError as well, so that ``hasattr(handle, ...)`` and libraries that probe objects see "no".
    """


class NameTaken(DefinitionError):
    """Two tasks of one workflow carry the same name."""


class UnknownName(DefinitionError):
    """A name refers to no task of the workflow."""


class CycleError(DefinitionError):
    """The declared graph has a cycle. `cycle` holds the names on it, the first repeated at the end."""

    def __init__(self, message: str, *, cycle: list[str], where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.cycle = cycle


class ParameterError(DefinitionError):
    """A workflow parameter is missing, unknown or not valid."""


class RouteError(DefinitionError):
    """A route names an executor that does not exist or that cannot run the task."""


class LoadError(DefinitionError):
    """A workflow file cannot be read, imported or searched."""


class SettingsError(FlowError):
    """A setting (pyproject, environment, command line) is not valid."""


class UsageError(FlowError, RuntimeError):
    """A function of ours was called where it cannot work (for example ``run()`` inside a running event loop)."""


class EngineClosed(UsageError):
    """The engine is not open, or no longer."""


class TransportError(FlowError):
    """An argument, result or function cannot travel to or from a worker process."""


class LostResult(TransportError):
    """A result that had stayed on a cluster is gone, with the machine that held it."""


class StoreError(FlowError):
    """The store cannot do what it is asked: the disk is full, read-only or failing, its files are damaged, from a newer
    version or gone.

    `lost` is true when the run was taken over by another process, so that nothing of ours may be written any more.
    """

    exit_code = 74  # EX_IOERR of sysexits.h

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None, lost: bool = False) -> None:
        super().__init__(message, where=where, hint=hint)
        self.lost = lost
        if lost:
            self.exit_code = 75  # as for any run that another process owns


class ResultDamaged(StoreError):
    """A stored result is not what was written, or was not written by this store's owner. It was not decoded."""


class RunLocked(StoreError):
    """Another process owns the run. `pid` and `host` say which."""

    exit_code = 75  # EX_TEMPFAIL

    def __init__(self, message: str, *, pid: int, host: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.pid = pid
        self.host = host


class RunExists(FlowError):
    """A run was started under a key, or an id, that another run has already. `id` is that run's."""

    def __init__(self, message: str, *, id: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.id = id


class UnknownRun(FlowError):
    """No run of that name is in the store, or several are."""


class WorkflowChanged(FlowError):
    """A run cannot go on as it is, because its workflow is not the one that it was started with. The message tells the
    difference.
    """


class WorkerCrashed(FlowError):
    """The worker that ran a task died. Matches ``RetryPolicy(on=(WorkerCrashed,))``."""


class PoisonTask(WorkerCrashed):
    """A task's worker died twice, the second time alone in a fresh one: the task kills workers. Never retried again."""


class MemoryExceeded(WorkerCrashed):
    """A task took more memory than its ``memory=`` allows, and its worker was killed. Retried as any crash, where the policy has
    attempts left. `limit` and `peak` are bytes; `peak` is what it held when that was seen.
    """

    def __init__(self, message: str, *, limit: int = 0, peak: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.peak = peak


class ItemsError(FlowError, TypeError):
    """What a map goes over, or one of its items, is not what it can go over; that showed when it ran. Raised as the failure of
    the map, or of an element. `where` is the call in the workflow's body.
    """

    exit_code = 1


class RepeatLimit(FlowError):
    """A ``repeat_until`` was not done after as many rounds as it may take. Raised as the failure of its last task."""

    exit_code = 1


class Skip(Exception):
    """Raised by a task that has nothing to do: it ends as skipped, and so does, as a rule, what depends on it. A map leaves out
    elements that were skipped. Its text says why.
    """


class RetryAfter(Exception):
    """Raised by a task that is to be tried again in `seconds`, whatever its policy's backoff and classes of errors: as when a
    service says when to come again. It counts as a failed attempt, and fails the task when no attempt is left.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST_WAIT:  # pyright: ignore[reportUnnecessaryIsInstance] - it may come from a header
            raise ValueError(f"RetryAfter takes seconds, 0 or more, not {seconds!r}")
        super().__init__(seconds, reason)
        self.seconds = float(seconds)
        self.reason = reason

    def __str__(self) -> str:
        return f"again in {self.seconds:g} s" + (f": {self.reason}" if self.reason else "")


class RunFailed(FlowError):
    """A run ended with a failed task, or was not over by its deadline. `result` is its RunResult; `failures` maps task name →
    Failure, and is empty where it was only the deadline.

    ``__cause__`` is the first failed task's own exception where it is at hand.
    """

    exit_code = 1

    def __init__(self, message: str, *, result: Any, failures: dict[str, Failure], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.result = result
        self.failures = failures


class RunCancelled(FlowError):
    """A run was cancelled before it ended. `result` is its RunResult."""

    exit_code = 130

    def __init__(self, message: str, *, result: Any) -> None:
        super().__init__(message)
        self.result = result


class Failure:
    """A task's error as data: what was raised, where, and how it reads.

    type       the exception class's name for people ("ValueError", "shop.errors.BadRow")
    message    ``str(exception)``, or a stand-in when that itself fails; of our own errors the sentence alone
    traceback  formatted text, our own frames left out; ends with the "Type: message" line
    where      ``"file:line in function"`` of the innermost frame; the place that an error of ours names; or None
    notes      the exception's ``__notes__``, then where it came from ("caused by Type: message"; "with Type: message" for
               the first members of a group); for an error of ours its hint instead ("hint: ...")
    ancestry   qualified names of the classes in its MRO; retry policies match by it when the object did not travel
    exception  the object itself, or None when it could not travel from a worker

    Text is made on first use in the process that raised (a traceback costs about 0.2 ms to format).
    """

    __slots__ = ("_exception", "_text", "_where", "ancestry", "message", "notes", "type")

    def __init__(
        self,
        type: str,
        message: str,
        *,
        traceback: str | None = None,
        where: str | None = None,
        notes: tuple[str, ...] = (),
        ancestry: tuple[str, ...] = (),
        exception: BaseException | None = None,
    ) -> None:
        self.type = type
        self.message = message
        self.notes = notes
        self.ancestry = ancestry
        self._text = traceback
        self._where = where
        self._exception = exception

    @classmethod
    def of(cls, exception: BaseException) -> Failure:
        """Describe `exception`. Never raises, whatever its ``__str__`` does."""
        kind = type(exception)
        notes = _safe_notes(exception)
        message: str | None = None
        where: str | None = None
        if isinstance(exception, FlowError):  # where and hint have places of their own
            # A subclass of the user's may never have called our __init__.
            message = getattr(exception, "message", None)
            where = getattr(exception, "where", None)
            hint = getattr(exception, "hint", None)
            if hint:
                notes = (*notes, f"hint: {hint}")
        else:
            notes = (*notes, *_origins(exception))
        return cls(
            shown_name(kind),
            redacted(_safe_str(exception) if message is None else message),
            where=where,
            notes=tuple([redacted(note) for note in notes]),
            ancestry=tuple(qualified_name(base) for base in kind.__mro__[:-1]),
            exception=exception,
        )

    def noted(self, note: str) -> Failure:
        """The same with one more note, the first."""
        text = self.traceback
        return Failure(
            self.type,
            self.message,
            traceback=text,
            where=self.where,
            notes=(note, *self.notes),
            ancestry=self.ancestry,
            exception=self._exception,
        )

    @property
    def exception(self) -> BaseException | None:
        """The exception object, or None when only its description travelled."""
        return self._exception

    @property
    def line(self) -> str:
        """``type: message``, or the type alone where there is no message."""
        return f"{self.type}: {self.message}" if self.message else self.type

    @property
    def traceback(self) -> str:
        """The formatted traceback with its chain of causes, frames of ours left out."""
        if self._text is None:
            formatted = _format(self._exception) if self._exception is not None else f"{self.line}\n"
            self._text = redacted(formatted)
        return self._text

    @property
    def where(self) -> str | None:
        """``"file:line in function"`` of the frame that raised, or None."""
        if self._where is None and self._exception is not None:
            frames = _traceback.extract_tb(_user_frames(self._exception.__traceback__))
            if frames:
                last = frames[-1]
                self._where = f"{last.filename}:{last.lineno} in {last.name}"
        return self._where

    def matches(self, classes: tuple[type[BaseException], ...]) -> bool:
        """Whether the error is an instance of one of `classes`; by name where the object did not travel."""
        if self._exception is not None:
            return isinstance(self._exception, classes)
        return any(qualified_name(cls) in self.ancestry for cls in classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: type, message, where, notes, traceback."""
        return {
            "type": self.type,
            "message": self.message,
            "where": self.where,
            "notes": list(self.notes),
            "traceback": self.traceback,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self.type, self.message, self.traceback, self.where, self.notes, self.ancestry)
        return (_revive, state)

    def __repr__(self) -> str:
        return f"Failure({self.line})"


def _revive(
    type: str, message: str, text: str, where: str | None, notes: tuple[str, ...], ancestry: tuple[str, ...]
) -> Failure:
    return Failure(type, message, traceback=text, where=where, notes=notes, ancestry=ancestry)


def qualified_name(cls: type) -> str:
    """``module.qualname`` of a class, without ``builtins``."""
    module = getattr(cls, "__module__", None)
    name = getattr(cls, "__qualname__", cls.__name__)
    return name if module in (None, "builtins") else f"{module}.{name}"


def shown_name(cls: type) -> str:
    """A class's name for people: as `qualified_name`, without modules of ours and those that `flow run` invents."""
    name = qualified_name(cls)
    return cls.__qualname__ if name.startswith(("_flow_", "flowlane.errors.")) else name


def with_article(name: str) -> str:
    """A class's name for a sentence: "a list", "an int"."""
    return f"{'an' if _AN.match(name) else 'a'} {name}"


def shown_item(value: object) -> str | None:
    """An item of a map in the words of a message, where it is a text, a number, a path or a tuple of a few; None for all else.

    What other values hold is nobody's business in a log, and their ``repr`` is code of the user's. Never raises.
    """
    if type(value) is not tuple:
        return _plain(value)
    items = cast("tuple[object, ...]", value)
    parts = [part for each in items[:_ITEM_PARTS] if (part := _plain(each)) is not None]
    return f"({', '.join(parts)})" if len(parts) == len(items) else None


def _plain(value: object) -> str | None:
    kind = type(value)
    if kind is int:
        if cast("int", value).bit_length() > _ITEM_BITS:
            return None
    elif kind is str or (kind.__name__ in _PATHS and str(kind.__module__).partition(".")[0] == "pathlib"):
        value = str(value)[:_ITEM_READ]
    elif value is not None and kind is not float and kind is not bool:
        return None
    text = redacted(repr(value))
    return text if len(text) <= _ITEM_MAX else f"{text[:_ITEM_MAX]}…"


def _safe_str(exception: BaseException) -> str:
    try:
        return str(exception)
    except BaseException as broken:  # noqa: BLE001 - a __str__ of the user's that raises must not hide the failure it describes
        return f"<no message: {type(exception).__name__}.__str__ raised {type(broken).__name__}>"


def _safe_notes(exception: BaseException) -> tuple[str, ...]:
    try:
        return tuple([str(note) for note in getattr(exception, "__notes__", ()) or ()])
    except BaseException:  # noqa: BLE001 - __notes__ is an attribute like any other, and may hold anything
        return ()


_MEMBERS = 3  # of an exception group that are told
_ORIGIN_MAX = 500  # characters told of a cause or a member


def _origins(exception: BaseException) -> list[str]:
    """One line for the direct cause of an error, and one for each of the first members of a group."""
    lines: list[str] = []
    cause = exception.__cause__ or (None if exception.__suppress_context__ else exception.__context__)
    if cause is not None:
        lines.append(f"caused by {_one_line(cause)}")
    if isinstance(exception, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exception)
        leaves: list[BaseException] = []
        left: list[BaseException] = [group]
        while left and len(leaves) <= _MEMBERS:
            each = left.pop()
            if isinstance(each, BaseExceptionGroup):
                left.extend(reversed(cast("BaseExceptionGroup[BaseException]", each).exceptions))
            else:
                leaves.append(each)
        lines += [f"with {_one_line(leaf)}" for leaf in leaves[:_MEMBERS]]
        if len(leaves) > _MEMBERS:
            lines.append("with more: see the traceback")
    return lines


def _one_line(exception: BaseException) -> str:
    text = f"{shown_name(type(exception))}: {_safe_str(exception)}"
    return text if len(text) <= _ORIGIN_MAX else f"{text[:_ORIGIN_MAX]}…"


_OURS = ("flowlane", "flowlane_plugins")


def _user_frames(tb: TracebackType | None) -> TracebackType | None:
    """Skip the leading frames of ours: they say how the task was called, not what went wrong in it."""
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        if tb.tb_next is None:
            break
        tb = tb.tb_next
    return tb


def _format(exception: BaseException) -> str:
    try:
        lines = _traceback.format_exception(type(exception), exception, _user_frames(exception.__traceback__))
    except BaseException as broken:  # noqa: BLE001 - e.g. a __str__ that raises deeper in the chain
        return f"{qualified_name(type(exception))}: <traceback not printable: {type(broken).__name__}>\n"
    return "".join(lines)
