"""What a plain function may return: anything but a coroutine, which would be handed on as a value and never run."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

from flowlane.errors import DefinitionError

if TYPE_CHECKING:
    from flowlane.runtime.ports import Target

__all__ = ["plain"]


def plain(target: Target, value: Any) -> Any:
    """`value`, unless it is a coroutine: then DefinitionError with the place and the fix.

    User code: a decorator that hides an ``async def``.
    """
    if type(value) is CoroutineType:
        value.close()  # else Python warns that it was never awaited
        from flowlane.declare.function import place_of

        raise DefinitionError(
            f"task '{target.name}' is a plain function that returned a coroutine; declare it `async def`, so that it "
            "runs on asyncio",
            where=place_of(target.fn),
            hint="or let it return asyncio.run(...) of that",
        )
    return value
