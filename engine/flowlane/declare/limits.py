"""Limit: how much of something that does not belong to us may be in use at a time, by name; and sizes of memory as text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from flowlane.declare.callsite import caller
from flowlane.declare.checked import near, wording
from flowlane.errors import DefinitionError
from flowlane.program import LimitSpec, SlotBounds

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MEMORY", "SHARE", "Adaptive", "Limit", "by_name", "machine_memory", "parse_memory"]

#: The name of the limit that ``memory=`` counts against, in MB.
MEMORY: Final = "memory"
#: Of the memory there is, what tasks may have together unless an engine or a run defines that limit: the rest is for this
#: process, for workers that idle, and for the system's cache of files.
SHARE: Final = 0.8

_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)?\s*([a-z]+)\s*", re.IGNORECASE)
_PERIODS: Final = {
    **dict.fromkeys(("ms",), 1_000_000),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000_000_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000_000_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000_000_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000_000_000),
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)
_POWERS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Slots that follow what attempts tell: fewer when latency rises, errors come or the event loop is late, else more.

    For an executor that waits (``Engine(slots={"asyncio": Adaptive()})``) or a Limit (``Limit("api", Adaptive(2, 64))``).
    Immutable; DefinitionError unless 1 ≤ lowest ≤ start ≤ highest.

    lowest, highest  slots are never fewer, and never more
    start            with which they begin; unless given, as far from one as from the other, in factors
    """

    lowest: int = 4
    highest: int = 256
    start: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.lowest, self.highest) if self.start is None else (self.lowest, self.start, self.highest)
        whole = all(type(number) is int for number in numbers)
        if not whole or min(numbers) < 1 or list(numbers) != sorted(numbers):
            raise DefinitionError(
                f"{self!r} has numbers that do not fit",
                where=caller(),
                hint="whole numbers with 1 ≤ lowest ≤ start ≤ highest",
            )

    @property
    def bounds(self) -> SlotBounds:
        """The same for a Program."""
        start = round(sqrt(self.lowest * self.highest)) if self.start is None else self.start
        return SlotBounds(self.lowest, self.highest, start)


class Limit(BaseModel, frozen=True, extra="forbid", strict=True):
    """A limit by name, for tasks that say ``limits=[...]``. Immutable; fields are checked when it is made (DefinitionError).

    name    what tasks, engines and runs know it by
    slots   how much may be held at a time, by attempts that are out: a number, or an Adaptive; None for any number
    rate    how many may start in a time, "50/s", "100/min", "3/10s"; None for any number
    burst   how many of them may start at once after a quiet time; unless said, as many as `rate` allows in its time
    shared  one for all runs of an engine, rather than one for each
    """

    name: str = Field(min_length=1)
    slots: int | Adaptive | None = None
    rate: str | None = None
    burst: int | None = Field(default=None, ge=1)
    shared: bool = True

    def __init__(
        self,
        name: str,
        slots: int | Adaptive | None = None,
        *,
        rate: str | None = None,
        burst: int | None = None,
        shared: bool = True,
        **unknown: Any,
    ) -> None:
        try:
            super().__init__(name=name, slots=slots, rate=rate, burst=burst, shared=shared, **unknown)
        except ValidationError as error:
            raise DefinitionError(
                f"Limit {name!r} has {wording(error)}", where=caller(), hint=near(unknown, Limit) if unknown else None
            ) from None

    @field_validator("slots", mode="plain")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        if value is None or isinstance(value, Adaptive) or (type(value) is int and value >= 1):
            return value
        raise ValueError("should be a whole number of at least 1, or Adaptive(...)")

    @field_validator("rate")
    @classmethod
    def _is_rate(cls, value: str | None) -> str | None:
        if value is not None:
            _rate(value)
        return value

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.slots is None and self.rate is None:
            raise ValueError("neither slots nor a rate, so it limits nothing")
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst without a rate")
        return self

    @property
    def spec(self) -> LimitSpec:
        """The same for a Program."""
        rate: tuple[int, int, int] | None = None
        if self.rate is not None:
            count, period = _rate(self.rate)
            rate = (count, period, self.burst or count)
        if isinstance(self.slots, Adaptive):
            return LimitSpec(self.name, self.slots.highest, rate, self.shared, self.slots.bounds)
        return LimitSpec(self.name, self.slots, rate, self.shared)


def _rate(text: str) -> tuple[int, int]:
    """(count, ns) of a rate; ValueError for what is none."""
    match = _RATE.fullmatch(text)
    period = _PERIODS.get(match[3].lower()) if match is not None else None
    if match is None or period is None or not float(match[1]) or (match[2] and not float(match[2])):
        raise ValueError('should read like "50/s", "100/min" or "3/10s"')
    count, times = float(match[1]), float(match[2] or 1)
    if count != int(count):  # "0.5/s" is one in two seconds
        return 1, max(1, round(period * times / count))
    return int(count), max(1, round(period * times))


def by_name(limits: Iterable[Limit], who: str) -> dict[str, Limit]:
    """`limits` by name. Raises DefinitionError for what is no Limit, or one that is there twice; `who` opens the message."""
    found: dict[str, Limit] = {}
    if isinstance(limits, (Limit, str)) or not isinstance(limits, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - one alone
        raise DefinitionError(f"{who} is {limits!r}", where=caller(), hint='a list of them: limits=[Limit("api", 8)]')
    for limit in limits:
        if not isinstance(limit, Limit):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass names
            raise DefinitionError(
                f"{who} has {limit!r} among its limits",
                where=caller(),
                hint='here they are defined: Limit("api", 8)',
            )
        if found.setdefault(limit.name, limit) != limit:
            raise DefinitionError(
                f"{who} has two limits named {limit.name!r}", where=caller(), hint="one name, one limit"
            )
    return found


def parse_memory(value: str | int) -> int:
    """Bytes of a size such as ``"2 GB"`` (10⁹) or ``"512 MiB"`` (2²⁰), or of a number of bytes. ValueError for what is none."""
    if isinstance(value, int):
        size = float(value)
    else:
        match = _SIZE.fullmatch(value)
        if match is None or match[2].lower() == "i":
            raise ValueError('should read like "500 MB", "2 GB" or "1.5 GiB"')
        size = float(match[1]) * _POWERS[match[2].lower()]
    if size < 1:
        raise ValueError("should be more than nothing")
    return round(size)


@cache
def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or those of its control groups where one has less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        total = 2**62
    for path in _limit_files():
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit():  # "max" for none
            total = min(total, int(text))
    return total


def _limit_files() -> list[str]:
    """Where control groups of either version have their limits of memory: of the group that this process is in, and of all above.

    In a container the path that the kernel tells may be one outside, so the root is looked at in any case.
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    files: list[str] = []
    for number, controllers, group in [row for row in rows if len(row) == 3]:
        if number == "0" and not controllers:
            root, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part and part != ".."]
        files += [os.path.join(root, *parts[:depth], name) for depth in range(len(parts) + 1)]
    return files
