"""@workflow: a function whose body declares a graph, and what run() accepts.

A WorkflowDefinition is the function; ``bind`` adds its parameters; ``Bound.build`` checks those, runs the body once and
gives the Workflow (nodes.py) that the body declared. A Workflow made by a program is bound as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast, overload

from flowlane.declare.bounds import BOUNDS, NO_BOUNDS, Bounds
from flowlane.declare.callsite import caller, did_you_mean, frame_at, place, user_frame
from flowlane.declare.function import ASYNC, GENERATOR, code_flags
from flowlane.declare.handle import Handle
from flowlane.declare.nodes import OnFailure, Workflow, check_on_failure
from flowlane.declare.options import check_name
from flowlane.declare.shape import Shape, signature_of
from flowlane.declare.task import BODY, NOT_GIVEN, Call, Task
from flowlane.errors import ArgumentError, DefinitionError, Failure, FlowError, UsageError
from flowlane.program import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Concatenate, Self, Unpack

    from flowlane.declare.nesting import CallOfWorkflow
    from flowlane.declare.parameters import Parameters


__all__ = ["Bound", "OnFailure", "Workflow", "WorkflowDefinition", "as_bound", "workflow"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P2 = ParamSpec("P2")
R2 = TypeVar("R2")
T = TypeVar("T")
K = TypeVar("K")

#: Options of run() and friends, which a workflow's parameters may collide with.
RUN_OPTIONS: Final = (
    "check",
    "routes",
    "slots",
    "executors",
    "sinks",
    "on_failure",
    "store",
    "options",
    "grace",
    "key",
    *BOUNDS,
    "limits",
    "only",
    "start_at",
    "until",
)


class Bound(Work[R_co]):
    """A workflow with everything it needs to run: ``run(etl.bind(urls=[...]), check=False)``. May be run many times."""

    __slots__ = ("_args", "_has_result", "_kwargs", "_result", "_valid", "definition")

    definition: WorkflowDefinition[..., R_co] | Workflow

    def __init__(self, definition: Workflow, result: Any = None, *, has_result: bool = False) -> None:
        self.definition = definition
        self._result = result
        self._has_result = has_result
        self._args: tuple[Any, ...] = ()
        self._kwargs: Mapping[str, Any] = {}
        self._valid = False

    @classmethod
    def of_definition(
        cls,
        definition: WorkflowDefinition[..., R_co],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        valid: bool = False,
    ) -> Bound[R_co]:
        """A definition with arguments; `valid` ones were coerced and checked already."""
        bound = object.__new__(cls)
        bound.definition = definition
        bound._result, bound._has_result = None, False
        bound._args, bound._kwargs, bound._valid = args, kwargs, valid
        return bound

    @property
    def name(self) -> str:
        """The workflow's name."""
        return self.definition.name

    def build(self) -> Workflow:
        """Check the parameters and run the body, once; the graph it declared. Blocks the caller's thread for that long.

        Raises ParameterError for a value that is not valid, DefinitionError for what the body did wrong; any other
        exception in the body becomes a DefinitionError with the exception as its cause.
        """
        definition = self.definition
        if isinstance(definition, Workflow):
            return definition.with_result(self._result) if self._has_result else definition
        parameters = definition.parameters
        if self._valid:
            return definition.declare(parameters, dict(self._kwargs))
        return definition.declare(parameters, parameters.validate(parameters.arrange(self._args, self._kwargs)))

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}, bound>"


class WorkflowDefinition(Generic[P, R]):
    """A workflow written as a function. Made by ``@workflow``; run it with ``run(etl, ...)`` or ``flow run``.

    name        its name: the function's, or what was given
    fn          the function; calling it in another body puts its tasks there
    where       ``file:line`` of the function
    on_failure  "continue" or "fail_fast"
    bounds      what bounds a run of it as a whole
    """

    fn: Callable[P, R]
    name: str
    where: str | None
    on_failure: OnFailure
    bounds: Bounds

    def __init__(
        self,
        fn: Callable[P, R],
        name: str | None = None,
        on_failure: OnFailure = "continue",
        bounds: Bounds = NO_BOUNDS,
    ) -> None:
        here = caller()
        own = _check_body(fn, here)
        code = getattr(fn, "__code__", None)
        self.fn = fn
        self.where = place(code.co_filename, code.co_firstlineno) if code is not None else here
        self.name = check_name(own if name is None else name, f"workflow {own!r}", self.where)
        self.on_failure = check_on_failure(on_failure, self.name, self.where)
        self.bounds = bounds
        # For the rest of the package:
        self.call_options: Mapping[str, Any] = {}  # of calls in another body, raw
        self.stand_in: Task[Any, Any, Any] | None = None  # what stands for it in a table of nodes
        self._scope = _scope_of_annotations(fn)
        self._parameters: Parameters | None = None
        self._shape: Shape | None = None
        self.__name__ = own
        self.__qualname__: str = getattr(fn, "__qualname__", own)
        self.__module__: str = fn.__module__
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Bound[R]:
        """This workflow with its parameters; they are coerced and checked when it is built. Raises ArgumentError
        when they do not fit the function's signature."""
        self.check_arguments(args, kwargs)
        return Bound[R].of_definition(self, args, kwargs)

    def from_text(self, texts: Mapping[str, str], values: Mapping[str, Any]) -> Bound[R]:
        """This workflow with parameters from a command line (`texts`) and from decoded JSON (`values`; a text wins).

        A text for a ``str`` parameter is taken as it is; one that begins with ``[`` or ``{`` is JSON; otherwise it is
        parsed as its type. Raises ParameterError that names every parameter which is unknown, missing or not valid.
        """
        return Bound[R].of_definition(self, (), self.parameters.parse(texts, values), valid=True)

    @property
    def parameters(self) -> Parameters:
        """The parameters, ready to check values. Raises DefinitionError for an annotation that means nothing."""
        if self._parameters is None:
            from flowlane.declare.parameters import Parameters

            self._parameters = Parameters(self.fn, self.name, self.where, self._scope)
        return self._parameters

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ArgumentError unless the body can be called so."""
        shape = self._shape
        if shape is None:
            shape = self._shape = Shape(signature_of(self.fn))
        if shape.fits(args, kwargs):
            return
        signature = shape.signature
        for key in kwargs:
            if key in RUN_OPTIONS and key not in shape.index and not shape.keywords:
                raise ArgumentError(
                    f"{key!r} is not a parameter of {self.name}",
                    where=caller(),
                    hint=f"write run({self.name}.bind(...), {key}={_short(kwargs[key])})",
                )
        reason, close = shape.misfit(args, kwargs)
        if reason is not None:
            hint = f"the signature is {self.name}{signature}"
            raise ArgumentError(
                f"workflow {self.name!r}: {reason}",
                where=caller(),
                hint=f"did you mean {close!r}? {hint}" if close else hint,
            )

    def declare(self, parameters: Parameters, values: dict[str, Any]) -> Workflow:
        """Run the body on `values`, by parameter name; the graph it declared."""
        flow = Workflow(self.name, on_failure=self.on_failure)
        flow.where = self.where
        flow.bounds = self.bounds
        flow.params = values
        flow.bodies.append(self.fn)
        args, kwargs = parameters.call(values)
        token = BODY.set(flow)
        try:
            flow.end_body(self.fn(*args, **kwargs))
        except FlowError as error:
            if error.where is None:
                error.where = self.where
            raise
        except Exception as error:
            from flowlane.loader import user_frame

            raise DefinitionError(
                f"the body of workflow {self.name!r} raised {type(error).__name__}: {Failure.of(error).message}",
                where=user_frame(error) or self.where,
            ) from error
        finally:
            BODY.reset(token)
            flow.shut()
        return flow

    # ── in the body of another ────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """In the body of another workflow: put this one's tasks there, under names that begin with its own ("sub/parse"), and
        return what its body returns.

        Parameters are checked as ever where they are plain values; results still to come pass. With options that concern the
        whole, see `options`, it stays one node instead. Raises ArgumentError, ParameterError, and DefinitionError outside of
        a body or in its own.
        """
        body = BODY.get()
        if body is None:
            raise DefinitionError(
                f"workflow {self.name!r} was called like a function",
                where=caller(),
                hint=f"run({self.name}, ...) runs it and gives a RunResult; {self.name}.bind(...) only adds parameters",
            )
        from flowlane.declare.nesting import inside

        return cast("R", inside(self, cast("Workflow", body), args, kwargs, frame_at(1)))

    def options(self, **options: Unpack[CallOfWorkflow]) -> Self:
        """The same workflow with options for calls of it in another body: ``sub.options(name="eu", retries=2)(x)``.

        With others than `name` and `on_failure` it is one node there, and becomes a workflow when its turn comes: its body runs
        then, on the values. See CallOfWorkflow.
        """
        from flowlane.declare.nesting import checked_options

        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.call_options = {**self.call_options, **checked_options(self, options)}
        if "on_failure" in options:
            new.on_failure = check_on_failure(options["on_failure"], self.name, caller())
        return new

    @overload
    def map(  # type: ignore[overload-overlap]  # a Mapping is an Iterable, of its keys: it comes first
        self: Callable[Concatenate[T, P2], R2], over: Mapping[K, T], /, *args: P2.args, **kwargs: P2.kwargs
    ) -> dict[K, R2]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, P2], R2], over: Iterable[T], /, *args: P2.args, **kwargs: P2.kwargs
    ) -> list[R2]: ...
    def map(self: Any, over: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """In a workflow body: a workflow of its own for each item, as ``Task.map`` makes a task. Its body runs when the item's
        turn comes, and what it returns is the element's result."""
        from flowlane.declare.nesting import record_map_of

        return record_map_of(self, over, args, kwargs, frame_at(1))

    def starmap(self, tuples: Iterable[tuple[Any, ...]] = NOT_GIVEN, /, **fixed: Any) -> list[R]:
        """`map` over tuples, whose parts become the first parameters."""
        from flowlane.declare.nesting import record_map_of

        return cast("list[R]", record_map_of(self, tuples, (), fixed, frame_at(1), star=True))

    if not TYPE_CHECKING:  # checkers say that there are none

        def filter(self, *_args: Any, **_kwargs: Any) -> Any:
            """Workflows only have `map` and `starmap`."""
            raise self._only_for_tasks(
                "filter", "filter with a task that returns a bool: is_good.filter(items); then map this over the result"
            )

        def reduce(self, *_args: Any, **_kwargs: Any) -> Any:
            """Likewise."""
            raise self._only_for_tasks(
                "reduce",
                f"merge with a task: merge.reduce(items, fan_in=8); or call it with all of them, {self.name}(items)",
            )

        def repeat_until(self, *_args: Any, **_kwargs: Any) -> Any:
            """Likewise."""
            raise self._only_for_tasks(
                "repeat_until", f"let a task return {self.name}.bind(...) to go on, and its value to stop"
            )

    def _only_for_tasks(self, verb: str, hint: str) -> DefinitionError:
        return DefinitionError(
            f"{self.name}.{verb}(...): {self.name!r} is a workflow, and {verb} is for tasks", where=caller(), hint=hint
        )

    def __repr__(self) -> str:
        return f"<workflow {self.__module__}.{self.__qualname__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as where it can be found; by value when that is nowhere (``__main__``, closures)."""
        from flowlane.declare.travel import reduce_workflow

        return reduce_workflow(self)


def _check_body(fn: Any, where: str | None) -> str:
    """Refuse what cannot be a body; its name."""
    if isinstance(fn, (Task, WorkflowDefinition)):
        kind = "task" if isinstance(fn, Task) else "workflow"
        raise DefinitionError(
            f"{fn.name!r} is a {kind} already",  # pyright: ignore[reportUnknownMemberType]
            where=where,
            hint="a workflow is a plain function that calls tasks",
        )
    code = getattr(fn, "__code__", None)
    name = getattr(fn, "__name__", None)
    if isinstance(fn, type) or code is None or not isinstance(name, str):
        raise DefinitionError(
            f"@workflow takes a function or options by keyword, and was given {fn!r}",
            where=where,
            hint='@workflow or @workflow(name="nightly", on_failure="fail_fast") above a def',
        )
    where = place(code.co_filename, code.co_firstlineno)
    if code_flags(fn) & GENERATOR:
        raise DefinitionError(
            f"the body of workflow {name!r} has yield", where=where, hint="return the result, or a list of results"
        )
    if code_flags(fn) & ASYNC:
        raise DefinitionError(
            f"the body of workflow {name!r} is an async def",
            where=where,
            hint="write it as def, without await: a body only declares which tasks there are",
        )
    return "lambda" if name == "<lambda>" else name


def _scope_of_annotations(fn: Any) -> dict[str, Any]:
    """What annotations kept as text may refer to in the function around `fn`; only the names that they use are kept."""
    texts = [text for text in getattr(fn, "__annotations__", {}).values() if isinstance(text, str)]
    if not texts or "<locals>" not in fn.__qualname__:
        return {}
    import re

    words = set(re.findall(r"\w+", " ".join(texts)))
    frame = user_frame()
    scope: dict[str, Any] = {}
    while frame is not None and frame.f_globals is fn.__globals__ and frame.f_locals is not frame.f_globals:
        here = frame.f_locals
        scope.update({word: here[word] for word in words if word in here and word not in scope})
        frame = frame.f_back
    return scope


_OPTIONS: Final = ("name", "on_failure", *BOUNDS)


class _WorkflowOptions:
    """What ``@workflow(...)`` returns."""

    def __init__(self, name: str | None, on_failure: OnFailure, bounds: Bounds) -> None:
        self._name = name
        self._on_failure: OnFailure = on_failure
        self._bounds = bounds

    def __call__(self, fn: Callable[P, R], /) -> WorkflowDefinition[P, R]:
        return WorkflowDefinition(fn, self._name, self._on_failure, self._bounds)


@overload
def workflow(fn: Callable[P, R], /) -> WorkflowDefinition[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    on_failure: OnFailure = "continue",
    max_failures: int | str | None = None,
    deadline: float | None = None,
    retry_budget: int | None = None,
) -> _WorkflowOptions: ...
def workflow(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a workflow, whose body declares tasks by calling them: ``@workflow`` or ``@workflow(...)``.

    name          the workflow's name instead of the function's
    on_failure    "continue" (what does not depend on a failure goes on) or "fail_fast" (the first failure stops the run)
    max_failures  so many failed tasks stop the run: a number, or a share of its tasks, "10%": of those that are known by then,
                  items of lists included, and not before the size of every list is known
    deadline      seconds after its start at which a run is cancelled
    retry_budget  retries that all tasks of a run have together

    Used within another workflow it keeps them: what they say of a run holds for it alone then. With one of the last three it is
    one task there, which becomes the workflow when its turn comes.
    """
    for key in options:
        if key not in _OPTIONS:
            close = did_you_mean(key, _OPTIONS)
            raise DefinitionError(
                f"@workflow has no option {key!r}; its options: {', '.join(_OPTIONS)}",
                where=caller(),
                hint=f"did you mean {close!r}?" if close else None,
            )
    name = options.get("name")
    on_failure = options.get("on_failure", "continue")
    if fn is None:
        where = caller()
        bounds = Bounds.of(options, f"workflow {name or '?'!r}", where)
        if name is not None:
            check_name(name, "a workflow", where)
        return _WorkflowOptions(name, check_on_failure(on_failure, name or "?", where), bounds)
    return WorkflowDefinition(fn, name, on_failure)


# ── from what people pass to run() ────────────────────────────────────────────────────────────────────────────────


def as_bound(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bound[Any]:
    """What run(), arun() and Engine.start() were given, as something to build. `args`, `kwargs` are the user's own.

    Raises ArgumentError when a workflow does not take them, UsageError for anything that is no workflow.
    """
    if isinstance(target, WorkflowDefinition):
        definition = cast("WorkflowDefinition[..., Any]", target)
        definition.check_arguments(args, kwargs)
        return Bound[Any].of_definition(definition, args, kwargs)
    if isinstance(target, (Bound, Workflow)):
        bound: Bound[Any] = Bound(target) if isinstance(target, Workflow) else cast("Any", target)
        if args or kwargs:
            given = next(iter(kwargs), None)
            what = f"{given!r}" if given is not None else _short(args[0])
            close = did_you_mean(given, RUN_OPTIONS) if given is not None else None
            raise UsageError(
                f"workflow {bound.name!r} is bound already, and was given {what} as well",
                where=caller(),
                hint=f"did you mean {close!r}?"
                if close
                else "parameters go into bind(...); only options of run follow it",
            )
        return bound
    raise UsageError(f"run takes a workflow, not {_short(target)}", where=caller(), hint=_hint_for(target))


def _hint_for(target: Any) -> str:
    if isinstance(target, Task):
        return "a task runs within a workflow: call it in a function under @workflow, and run that"
    if isinstance(target, Call):
        return 'wf = Workflow("name"); x = wf.add(call); run(wf.returns(x))'
    if type(target) is Handle:
        return "run(etl, ...) takes the workflow itself and its parameters"
    if isinstance(target, str) or hasattr(target, "__fspath__"):
        return "from the command line: flow run FILE; from Python: import the workflow from it"
    if hasattr(target, "__code__"):
        return f"put @workflow above {getattr(target, '__name__', 'the function')}"
    return "pass a function under @workflow, what its bind(...) returns, or a Workflow"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
