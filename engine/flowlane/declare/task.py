"""@task.io and @task.cpu: a function made into something that can be a node.

A Task is a thin, immutable wrapper. Decorating is light: options are checked by name only and kept as they are, and the
signature is read at the first call. Calling a Task inside a workflow body records a node and returns a handle that
checkers see as the function's result; ``task.fn`` is the function itself; ``task.bind(...)`` is a call without a node;
``task.options(...)`` is the same task with other options.

No call into the user's parameters carries an option of ours: so a task may have parameters named `name` or `timeout`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from flowlane.declare.callsite import caller, frame_at, spot
from flowlane.declare.function import check_function, place_of
from flowlane.declare.handle import Handle
from flowlane.declare.options import CALL_OPTIONS, TASK_OPTIONS, Settings, check_name, unknown_option
from flowlane.errors import ArgumentError, DefinitionError
from flowlane.program import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from types import FrameType
    from typing import Protocol, Self, Unpack

    from flowlane.declare.options import CallOptions, TaskOptions
    from flowlane.declare.shape import Shape

    class Recorder(Protocol):
        """A graph being built, as far as a task needs to know it."""

        def record(
            self,
            task: Task[Any, Any, Any],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            label: str | None,
            after: Sequence[object],
            frame: FrameType,
        ) -> Any: ...


__all__ = ["BODY", "Call", "Task", "raise_misfit", "task"]

#: What a map goes over when it is called without that.
NOT_GIVEN: Final[Any] = object()

#: The graph that calls of tasks are recorded in: set while a body runs, and only then.
BODY: Final[ContextVar[Recorder | None]] = ContextVar("flowlane body", default=None)

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F_co = TypeVar("F_co", covariant=True)
S = TypeVar("S")
V = TypeVar("V")
T = TypeVar("T")
K = TypeVar("K")


class Task(Generic[P, R_co, F_co]):
    """A function that can be a node of a workflow. Made by ``@task.io`` and ``@task.cpu``; immutable.

    fn        the original function, to call it directly: ``fetch.fn(url)``, ``await fetch.fn(url)``
    name      its name; a node is called so, and ``name#2`` and on where it is called again
    kind      "io" or "cpu"
    is_async  whether `fn` is an ``async def``
    """

    fn: F_co
    name: str
    kind: Literal["io", "cpu"]
    is_async: bool

    def __init__(self, fn: F_co, kind: Literal["io", "cpu"], options: Mapping[str, Any]) -> None:
        function: Any = fn
        where = caller()
        if isinstance(function, Task):
            name = function.name  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            raise DefinitionError(f"{name!r} is a task already", where=where, hint="use @task.io or @task.cpu, once")
        self.fn = fn
        self.kind = kind
        self.is_async = check_function(function, kind, where)
        raw = dict(options)
        given = raw.pop("name", None)
        if given is None:
            self.name = "lambda" if function.__name__ == "<lambda>" else function.__name__
        else:
            self.name = check_name(given, f"task {function.__name__!r}", where)
        # For the rest of the package:
        self.settings = Settings(self, raw, spot())
        self.label: str | None = None  # the name of a single call, from options(name=...)
        self.after: Sequence[object] = ()  # from options(after=...)
        self.prefix: tuple[Any, ...] = ()  # arguments before those of a call: the instance, for a method
        self.__name__: str = function.__name__
        self.__qualname__: str = getattr(function, "__qualname__", function.__name__)
        self.__module__: str = getattr(function, "__module__", None) or "builtins"
        self.__doc__ = getattr(function, "__doc__", None)
        self.__wrapped__: Any = fn

    @property
    def where(self) -> str | None:
        """``file:line`` of the function, decorators included; None for one without Python code."""
        return place_of(self.settings.task.fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """In a workflow body: record a node that will make this call, and return its handle, typed as the result.

        Raises ArgumentError when the arguments do not fit the function, DefinitionError outside of a body.
        """
        body = BODY.get()
        if body is None:
            raise self._outside()
        return body.record(self, args, kwargs, self.label, self.after, frame_at(1))  # type: ignore[no-any-return]

    def options(self, **options: Unpack[CallOptions]) -> Self:
        """The same task with other options, for one call or more: ``fetch.options(retries=5, name="eu")(url)``.

        Given options replace those of the decorator, the others stay. See CallOptions.
        """
        return self._with(options)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """This task with arguments, as no node yet: for ``Workflow.add``. Raises ArgumentError when they do not fit."""
        self.check_arguments(args, kwargs)
        return Call(self, args, kwargs)

    # ── over many items ───────────────────────────────────────────────────────────────────────────────────────────
    # `self` as what can be called with an item: both checkers then hold the items against the first parameter.

    @overload
    def map(  # type: ignore[overload-overlap]  # a Mapping is an Iterable, of its keys: it comes first
        self: Callable[Concatenate[T, P2], R],
        over: Mapping[K, T],
        /,
        *args: P2.args,
        **kwargs: P2.kwargs,
    ) -> dict[K, R]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, P2], R],
        over: Iterable[T],
        /,
        *args: P2.args,
        **kwargs: P2.kwargs,
    ) -> list[R]: ...
    def map(self, over: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """In a workflow body: one task for each item, which becomes the first argument; the others are the same for all.

        `over` is a list, a mapping (its values; the keys name the elements: ``fetch[us-east]``), any other iterable, which is
        read as needed, or the result of a task that returns such a thing. Over the result of another map each item goes on as
        soon as it is there. Returns the handle of the list of results, for a mapping that of a dict with the same keys.

        Raises ArgumentError when the function cannot be called so, DefinitionError for what has no items.
        """
        from flowlane.declare.mapping import record_map

        return record_map(self, over, args, kwargs, frame_at(1))

    def starmap(self, tuples: Iterable[tuple[Any, ...]] = NOT_GIVEN, /, **fixed: Any) -> list[R_co]:
        """`map` over tuples, whose parts become the first arguments: ``join.starmap(zipped(pages, sizes))``.

        What does not fit the function is told at once where it shows, else when it runs.
        """
        from flowlane.declare.mapping import record_map

        return cast("list[R_co]", record_map(self, tuples, (), fixed, frame_at(1), star=True))

    @overload
    def filter(  # type: ignore[overload-overlap]  # as for map
        self: Callable[Concatenate[T, P2], object],
        over: Mapping[K, T],
        /,
        *args: P2.args,
        **kwargs: P2.kwargs,
    ) -> dict[K, T]: ...
    @overload
    def filter(
        self: Callable[Concatenate[T, P2], object],
        over: Iterable[T],
        /,
        *args: P2.args,
        **kwargs: P2.kwargs,
    ) -> list[T]: ...
    def filter(self, over: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """`map` that gives the items themselves: those for which the task returns something true, in order."""
        from flowlane.declare.mapping import record_map

        return record_map(self, over, args, kwargs, frame_at(1), filters=True)

    def reduce(
        self: Task[..., T, Callable[Concatenate[list[T], ...], Any]],
        items: Iterable[T],
        /,
        *,
        fan_in: int | None = None,
    ) -> T:
        """Merge many into one: this task takes a list of them and returns one of them.

        Without `fan_in` it is one call with all `items`. With it, it is a tree: calls merge so many each, in order of index, as
        soon as they are there, then what those returned, until one is left; so not all need to be in memory.
        """
        from flowlane.declare.mapping import record_reduce

        return cast("T", record_reduce(cast("Any", self), items, fan_in, frame_at(1)))

    def repeat_until(
        self: Task[Concatenate[T, P2], T, Callable[Concatenate[T, ...], Any]],
        until: Callable[[T], object],
        start: T,
        /,
        *,
        limit: int,
    ) -> T:
        """In a workflow body: call this task on `start`, then on what it returned, until `until` says of that something true.

        At most `limit` times: then it fails with RepeatLimit. How often shows when it runs. Raises DefinitionError or
        ArgumentError when the two tasks cannot be called with one value.
        """
        from flowlane.declare.repeat import record_loop

        return cast("T", record_loop(cast("Any", self), until, start, limit, frame_at(1)))

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(
        self: Task[Concatenate[S, P2], R, Callable[Concatenate[S, P2], V]], instance: S, owner: type[Any] | None = None
    ) -> Task[P2, R, Callable[P2, V]]: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        """Methods bind: the instance becomes the first argument (and travels as such)."""
        if instance is None:
            return self
        bound = self._copy()
        bound.fn = self.fn.__get__(instance, owner)  # type: ignore[attr-defined]
        bound.__wrapped__ = cast("Any", bound).fn
        bound.prefix = (instance,)
        return bound

    def __repr__(self) -> str:
        options = {**self.settings.options}
        if self.label is not None:
            options["name"] = self.label
        if self.after:
            options["after"] = self.after
        shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return f"<task.{self.kind} {self.__module__}.{self.__qualname__}{f' with {shown}' if shown else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as where it can be found; by value when that is nowhere (``__main__``, closures)."""
        from flowlane.declare.travel import reduce_task

        return reduce_task(self)

    # ── within the package ────────────────────────────────────────────────────────────────────────────────────────

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentError unless the function can be called so."""
        if self.prefix:
            args = (*self.prefix, *args)
        shape = self.settings.measure()
        if not shape.fits(args, kwargs):
            raise_misfit(self, shape, args, kwargs)

    def unlabelled(self) -> Self:
        """The same task without a name for a single call."""
        if self.label is None:
            return self
        new = self._copy()
        new.label = None
        return new

    def _with(self, options: Mapping[str, Any]) -> Self:
        for key in options:
            if key not in CALL_OPTIONS:
                raise unknown_option(f"{self.name}.options()", key, CALL_OPTIONS)
        new = self._copy()
        changed = False
        for key, value in options.items():
            if key == "name":
                new.label = check_name(value, f"a call of task {self.name!r}")
            elif key == "after":
                new.after = (
                    (value,)
                    if isinstance(value, str) or type(value) is Handle
                    else tuple(cast("Iterable[object]", value))
                )
            else:
                changed = True
        if changed:
            merged = {**self.settings.options, **options}
            merged.pop("name", None)
            merged.pop("after", None)
            # `retries` and `retry` say the same thing: the call's word replaces the decorator's, whichever it used
            if "retries" in options and "retry" not in options:
                merged.pop("retry", None)
            elif "retry" in options and "retries" not in options:
                merged.pop("retries", None)
            new.settings = Settings(self.settings.task, merged, spot())
        return new

    def _copy(self) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def _outside(self) -> DefinitionError:
        awaited = "await " if self.is_async else ""
        return DefinitionError(
            f"task {self.name!r} was called outside a workflow body",
            where=caller(),
            hint=f"{awaited}{self.name}.fn(...) calls the function itself; {self.name}.bind(...) makes a Call "
            "for Workflow.add; or call it in a function under @workflow",
        )


class Call(Work[R_co]):
    """A task with its arguments, and no node yet: ``wf.add(fetch.bind(url))``. May be added any number of times."""

    __slots__ = ("args", "kwargs", "task")

    def __init__(self, task: Task[..., R_co, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs

    @property
    def options(self) -> Mapping[str, Any]:
        """The raw options in force, the decorator's and those of ``.options(...)`` together."""
        return self.task.settings.options

    def __repr__(self) -> str:
        return f"<call of task {self.task.name!r}, not in a workflow yet>"


def raise_misfit(task: Task[Any, Any, Any], shape: Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Word why the arguments do not fit, with the function's own signature at hand."""
    reason, close = shape.misfit(args, kwargs)
    signature = shape.signature
    if reason is None or signature is None:
        return
    if task.prefix:  # people do not write the instance of a method
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    hint = f"the signature is {task.name}{signature}"
    option = next((key for key in kwargs if key in CALL_OPTIONS and key not in shape.index), None)
    if option is not None and not shape.keywords:
        hint = f"options go into {task.name}.options({option}=...)(...)"
    elif close:
        hint = f"did you mean {close!r}? {hint}"
    raise ArgumentError(f"task {task.name!r}: {reason}", where=caller(), hint=hint)


#: What a task that makes an R may return: one, or work that makes one. (mypy takes a function whose type was *written* with an
#: Any, as in Callable[[str], Coroutine[Any, Any, bytes]], to fit several decorators at once, and its result for Any.)
More: TypeAlias = R | Work[R]


# ── the decorators ────────────────────────────────────────────────────────────────────────────────────────────────────


class _IoWithOptions:
    """What ``@task.io(...)`` returns."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Work[R]], /) -> Task[P, R, Callable[P, Work[R]]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, More[R]]], /
    ) -> Task[P, R, Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, More[R]], /) -> Task[P, R, Callable[P, R]]: ...
    def __call__(self, fn: Any, /) -> Any:
        return cast("Any", Task(fn, "io", self._options))


class _CpuWithOptions:
    """What ``@task.cpu(...)`` returns."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Work[R]], /) -> Task[P, R, Callable[P, Work[R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, More[R]], /) -> Task[P, R, Callable[P, R]]: ...
    def __call__(self, fn: Any, /) -> Any:
        return cast("Any", Task(fn, "cpu", self._options))


class _Io:
    @overload
    def __call__(self, fn: Callable[P, Work[R]], /) -> Task[P, R, Callable[P, Work[R]]]: ...
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, More[R]]], /
    ) -> Task[P, R, Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, More[R]], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskOptions]) -> _IoWithOptions: ...
    def __call__(self, fn: Any = None, /, *more: Any, **options: Any) -> Any:
        given = _check_decoration("io", fn, more, options)
        return _IoWithOptions(given) if fn is None else cast("Any", Task(fn, "io", given))


class _Cpu:
    @overload
    def __call__(self, fn: Callable[P, Work[R]], /) -> Task[P, R, Callable[P, Work[R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, More[R]], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskOptions]) -> _CpuWithOptions: ...
    def __call__(self, fn: Any = None, /, *more: Any, **options: Any) -> Any:
        given = _check_decoration("cpu", fn, more, options)
        return _CpuWithOptions(given) if fn is None else cast("Any", Task(fn, "cpu", given))


def _check_decoration(kind: str, fn: Any, more: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key not in TASK_OPTIONS:
            if key == "after":
                raise DefinitionError(
                    f"@task.{kind} has no option 'after': it belongs to a call, not to the task",
                    where=caller(),
                    hint="the_task.options(after=[...])(...)",
                )
            raise unknown_option(f"@task.{kind}", key, TASK_OPTIONS)
    if fn is None:
        return options
    if more or options or not (callable(fn) or isinstance(fn, classmethod)):
        raise DefinitionError(
            f"@task.{kind} takes either the function or options by keyword, and was given {fn!r}",
            where=caller(),
            hint=f"@task.{kind}(retries=3) above the function",
        )
    return options


class _Tasks:
    """``task.io`` and ``task.cpu``: the kind of a task says what it is short of, and so where it runs.

    io   it waits: for a network, a disk, another process. ``async def`` runs on asyncio, ``def`` in a thread.
    cpu  it computes. It runs in a worker process, so its arguments and result are pickled.
    """

    io = _Io()
    cpu = _Cpu()

    if not TYPE_CHECKING:  # to a checker, `@task` alone is simply not callable

        def __call__(self, *_args: Any, **_options: Any) -> Any:
            raise DefinitionError(
                "@task alone does not say what kind of task it is",
                where=caller(),
                hint="@task.io for one that waits, @task.cpu for one that computes",
            )


task: Final = _Tasks()
