"""The values of one run: kept from the moment a task returns until its last reader has ended.

Owned by the run's loop thread. A template (`Arguments`, or a run's result) holds a `Ref` wherever an upstream value
belongs; `fill` puts the values in. Everything is iterative: a template may be nested as deeply as its author likes.

A value may be a `RemoteValue`: the executor that made it gets it as it is, everybody else what it stands for
(`fill_arguments_at`). One that is made of the values of others, some of which are remote, is put together where it is read
(`Whole`). Runs without an executor that makes any never look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flowlane.program import Ref
from flowlane.runtime.ports import RemoteValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.program import Arguments

__all__ = [
    "Filled",
    "Gathered",
    "Whole",
    "composed",
    "fill",
    "fill_arguments",
    "fill_arguments_at",
    "filled_at",
    "local",
    "nodes_in",
]


class Whole:
    """A value that is made of `parts`, the values of others, some of which may be remote.

    `opened`: the parts themselves are taken apart for it, so that all of them must be here, whoever reads it.
    """

    __slots__ = ("parts",)
    parts: list[Any]
    opened = False

    def local(self, home: object) -> Any:
        """The value for the executor `home`, None for everybody else. Raises what fetching a part raises."""
        raise NotImplementedError

    def of(self, parts: list[Any]) -> Whole:
        """The same of other parts."""
        raise NotImplementedError


class Gathered(Whole):
    """The values of the elements of a map as the value of the map: a list, or a dict by `keys`.

    `batched`: each of the parts is a list of values, as if each of these had been an element. They are put together here.
    """

    __slots__ = ("batched", "keys")

    def __init__(self, parts: list[Any], keys: Sequence[Any] | None = None, *, batched: bool = False) -> None:
        self.parts = parts
        self.keys = keys
        self.batched = batched

    @property
    def opened(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride] - read only
        return self.batched

    def local(self, home: object) -> Any:
        if self.batched:
            values = [value for part in self.parts for value in local(part, None)]
        else:
            values = [local(part, home) for part in self.parts]
        return values if self.keys is None else dict(zip(self.keys, values, strict=True))

    def of(self, parts: list[Any]) -> Gathered:
        return Gathered(parts, self.keys, batched=self.batched)


class Filled(Whole):
    """What a graph returns that has the values of several of its nodes in it: `template`, and each `nodes`' value as a part."""

    __slots__ = ("_nodes", "_template")

    def __init__(self, template: Any, nodes: Sequence[int], parts: list[Any]) -> None:
        self._template = template
        self._nodes = nodes
        self.parts = parts

    def local(self, home: object) -> Any:
        parts = dict(zip(self._nodes, self.parts, strict=True))
        return filled_at(home, self._template, cast("Sequence[Any]", parts))

    def of(self, parts: list[Any]) -> Filled:
        return Filled(self._template, self._nodes, parts)


def composed(template: Any, values: Sequence[Any]) -> Any:
    """What `template` stands for: filled if all that it needs is here, else to be filled where it is read."""
    nodes = nodes_in(template)
    parts = [values[node] for node in nodes]
    if any(isinstance(part, (RemoteValue, Whole)) for part in parts):
        return Filled(template, nodes, parts)
    return fill(template, values)


def nodes_in(template: Any) -> list[int]:
    """The nodes whose values a template needs, in order."""
    seen = _Seen()
    fill(template, cast("Sequence[Any]", seen))
    return list(seen.nodes)


def local(value: Any, home: object) -> Any:
    """A value as the executor `home` may have it, None for everybody else. Raises what fetching it raises."""
    if isinstance(value, RemoteValue):
        return value if value.home is home else value.fetch()
    return value.local(home) if isinstance(value, Whole) else value


def fill_arguments(arguments: Arguments, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The positional and keyword arguments of one attempt."""
    if arguments.nested:
        kwargs = {name: fill(value, values) for name, value in arguments.kwargs.items()}
        return [fill(value, values) for value in arguments.args], kwargs
    if arguments.direct:
        args = list(arguments.args)
        for position in arguments.direct:
            args[position] = values[args[position].node]
        return args, arguments.kwargs  # type: ignore[return-value]  # a Mapping that callers only unpack
    return arguments.args, arguments.kwargs  # type: ignore[return-value]


def fill_arguments_at(
    home: object, arguments: Arguments, values: Sequence[Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """`fill_arguments` for the executor `home`, where values may be remote. Raises what fetching one raises."""
    if arguments.nested:
        return fill_arguments(arguments, cast("Sequence[Any]", _At(home, values)))
    if not arguments.direct:
        return arguments.args, arguments.kwargs  # type: ignore[return-value]  # see above
    args = list(arguments.args)
    for position in arguments.direct:
        args[position] = local(values[args[position].node], home)
    return args, arguments.kwargs  # type: ignore[return-value]


def filled_at(home: object, template: Any, values: Sequence[Any]) -> Any:
    """`fill` for the executor `home`, where values may be remote. Raises what fetching one raises."""
    return fill(template, cast("Sequence[Any]", _At(home, values)))


class _Seen:
    """In place of values: which of them are asked for."""

    __slots__ = ("nodes",)

    def __init__(self) -> None:
        self.nodes: dict[int, None] = {}

    def __getitem__(self, node: int) -> None:
        self.nodes[node] = None


class _At:
    """The values as one executor may have them."""

    __slots__ = ("_home", "_values")

    def __init__(self, home: object, values: Sequence[Any]) -> None:
        self._home = home
        self._values = values

    def __getitem__(self, node: int) -> Any:
        return local(self._values[node], self._home)


def fill(template: Any, values: Sequence[Any]) -> Any:
    """`template` with every Ref replaced by its value. What holds no Ref is returned as the same object."""
    if type(template) is Ref:
        return values[template.node]
    children = _children(template)
    if children is None:
        return template
    # One frame per open container: [the container, its children, the filled ones so far, whether any differs].
    stack: list[tuple[Any, Sequence[Any], list[Any]]] = [(template, children, [])]
    inside = {id(template)}  # a container inside itself is left as it is
    done: dict[int, Any] = {}  # by id: what is shared in the template is shared in the result, and walked once
    while True:
        container, children, filled = stack[-1]
        while len(filled) < len(children):
            child = children[len(filled)]
            if type(child) is Ref:
                filled.append(values[child.node])
                continue
            below = _children(child)
            if id(child) in done:
                filled.append(done[id(child)])
                continue
            if below is None or id(child) in inside:
                filled.append(child)
                continue
            stack.append((child, below, []))
            inside.add(id(child))
            break
        else:
            stack.pop()
            inside.discard(id(container))
            same = all(new is old for new, old in zip(filled, children, strict=True))
            result = done[id(container)] = container if same else _rebuilt(container, filled)
            if not stack:
                return result
            stack[-1][2].append(result)


def _children(value: Any) -> Sequence[Any] | None:
    """What is searched for Refs: the items of lists, tuples and named tuples, the values of dicts."""
    kind = cast("type[object]", type(value))
    if kind is list or kind is tuple or (issubclass(kind, tuple) and hasattr(value, "_make")):
        return cast("Sequence[Any]", value)
    if kind is dict:
        return tuple(cast("dict[Any, Any]", value).values())
    return None


def _rebuilt(container: Any, children: list[Any]) -> Any:
    kind = cast("type[object]", type(container))
    if kind is list:
        return children
    if kind is dict:
        return dict(zip(container, children, strict=True))
    return tuple(children) if kind is tuple else container._make(children)
