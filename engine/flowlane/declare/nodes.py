"""Workflow: calls of tasks become the nodes of a declared graph.

A Workflow is a table: one entry a node in each of a few lists, nodes numbered in the order of their declaration, edges
as ints. Names, sites and options are shared wherever they can be, because a graph may have a million nodes. Two ways
lead to one: a body under ``@workflow``, in which calling a task records a node, and a program that calls
``Workflow.add``. ``compile_workflow`` makes a Program of it.

Edges to earlier nodes are ints at once; edges by name wait until the graph is complete (``edges``), since a name may
come later. Nothing here is for use from several threads at a time.
"""

from __future__ import annotations

from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar, cast

from flowlane.declare.bounds import NO_BOUNDS
from flowlane.declare.callsite import Sites, caller, did_you_mean, frame_at
from flowlane.declare.handle import PLAIN, Handle, Template, home_of, kind_of, make_handle, ref_of
from flowlane.declare.options import check_name
from flowlane.declare.sparse import Sparse
from flowlane.declare.task import Call, Task, raise_misfit
from flowlane.errors import DefinitionError, HandleError, NameTaken, UnknownName
from flowlane.program import Arguments, Ref, Work

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence
    from types import FrameType

    from flowlane.declare.options import Settings
    from flowlane.declare.workflow import Bound

__all__ = ["OnFailure", "Workflow", "check_on_failure"]

OnFailure: TypeAlias = Literal["continue", "fail_fast"]

R = TypeVar("R")

_NOTHING: Final[dict[str, Any]] = {}  # the keywords of every call without keywords; nobody changes it
#: (), (0,), (0, 1), …: the positions of handles in calls whose first arguments are handles.
_LEADING: Final = tuple(tuple(range(count)) for count in range(9))
_NO_ARGUMENTS: Final = Arguments((), _NOTHING)
_NO_NODES: Final[tuple[int, ...]] = ()
_SINKS: Final = object()  # the result of a Workflow without returns(): the values of its sinks


class Workflow:
    """A declared graph, made by a program: ``wf = Workflow("n"); a = wf.add(fetch.bind(url)); run(wf.returns(a))``.

    name        the workflow's name
    on_failure  "continue": what does not depend on a failure goes on; "fail_fast": the first failure stops the run
    where       ``file:line`` of its making
    named_by    the options of a run that named this part of a graph, see part.py; empty for a whole one
    bodies      the bodies under @workflow that are being run, innermost last
    bounds      what bounds a run of it as a whole
    params      the validated parameters, for a graph that a body under @workflow made; else empty
    """

    __slots__ = (
        "_after",
        "_arguments",
        "_counts",
        "_inputs",
        "_labels",
        "_names",
        "_orders",
        "_result",
        "_settings",
        "_site_of",
        "_sites",
        "_sparse",
        "bodies",
        "bounds",
        "is_open",
        "name",
        "named_by",
        "on_failure",
        "params",
        "where",
    )

    def __init__(self, name: str, *, on_failure: OnFailure = "continue") -> None:
        self.where = caller()
        self.name = check_name(name, "a workflow", self.where)
        self.on_failure: OnFailure = check_on_failure(on_failure, name, self.where)
        self.bounds = NO_BOUNDS
        self.bodies: list[Any] = []
        self.params: Mapping[str, Any] = {}
        self.named_by: Mapping[str, Sequence[str]] = {}
        self.is_open = True
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
        self._sparse: Sparse | None = None

    # ── adding ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, call: Call[R], *, name: str | None = None, after: Sequence[object] = ()) -> R:
        """Add a node that will make `call`; returns its handle, typed as the task's result.

        `name` must be new (else NameTaken); without one it is the task's, with ``#2`` and on from the second. `after`
        holds tasks to wait for: handles, or names that may come later.
        """
        return cast("R", self.add_at(call, name, after, frame_at(1)))

    def add_at(self, call: Call[Any], name: str | None, after: object, frame: FrameType | None) -> Handle:
        """`add`, for a caller that stands between us and the user's line, `frame`."""
        if not isinstance(call, Call):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._no_call(call)
        task = call.task
        if name is None:
            name = task.label
        else:
            check_name(name, f"a node of workflow {self.name!r}")
        waits_for = (*task.after, *_as_sequence(after))
        return self.record(task, call.args, cast("dict[str, Any]", call.kwargs), name, waits_for, frame or frame_at(1))

    def order(self, before: object, after: object) -> None:
        """`after` waits for `before`, without reading its value. Handles of this workflow, or names, also later ones."""
        site = self._sites.number(frame_at(1))
        self._orders.append((self._endpoint(before), self._endpoint(after), site))

    def returns(self, value: R) -> Bound[R]:
        """This workflow with `value` as its result: a handle, or anything that holds handles. Run what it returns.

        Without it, the result is ``{name: value}`` of all tasks that nothing waits for.
        """
        from flowlane.declare.workflow import Bound

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
        """A workflow from a ``networkx.DiGraph``: ``calls[node]`` is what a node does, edges are order-only edges.

        Nodes are named ``str(node)``. Raises DefinitionError for an undirected graph, or calls that do not match it.
        """
        from flowlane.declare.graph import add_graph

        flow = cls(name, on_failure=on_failure)
        add_graph(flow, graph, calls)
        return flow

    def order_all(self, edges: Iterable[tuple[int, int]], frame: FrameType | None) -> None:
        """Order-only edges between nodes by number, all asked for at `frame`."""
        site = self._sites.number(frame or frame_at(1))
        self._orders.extend([(before, after, site) for before, after in edges])

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
        """For each node all nodes it waits for (one may be repeated). Raises UnknownName for a name that no task has."""
        if not self._after and not self._orders and self._sparse is None:
            return self._inputs
        edges = list(self._inputs)
        if self._sparse is not None:
            more_before: dict[int, list[int]] = {}
            for up, node in self._sparse.edges():
                more_before.setdefault(node, []).append(up)
            for node, ups in more_before.items():
                edges[node] += tuple(ups)
        for node, befores in self.ordered().items():
            edges[node] += befores
        return edges

    def ordered(self) -> dict[int, tuple[int, ...]]:
        """Nodes → those that ``after=`` and ``order`` put before them. Raises UnknownName for a name that no task has."""
        found = dict(self._after)
        numbers: dict[str, int] = {}
        extra: dict[int, list[int]] = {}
        for before, after, site in self._orders:
            if not numbers and (isinstance(before, str) or isinstance(after, str)):
                numbers = {name: node for node, name in enumerate(self._names)}
            first, second = self._resolve(before, numbers, site), self._resolve(after, numbers, site)
            extra.setdefault(second, []).append(first)
        for node, more in extra.items():
            found[node] = (*found.get(node, ()), *more)
        return found

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
        tearing = {each.node for each in self._sparse.teardowns} if self._sparse is not None else ()
        for node, ups in enumerate(edges):
            if node not in tearing:  # what tidies up reads nothing of what it waits for, and makes nothing
                waited_for.update(ups)
        waited_for.update(tearing)
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
        if not self.is_open:
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
        waits_for = [self._endpoint(item) for item in after] if after else None
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
                raise self._taken(name, task.name)
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
            return Arguments((ref,), _NOTHING, _LEADING[1]), (node,)
        template = Template(self._accept, f"task {task.name!r}")
        direct: list[int] = []
        found = template.found
        filled: list[Any] = []
        for position, value in enumerate(args):
            kind = kind_of(value)
            if kind is Handle:
                ref = self._accept(value)
                found.append(ref.node)
                direct.append(position)
                filled.append(ref)
            elif kind in PLAIN:
                filled.append(value)
            else:
                if issubclass(kind, (Work, Task)):
                    raise self._no_value(task, value)
                if position < len(task.prefix) and not issubclass(kind, (list, tuple, dict)):
                    filled.append(
                        value
                    )  # the instance of a method: whatever it keeps, handles too, it may keep for the body
                else:
                    filled.append(template.of(value))
        named = kwargs
        for key, value in kwargs.items():
            if type(value) not in PLAIN:
                if issubclass(kind_of(value), (Work, Task)):
                    raise self._no_value(task, value)
                new = template.of(value)
                if new is not value:
                    if named is kwargs:
                        named = dict(kwargs)
                    named[key] = new
        inputs = tuple(dict.fromkeys(found)) if len(found) > 1 else tuple(found)
        positions = tuple(direct)
        if len(positions) < len(_LEADING) and positions == _LEADING[len(positions)]:
            positions = _LEADING[len(positions)]  # nearly every call: share one tuple instead of keeping a million
        return Arguments(tuple(filled), named or _NOTHING, positions, len(found) > len(direct)), inputs

    def _accept(self, handle: Handle) -> Ref:
        # by attribute, not by home_of(): this is done for every edge
        if handle._home is not self:  # pyright: ignore[reportPrivateUsage]
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

    def _resolve(self, end: int | str, numbers: Mapping[str, int], site: int, name: str | None = None) -> int:
        if isinstance(end, int):
            return end
        node = numbers.get(end)
        if node is None:
            close = did_you_mean(end, numbers)
            raise UnknownName(
                f"workflow {(name or self.name)!r} has no task named {end!r}",
                where=self._sites.text(site),
                hint=f"did you mean {close!r}?" if close else None,
            )
        return node

    def _taken(self, name: str, called: str) -> NameTaken:
        first = self._labels.get(name)
        if first is None or first >= len(self._names):
            inside = f"{name}/"
            taken = (node for node, other in enumerate(self._names) if other == name or other.startswith(inside))
            first = next(taken, None)
        made = "" if first is None else f", made at {self.site_of(first)}"
        return NameTaken(
            f"workflow {self.name!r} already has a task named {name!r}{made}",
            where=caller(),
            hint=f"give this call of {called!r} another name, or none: it is then numbered",
        )

    def _foreign(self, handle: Handle) -> HandleError:
        home = cast("Workflow", home_of(handle))
        ref = ref_of(handle)
        ended = "" if home.is_open else ", whose body has ended"
        same = " of an earlier run of its body" if home.name == self.name else ""
        return HandleError(
            f"workflow {self.name!r} is given the result of task {home.name_of(ref.node)!r}{same} "
            f"of workflow {home.name!r}{ended}",
            where=caller(),
            hint=f"a handle counts only in the workflow that made it (at {home.site_of(ref.node)}); "
            "call the task in this one",
        )

    def _no_value(self, task: Task[Any, Any, Any], given: Work[Any] | Task[Any, Any, Any]) -> HandleError:
        if isinstance(given, Task):
            return HandleError(
                f"task {task.name!r} is given the task {given.name!r} itself, not its result",
                where=caller(),
                hint=f"call it: {given.name}(...); to pass the function, {given.name}.fn",
            )
        return self._bound_argument(task, given)

    def _bound_argument(self, task: Task[Any, Any, Any], work: Work[Any]) -> HandleError:
        called = _called(work)
        return HandleError(
            f"task {task.name!r} is given {called}.bind(...), which is a call but no node yet",
            where=caller(),
            hint=f"in a body write {called}(...); in a program pass what Workflow.add returns",
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

    @property
    def sparse(self) -> Sparse:
        """What only some graphs have, to add to."""
        if self._sparse is None:
            self._sparse = Sparse()
        return self._sparse

    @property
    def found_sparse(self) -> Sparse | None:
        """The same to look at: None where there is none of it."""
        return self._sparse

    def template(self, subject: str) -> Template:
        """A search for handles of this graph; errors speak of `subject`."""
        return Template(self._accept, subject)

    def take_items(self, node: int, arguments: Arguments, sources: Sequence[int]) -> None:
        """Make the node just recorded a mapped one: its arguments, and the nodes that its items come from."""
        self._arguments[node] = arguments
        self._inputs[node] = tuple(dict.fromkeys((*sources, *self._inputs[node])))

    @contextmanager
    def part(self, name: str, label: str | None) -> Generator[None]:
        """What is recorded inside is a part: names begin with `label`, or else with `name`, numbered as a task's is.

        Within it names count by themselves, and edges by name find only tasks of the part.
        """
        start, orders = len(self._names), len(self._orders)
        if label is not None:
            if label in self._labels or label in self._counts:
                raise self._taken(label, name)
            self._labels[label] = start
            called = label
        else:
            count = self._counts.get(name, 0) + 1
            if count == 1 and name in self._labels:
                count = 2
            self._counts[name] = count
            called = name if count == 1 else f"{name}#{count}"
        outer = self._labels, self._counts
        self._labels, self._counts = {}, {}
        try:
            yield
        finally:
            self._labels, self._counts = outer
        inside = self._names[start:]
        if any(isinstance(end, str) for order in self._orders[orders:] for end in order[:2]):
            numbers = {each: start + index for index, each in enumerate(inside)}
            self._orders[orders:] = [
                (self._resolve(before, numbers, site, name), self._resolve(after, numbers, site, name), site)
                for before, after, site in self._orders[orders:]
            ]
        self._names[start:] = [f"{called}/{each}" for each in inside]

    def check_result(self, value: Any) -> None:
        """Raise HandleError for a body that returns a call without a node."""
        if issubclass(kind_of(value), Work):
            raise self._bound_result(value)

    def end_body(self, value: Any) -> None:
        """The body returned `value`: nothing more is recorded."""
        self.check_result(value)
        template = Template(self._accept, f"the result of workflow {self.name!r}")
        self._result = template.of(value)

    def shut(self) -> None:
        """Refuse further nodes: the body has ended, well or not."""
        self.is_open = False

    def reduced_to(self, kept: Sequence[int]) -> Workflow:
        """A new graph of the nodes `kept` alone, given in order, which read nothing of the others; its result is its sinks'."""
        from flowlane.runtime.values import fill

        number = {node: index for index, node in enumerate(kept)}
        refs = cast("Sequence[Any]", {node: Ref(index) for node, index in number.items()})
        twin = self.with_result(_SINKS)
        twin._settings = [self._settings[node] for node in kept]
        twin._names = [self._names[node] for node in kept]
        twin._inputs = [tuple([number[up] for up in self._inputs[node]]) for node in kept]
        twin._site_of = array("I", [self._site_of[node] for node in kept])
        twin._arguments = [
            Arguments(
                tuple([fill(value, refs) for value in each.args]),
                {name: fill(value, refs) for name, value in each.kwargs.items()},
                each.direct,
                each.nested,
            )
            for each in (self._arguments[node] for node in kept)
        ]
        ordered = self.ordered()
        twin._after = {
            number[node]: before
            for node in kept
            if (before := tuple([number[up] for up in ordered.get(node, ()) if up in number]))
        }
        twin._orders = []
        if self._sparse is not None:
            twin._sparse = self._sparse.reduced_to(kept, number, lambda template: fill(template, refs))
        return twin

    def with_result(self, template: Any) -> Workflow:
        """The same graph, shared, with this result."""
        twin = object.__new__(Workflow)
        for slot in Workflow.__slots__:
            setattr(twin, slot, getattr(self, slot))
        twin._result = template
        return twin

    def _bound_result(self, work: Work[Any]) -> HandleError:
        called = _called(work)
        return HandleError(
            f"workflow {self.name!r} returns {called}.bind(...), which is a call but no node",
            where=self.where,
            hint=f"return {called}(...)",
        )


def _called(work: Work[Any]) -> str:
    """The name of what work is a call of."""
    return work.task.name if isinstance(work, Call) else str(getattr(work, "name", "workflow"))


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


def check_on_failure(value: str, name: str, where: str | None) -> OnFailure:
    if value not in ("continue", "fail_fast"):
        close = did_you_mean(str(value), ("continue", "fail_fast"))
        raise DefinitionError(
            f"workflow {name!r} has on_failure={value!r}; it is 'continue' or 'fail_fast'",
            where=where,
            hint=f"did you mean {close!r}?" if close else None,
        )
    return value  # type: ignore[return-value]  # mypy does not narrow str by `in`
