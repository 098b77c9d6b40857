"""Options as checked data: RetryPolicy, which users write, and TaskSpec, one per distinct set of options.

These, and Cache, are the only pydantic models that options pass through; a million nodes of one task make one TaskSpec.
Times are in seconds here and in nanoseconds in ``flowlane.core``; this is where they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from flowlane.core.plan import REMAKES, Policy
from flowlane.core.rules import ALL_SUCCESS, AT_LEAST, TRIGGERS, TriggerRule
from flowlane.declare.cache import Cache
from flowlane.declare.callsite import caller, did_you_mean
from flowlane.declare.checked import Seconds, Timeout, hint_of, near, wording
from flowlane.declare.limits import Limit, parse_memory
from flowlane.errors import DefinitionError, WorkerCrashed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MAX_ATTEMPTS", "Held", "RetryPolicy", "TaskSpec"]

#: The number of an attempt is kept in one byte.
MAX_ATTEMPTS: Final = 255

#: Options that become sparse fields of a plan.
_SPARSE: Final = frozenset(
    "in_flight batch limits cores memory priority may_fail max_depth trigger join enough cancel_rest".split()
)


class RetryPolicy(BaseModel, frozen=True, extra="forbid", strict=True):
    """How often and when a task is tried again. Immutable; fields are checked when it is made (DefinitionError).

    attempts   how often it may be tried in all, 1 to 255
    backoff    seconds before the first retry; 0 retries at once
    factor     each further wait is this much longer: the k-th is ``min(max_delay, backoff * factor ** (k - 1))``
    max_delay  the longest wait, in seconds; more than 0
    jitter     wait a random share of that instead, uniform over (0, that)
    on         which errors are retried. A timed-out attempt counts as TimeoutError, a worker's death as WorkerCrashed.
               SystemExit and KeyboardInterrupt are never retried.
    when       of those errors, which are retried: a function that is given the exception and says so. One that could not
               travel from its worker is retried without asking. It runs on the engine's loop, and is to be quick
    """

    attempts: int = Field(default=3, ge=1, le=MAX_ATTEMPTS)
    backoff: Seconds = 0.0
    factor: float = Field(default=2.0, ge=1, le=1e6, allow_inf_nan=False)
    max_delay: Timeout = 60.0
    jitter: bool = False
    on: tuple[type[BaseException], ...] = (Exception,)
    when: Any = None  # Callable[[BaseException], bool] | None: pydantic would only know that it can be called

    def __init__(
        self,
        *,
        attempts: int = 3,
        backoff: float = 0.0,
        factor: float = 2.0,
        max_delay: float = 60.0,
        jitter: bool = False,
        on: tuple[type[BaseException], ...] = (Exception,),
        when: Callable[[BaseException], bool] | None = None,
        **unknown: Any,
    ) -> None:
        try:
            super().__init__(
                attempts=attempts,
                backoff=backoff,
                factor=factor,
                max_delay=max_delay,
                jitter=jitter,
                on=on,
                when=when,
                **unknown,
            )
        except ValidationError as error:
            raise DefinitionError(
                f"RetryPolicy has {wording(error)}", where=caller(), hint=near(unknown, RetryPolicy)
            ) from None

    @field_validator("on", mode="before")
    @classmethod
    def _check_on(cls, value: Any) -> Any:
        classes = tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        for given in classes:  # pyright: ignore[reportUnknownVariableType]
            if not (isinstance(given, type) and issubclass(given, BaseException)):
                raise ValueError(f"{given!r} is not an exception class")
            if given is BaseException or issubclass(given, (SystemExit, KeyboardInterrupt, GeneratorExit)):
                raise ValueError(f"{given.__name__} is never retried; the widest is Exception")
        return classes  # pyright: ignore[reportUnknownVariableType]

    @field_validator("when")
    @classmethod
    def _check_when(cls, value: Any) -> Any:
        if value is not None and not callable(value):
            raise ValueError("should be a function that is given the exception; classes of errors belong into `on`")
        return value


class Held(NamedTuple):
    """What an attempt holds of a limit: `limit` where the Limit itself was named, not only its name."""

    name: str
    weight: int
    limit: Limit | None


class TaskSpec(BaseModel, frozen=True, extra="forbid", strict=True):
    """The options of a task, complete and checked."""

    retry: RetryPolicy | None = None
    retries: int | None = Field(default=None, ge=0, le=MAX_ATTEMPTS - 1)
    timeout: Timeout | None = None
    total_timeout: Timeout | None = None
    executor: str | None = Field(default=None, min_length=1)
    cache: Cache | None = None
    at_most_once: bool = False
    persist: bool = True
    in_flight: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    limits: tuple[Held, ...] = ()
    cores: int = Field(default=1, ge=1)
    memory: int = 0  # bytes
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    may_fail: bool = False
    max_depth: int | None = Field(default=None, ge=1)
    trigger: str | None = None
    join: int | None = Field(default=None, ge=1)
    enough: int | None = Field(default=None, ge=1)
    cancel_rest: bool | None = None

    @field_validator("limits", mode="before")
    @classmethod
    def _limits(cls, value: Any) -> tuple[Held, ...]:
        given: Any = value
        if isinstance(given, (str, Limit)):
            raise ValueError("should be a list of limits, or name → how much of it")
        pairs: list[tuple[Any, Any]]
        pairs = list(given.items()) if hasattr(given, "items") else [(each, 1) for each in given]
        found: dict[str, Held] = {}
        for each, weight in pairs:
            if not isinstance(each, (str, Limit)):
                raise ValueError(f"{each!r} is neither a Limit nor the name of one")
            if type(weight) is not int or weight < 1:
                raise ValueError(f"{weight!r} of {each!r} is not a whole number of at least 1")
            name = each if isinstance(each, str) else each.name
            if name in found:
                raise ValueError(f"limit {name!r} is named twice; limits={{{name!r}: 2}} holds two of it")
            found[name] = Held(name, weight, each if isinstance(each, Limit) else None)
        return tuple(found.values())

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError('should be bytes or read like "2 GB"')
        return parse_memory(value)

    @field_validator("trigger")
    @classmethod
    def _trigger(cls, value: str | None) -> str | None:
        if value is not None and value not in TRIGGERS:
            close = did_you_mean(value, TRIGGERS)
            raise PydanticCustomError(
                "trigger",
                "{text}",
                {
                    "text": f"is no trigger rule; there are {', '.join(TRIGGERS)}",
                    "hint": f"did you mean {close!r}?" if close else "join=n runs when n have succeeded",
                },
            )
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.join is not None and self.trigger is not None:
            raise PydanticCustomError(
                "join",
                "both join and trigger, and each is a rule for when it runs",
                {"hint": "leave one of them out"},
            )
        if self.cancel_rest is not None and self.join is None and self.enough is None:
            raise PydanticCustomError(
                "cancel_rest",
                "cancel_rest without join or enough, and so no rest",
                {"hint": "join=n begins when n of what it waits for have succeeded; enough=n ends a map after n"},
            )
        return self

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_or_none(cls, value: Any) -> Any:
        if value is not None and type(value) is not bool and not isinstance(value, Cache):
            raise ValueError("should be True, False or a Cache")
        return (Cache() if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.retry is not None and self.retries is not None:
            raise ValueError("both retries and retry; retries=n is short for retry=RetryPolicy(attempts=n + 1)")
        return self

    @model_validator(mode="after")
    def _no_second_time(self) -> Self:
        if self.at_most_once and self.retry_on:
            raise PydanticCustomError(
                "at_most_once",
                "both at_most_once and retries, and a retry is a second time",
                {"hint": "leave one of them out; where a second time does no harm, retries alone will do"},
            )
        if self.at_most_once and self.cache is not None:
            raise PydanticCustomError(
                "at_most_once",
                "both at_most_once and cache: the one is for what a task does, the other for tasks that only give a result",
                {"hint": "leave one of them out; what must happen in every run must not be taken from a cache"},
            )
        return self

    @model_validator(mode="after")
    def _kept_or_not(self) -> Self:
        other = "cache" if self.cache is not None else "at_most_once" if self.at_most_once else None
        if not self.persist and other is not None:
            raise PydanticCustomError(
                "persist",
                f"both persist=False and {other}, which needs the result to be stored",
                {"hint": "leave one of them out"},
            )
        return self

    @classmethod
    def of(cls, options: Mapping[str, Any], task: str, where: str | None) -> TaskSpec:
        """Check the raw `options` of the task named `task`, written at `where`. Raises DefinitionError."""
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise DefinitionError(f"task {task!r} has {wording(error)}", where=where, hint=hint_of(error)) from None

    @property
    def retry_on(self) -> tuple[type[BaseException], ...]:
        """The exception classes that are retried; none when there is one attempt only."""
        if self.retry is not None:
            return self.retry.on if self.retry.attempts > 1 else ()
        return (Exception,) if self.retries else ()

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing that becomes a sparse field of a plan."""
        return not (self.model_fields_set & _SPARSE)

    @property
    def retry_when(self) -> Callable[[BaseException], bool] | None:
        """What is asked about an error before it is retried."""
        return self.retry.when if self.retry is not None and self.retry.attempts > 1 else None

    @property
    def rule(self) -> TriggerRule:
        """When it runs, by how what it waits for ended."""
        if self.join is not None:
            return TriggerRule(AT_LEAST, self.join, bool(self.cancel_rest))
        return ALL_SUCCESS if self.trigger is None else TriggerRule(self.trigger)

    @property
    def policy(self) -> Policy:
        """The same for the scheduler: times in ns, classes boiled down to what the scheduler must know."""
        retry = self.retry
        on = self.retry_on
        return Policy(
            attempts=retry.attempts if retry is not None else (self.retries or 0) + 1,
            backoff=_ns(retry.backoff) if retry is not None else 0,
            factor=retry.factor if retry is not None else 2.0,
            max_delay=_ns(retry.max_delay) if retry is not None else 0,
            jitter=retry.jitter if retry is not None else False,
            timeout=_ns(self.timeout),
            total_timeout=_ns(self.total_timeout),
            retry_timeouts=any(issubclass(TimeoutError, each) for each in on),
            retry_crashes=any(issubclass(WorkerCrashed, each) for each in on),
            remakes=0 if self.at_most_once else REMAKES,
        )


def _ns(seconds: float | None) -> int:
    # at least 1 ns: 0 means none, and a timeout of 1e-10 s is still one
    return max(1, round(seconds * 1e9)) if seconds else 0
