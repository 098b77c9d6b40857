"""What a plain function may return: anything but a coroutine, which would be handed on as a value and never run."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowlane.runtime.ports import Target

__all__ = ["plain"]


def plain(target: Target, value: Any) -> Any:
    """`value`, unless it is a coroutine: then TypeError with the fix. User code: a decorator that hides an ``async def``."""
    if type(value) is CoroutineType:
        value.close()  # else Python warns that it was never awaited
        raise TypeError(
            f"task '{target.name}' is a plain function that returned a coroutine; declare it `async def`, so that it "
            "runs on asyncio"
        )
    return value
