"""@workflow and Workflow: calls of tasks become the nodes of a declared graph.

A Workflow is a table: one entry a node in each of a few lists, nodes numbered in the order of their declaration, edges as
ints. Names, sites and options are shared wherever they can be, because a graph may have a million nodes. Two ways lead to
one: a body under ``@workflow``, in which calling a task records a node, and a program that calls ``Workflow.add``. A
WorkflowDefinition is a body; ``bind`` adds its parameters; ``Bound.build`` checks those, runs the body once and gives the
Workflow, which ``compile_workflow`` turns into a Program.

Edges to earlier nodes are ints at once; edges by name wait until the graph is complete (``edges``), since a name may come
later. Nothing here is for use from several threads at a time.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, ParamSpec, TypeVar, cast, overload

from flowlane.declare.callsite import Sites, caller, did_you_mean, frame_at, place
from flowlane.declare.handle import PLAIN, Handle, Template, kind_of, make_handle
from flowlane.declare.task import BODY, Call, Shape, Task, check_name, raise_misfit
from flowlane.errors import (
    ArgumentError,
    DefinitionError,
    FlowError,
    HandleError,
    NameTaken,
    UnknownName,
    UsageError,
)
from flowlane.program import Arguments, Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from types import FrameType

    from flowlane.declare.parameters import Parameters
    from flowlane.declare.task import Settings

__all__ = ["Bound", "OnFailure", "Workflow", "WorkflowDefinition", "as_bound", "workflow"]

OnFailure = Literal["continue", "fail_fast"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_NOTHING: Final[dict[str, Any]] = {}  # the keywords of every call without keywords; nobody changes it
_NO_ARGUMENTS: Final = Arguments((), _NOTHING)
_NO_NODES: Final[tuple[int, ...]] = ()
_SINKS: Final = object()  # the result of a Workflow without returns(): the values of its sinks

#: Options of run() and friends, which a workflow's parameters may collide with.
RUN_OPTIONS: Final = ("check", "routes", "slots", "executors", "sinks", "on_failure", "store")


class Workflow:
    """A declared graph, made by a program: ``wf = Workflow("nightly"); a = wf.add(fetch.bind(url)); run(wf.returns(a))``.

    name        the workflow's name
    on_failure  "continue": what does not depend on a failure goes on; "fail_fast": the first failure stops the run
    where       ``file:line`` of its making
    params      the validated parameters, for a graph that a body under @workflow made; else empty
    """

    __slots__ = (
        "_after",
        "_arguments",
        "_counts",
        "_inputs",
        "_labels",
        "_names",
        "_open",
        "_orders",
        "_result",
        "_settings",
        "_site_of",
        "_sites",
        "name",
        "on_failure",
        "params",
        "where",
    )

    def __init__(self, name: str, *, on_failure: OnFailure = "continue") -> None:
        self.where = caller()
        self.name = check_name(name, "a workflow", self.where)
        self.on_failure: OnFailure = _check_on_failure(on_failure, name, self.where)
        self.params: Mapping[str, Any] = {}
        self._open = True
        self._result: Any = _SINKS
        # by node
        self._settings: list[Settings] = []
        self._arguments: list[Arguments] = []
        self._inputs: list[tuple[int, ...]] = []
        self._names: list[str] = []
        self._site_of = array("I")
        # sparse
        self._after: dict[int, tuple[int, ...]] = {}  # order-only edges to earlier nodes
        self._orders: list[tuple[int | str, int | str, int]] = []  # (before, after, site) of all others
        self._labels: dict[str, int] = {}  # names that users gave
        self._counts: dict[str, int] = {}  # how often a task's own name was used
        self._sites = Sites()

    # ── adding ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, call: Call[R], *, name: str | None = None, after: Sequence[object] = ()) -> R:
        """Add a node that will make `call`; returns its handle, typed as the task's result.

        `name` must be new (else NameTaken); without one it is the task's, with ``#2`` and on from the second. `after`
        holds tasks to wait for: handles, or names that may come later.
        """
        if not isinstance(call, Call):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._no_call(call)
        task = call.task
        if name is None:
            name = task.label
        else:
            check_name(name, f"a node of workflow {self.name!r}")
        if task.after:
            after = (*task.after, *_as_sequence(after))
        handle = self.record(task, call.args, cast("dict[str, Any]", call.kwargs), name, after, frame_at(1))
        return cast("R", handle)

    def order(self, before: object, after: object) -> None:
        """`after` waits for `before`, without reading its value. Handles of this workflow, or names, existing or not."""
        site = self._sites.number(frame_at(1))
        self._orders.append((self._endpoint(before), self._endpoint(after), site))

    def returns(self, value: R) -> Bound[R]:
        """This workflow with `value` as its result: a handle, or anything that holds handles. Run what it returns.

        Without it, the result is ``{name: value}`` of all tasks that nothing waits for.
        """
        template = Template(self._accept, f"the result of workflow {self.name!r}")
        return Bound(self, template.of(value), has_result=True)

    @classmethod
    def from_graph(
        cls,
        graph: Any,
        calls: Mapping[Any, Call[Any]],
        *,
        name: str = "graph",
        on_failure: OnFailure = "continue",
    ) -> Workflow:
        """A workflow from a ``networkx.DiGraph``: a node each, its edges as order-only edges; ``calls[node]`` is what it does.

        Nodes are named ``str(node)``. Raises DefinitionError when `graph` is undirected or calls and nodes do not match.
        """
        flow = cls(name, on_failure=on_failure)
        flow._add_graph(graph, calls)
        return flow

    def _add_graph(self, graph: Any, calls: Mapping[Any, Call[Any]]) -> None:
        if not (hasattr(graph, "successors") and hasattr(graph, "is_directed") and graph.is_directed()):
            raise DefinitionError(
                f"workflow {self.name!r} is made from {type(graph).__name__}, which is not a directed graph",
                where=self.where,
                hint="pass a networkx.DiGraph",
            )
        nodes: dict[Hashable, int] = {}
        frame = frame_at(2)
        for node in graph:
            call = calls.get(node)
            if call is None:
                raise DefinitionError(
                    f"node {node!r} of the graph has no call",
                    where=self.where,
                    hint="calls maps each node to a Call: {node: some_task.bind(...)}",
                )
            if not isinstance(call, Call):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise self._no_call(call)
            label = check_name(str(node), f"a node of workflow {self.name!r}")
            nodes[node] = len(self._names)
            self.record(call.task, call.args, cast("dict[str, Any]", call.kwargs), label, call.task.after, frame)
        for node in calls:
            if node not in nodes:
                close = did_you_mean(str(node), map(str, nodes))
                raise UnknownName(
                    f"calls has {node!r}, which is no node of the graph",
                    where=self.where,
                    hint=f"did you mean {close!r}?" if close else None,
                )
        site = self._sites.number(frame)
        self._orders.extend([(nodes[before], nodes[after], site) for before, after in graph.edges()])

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def graph(self) -> Any:
        """The graph as a new ``networkx.DiGraph`` of names, with `kind`, `executor` and `task` on each node."""
        from flowlane.declare.graph import to_networkx

        return to_networkx(self)

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self._names)

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r} with {len(self._names)} tasks>"

    @property
    def names(self) -> Sequence[str]:
        """The name of each node."""
        return self._names

    @property
    def settings(self) -> Sequence[Settings]:
        """The options of each node."""
        return self._settings

    @property
    def arguments(self) -> Sequence[Arguments]:
        """The arguments of each node, Refs for upstream values."""
        return self._arguments

    @property
    def inputs(self) -> Sequence[tuple[int, ...]]:
        """For each node the nodes whose values it reads, each once."""
        return self._inputs

    def name_of(self, node: int) -> str:
        """The name of `node`."""
        return self._names[node]

    def site_of(self, node: int) -> str:
        """``file:line`` of the call that made `node`."""
        return self._sites.text(self._site_of[node])

    def edges(self) -> Sequence[tuple[int, ...]]:
        """For each node all nodes it waits for (a node may be repeated). Raises UnknownName for a name that no task has."""
        if not self._after and not self._orders:
            return self._inputs
        edges = list(self._inputs)
        for node, befores in self._after.items():
            edges[node] += befores
        if self._orders:
            extra: dict[int, list[int]] = {}
            numbers: dict[str, int] = {}
            for before, after, site in self._orders:
                if not numbers and (isinstance(before, str) or isinstance(after, str)):
                    numbers = {name: node for node, name in enumerate(self._names)}
                first, second = self._resolve(before, numbers, site), self._resolve(after, numbers, site)
                extra.setdefault(second, []).append(first)
            for node, more in extra.items():
                edges[node] += tuple(more)
        return edges

    def site_of_edge(self, before: int, after: int) -> str | None:
        """``file:line`` of the order-only edge from `before` to `after`, or None when no ``order`` or name made it."""
        wanted = ({before, self._names[before]}, {after, self._names[after]})
        for first, second, site in self._orders:
            if first in wanted[0] and second in wanted[1]:
                return self._sites.text(site)
        return None

    def result(self, edges: Sequence[tuple[int, ...]]) -> tuple[Any, list[int]]:
        """The template of the run's value, and the nodes whose values it holds. `edges` as ``edges()`` gave them."""
        if self._result is not _SINKS:
            return self._result, refs_in(self._result)
        waited_for: set[int] = set()
        for ups in edges:
            waited_for.update(ups)
        sinks = [node for node in range(len(edges)) if node not in waited_for]
        return {self._names[node]: Ref(node) for node in sinks}, sinks

    # ── recording ─────────────────────────────────────────────────────────────────────────────────────────────────

    def record(
        self,
        task: Task[Any, Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        label: str | None,
        after: Sequence[object],
        frame: FrameType,
    ) -> Handle:
        """Add a node for this call, made at `frame`; its handle. Called by Task and `add`; must stay fast."""
        if task.prefix:
            args = (*task.prefix, *args)
        settings = task.settings
        shape = settings.shape or settings.measure()
        if not ((shape.least <= len(args) <= shape.most) if not kwargs else shape.fits(args, kwargs)):
            raise_misfit(task, shape, args, kwargs)
        if not self._open:
            raise DefinitionError(
                f"task {task.name!r} was called in the body of workflow {self.name!r} after the body had ended",
                where=caller(),
                hint="call tasks in the body itself, not in threads or callbacks that outlive it",
            )
        inputs = _NO_NODES
        if kwargs or not PLAIN.issuperset(map(type, args)):
            arguments, inputs = self._scan(task, args, kwargs)
        else:
            arguments = Arguments(args, _NOTHING) if args else _NO_ARGUMENTS
        waits_for = [self._endpoint(item) for item in _as_sequence(after)] if after else None
        node = len(self._names)
        if label is None:
            name = base = task.name
            counts = self._counts
            count = counts.get(base, 0) + 1
            if count == 1 and base in self._labels:
                count = 2
            counts[base] = count
            if count > 1:
                name = f"{base}#{count}"
        else:
            name = label
            if name in self._labels or name in self._counts:
                raise self._taken(name, task)
            self._labels[name] = node
        # nothing was refused: from here on the node exists
        if waits_for:
            self._record_after(node, waits_for, frame)
        self._settings.append(settings)
        self._arguments.append(arguments)
        self._inputs.append(inputs)
        self._names.append(name)
        self._site_of.append(self._sites.number(frame))
        return make_handle(self, node)

    def _scan(
        self, task: Task[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Arguments, tuple[int, ...]]:
        """The arguments with Refs for handles, and the nodes they stand for."""
        if not kwargs and len(args) == 1 and type(args[0]) is Handle:  # f(g(x)): the usual link of a chain
            ref = self._accept(args[0])
            node = ref.node
            return Arguments((ref,), _NOTHING, ((0, node),)), (node,)
        template = Template(self._accept, f"task {task.name!r}")
        direct: list[tuple[int, int]] = []
        found = template.found
        filled: list[Any] = []
        for position, value in enumerate(args):
            kind = kind_of(value)
            if kind is Handle:
                ref = self._accept(value)
                found.append(ref.node)
                direct.append((position, ref.node))
                filled.append(ref)
            elif kind in PLAIN:
                filled.append(value)
            else:
                if issubclass(kind, Call):
                    raise self._bound_argument(task, value)
                filled.append(template.of(value))
        named = kwargs
        for key, value in kwargs.items():
            if type(value) not in PLAIN:
                if issubclass(kind_of(value), Call):
                    raise self._bound_argument(task, value)
                new = template.of(value)
                if new is not value:
                    if named is kwargs:
                        named = dict(kwargs)
                    named[key] = new
        inputs = tuple(dict.fromkeys(found)) if len(found) > 1 else tuple(found)
        return Arguments(tuple(filled), named or _NOTHING, tuple(direct), len(found) > len(direct)), inputs

    def _accept(self, handle: Handle) -> Ref:
        home = handle._home  # pyright: ignore[reportPrivateUsage]  # a handle has no public attributes by design
        if home is not self:
            raise self._foreign(handle)
        return handle._ref  # pyright: ignore[reportPrivateUsage]

    def _record_after(self, node: int, waits_for: list[int | str], frame: FrameType) -> None:
        nodes = [end for end in waits_for if isinstance(end, int)]
        if nodes:
            self._after[node] = tuple(nodes)
        if len(nodes) < len(waits_for):
            site = self._sites.number(frame)
            self._orders.extend([(end, node, site) for end in waits_for if isinstance(end, str)])

    def _endpoint(self, item: object) -> int | str:
        if type(item) is Handle:
            return self._accept(item).node
        if isinstance(item, str):
            return item
        raise DefinitionError(
            f"workflow {self.name!r} cannot order {item!r}",
            where=caller(),
            hint="what comes before or after is a handle (what a call of a task returned) or a task's name",
        )

    def _resolve(self, end: int | str, numbers: Mapping[str, int], site: int) -> int:
        if isinstance(end, int):
            return end
        node = numbers.get(end)
        if node is None:
            close = did_you_mean(end, numbers)
            raise UnknownName(
                f"workflow {self.name!r} has no task named {end!r}",
                where=self._sites.text(site),
                hint=f"did you mean {close!r}?" if close else None,
            )
        return node

    def _taken(self, name: str, task: Task[Any, Any, Any]) -> NameTaken:
        first = self._labels.get(name)
        if first is None:
            first = self._names.index(name)
        return NameTaken(
            f"workflow {self.name!r} already has a task named {name!r}, made at {self.site_of(first)}",
            where=caller(),
            hint=f"give this call of {task.name!r} another name, or none: it is then numbered",
        )

    def _foreign(self, handle: Handle) -> HandleError:
        home = cast("Workflow", handle._home)  # pyright: ignore[reportPrivateUsage]
        ref = handle._ref  # pyright: ignore[reportPrivateUsage]
        ended = "" if home._open else ", whose body has ended"
        same = " of an earlier run of its body" if home.name == self.name else ""
        return HandleError(
            f"workflow {self.name!r} is given the result of task {home.name_of(ref.node)!r}{same} "
            f"of workflow {home.name!r}{ended}",
            where=caller(),
            hint=f"a handle counts only in the workflow that made it (at {home.site_of(ref.node)}); "
            "call the task in this one",
        )

    def _bound_argument(self, task: Task[Any, Any, Any], call: Call[Any]) -> HandleError:
        return HandleError(
            f"task {task.name!r} is given {call.task.name}.bind(...), which is a call but no node yet",
            where=caller(),
            hint=f"in a body write {call.task.name}(...); in a program pass what Workflow.add returns",
        )

    def _no_call(self, value: object) -> DefinitionError:
        if isinstance(value, Task):
            hint = f"bind its arguments: {value.name}.bind(...)"  # pyright: ignore[reportUnknownMemberType]
        elif type(value) is Handle:
            hint = "this call is in a workflow already"
        else:
            hint = "pass some_task.bind(...)"
        return DefinitionError(f"workflow {self.name!r} cannot add {value!r}", where=caller(), hint=hint)

    # ── within the package ────────────────────────────────────────────────────────────────────────────────────────

    def end_body(self, value: Any) -> None:
        """The body returned `value`: nothing more is recorded."""
        if issubclass(kind_of(value), Call):
            raise self._bound_result(value)
        template = Template(self._accept, f"the result of workflow {self.name!r}")
        self._result = template.of(value)

    def shut(self) -> None:
        """Refuse further nodes: the body has ended, well or not."""
        self._open = False

    def with_result(self, template: Any) -> Workflow:
        """The same graph, shared, with this result."""
        twin = object.__new__(Workflow)
        for slot in Workflow.__slots__:
            setattr(twin, slot, getattr(self, slot))
        twin._result = template
        return twin

    def _bound_result(self, call: Call[Any]) -> HandleError:
        return HandleError(
            f"workflow {self.name!r} returns {call.task.name}.bind(...), which is a call but no node",
            where=self.where,
            hint=f"return {call.task.name}(...)",
        )


def refs_in(value: Any) -> list[int]:
    """The nodes of all Refs in a template. Iterative; containers of plain values are passed over."""
    found: list[int] = []
    seen: set[int] = set()
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        kind = kind_of(item)
        if kind is Ref:
            found.append(item.node)
        elif issubclass(kind, (list, tuple, dict)) and id(item) not in seen:
            seen.add(id(item))
            elements: Iterable[Any] = item.values() if issubclass(kind, dict) else item
            if not PLAIN.issuperset(map(type, elements)):
                stack.extend(elements)
    return found


def _as_sequence(after: object) -> Sequence[object]:
    """`after` as several: one name or one handle stands for a list of it."""
    if isinstance(after, (list, tuple)):
        return cast("Sequence[object]", after)
    if isinstance(after, str) or type(after) is Handle:
        return (after,)
    if isinstance(after, (set, frozenset)) or hasattr(after, "__iter__"):
        return tuple(cast("Iterable[object]", after))
    return (after,)


def _check_on_failure(value: str, name: str, where: str | None) -> OnFailure:
    if value not in ("continue", "fail_fast"):
        close = did_you_mean(str(value), ("continue", "fail_fast"))
        raise DefinitionError(
            f"workflow {name!r} has on_failure={value!r}; it is 'continue' or 'fail_fast'",
            where=where,
            hint=f"did you mean {close!r}?" if close else None,
        )
    return value  # type: ignore[return-value]  # mypy does not narrow str by `in`


# ── workflows written as functions ────────────────────────────────────────────────────────────────────────────────


class Bound(Generic[R_co]):
    """A workflow with everything it needs to run: ``run(etl.bind(urls=[...]), check=False)``. May be run many times."""

    __slots__ = ("_args", "_has_result", "_kwargs", "_result", "_valid", "definition")

    definition: WorkflowDefinition[..., R_co] | Workflow

    def __init__(self, definition: Workflow, result: Any = None, *, has_result: bool = False) -> None:
        self.definition = definition
        self._result = result
        self._has_result = has_result
        self._args: tuple[Any, ...] = ()
        self._kwargs: Mapping[str, Any] = _NOTHING
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
    """

    fn: Callable[P, R]
    name: str
    where: str | None
    on_failure: OnFailure

    def __init__(self, fn: Callable[P, R], name: str | None = None, on_failure: OnFailure = "continue") -> None:
        here = caller()
        own = _check_body(fn, here)
        code = getattr(fn, "__code__", None)
        self.fn = fn
        self.where = place(code.co_filename, code.co_firstlineno) if code is not None else here
        self.name = check_name(own if name is None else name, f"workflow {own!r}", self.where)
        self.on_failure = _check_on_failure(on_failure, self.name, self.where)
        self._scope = _scope_of_annotations(fn)
        self._parameters: Parameters | None = None
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
        import inspect

        signature = inspect.signature(self.fn)
        shape = Shape(signature)
        if shape.fits(args, kwargs):
            return
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
        flow.params = values
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
                f"the body of workflow {self.name!r} raised {type(error).__name__}: {error}",
                where=user_frame(error) or self.where,
            ) from error
        finally:
            BODY.reset(token)
            flow.shut()
        return flow

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Refused: a workflow is run, not called."""
        body = BODY.get()
        if body is None:
            raise DefinitionError(
                f"workflow {self.name!r} was called like a function",
                where=caller(),
                hint=f"run({self.name}, ...) runs it and gives a RunResult; {self.name}.bind(...) adds the parameters only",
            )
        raise DefinitionError(
            f"workflow {self.name!r} was called in the body of another workflow, and workflows do not nest",
            where=caller(),
            hint=f"{self.name}.fn(...) puts its tasks into this workflow and returns what its body returns",
        )

    def __repr__(self) -> str:
        return f"<workflow {self.__module__}.{self.__qualname__}>"


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
    if code.co_flags & 0x200 or code.co_flags & 0x20:
        raise DefinitionError(
            f"the body of workflow {name!r} has yield", where=where, hint="return the result, or a list of results"
        )
    if code.co_flags & 0x80:
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
    frame: FrameType | None = frame_at(1)
    scope: dict[str, Any] = {}
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "flowlane":
        frame = frame.f_back
    while frame is not None and frame.f_globals is fn.__globals__ and frame.f_locals is not frame.f_globals:
        for word in words & frame.f_locals.keys():
            scope.setdefault(word, frame.f_locals[word])
        frame = frame.f_back
    return scope


class _WorkflowOptions:
    """What ``@workflow(...)`` returns."""

    def __init__(self, name: str | None, on_failure: OnFailure) -> None:
        self._name = name
        self._on_failure: OnFailure = on_failure

    def __call__(self, fn: Callable[P, R], /) -> WorkflowDefinition[P, R]:
        return WorkflowDefinition(fn, self._name, self._on_failure)


@overload
def workflow(fn: Callable[P, R], /) -> WorkflowDefinition[P, R]: ...
@overload
def workflow(*, name: str | None = None, on_failure: OnFailure = "continue") -> _WorkflowOptions: ...
def workflow(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a workflow, whose body declares tasks by calling them: ``@workflow`` or ``@workflow(...)``.

    name        the workflow's name instead of the function's
    on_failure  "continue" (what does not depend on a failure goes on) or "fail_fast" (the first failure stops the run)
    """
    for key in options:
        if key not in ("name", "on_failure"):
            close = did_you_mean(key, ("name", "on_failure"))
            raise DefinitionError(
                f"@workflow has no option {key!r}; its options: name, on_failure",
                where=caller(),
                hint=f"did you mean {close!r}?" if close else None,
            )
    name = options.get("name")
    on_failure = options.get("on_failure", "continue")
    if fn is None:
        where = caller()
        if name is not None:
            check_name(name, "a workflow", where)
        return _WorkflowOptions(name, _check_on_failure(on_failure, name or "?", where))
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
