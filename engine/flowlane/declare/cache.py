"""Cache: what a user may say about results that are kept beyond their run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator

from flowlane.declare.callsite import caller
from flowlane.declare.checked import Timeout, near, wording
from flowlane.errors import DefinitionError

__all__ = ["Cache"]


class Cache(BaseModel, frozen=True, extra="forbid", strict=True):
    """That a task's results are kept, and used instead of running it again with the same inputs and the same code.
    Immutable; fields are checked when it is made (DefinitionError).

    ttl      seconds (or a timedelta) after which a result is too old; more than 0, None for never. Kept in seconds.
    version  changes whenever results of before must not be used any more, for a reason that the code does not show: a
             model file, a service. 2 and "2" mean the same.
    """

    ttl: Timeout | None = None
    version: str = ""

    def __init__(self, *, ttl: float | timedelta | None = None, version: str | int = "", **unknown: Any) -> None:
        try:
            super().__init__(ttl=ttl, version=version, **unknown)
        except ValidationError as error:
            raise DefinitionError(f"Cache has {wording(error)}", where=caller(), hint=near(unknown, Cache)) from None

    @field_validator("ttl", mode="before")
    @classmethod
    def _in_seconds(cls, value: Any) -> Any:
        return value.total_seconds() if isinstance(value, timedelta) else value

    @field_validator("version", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise ValueError("should be a str or an int")
        return value
