"""The options of a task: what may be written, and what is kept of it until a workflow is compiled.

Names of options are checked where they are written, values when compiled (spec.py): so that decorating costs next to nothing
and pydantic is not imported for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

from flowlane.declare.callsite import caller, did_you_mean, words
from flowlane.declare.shape import Shape, signature_of
from flowlane.errors import DefinitionError, with_article

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.core.rules import TriggerName
    from flowlane.declare.cache import Cache
    from flowlane.declare.callsite import Spot
    from flowlane.declare.limits import Limit
    from flowlane.declare.spec import RetryPolicy, TaskSpec
    from flowlane.declare.task import Task

__all__ = ["CALL_OPTIONS", "TASK_OPTIONS", "CallOptions", "Settings", "TaskOptions", "check_name", "unknown_option"]


class TaskOptions(TypedDict, total=False):
    """What @task.io(...) and @task.cpu(...) take. Times are in seconds.

    name           the task's name, instead of the function's
    retries        how often to try again after a failed attempt: short for ``retry=RetryPolicy(attempts=retries + 1)``
    retry          a RetryPolicy: attempts, backoff, and which errors
    timeout        for each attempt, from the moment a worker starts it; None for none
    total_timeout  for all attempts together with the waiting between them, from when the task is first ready
    executor       the executor to run on, whatever its kind says
    cache          keep results and use them again, in other runs too, while inputs and code are the same: True, or a Cache
                   that says for how long. Needs a store.
    at_most_once   never start it a second time, also not when a run is resumed: what was started and not recorded as done is
                   then `unknown`, until somebody says that it may. Neither retries nor a cache go with it.
    persist        False keeps the result out of the store: for what lives with its process (a server, a connection). When the run
                   is resumed and somebody needs it, the task runs again
    in_flight      of a map: items that may be under way at a time, 1,000 unless said; of maps over maps the first one's counts
    batch          of a map: so many items in one attempt, which has one outcome. For plain functions of microseconds
    limits         limits that an attempt holds: Limits or their names, or name → how much of it
    cores          slots of its executor that an attempt takes
    memory         memory that an attempt takes, as "500 MB" or "2 GB" or in bytes; attempts wait until there is enough
    priority       among tasks that are ready, higher ones start first; 0 unless said
    may_fail       its failure does not fail the run
    max_depth      how deep work that it returns may go on returning work; 100 unless said
    """

    name: str
    retries: int
    retry: RetryPolicy
    timeout: float | None
    total_timeout: float | None
    executor: str | None
    cache: bool | Cache | None
    at_most_once: bool
    persist: bool
    in_flight: int
    batch: int
    limits: Sequence[Limit | str] | Mapping[str, int]
    cores: int
    memory: str | int
    priority: int
    may_fail: bool
    max_depth: int


class CallOptions(TaskOptions, total=False):
    """What ``task.options(...)`` takes: all of TaskOptions for one call, where `name` names the node, and

    after        tasks to wait for without reading their values: handles, or names that may come later
    trigger      when it runs, by how what it waits for ended: "all_success" unless said, "all_done", "one_failed", ... A value
                 that is missing then arrives as None, and a map's list lacks what has none
    join         it runs as soon as so many of those have succeeded
    enough       of a map: it ends as soon as so many of its elements have succeeded
    cancel_rest  of `join` and `enough`: what has not ended by then is cancelled; else it runs out, and nobody waits for it.
                 As a rule `enough` does so, and `join` does not
    """

    after: Sequence[object]
    trigger: TriggerName
    join: int
    enough: int
    cancel_rest: bool


TASK_OPTIONS: Final = (
    "name",
    "retries",
    "retry",
    "timeout",
    "total_timeout",
    "executor",
    "cache",
    "at_most_once",
    "persist",
    "in_flight",
    "batch",
    "limits",
    "cores",
    "memory",
    "priority",
    "may_fail",
    "max_depth",
)
CALL_OPTIONS: Final = (*TASK_OPTIONS, "after", "trigger", "join", "enough", "cancel_rest")


class Settings:
    """The options of a task, shared by all its nodes; those of one call when it has its own.

    options  raw, as written, `name` and `after` left out
    task     the task as it was decorated
    where    ``file:line`` of where they were written
    spec     their checked form, made when a workflow is first compiled
    shape    what arguments fit the function, read at the first call
    """

    __slots__ = ("options", "shape", "spec", "spot", "task")

    def __init__(self, task: Task[Any, Any, Any], options: dict[str, Any], spot: Spot | None) -> None:
        self.task = task
        self.options = options
        self.spot = spot
        self.spec: TaskSpec | None = None
        self.shape: Shape | None = None

    @property
    def where(self) -> str | None:
        """``file:line`` of where they were written."""
        return words(self.spot)

    def measure(self) -> Shape:
        """The shape, read now if this is the first call."""
        shape = self.shape
        if shape is None:
            own = self.task.settings
            if own.shape is None:
                own.shape = Shape(signature_of(self.task.fn))
            shape = self.shape = own.shape
        return shape


def check_name(name: object, what: str, where: str | None = None) -> str:
    """`name` if it may name a task, node or workflow; DefinitionError otherwise. `what` opens the message."""
    if not isinstance(name, str):
        raise DefinitionError(
            f"{what} is named {name!r}, which is {with_article(type(name).__name__)}",
            where=where or caller(),
            hint="a name is a str",
        )
    if not name or not name.isprintable() or any(c in name for c in "/#[]"):
        raise DefinitionError(
            f"{what} cannot be named {name!r}",
            where=where or caller(),
            hint="names hold printable characters, and none of / # [ ], which mark sub-workflows, repeats and elements",
        )
    return name


def unknown_option(subject: str, key: str, known: Sequence[str]) -> DefinitionError:
    """The error for option `key`, which `subject` does not have."""
    close = did_you_mean(key, known)
    return DefinitionError(
        f"{subject} has no option {key!r}; its options: {', '.join(known)}",
        where=caller(),
        hint=f"did you mean {close!r}?" if close else None,
    )
