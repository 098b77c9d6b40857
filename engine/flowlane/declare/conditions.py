"""Conditions on a value, as data: what `when`, `otherwise` and `switch` leave in a Program. They travel, and say yes or no."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NoneOf", "OneOf", "Truthy", "worded"]


@dataclass(frozen=True, slots=True)
class Truthy:
    """The value is true, as `if` has it."""

    def passes(self, value: Any, before: Sequence[bool]) -> bool:  # noqa: ARG002 - a Test
        return bool(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """The value equals one of `values`."""

    values: tuple[Any, ...]

    def passes(self, value: Any, before: Sequence[bool]) -> bool:  # noqa: ARG002 - a Test
        return any(bool(value == each) for each in self.values)


@dataclass(frozen=True, slots=True)
class NoneOf:
    """None of the tests `bits` of the same value holds."""

    bits: tuple[int, ...]

    def passes(self, value: Any, before: Sequence[bool]) -> bool:  # noqa: ARG002 - a Test
        return not any(before[bit] for bit in self.bits)


def worded(test: object, tests: Sequence[object]) -> str:
    """A condition for people, ``true`` or ``'csv' or 'tsv'``; `tests` are all those of the same value."""
    match test:
        case Truthy():
            return "true"
        case OneOf(values):
            return " or ".join(_short(value) for value in values)
        case NoneOf((bit,)) if tests[bit] == Truthy():
            return "false"
        case NoneOf((bit,)) if isinstance(tests[bit], NoneOf):
            return f"not {worded(tests[bit], tests)}"
        case NoneOf():
            return "anything else"
        case _:
            return repr(test)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 30 else f"{text[:27]}..."
