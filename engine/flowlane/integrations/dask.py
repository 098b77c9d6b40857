"""A scheduler for Dask's collections: their graphs run on an Engine of ours, so on any of its executors.

::

    from flowlane.integrations.dask import get

    frame.sum().compute(scheduler=get)                                # worker processes, as for any task that computes
    frame.sum().compute(scheduler=get, routes={"cpu": "threads"})     # by reference; numpy and pandas let go of the GIL
    with Engine(sinks=[...]) as engine:
        frame.sum().compute(scheduler=partial(get, engine=engine))    # pools, slots and sinks of yours

Each node of Dask's graph that computes something is a task, named as Dask shows it ("sum", "sum#2"); one that only holds
data, or another name for a key, is not. Keys and nodes are Dask's own objects, and a task calls its node with the values that it
depends on: what is in a node is Dask's affair.

Needs ``pip install 'flowlane[dask]'``.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from flowlane.declare.nodes import Workflow
from flowlane.declare.task import task
from flowlane.engine import Engine
from flowlane.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["get"]

_NOT_IN_NAMES: Final = re.compile(r"[/#\[\]\x00-\x1f\x7f-\x9f\u2028\u2029]")


def get(dsk: Any, keys: Any, *, engine: Engine | None = None, routes: Mapping[str, str] | None = None, **_: Any) -> Any:
    """The values of `keys`, a key or lists of keys within lists, of Dask's graph `dsk`. Blocks; lists come back as tuples.

    `engine` is an Engine with a loop of its own (``with Engine() as engine``), by default a new one; `routes` say where tasks
    run, as for any run: all of these are of the kind cpu. Other keywords, which Dask gives to every scheduler, mean nothing
    here.

    Raises KeyError for a key that is not in the graph, what a task raised, and RunFailed where that did not travel.
    """
    spec: Any = import_module("dask._task_spec")
    graph = _nodes(dsk, spec)
    flow = Workflow("dask")
    tasks = _Tasks()
    made: dict[Any, Any] = {}  # key → value, or the handle that stands for it
    for key in _in_order(graph, keys):
        node = graph[key]
        if isinstance(node, spec.DataNode):
            made[key] = node()
        elif isinstance(node, spec.Alias):
            made[key] = made[node.target]
        else:
            values = {each: made[each] for each in node.dependencies}
            made[key] = flow.add(tasks.named(key).bind(node, values))
    wanted = {key: made[key] for key in _flat(keys)}
    if flow.names:
        wanted = _result(flow, wanted, engine, routes)
    return _nested(keys, wanted)


def compute(node: Callable[[Mapping[Any, Any]], Any], values: Mapping[Any, Any]) -> Any:
    """What a task does: a node of Dask's computes itself from the values of the keys it depends on."""
    return node(values)


class _Tasks:
    """Tasks by the names that Dask shows for keys."""

    def __init__(self) -> None:
        utils: Any = import_module("dask.utils")
        self._shown: Callable[[Any], str] = utils.key_split
        self._tasks: dict[str, Any] = {}

    def named(self, key: Any) -> Any:
        name = _NOT_IN_NAMES.sub("-", str(self._shown(key))).strip() or "task"
        if name not in self._tasks:
            self._tasks[name] = task.cpu(name=name)(compute)
        return self._tasks[name]


def _result(
    flow: Workflow, wanted: dict[Any, Any], engine: Engine | None, routes: Mapping[str, str] | None
) -> dict[Any, Any]:
    bound: Any = flow.returns(list(wanted.values()))
    try:
        if engine is not None:
            found = engine.start(bound, routes=routes).result().value
        else:
            with Engine() as own:
                found = own.start(bound, routes=routes).result().value
    except RunFailed as error:
        if error.__cause__ is not None:  # as any scheduler of Dask's does
            raise error.__cause__ from None
        raise
    return dict(zip(wanted, found, strict=True))


def _nodes(dsk: Any, spec: Any) -> dict[Any, Any]:
    """Dask's graph, in whatever form, as key → node."""
    if hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    utils: Any = import_module("dask.utils")
    nodes: dict[Any, Any] = spec.convert_legacy_graph(utils.ensure_dict(dsk))
    return nodes


def _in_order(graph: Mapping[Any, Any], keys: Any) -> list[Any]:
    """What `keys` need, each after all that it depends on. Raises KeyError; ValueError where keys depend on themselves."""
    order: list[Any] = []
    done: set[Any] = set()
    for wanted in _flat(keys):
        stack: list[tuple[Any, Any]] = [(wanted, None)]
        open_: set[Any] = set()
        while stack:
            key, rest = stack.pop()
            if rest is None:
                if key in done:
                    continue
                if key in open_:
                    raise ValueError(f"key {key!r} of the graph depends on itself")
                open_.add(key)
                rest = iter(graph[key].dependencies)
            for below in rest:
                if below not in done:
                    stack += [(key, rest), (below, None)]
                    break
            else:
                open_.discard(key)
                done.add(key)
                order.append(key)
    return order


def _flat(keys: Any) -> list[Any]:
    flat: list[Any] = []
    left = [keys]
    while left:
        each = left.pop()
        if isinstance(each, list):
            left.extend(reversed(each))  # pyright: ignore[reportUnknownArgumentType] - whatever Dask's keys are
        else:
            flat.append(each)
    return flat


def _nested(keys: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(keys, list):
        return tuple([_nested(each, values) for each in keys])  # pyright: ignore[reportUnknownVariableType]
    return values[keys]
