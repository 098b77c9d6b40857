"""What people ask of a graph, answered by networkx: cycles by name, layers, critical path, ancestors, a layout.

networkx is imported on first use (it takes 200 ms and 900 B a node), and never on the way to a run that compiles well.
It comes without type information, so it is ``Any`` here. All functions are iterative, and linear in the graph.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from flowlane.declare.callsite import did_you_mean, user_frame
from flowlane.errors import CycleError, DefinitionError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from flowlane.declare.nodes import Workflow
    from flowlane.declare.task import Call

__all__ = [
    "add_graph",
    "ancestors",
    "critical_path",
    "cycle_error",
    "descendants",
    "layers",
    "layout",
    "name_cycle",
    "show_cycle",
    "to_networkx",
]

_SHOWN: Final = 8  # names of a cycle in a message
_SWEEPS: Final = 4  # of the layout: further ones hardly change a picture


def _networkx() -> Any:
    import importlib

    return importlib.import_module("networkx")


def to_networkx(workflow: Workflow) -> Any:
    """The declared graph as a new ``networkx.DiGraph`` of names; it may have cycles.

    Nodes have `kind` ("io", "cpu"), `executor` (asked for by options, or None: the route decides) and `task` (its name);
    edges have `kind`, "data" or "order". Raises UnknownName for an edge by a name that no task has.
    """
    graph = _networkx().DiGraph(name=workflow.name)
    names = workflow.names
    for name, settings in zip(names, workflow.settings, strict=True):
        task = settings.task
        graph.add_node(name, kind=task.kind, executor=settings.options.get("executor"), task=task.name)
    for node, (ups, inputs) in enumerate(zip(workflow.edges(), workflow.inputs, strict=True)):
        data = set(inputs)
        below = names[node]
        graph.add_edges_from((names[up], below, {"kind": "data" if up in data else "order"}) for up in ups)
    return graph


# ── cycles ────────────────────────────────────────────────────────────────────────────────────────────────────────


def name_cycle(edges: Iterable[tuple[Any, Any]]) -> list[Any]:
    """A cycle, the first node repeated at the end; [] when there is none.

    It is a shortest one through a node of the smallest knot (strongly connected component): short rather than the
    first that a search meets, since a person has to read it.
    """
    nx = _networkx()
    graph = nx.DiGraph(list(edges))
    for node, other in graph.edges():
        if node == other:
            return [node, node]
    knots = [knot for knot in nx.strongly_connected_components(graph) if len(knot) > 1]
    if not knots:
        return []
    knot = min(knots, key=len)
    # the same one each time: sets of names have no order of their own
    start = min(knot, key=str)
    within = graph.subgraph(knot)
    came_from: dict[Any, Any] = {}
    reached: list[Any] = [start]
    for node in reached:  # breadth first; grows while it is walked
        for below in sorted(within.successors(node), key=str):
            if below == start:
                cycle: list[Any] = []
                step = node
                while step != start:
                    cycle.append(step)
                    step = came_from[step]
                return [start, *reversed(cycle), start]
            if below not in came_from:
                came_from[below] = node
                reached.append(below)
    return []


def show_cycle(names: Sequence[str]) -> str:
    """``a → b → a``, with at most 8 names: the middle of a longer one is left out, and says how many."""
    if len(names) <= _SHOWN:
        return " → ".join(names)
    head, tail = names[: _SHOWN - 2], names[-2:]
    return " → ".join([*head, f"({len(names) - len(head) - len(tail)} more)", *tail])


def cycle_error(workflow: Workflow, edges: Sequence[Sequence[int]], nodes: Sequence[int]) -> CycleError:
    """The error for a workflow whose `nodes` are on a cycle or behind one; `edges` as ``Workflow.edges()`` gives them."""
    suspects = set(nodes)
    cycle: list[int] = name_cycle((up, node) for node in nodes for up in edges[node] if up in suspects)
    names = [workflow.name_of(node) for node in cycle]
    where = None
    for before, after in pairwise(cycle):
        where = workflow.site_of_edge(before, after)
        if where is not None:
            first, second = workflow.name_of(before), workflow.name_of(after)
            hint = f"{first!r} is put before {second!r} here: is it the wrong way round?"
            break
    else:
        hint = "take out one of these edges"
    return CycleError(
        f"workflow {workflow.name!r} has a cycle: {show_cycle(names)}", cycle=names, where=where, hint=hint
    )


# ── from networkx ─────────────────────────────────────────────────────────────────────────────────────────────────


def add_graph(flow: Workflow, graph: Any, calls: Mapping[Any, Call[Any]]) -> None:
    """Give `flow` a node for each of `graph`, named ``str(node)``, and its edges as order-only edges."""
    if not (hasattr(graph, "successors") and hasattr(graph, "is_directed") and graph.is_directed()):
        raise DefinitionError(
            f"workflow {flow.name!r} is made from {type(graph).__name__}, which is not a directed graph",
            where=flow.where,
            hint="pass a networkx.DiGraph",
        )
    frame = user_frame()
    numbers: dict[Hashable, int] = {}
    for node in graph:
        call = calls.get(node)
        if call is None:
            raise DefinitionError(
                f"node {node!r} of the graph has no call",
                where=flow.where,
                hint="calls maps each node to a Call: {node: some_task.bind(...)}",
            )
        numbers[node] = len(flow)
        flow.add_at(call, str(node), (), frame)
    for node in calls:
        if node not in numbers:
            close = did_you_mean(str(node), map(str, numbers))
            raise UnknownName(
                f"calls has {node!r}, which is no node of the graph",
                where=flow.where,
                hint=f"did you mean {close!r}?" if close else None,
            )
    flow.order_all([(numbers[before], numbers[after]) for before, after in graph.edges()], frame)


# ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def layers(workflow: Workflow) -> list[list[str]]:
    """Names by depth: first what waits for nothing, then what waits only for those, and so on. Raises CycleError."""
    nx = _networkx()
    graph = _acyclic(workflow)
    return [list(layer) for layer in nx.topological_generations(graph)]


def critical_path(graph: Any, weight: Mapping[str, float] | None = None) -> list[str]:
    """The names on a heaviest path through `graph`, which has no cycle.

    A node weighs ``weight[name]``, 0 where missing; 1 when no weights are given.
    """
    nx = _networkx()
    best: dict[str, float] = {}
    via: dict[str, str | None] = {}
    for name in nx.topological_sort(graph):
        own = 1.0 if weight is None else weight.get(name, 0.0)
        before = max(graph.predecessors(name), key=best.__getitem__, default=None)
        best[name] = own + (best[before] if before is not None else 0.0)
        via[name] = before
    path: list[str] = []
    step = max(best, key=best.__getitem__, default=None)
    while step is not None:
        path.append(step)
        step = via[step]
    return path[::-1]


def ancestors(graph: Any, name: str) -> set[str]:
    """Everything that `name` waits for, directly or not. Raises UnknownName."""
    _known(graph, name)
    found: set[str] = _networkx().ancestors(graph, name)
    return found


def descendants(graph: Any, name: str) -> set[str]:
    """Everything that waits for `name`, directly or not. Raises UnknownName."""
    _known(graph, name)
    found: set[str] = _networkx().descendants(graph, name)
    return found


def layout(graph: Any) -> dict[str, tuple[int, float]]:
    """Where to draw each node: (layer, place in it), few edges crossing. Layered drawing after Sugiyama, Tagawa, Toda
    (1981): layers by depth, and within each the barycentre of the neighbours, swept down and up."""
    nx = _networkx()
    rows: list[list[str]] = [list(layer) for layer in nx.topological_generations(graph)]
    place: dict[str, float] = {}
    for row in rows:
        place.update({name: index - (len(row) - 1) / 2 for index, name in enumerate(row)})
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows if downwards else reversed(rows):
            centre: dict[str, float] = {}
            for name in row:
                near = [place[n] for n in (graph.predecessors(name) if downwards else graph.successors(name))]
                centre[name] = sum(near) / len(near) if near else place[name]
            row.sort(key=centre.__getitem__)
            place.update({name: index - (len(row) - 1) / 2 for index, name in enumerate(row)})
    return {name: (depth, place[name]) for depth, row in enumerate(rows) for name in row}


def _acyclic(workflow: Workflow) -> Any:
    graph = to_networkx(workflow)
    if not _networkx().is_directed_acyclic_graph(graph):
        raise cycle_error(workflow, workflow.edges(), range(len(workflow.names)))
    return graph


def _known(graph: Any, name: str) -> None:
    if name not in graph:
        close = did_you_mean(name, graph)
        raise UnknownName(
            f"workflow {graph.name!r} has no task named {name!r}", hint=f"did you mean {close!r}?" if close else None
        )
