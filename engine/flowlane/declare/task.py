"""@task.io and @task.cpu: a function made into something that can be a node.

A Task is a thin, immutable wrapper. Decorating is light: options are checked by name only and kept as they are, and the
signature is read at the first call. Calling a Task inside a workflow body records a node and returns a handle that
checkers see as the function's result; ``task.fn`` is the function itself; ``task.bind(...)`` is a call without a node;
``task.options(...)`` is the same task with other options.

No call into the user's parameters carries an option of ours: so a task may have parameters named `name` or `timeout`.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    cast,
    overload,
)

from flowlane.declare.callsite import caller, did_you_mean, frame_at, place, spot, words
from flowlane.declare.handle import Handle, kind_of
from flowlane.errors import ArgumentError, DefinitionError

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from types import FrameType
    from typing import Protocol, Self, Unpack

    from flowlane.declare.callsite import Spot
    from flowlane.declare.spec import RetryPolicy, TaskSpec
    from flowlane.loader import Address

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


__all__ = ["BODY", "Call", "CallOptions", "Settings", "Shape", "Task", "TaskOptions", "check_name", "task"]

#: The graph that calls of tasks are recorded in: set while a body runs, and only then.
BODY: Final[ContextVar[Recorder | None]] = ContextVar("flowlane body", default=None)
#: Tasks whose functions are being pickled by value just now, outermost first.
_DUMPING: Final[ContextVar[tuple[Task[Any, Any, Any], ...]]] = ContextVar("flowlane dumping", default=())

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F_co = TypeVar("F_co", covariant=True)
S = TypeVar("S")
V = TypeVar("V")


class TaskOptions(TypedDict, total=False):
    """What @task.io(...) and @task.cpu(...) take. Times are in seconds.

    name           the task's name, instead of the function's
    retries        how often to try again after a failed attempt: short for ``retry=RetryPolicy(attempts=retries + 1)``
    retry          a RetryPolicy: attempts, backoff, and which errors
    timeout        for each attempt, from the moment a worker starts it; None for none
    total_timeout  for all attempts together with the waiting between them, from when the task is first ready
    executor       the executor to run on, whatever its kind says
    """

    name: str
    retries: int
    retry: RetryPolicy
    timeout: float | None
    total_timeout: float | None
    executor: str | None


class CallOptions(TaskOptions, total=False):
    """What ``task.options(...)`` takes: all of TaskOptions for one call, where `name` names the node, and

    after   tasks to wait for without reading their values: handles, or names that may come later
    """

    after: Sequence[object]


_TASK_OPTIONS: Final = ("name", "retries", "retry", "timeout", "total_timeout", "executor")
_CALL_OPTIONS: Final = (*_TASK_OPTIONS, "after")

_CO_GENERATOR: Final = 0x20  # inspect.CO_GENERATOR and so on; importing inspect costs a fifth of our own import
_CO_COROUTINE: Final = 0x80
_CO_ASYNC_GENERATOR: Final = 0x200
_INFINITE: Final = sys.maxsize


def check_name(name: object, what: str, where: str | None = None) -> str:
    """`name` if it may name a task, node or workflow; DefinitionError otherwise. `what` opens the message."""
    if not isinstance(name, str):
        raise DefinitionError(
            f"{what} is named {name!r}, which is a {type(name).__name__}",
            where=where or caller(),
            hint="a name is a str",
        )
    if not name or not name.isprintable() or any(c in name for c in "/#[]"):
        raise DefinitionError(
            f"{what} cannot be named {name!r}",
            where=where or caller(),
            hint="names hold printable characters, and none of / # [ ], which mark sub-workflows, repeats and elements",
        )
    return name


class Shape:
    """What a function's signature accepts, reduced to what one needs to say yes quickly.

    least, most  how many positional arguments fit (`least` is out of reach when a keyword-only one is required)
    """

    __slots__ = ("index", "keywords", "least", "most", "required", "signature")

    def __init__(self, signature: inspect.Signature | None) -> None:
        self.signature = signature
        self.least = 0
        self.most = _INFINITE
        self.keywords = True  # takes any keyword
        self.index: dict[str, int] = {}  # name → position, of what can be given by name; -1 for keyword-only
        self.required: tuple[tuple[str, int], ...] = ()
        if signature is not None:
            self._read(signature)

    def _read(self, signature: inspect.Signature) -> None:
        positional = least = 0
        self.keywords = unbounded = False
        required: list[tuple[str, int]] = []
        keyword_only_required = False
        for parameter in signature.parameters.values():
            needed = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_POSITIONAL:
                unbounded = True
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.keywords = True
            elif parameter.kind is parameter.KEYWORD_ONLY:
                self.index[parameter.name] = -1
                keyword_only_required |= needed
                if needed:
                    required.append((parameter.name, _INFINITE))
            else:
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                    self.index[parameter.name] = positional
                if needed:
                    required.append((parameter.name, positional))
                    least = positional + 1
                positional += 1
        self.least = _INFINITE if keyword_only_required else least
        self.most = _INFINITE if unbounded else positional
        self.required = tuple(required)

    def fits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the function can be called so."""
        given = len(args)
        if not kwargs:
            return self.least <= given <= self.most
        if given > self.most:
            return False
        index = self.index
        for name in kwargs:
            position = index.get(name)
            if position is None:
                if not self.keywords:
                    return False
            elif 0 <= position < given:
                return False
        return all(given > position or (name in kwargs and name in index) for name, position in self.required)


    def misfit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Why the function cannot be called so (None: it can after all), and the parameter that was probably meant.

        A name that no parameter has is told first: with it, whatever is missing is usually explained too.
        """
        for key in kwargs if not self.keywords else ():
            if key not in self.index:
                return f"got an unexpected keyword argument {key!r}", did_you_mean(key, self.index)
        try:
            if self.signature is not None:
                self.signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error), None
        return None, None


class Settings:
    """The options of a task, shared by all its nodes; those of one call when it has its own.

    options  raw, as written, `name` and `after` left out
    task     the task as it was decorated
    where    ``file:line`` of where they were written
    spec     their checked form, made when a workflow is first compiled
    shape    what arguments fit the function, read at the first call
    """

    __slots__ = ("options", "shape", "spec", "spot", "task")

    def __init__(self, task: Task[Any, Any, Any], options: dict[str, Any], spot: Spot | None) -> None:
        self.task = task
        self.options = options
        self.spot = spot
        self.spec: TaskSpec | None = None
        self.shape: Shape | None = None

    @property
    def where(self) -> str | None:
        """``file:line`` of where they were written."""
        return words(self.spot)

    def measure(self) -> Shape:
        """The shape, read now if this is the first call."""
        shape = self.shape
        if shape is None:
            own = self.task.settings
            if own.shape is None:
                own.shape = Shape(_signature(self.task.fn))
            shape = self.shape = own.shape
        return shape


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
        self.fn = fn
        self.kind = kind
        self.is_async = _check_function(function, kind, where)
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
        return _place_of(self.settings.task.fn)

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
        from flowlane.loader import address_of

        origin = self.settings.task
        function: Any = origin.fn
        derived = None
        if self is not origin:
            derived = {key: value for key, value in self.settings.options.items()}
            if self.label is not None:
                derived["name"] = self.label
        address = address_of(function, origin)
        if address is not None:
            return _found_again, (address, origin.name, origin.kind, derived, self.prefix)
        return _by_value(origin, derived, self.prefix)

    # ── within the package ────────────────────────────────────────────────────────────────────────────────────────

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentError unless the function can be called so."""
        if self.prefix:
            args = (*self.prefix, *args)
        shape = self.settings.measure()
        if not shape.fits(args, kwargs):
            raise_misfit(self, shape, args, kwargs)

    def _with(self, options: Mapping[str, Any]) -> Self:
        for key in options:
            if key not in _CALL_OPTIONS:
                raise _unknown_option(f"{self.name}.options()", key, _CALL_OPTIONS)
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


class Call(Generic[R_co]):
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


# ── checking ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_function(fn: Any, kind: str, where: str | None) -> bool:
    """Refuse what cannot be a task; tell whether `fn` is async."""
    if isinstance(fn, Task):
        raise DefinitionError(
            f"{fn.name!r} is a task already", where=where, hint="use one of @task.io and @task.cpu, once"
        )
    made_of = kind_of(fn)
    if issubclass(made_of, (staticmethod, classmethod)):
        raise DefinitionError(
            f"@task.{kind} stands above @{made_of.__name__}", where=where, hint=f"swap them: @{made_of.__name__} above"
        )
    if isinstance(fn, type):
        raise DefinitionError(
            f"class {fn.__name__!r} cannot be a task", where=where, hint="decorate a function that makes the object"
        )
    if not callable(fn):
        raise DefinitionError(f"@task.{kind} takes a function, not {fn!r}", where=where)
    name = getattr(fn, "__name__", None)
    if not isinstance(name, str):
        raise DefinitionError(
            f"{type(fn).__name__} objects cannot be tasks: they have no name",
            where=where,
            hint="write a function (def) that calls it",
        )
    flags = _code_flags(fn)
    here = _place_of(fn) or where
    if flags & (_CO_GENERATOR | _CO_ASYNC_GENERATOR):
        raise DefinitionError(
            f"task {name!r} is a generator function (it has yield)", where=here, hint="return a list instead"
        )
    is_async = bool(flags & _CO_COROUTINE)
    if is_async and kind == "cpu":
        raise DefinitionError(
            f"cpu task {name!r} is an async def, and cpu tasks run in worker processes without an event loop",
            where=here,
            hint="write it as def, or tag it @task.io if it waits rather than computes",
        )
    return is_async


def _code_flags(fn: Any) -> int:
    function = getattr(fn, "__func__", fn)  # of a bound method
    code = getattr(function, "__code__", None)
    flags: int = getattr(code, "co_flags", 0)
    if not flags & _CO_COROUTINE and hasattr(function, "_is_coroutine_marker"):
        import inspect

        if inspect.iscoroutinefunction(fn):  # 3.12's markcoroutinefunction
            flags |= _CO_COROUTINE
    return flags


def _place_of(fn: Any) -> str | None:
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    return None if code is None else place(code.co_filename, code.co_firstlineno)


def _signature(fn: Any) -> inspect.Signature | None:
    import inspect

    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):  # some functions written in C do not tell
        return None


def _unknown_option(subject: str, key: str, known: Sequence[str]) -> DefinitionError:
    close = did_you_mean(key, known)
    return DefinitionError(
        f"{subject} has no option {key!r}; its options: {', '.join(known)}",
        where=caller(),
        hint=f"did you mean {close!r}?" if close else None,
    )


def raise_misfit(task: Task[Any, Any, Any], shape: Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Word why the arguments do not fit, with the function's own signature at hand."""
    reason, close = shape.misfit(args, kwargs)
    signature = shape.signature
    if reason is None or signature is None:
        return
    if task.prefix:  # people do not write the instance of a method
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    hint = f"the signature is {task.name}{signature}"
    option = next((key for key in kwargs if key in _CALL_OPTIONS and key not in shape.index), None)
    if option is not None and not shape.keywords:
        hint = f"options go into {task.name}.options({option}=...)(...)"
    elif close:
        hint = f"did you mean {close!r}? {hint}"
    raise ArgumentError(f"task {task.name!r}: {reason}", where=caller(), hint=hint)


# ── travelling ────────────────────────────────────────────────────────────────────────────────────────────────────


def _found_again(
    address: Address, name: str, kind: Literal["io", "cpu"], derived: dict[str, Any] | None, prefix: tuple[Any, ...]
) -> Task[Any, Any, Any]:
    from flowlane.loader import resolve

    fn = resolve(address)
    found: Any = sys.modules[address.module]
    for part in address.qualname.split("."):
        found = getattr(found, part)
    if isinstance(found, Task):
        return _derive(cast("Any", found), derived, prefix)
    # the function kept its own name: fetch_task = task.io(fetch)
    return _derive(Task(fn, kind, {"name": name}), derived, prefix)


def _derive(base: Task[Any, Any, Any], derived: dict[str, Any] | None, prefix: tuple[Any, ...]) -> Task[Any, Any, Any]:
    found = base._with(derived) if derived is not None else base  # pyright: ignore[reportPrivateUsage]
    return found.__get__(prefix[0]) if prefix else found


def _by_value(origin: Task[Any, Any, Any], derived: dict[str, Any] | None, prefix: tuple[Any, ...]) -> tuple[Any, ...]:
    """How to pickle a task that cannot be found again.

    The function travels as cloudpickle's bytes. A recursive one reaches its own task through its globals, which would come
    back here for ever: inside such a dump the function is handed to the pickler at work, which remembers it.
    """
    import importlib

    dumping = _DUMPING.get()
    options = {**origin.settings.options, "name": origin.name}
    if origin in dumping:
        return _revived, (origin.fn, origin.kind, options, derived, prefix)
    cloudpickle: Any = importlib.import_module("cloudpickle")  # it comes without type information

    token = _DUMPING.set((*dumping, origin))
    try:
        payload: bytes = cloudpickle.dumps(origin.fn)
    finally:
        _DUMPING.reset(token)
    return _revived, (payload, origin.kind, options, derived, prefix)


def _revived(
    function: Any, kind: Literal["io", "cpu"], options: dict[str, Any], derived: dict[str, Any] | None, prefix: Any
) -> Task[Any, Any, Any]:
    if isinstance(function, bytes):
        import pickle

        function = pickle.loads(function)  # bytes that _by_value made, on their way to a worker
    return _derive(Task(function, kind, options), derived, prefix)


# ── the decorators ────────────────────────────────────────────────────────────────────────────────────────────────


class _IoWithOptions:
    """What ``@task.io(...)`` returns."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R, Callable[P, R]]: ...
    def __call__(self, fn: Any, /) -> Any:
        return cast("Any", Task(fn, "io", self._options))


class _CpuWithOptions:
    """What ``@task.cpu(...)`` returns."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def __call__(self, fn: Callable[P, R], /) -> Task[P, R, Callable[P, R]]:
        return Task(fn, "cpu", self._options)


class _Io:
    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, R, Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskOptions]) -> _IoWithOptions: ...
    def __call__(self, fn: Any = None, /, *more: Any, **options: Any) -> Any:
        given = _check_decoration("io", fn, more, options)
        return _IoWithOptions(given) if fn is None else cast("Any", Task(fn, "io", given))


class _Cpu:
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R, Callable[P, R]]: ...
    @overload
    def __call__(self, /, **options: Unpack[TaskOptions]) -> _CpuWithOptions: ...
    def __call__(self, fn: Any = None, /, *more: Any, **options: Any) -> Any:
        given = _check_decoration("cpu", fn, more, options)
        return _CpuWithOptions(given) if fn is None else cast("Any", Task(fn, "cpu", given))


def _check_decoration(kind: str, fn: Any, more: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key not in _TASK_OPTIONS:
            if key == "after":
                raise DefinitionError(
                    f"@task.{kind} has no option 'after': it belongs to a call, not to the task",
                    where=caller(),
                    hint="the_task.options(after=[...])(...)",
                )
            raise _unknown_option(f"@task.{kind}", key, _TASK_OPTIONS)
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

        def __call__(self, *args: Any, **options: Any) -> Any:
            raise DefinitionError(
                "@task alone does not say what kind of task it is",
                where=caller(),
                hint="@task.io for one that waits, @task.cpu for one that computes",
            )


task: Final = _Tasks()
