"""Values that are on other machines are brought here in threads, so that the loop goes on meanwhile.

Three things wait for that, each while everything else of the run goes on:

- an attempt that reads such a value on another executor: launched, so it holds its slot, but no executor has it yet. When it is
  told to stop meanwhile it never began;
- the news that an attempt has succeeded whose result a store, a filter or a condition needs here;
- the end of a run whose result has such a value.

Whoever waits goes on whether that worked or not: a value keeps what its fetching raised, and raises it again where it is used.

The loop's thread owns all of it; the threads only call `fetch` and `packed`, and answer through the run's `later`. Runs without
an executor that has ``far_values`` never get here.
"""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.runtime.ports import SUCCEEDED, RemoteValue, Report
from flowlane.runtime.values import Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.runtime.places import Places

__all__ = ["Fetching"]

_THREADS: Final = 4  # values that are on their way at a time


class Run(Protocol):
    """The runner, as far as its fetching knows it."""

    scheduler: Scheduler

    def later(self, function: Callable[..., object], *args: Any) -> None: ...

    def go(self, lane: int, elements: Sequence[int]) -> None: ...

    def receive(self, reports: Sequence[Report]) -> None: ...

    def wanted_here(self, element: int) -> bool: ...

    def opened_here(self, element: int) -> bool: ...

    def keeps(self, element: int, attempt: int) -> Callable[[RemoteValue], object] | None: ...

    def never_began(self, attempts: Sequence[tuple[int, int]]) -> None: ...


class Fetching:
    """See the module's text. `values` is the run's list, by element."""

    def __init__(self, run: Run, places: Places, values: Sequence[Any]) -> None:
        self._run = run
        self._places = places
        self._values = values
        self._held: dict[int, int] = {}  # element → attempt, that waits for what it reads
        self._brought: set[int] = set()  # refs of news that were held back, and may be told now
        self._coming: dict[int, list[Callable[[], None]]] = {}  # id of a value that is on its way → who waits for it
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads = 0
        self._ways = 0  # calls that have not been answered

    # ── on the way out ────────────────────────────────────────────────────────────────────────────────────────────

    def launch(self, lane: int, elements: Sequence[int]) -> Sequence[int]:
        """Of elements that were launched, those that may go now. The others go when what they read is here."""
        homes = self._places.homes
        assert homes is not None
        go: list[int] = []
        for element in elements:
            home = None if self._run.opened_here(element) else homes[lane]
            far = self._far_of(element, home)
            if not far:
                go.append(element)
                continue
            attempt = self._held[element] = self._run.scheduler.attempt(element)
            self.bring(far, partial(self._go, lane, element, attempt))
        return go

    def when_here(self, elements: Iterable[int], then: Callable[[], object]) -> None:
        """Call `then` when the values of these elements are here: at once, if they are."""
        far = self.far(elements)
        if far:
            self.bring(far, then)
        else:
            then()

    def take_back(self, elements: Sequence[int]) -> Sequence[int]:
        """Of elements that are to stop, those that are not held here. The others will not begin."""
        held = {element: None for element in elements if element in self._held}
        if not held:
            return elements
        self._give_back(list(held))
        return [element for element in elements if element not in held]

    def drain(self) -> None:
        """Nothing that is held begins any more."""
        self._give_back(list(self._held))

    def _go(self, lane: int, element: int, attempt: int) -> None:
        if self._held.get(element) == attempt:
            del self._held[element]
            if self._run.scheduler.awaits(element, attempt):
                self._run.go(lane, [element])

    def _give_back(self, elements: Sequence[int]) -> None:
        self._run.never_began([(element, self._held.pop(element)) for element in elements])

    def _far_of(self, element: int, home: object) -> list[RemoteValue]:
        return [each for up in self._run.scheduler.reads(element) for each in far_in(self._values[up], home)]

    # ── on the way back ───────────────────────────────────────────────────────────────────────────────────────────

    def told(self, element: int, attempt: int, report: Report) -> bool:
        """Whether news can be taken now. If not, they come again when what they tell of is here."""
        value = report.value
        if report.kind is not SUCCEEDED or not isinstance(value, RemoteValue) or not value.is_far():
            return True
        if report.ref in self._brought:
            self._brought.discard(report.ref)
            return True
        if not self._run.scheduler.awaits(element, attempt):
            return True
        keep = self._run.keeps(element, attempt)
        actions: list[Callable[[], object]] = []
        if self._run.wanted_here(element):
            actions.append(value.fetch)
        if keep is not None:
            actions.append(partial(keep, value))
        if not actions:
            return True
        self._send(actions, partial(self._take, report))
        return False

    def _take(self, report: Report) -> None:
        self._brought.add(report.ref)
        self._run.receive([report])
        self._brought.discard(report.ref)

    # ── the way ───────────────────────────────────────────────────────────────────────────────────────────────────

    def bring(self, values: Iterable[RemoteValue], then: Callable[[], object]) -> None:
        """Have these values here, then call `then` on the loop's thread, unless the run has ended by then."""
        wanted = {id(value): value for value in values}
        left = [len(wanted)]

        def one_more() -> None:
            left[0] -= 1
            if not left[0]:
                then()

        for key, value in wanted.items():
            waiting = self._coming.get(key)
            if waiting is not None:  # it is on its way for somebody else
                waiting.append(one_more)
                continue
            self._coming[key] = [one_more]
            self._send([value.fetch], partial(self._here, key))

    def _here(self, key: int) -> None:
        for tell in self._coming.pop(key):
            tell()

    def far(self, elements: Iterable[int]) -> list[RemoteValue]:
        """What of the values of these elements is not here."""
        return [each for element in elements for each in far_in(self._values[element], None)]

    def _send(self, actions: Sequence[Callable[[], object]], then: Callable[[], object]) -> None:
        left = [len(actions)]

        def arrived() -> None:  # on the loop
            left[0] -= 1
            self._ways -= 1
            if not left[0]:
                then()

        for action in actions:
            self._ways += 1
            self._work.put(partial(self._act, action, arrived))
            if self._threads < min(_THREADS, self._ways):
                self._threads += 1
                threading.Thread(target=self._serve, name="flowlane-fetch", daemon=True).start()

    def _act(self, action: Callable[[], object], arrived: Callable[[], None]) -> None:
        try:
            action()
        except BaseException:  # noqa: BLE001, S110 - it is raised again where the value is used
            pass
        self._run.later(arrived)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def close(self) -> None:
        """The run has ended. Threads end with what they are doing."""
        for _ in range(self._threads):
            self._work.put(None)
        self._threads = 0


def far_in(value: Any, home: object) -> Iterator[RemoteValue]:
    """What of a value is elsewhere, and not at the executor `home` either."""
    if isinstance(value, RemoteValue):
        if value.home is not home and value.is_far():
            yield value
    elif isinstance(value, Whole):
        for part in value.parts:
            yield from far_in(part, None if value.opened else home)
