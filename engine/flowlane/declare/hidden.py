"""What objects hold that nobody searches for handles: found as far as that is cheap, and runs no code of the user's.

A handle in a dataclass would reach the task as it is. One level is looked at, and only what is short; deeper inside it is found
by whoever uses it, because a handle refuses to be used.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from types import FunctionType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LOOKED_INTO", "hidden_in"]

T = TypeVar("T")

#: Elements of a container, or attributes of an object, that may hide a handle: one level, and short.
LOOKED_INTO: Final = 100


def hidden_in(value: Any, wanted: type[T]) -> tuple[str, T] | None:
    """A `wanted` that an object holds, and how it is got at; its own type counts, not subclasses.

    Looked at are attributes, those of slots included, what a function has closed over, the arguments of a partial, and a deque.
    """
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType] - truly any
    parts: Iterable[tuple[str, object]] = ()
    if kind is FunctionType:
        if value.__closure__:
            names = value.__code__.co_freevars
            parts = [(f"its variable {name!r}", _content(c)) for name, c in zip(names, value.__closure__, strict=True)]
    elif kind is partial:
        parts = [(f"its argument {name!r}", each) for name, each in (*enumerate(value.args), *value.keywords.items())]
    elif kind is deque:
        parts = [(f"its element {at}", each) for at, each in enumerate(list(value)[:LOOKED_INTO])]
    elif not issubclass(kind, type):
        slots = _slots_of(kind)
        if slots:
            parts = [(f"its attribute {name!r}", _content(member, value)) for name, member in slots]
        with suppress(AttributeError):
            attributes: Any = object.__getattribute__(value, "__dict__")
            if len(attributes) <= LOOKED_INTO and wanted in map(type, attributes.values()):
                parts = [*parts, *[(f"its attribute {name!r}", each) for name, each in attributes.items()]]
    return next(((where, each) for where, each in parts if type(each) is wanted), None)


def _slots_of(kind: type[Any]) -> list[tuple[str, Any]]:
    slotted = [base.__dict__ for base in kind.__mro__[:-1] if "__slots__" in base.__dict__]
    members = [item for scope in slotted for item in scope.items()]
    return [(name, member) for name, member in members if type(member) is MemberDescriptorType][:LOOKED_INTO]


def _content(place: Any, owner: object = None) -> object:
    """What is in a cell, or in a slot of `owner`; None where it is empty."""
    try:
        return place.cell_contents if owner is None else place.__get__(owner)
    except (ValueError, AttributeError):
        return None
