"""Trigger rules: whether a task runs, by how its upstreams ended. Pure functions of four counts; data for tests and docs.

The names are Airflow's, and so is what they mean. A rule is asked whenever an upstream has ended, and says what is certain
already: run, skip, fail, or wait for more. Without upstreams a task runs, whatever its rule.

What is said early stays true whatever comes later: so how a task ends depends on how its upstreams ended, never on the order in
which they did.

    ok       upstreams that succeeded, or whose value was in the cache
    failed   failed, timed out, crashed, cancelled, unknown, or never ran because of one that did
    skipped  skipped
    left     not ended yet
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ALL_SUCCESS", "AT_LEAST", "TRIGGERS", "Trigger", "TriggerName", "TriggerRule"]


class Trigger(IntEnum):
    """What a rule says."""

    WAIT = 0
    RUN = 1
    SKIP = 2
    FAIL = 3  # the task ends as `upstream_failed`


_WAIT, _RUN, _SKIP, _FAIL = Trigger.WAIT, Trigger.RUN, Trigger.SKIP, Trigger.FAIL

#: Each rule by its name, as lines of (any of these is not 0, then this): the first line that fits decides; "" fits always.
#: "no ok" is the one condition that asks for a 0.
TRIGGERS: Final[Mapping[str, tuple[tuple[str, Trigger], ...]]] = {
    "all_success": (("failed", _FAIL), ("left", _WAIT), ("skipped", _SKIP), ("", _RUN)),
    "all_failed": (("ok skipped", _SKIP), ("left", _WAIT), ("", _RUN)),
    "all_done": (("left", _WAIT), ("", _RUN)),
    "all_skipped": (("ok failed", _SKIP), ("left", _WAIT), ("", _RUN)),
    "one_success": (("ok", _RUN), ("left", _WAIT), ("failed", _FAIL), ("", _SKIP)),
    "one_failed": (("failed", _RUN), ("left", _WAIT), ("", _SKIP)),
    "one_done": (("ok failed", _RUN), ("left", _WAIT), ("", _SKIP)),
    "none_failed": (("failed", _FAIL), ("left", _WAIT), ("", _RUN)),
    "none_skipped": (("skipped", _SKIP), ("left", _WAIT), ("", _RUN)),
    "none_failed_min_one_success": (("failed", _FAIL), ("left", _WAIT), ("no ok", _SKIP), ("", _RUN)),
    "all_done_min_one_success": (("left", _WAIT), ("ok", _RUN), ("failed", _FAIL), ("", _SKIP)),
    "always": (("", _RUN),),
}

#: The same names for type checkers.
TriggerName: TypeAlias = Literal[
    "all_success",
    "all_failed",
    "all_done",
    "all_skipped",
    "one_success",
    "one_failed",
    "one_done",
    "none_failed",
    "none_skipped",
    "none_failed_min_one_success",
    "all_done_min_one_success",
    "always",
]

#: The name of the rule of a join: at least so many upstreams have succeeded.
AT_LEAST: Final = "at_least"


@dataclass(frozen=True, slots=True)
class TriggerRule:
    """The rule of one node: a name of `TRIGGERS`, or "at_least" with the number it needs.

    cancel_rest  when the node becomes ready, upstreams that have not ended are cancelled
    """

    name: str = "all_success"
    at_least: int = 0
    cancel_rest: bool = False

    def __post_init__(self) -> None:
        if self.name != AT_LEAST and self.name not in TRIGGERS:
            raise ValueError(f"there is no trigger rule {self.name!r}; there are {', '.join(TRIGGERS)}")
        if (self.name == AT_LEAST) != (self.at_least > 0):
            raise ValueError(f"{self.at_least} upstreams of rule {self.name!r}: only 'at_least' takes a number, from 1")

    def decide(self, ok: int, failed: int, skipped: int, left: int) -> Trigger:
        """What is certain after so many upstreams have ended so."""
        if not (ok or failed or skipped or left):
            return Trigger.RUN
        if self.name == AT_LEAST:
            if ok >= self.at_least:
                return Trigger.RUN
            if ok + left >= self.at_least:
                return Trigger.WAIT
            if failed:
                return Trigger.FAIL
            return Trigger.WAIT if left else Trigger.SKIP
        counts = {"ok": ok, "failed": failed, "skipped": skipped, "left": left}
        for condition, says in TRIGGERS[self.name]:
            if not condition or (not ok if condition == "no ok" else any(counts[word] for word in condition.split())):
                return says
        raise AssertionError(f"the last line of rule {self.name!r} does not fit always")


#: What a node without a rule of its own has.
ALL_SUCCESS: Final = TriggerRule()
