"""The values of one run: kept from the moment a task returns until its last reader has ended.

Owned by the run's loop thread. A template (`Arguments`, or a run's result) holds a `Ref` wherever an upstream value
belongs; `fill` puts the values in. Everything is iterative: a template may be nested as deeply as its author likes.

A value may be a `RemoteValue`: the executor that made it gets it as it is, everybody else what it stands for
(`fill_arguments_at`). Runs without an executor that makes any never look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flowlane.program import Ref
from flowlane.runtime.ports import RemoteValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.program import Arguments

__all__ = ["Gathered", "fill", "fill_arguments", "fill_arguments_at", "local"]


class Gathered:
    """The values of the elements of a map, some of which may be remote, as the value of the map: a list, or a dict by `keys`.

    `batched`: each of the parts is a list of values, as if each of these had been an element. They are put together here.
    """

    __slots__ = ("batched", "keys", "parts")

    def __init__(self, parts: list[Any], keys: Sequence[Any] | None = None, *, batched: bool = False) -> None:
        self.parts = parts
        self.keys = keys
        self.batched = batched

    def local(self, home: object) -> Any:
        """The value for the executor `home`, None for everybody else. Raises what fetching a part raises."""
        if self.batched:
            values = [value for part in self.parts for value in local(part, None)]
        else:
            values = [local(part, home) for part in self.parts]
        return values if self.keys is None else dict(zip(self.keys, values, strict=True))


def local(value: Any, home: object) -> Any:
    """A value as the executor `home` may have it, None for everybody else. Raises what fetching it raises."""
    if isinstance(value, RemoteValue):
        return value if value.home is home else value.fetch()
    return value.local(home) if type(value) is Gathered else value


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
