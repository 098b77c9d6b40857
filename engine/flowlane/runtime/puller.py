"""Gets the items of maps when the scheduler asks: at once where a list tells how many there are, else some at a time.

Wherever an iterator may run user code a thread of its own pulls from it, always the same one, from its first item to its end: a
generator that waits for a page must not stop the loop, nor must what it does when it is closed. Belongs to the loop's thread.
"""

from __future__ import annotations

import itertools
import threading
from queue import SimpleQueue
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.core import messages as m
from flowlane.core.states import DONE
from flowlane.errors import Failure
from flowlane.runtime.losses import is_loss
from flowlane.runtime.ports import NEVER
from flowlane.runtime.sources import close, combined

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterator, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.losses import Losses
    from flowlane.runtime.sources import Ingredients, Source

__all__ = ["Puller"]

#: Iterators that run no code of the user's, so that they can be pulled from on the loop.
_HARMLESS: Final[tuple[type, ...]] = (itertools.product, type(iter([])), type(iter(())), type(iter(range(0))))


class Run(Protocol):
    """The runner, as far as its puller knows it."""

    scheduler: Scheduler
    growth: Growth
    losses: Losses

    def blame(self, element: int, failure: Failure) -> None: ...

    def note_once(self, element: int, attempt: int, text: str) -> None: ...

    def follow_up(self, events: Sequence[m.Event]) -> None: ...

    def later(self, function: Callable[..., object], *args: Any) -> None: ...


class Puller:
    """Answers the scheduler's `Pull`s. `context` is the run's; user code is pulled from in copies of it."""

    def __init__(self, run: Run, context: contextvars.Context) -> None:
        self._run = run
        self._context = context
        self._readers: dict[int, _Reader] = {}  # by map

    def pull(self, element: int, count: int) -> None:
        """Get items of a map's source: at once, or from a thread where user code makes them."""
        growth = self._run.growth
        if growth.opened(element):
            self._pull(element, count)
            return
        try:
            ingredients = growth.ingredients(element)
            source = combined(ingredients) if ingredients.are_plain else None
        except Exception as error:  # noqa: BLE001 - the value has no items, or is lost
            self._pulled(element, [], False, error)
            return
        if source is not None:
            self._opened(element, source, count)
        else:
            self._reader(element).put(self._open_in_thread, element, ingredients, count)

    def _opened(self, element: int, source: Source, count: int) -> None:
        if not self._run.scheduler.is_pulling(element):  # it has ended while a thread was at it
            return
        size = self._run.growth.open_source(element, source)
        if size >= 0:
            self.ended(element)
            self._run.follow_up([m.Expanded(element, size)])
        else:
            self._pull(element, count)

    def _pull(self, element: int, count: int) -> None:
        iterator = self._run.growth.iterator(element)
        if type(iterator) in _HARMLESS:
            items = list(itertools.islice(iterator, count))
            self._pulled(element, items, len(items) == count, None)
        else:
            reader = self._reader(element)
            reader.iterator = iterator
            reader.put(self._pull_in_thread, element, iterator, count)

    def _reader(self, element: int) -> _Reader:
        reader = self._readers.get(element)
        if reader is None:
            reader = self._readers[element] = _Reader(self._context.copy())
        return reader

    def ended(self, element: int) -> None:
        """A map has ended: nobody will pull from its source any more."""
        reader = self._readers.pop(element, None)
        if reader is not None:
            reader.put(None)

    def close(self) -> None:
        """The run has ended."""
        for element in list(self._readers):
            self.ended(element)

    def _open_in_thread(self, element: int, ingredients: Ingredients, count: int) -> None:
        try:
            source = combined(ingredients)
        except BaseException as raised:  # noqa: BLE001 - user code; whatever it is, the run hears of it
            self._run.later(self._pulled, element, [], False, raised)
        else:
            self._run.later(self._opened, element, source, count)

    def _pull_in_thread(self, element: int, iterator: Iterator[Any], count: int) -> None:
        items: list[Any] = []
        error: BaseException | None = None
        more = True
        try:
            for _ in range(count):
                items.append(next(iterator))  # noqa: PERF401 - what came before an error counts
        except StopIteration:
            more = False
        except BaseException as raised:  # noqa: BLE001 - user code; whatever it is, the run hears of it
            error = raised
        self._run.later(self._pulled, element, items, more, error)

    def _pulled(self, element: int, items: list[Any], more: bool, error: BaseException | None) -> None:
        if not self._run.scheduler.is_pulling(element):  # likewise
            return
        growth = self._run.growth
        events: list[m.Event] = []
        if items or error is None:
            growth.add_items(element, items)
            events.append(m.Expanded(element, len(items), more or error is not None, once=True))
        if error is not None:
            failure = Failure.of(growth.told(element, error))
            if is_loss(failure) and not growth.opened(element):  # of what it goes over, and no word of its items
                loss = self._run.losses.of(element, failure)
                if loss.final:
                    self._run.blame(element, loss.failure)
                events.append(loss.event)
            else:
                if self._run.scheduler.state(element) in DONE:
                    text = f"had enough of its items, and the rest could not be read: {failure.line}"
                    self._run.note_once(element, 1, text)
                else:
                    self._run.blame(element, failure)
                events.append(m.Failed(element, self._run.scheduler.attempt(element), NEVER, monotonic_ns()))
        self._run.follow_up(events)


class _Reader:
    """A thread that reads one source. Given None it ends, and closes a generator. Daemon: user code may hang."""

    iterator: Iterator[Any] | None = None

    def __init__(self, context: contextvars.Context) -> None:
        self._todo: SimpleQueue[tuple[Callable[..., None] | None, tuple[Any, ...]]] = SimpleQueue()
        threading.Thread(target=context.run, args=(self._work,), name="flowlane-source", daemon=True).start()

    def put(self, work: Callable[..., None] | None, *args: Any) -> None:
        self._todo.put((work, args))

    def _work(self) -> None:
        while True:
            work, args = self._todo.get()
            if work is None:
                break
            work(*args)
        close(self.iterator)
