"""What bounds a run as a whole: how many failures it bears, how long it may take, how many retries it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.declare.callsite import caller
from flowlane.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BOUNDS", "NO_BOUNDS", "Bounds"]

_LONGEST: Final = 1e9  # seconds, as for timeouts


class Bounds(NamedTuple):
    """The bounds of a run; None where there is none.

    max_failures  so many failed tasks end the run, as the first one does under on_failure="fail_fast": a number, or a share of
                  its tasks, "10%"
    deadline      seconds after its start at which the run is cancelled
    retry_budget  retries that all its tasks have together
    """

    max_failures: int | str | None = None
    deadline: float | None = None
    retry_budget: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], who: str, where: str | None = None) -> Bounds:
        """The bounds among `given` options. Raises DefinitionError that speaks of `who`."""
        bounds = cls(**{name: given[name] for name in BOUNDS if given.get(name) is not None})
        for name, right, hint in (
            ("max_failures", _is_count(bounds.max_failures), 'a whole number of at least 1, or a share as "10%"'),
            ("deadline", _is_time(bounds.deadline), "seconds, more than 0"),
            ("retry_budget", _is_budget(bounds.retry_budget), "a whole number of retries, 0 or more"),
        ):
            if not right:
                raise DefinitionError(
                    f"{who} has {name}={getattr(bounds, name)!r}", where=where or caller(), hint=f"{name} is {hint}"
                )
        return bounds

    def over(self, others: Bounds) -> Bounds:
        """These, and of `others` what these do not say."""
        return others._replace(**{name: bound for name, bound in self._asdict().items() if bound is not None})

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a Plan that say so."""
        most = self.max_failures
        return {
            "max_failures": most if isinstance(most, int) else 0,
            "max_share": float(most.strip()[:-1]) if isinstance(most, str) else 0.0,
            "deadline": max(1, round(self.deadline * 1e9)) if self.deadline else 0,
            "retry_budget": self.retry_budget if self.retry_budget is not None else -1,
        }


NO_BOUNDS: Final = Bounds()
BOUNDS: Final = Bounds._fields


def _is_count(value: object) -> bool:
    if isinstance(value, str):
        text = value.strip()
        try:
            return text.endswith("%") and 0 < float(text[:-1]) <= 100
        except ValueError:
            return False
    return value is None or (type(value) is int and value >= 1)


def _is_time(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _LONGEST)


def _is_budget(value: object) -> bool:
    return value is None or (type(value) is int and value >= 0)
