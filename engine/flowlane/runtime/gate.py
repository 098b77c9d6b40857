"""What stands between a run that is kept and its executors.

On the way out: the scheduler has launched an element, so it holds a slot; before its job goes to the executor

- there must be room: when too much waits to be stored, nothing is begun until it is written (back-pressure, and the pause
  after a fault of the store);
- for a task with ``at_most_once`` it must be stored that it may have begun;
- for a task with a cache its result may be there already.

An element that waits here is *held*. When it is told to stop meanwhile it never began, and no executor knows of it.

On the way back: a result is encoded the moment it arrives, because a task that reads the value may change it. On the loop, where
pickling costs what it costs anywhere: it holds the GIL.

Belongs to the loop's thread; the recorder and the cache answer through the run's `later`.
"""

from __future__ import annotations

from itertools import islice
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from flowlane.errors import FlowError
from flowlane.runtime.beginning import StoredCopy
from flowlane.runtime.blocks import WORK_MAX, grown
from flowlane.runtime.keeper import NOT_BEGUN, Found, ToCache, Unstored
from flowlane.runtime.ports import RemoteValue, Report
from flowlane.storage.blob import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.program import Program
    from flowlane.runtime.blocks import Describes
    from flowlane.runtime.cache import CacheAnswer, Lookups
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.keeper import CacheKey, Keeper
    from flowlane.runtime.recorder import Recorder
    from flowlane.runtime.roster import Roster
    from flowlane.storage.blob import Payload

__all__ = ["Gate"]

_ROOM: Final = 0
_INTENT: Final = 1
_CACHE: Final = 2


class _Held(NamedTuple):
    lane: int
    attempt: int
    waits_for: int


class Run(Protocol):
    """The runner, as far as the gate knows it."""

    program: Program
    scheduler: Scheduler
    growth: Growth
    roster: Roster

    def submit(self, lane: int, elements: Sequence[int]) -> None: ...

    def found(self, element: int, attempt: int, value: Any, stored: object) -> None: ...

    def filled(self, element: int) -> tuple[Sequence[Any], dict[str, Any]]: ...

    def refuse(self, element: int, attempt: int, error: Exception) -> None: ...

    def note_once(self, element: int, attempt: int, text: str) -> None: ...

    def later(self, function: Callable[..., object], *args: Any) -> None: ...

    def never_began(self, attempts: Sequence[tuple[int, int]]) -> None: ...


class Gate:
    """See the module's text. `id` is the run's."""

    def __init__(self, run: Run, id: str, recorder: Recorder, keeper: Keeper, lookups: Lookups) -> None:
        self._run = run
        self._id = id
        self._recorder = recorder
        self._keeper = keeper
        self._lookups = lookups
        self._codes = keeper.codes
        self._program = run.program
        self._size = run.program.plan.size  # elements below are nodes of the program
        self._choosy = bool(run.program.once or run.program.caches)  # whether any task wants more than room
        self._passing = bool(run.program.passing)
        self._keys: dict[tuple[int, int], CacheKey] = {}  # of attempts that were not found, and whose results will be
        self._held: dict[int, _Held] = {}
        self._prepared: dict[tuple[int, int], Payload | Exception] = {}  # results that were packed in a thread
        self._described: dict[int, tuple[Describes, Payload | None]] = {}  # graphs that are about to be added
        self._blocks_told = 1  # all but the run's own graph, which its session tells
        self._paused = False
        self._shut = False

    # ── on the way out ────────────────────────────────────────────────────────────────────────────────────────────

    def launch(self, lane: int, elements: Sequence[int]) -> Sequence[int]:
        """Of elements that were launched, those that may go now. The others go when what they wait for has come."""
        if not self._paused and (self._shut or self._keeper.behind()):
            self._pause()
        if self._paused:
            self._hold(lane, elements, _ROOM)
            return []
        return self._sorted(lane, elements) if self._choosy else elements

    def grafted(self, start: int, program: Program, work: Payload | None) -> None:
        """Tasks of `program` come into being, from element `start` on; it was made of `work`, where a task returned that."""
        self._choosy = self._choosy or bool(program.once or program.caches)
        self._passing = self._passing or bool(program.passing)
        if program.plan.size:
            self._described[start] = (self._keeper.describe(program), work)

    def grown(self) -> None:
        """Tasks have come into being: they are stored before anything that becomes of them."""
        blocks = self._run.scheduler.blocks
        for block in islice(blocks, self._blocks_told, None):
            if not block.count:  # a workflow without tasks: the next block has the same number
                continue
            described = self._described.pop(block.start, None)
            self._keeper.grow(grown(block, self._run.roster.keys, self._run.scheduler.inputs, described))
        self._blocks_told = len(blocks)

    def _declared(self, element: int) -> tuple[Program, int]:
        """The program and the node that an element was declared as."""
        return (self._program, element) if element < self._size else self._run.growth.declared(element)

    def _sorted(self, lane: int, elements: Sequence[int]) -> list[int]:
        go: list[int] = []
        intended: list[int] = []
        for element in elements:
            program, node = self._declared(element)
            if node in program.once:
                intended.append(element)
            elif node in program.caches:
                self._look_up(lane, element, program, node)
            else:
                go.append(element)
        if intended:
            self._hold(lane, intended, _INTENT)
            pairs = [(element, self._run.scheduler.attempt(element)) for element in intended]
            self._recorder.intend(
                self._id, pairs, monotonic_ns(), lambda: self._run.later(self._let_go, lane, pairs, _INTENT)
            )
        return go

    def _hold(self, lane: int, elements: Iterable[int], waits_for: int) -> None:
        for element in elements:
            self._held[element] = _Held(lane, self._run.scheduler.attempt(element), waits_for)

    def _pause(self) -> None:
        self._paused = True
        self._keeper.waiting = True
        if not self._shut and not self._keeper.behind(0.5):  # it was written in the meantime, and nobody will tell
            self._keeper.waiting = self._paused = False

    def room(self) -> None:
        """There is room again."""
        if self._shut or not self._paused:
            return
        self._paused = False
        lanes: dict[int, list[int]] = {}
        for element, held in list(self._held.items()):
            if held.waits_for == _ROOM:
                del self._held[element]
                if self._is_out(element, held.attempt):
                    lanes.setdefault(held.lane, []).append(element)
        for lane, elements in lanes.items():
            go = self.launch(lane, elements)
            if go:
                self._run.submit(lane, go)

    def _let_go(self, lane: int, pairs: Sequence[tuple[int, int]], waited_for: int) -> None:
        """What these waited for has come."""
        go = [element for element, attempt in pairs if self._release(element, attempt, waited_for)]
        if go:
            self._run.submit(lane, go)

    def _release(self, element: int, attempt: int, waited_for: int) -> bool:
        held = self._held.get(element)
        if held is None or held.attempt != attempt or held.waits_for != waited_for:
            return False  # it was taken back meanwhile
        del self._held[element]
        return self._is_out(element, attempt)

    def _is_out(self, element: int, attempt: int) -> bool:
        return self._run.scheduler.awaits(element, attempt)

    # ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_up(self, lane: int, element: int, program: Program, node: int) -> None:
        attempt = self._run.scheduler.attempt(element)
        self._hold(lane, (element,), _CACHE)
        try:
            args, kwargs = self._run.filled(element)
        except Exception as error:  # noqa: BLE001 - a value that is lost, or does not load here
            del self._held[element]
            self._run.refuse(element, attempt, error)
            return
        self._lookups.ask(
            self._keeper.store,
            program.targets[node],
            self._codes,
            program.caches[node],
            args,
            kwargs,
            lambda answer: self._run.later(self._looked_up, lane, element, attempt, answer),
        )

    def _looked_up(self, lane: int, element: int, attempt: int, answer: CacheAnswer) -> None:
        if not self._release(element, attempt, _CACHE):
            return
        if answer.note is not None:
            self._run.note_once(element, attempt, answer.note)
        if answer.origin is not None:
            self._run.found(element, attempt, answer.value, Found(answer.origin))
            return
        if answer.key is not None:
            self._keys[element, attempt] = answer.key
        self._run.submit(lane, [element])

    # ── on the way back ───────────────────────────────────────────────────────────────────────────────────────────

    def encoded(self, element: int, attempt: int, value: Any) -> Payload | ToCache | Unstored:
        """A result as the store will have it."""
        if self._passing and self._passes(element):
            return Unstored("its task says persist=False")
        try:
            payload = self._packed(element, attempt, value)
        except Exception as error:  # noqa: BLE001 - user code pickles; without a store nobody would have asked it to
            reason = error.message if isinstance(error, FlowError) else f"{type(error).__name__}: {error}"
            program, node = self._declared(element)
            then = "end as unknown, as it must not run twice" if node in program.once else "run it again"
            self._run.note_once(element, attempt, f"returns what cannot be stored, so a resume would {then}: {reason}")
            return Unstored(reason)
        keeper = self._keeper
        keeper.admit(0, payload.nbytes)
        if isinstance(value, RemoteValue):  # its row comes with the step that this is a part of
            run, session = keeper.lease
            ref = (run, session, element, attempt)
            value.stored = StoredCopy(keeper.store, ref, payload.nbytes, keeper.admitted)
        if self._keys:
            key = self._keys.pop((element, attempt), None)
            if key is not None:
                return ToCache(payload, key)
        return payload

    def copy_of(self, value: RemoteValue) -> RemoteValue | None:
        """The same value in the store, if it is there by now."""
        copy = value.stored
        return copy if isinstance(copy, StoredCopy) and self._keeper.committed > copy.after else None

    def keeps(self, element: int, attempt: int) -> Callable[[RemoteValue], object] | None:
        """What to do in a thread with a result that is elsewhere, before `encoded` is asked; None where it is not stored."""
        if self._passing and self._passes(element):
            return None

        def pack_there(value: RemoteValue) -> None:
            try:
                self._prepared[element, attempt] = value.packed()
            except Exception as error:  # noqa: BLE001 - see `encoded`
                self._prepared[element, attempt] = error

        return pack_there

    def _packed(self, element: int, attempt: int, value: Any) -> Payload:
        if not isinstance(value, RemoteValue):
            return pack(value).detached()
        prepared = self._prepared.pop((element, attempt), None) if self._prepared else None
        if prepared is None:
            return value.packed()
        if isinstance(prepared, Exception):
            raise prepared
        return prepared

    def packed_work(self, element: int, work: Any) -> Payload | None:
        """Work that a task returned, so that a resume need not run it again to hear that; None where it cannot be stored."""
        if self._passing and self._passes(element):
            return None
        try:
            payload = pack(work).detached()
        except Exception:  # noqa: BLE001 - user code pickles; the task will run again, and say the same
            return None
        return payload if payload.nbytes <= WORK_MAX else None

    def _passes(self, element: int) -> bool:
        program, node = self._declared(element)
        return node in program.passing

    def not_begun(self, report: Report) -> None:
        """Its attempt was let go, and could not begin."""
        report.value = NOT_BEGUN

    def is_cached(self, element: int) -> bool:
        """Whether it may be found in the cache."""
        if not self._choosy:
            return False
        program, node = self._declared(element)
        return node in program.caches

    def take_back(self, elements: Sequence[int]) -> Sequence[int]:
        """Of elements that are to stop, those that an executor has. The others were held here, and will not begin."""
        held = {element: None for element in elements if element in self._held}
        if not held:
            return elements
        self._give_back(list(held))
        return [element for element in elements if element not in held]

    def drain(self) -> None:
        """Nothing that is held begins any more."""
        self._give_back(list(self._held))

    def shut(self) -> None:
        """The store is at fault: nothing begins any more."""
        self._shut = True
        self.drain()

    def _give_back(self, elements: Sequence[int]) -> None:
        self._run.never_began([(element, self._held.pop(element).attempt) for element in elements])
