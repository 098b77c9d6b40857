"""A function that is called for each item of a batch, in one attempt: what a map with ``batch=`` runs.

Where items take microseconds, what each costs by itself (a place in the schedule, a line in the log, a row in the store, a trip
to a worker) is far more than its work. A batch pays that once. The price is that it has one outcome.
"""

from __future__ import annotations

from contextlib import suppress
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

from flowlane.errors import FlowError, Skip, shown_item

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.loader import Address

__all__ = ["Batch"]


class Batch:
    """`fn` for each item of the sequence that stands at position `place` of its arguments; a list of what it returns.

    `star`: an item is a tuple of positional arguments. Raises what `fn` raises, with a note of which item it was.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, fn: Callable[..., Any], place: int, *, star: bool = False) -> None:
        update_wrapper(self, fn)  # `__wrapped__` is how signatures and fingerprints see through it
        self._place = place
        self._star = star

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        fn, place = self.__wrapped__, self._place
        before, items, after = args[:place], args[place], args[place + 1 :]
        found: list[Any] = []
        add = found.append
        try:
            if self._star:
                for item in items:
                    add(fn(*before, *item, *after, **kwargs))
            elif before or after or kwargs:
                for item in items:
                    add(fn(*before, item, *after, **kwargs))
            else:
                for item in items:
                    add(fn(item))
        except Skip as error:
            raise FlowError(
                f"item {len(found)} of a batch of {len(items)} raised Skip, and a batch has one outcome",
                hint="return a value that says so, or leave batch= out",
            ) from error
        except BaseException as error:
            with suppress(Exception):  # a frozen dataclass, say, takes no notes; then it goes without one
                which = shown_item(items[len(found)])
                told = f": {which}" if which is not None else ""
                error.add_note(f"raised for item {len(found)} of a batch of {len(items)}{told}")
            raise
        return found

    def __repr__(self) -> str:
        return f"<{self.__wrapped__!r} in batches>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels as where its function can be found; with the function where that is nowhere."""
        from flowlane.loader import address_of

        address = address_of(self.__wrapped__)
        if address is not None:
            return _found_again, (address, self._place, self._star)
        return _made_again, (self.__wrapped__, self._place, self._star)


def _found_again(address: Address, place: int, star: bool) -> Batch:
    from flowlane.loader import resolve

    return _made_again(resolve(address), place, star)


def _made_again(fn: Callable[..., Any], place: int, star: bool) -> Batch:
    return Batch(fn, place, star=star)
