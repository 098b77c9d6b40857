"""Records of runs made by hand, for what is computed from them."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, cast

from flowlane.core import Plan
from flowlane.runtime.measured import Measured
from flowlane.runtime.ports import NEVER, SUCCEEDED, Report
from flowlane.runtime.runner import Note

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MS = 1_000_000


class Made:
    """A record of tasks given one by one; `add` returns the element. Times in ns. `lanes`: executor → slots."""

    def __init__(
        self, lanes: dict[str, int], *, stretched: tuple[str, ...] = (), pickling: tuple[str, ...] = ()
    ) -> None:
        self.lanes = tuple(lanes)
        self.slots = dict(lanes)
        self.stretched = frozenset(stretched)
        self.pickling = frozenset(pickling)
        self.started = 0
        self.ended = 0
        self.tasks: list[str] = []
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.ready_ns = array("q")
        self.launched_ns = array("q")
        self.started_ns = array("q")
        self.ended_ns = array("q")
        self.first_ready_ns: dict[int, int] = {}
        self.measured = Measured(100_000)
        self.notes: list[Note] = []
        self._upstreams: list[tuple[int, ...]] = []
        self._lane: list[int] = []

    def add(
        self,
        task: str,
        lane: str,
        times: tuple[int, int, int, int],
        *,
        kind: str = "cpu",
        after: tuple[int, ...] = (),
        cpu: int = NEVER,
        pickling: int = NEVER,
    ) -> int:
        """`times`: ready, launched, started, ended."""
        element = len(self.names)
        self.tasks.append(task)
        self.names.append(f"{task}#{element}")
        self.kinds.append(kind)
        self._upstreams.append(after)
        self._lane.append(self.lanes.index(lane))
        for column, moment in zip(
            (self.ready_ns, self.launched_ns, self.started_ns, self.ended_ns), times, strict=True
        ):
            column.append(moment)
        self.measured.take(element, Report(1, SUCCEEDED, times[2], times[3], cpu=cpu, pickling=pickling))
        self.ended = max(self.ended, times[3])
        return element

    @property
    def record(self) -> Any:
        self.plan = Plan.build(self._upstreams, lane=self._lane)
        self.roster = self
        return cast("Any", self)

    def lane(self, element: int) -> int:
        return self._lane[element]

    def ranges(self) -> Iterator[tuple[int, range]]:
        """As of a run in which no task became others."""
        return ((element, range(element, element + 1)) for element in range(len(self.names)))

    def became(self, element: int) -> bool:
        return False

    def came_of(self, element: int) -> Sequence[int]:
        return ()

    def waited_for(self, element: int) -> Sequence[int]:
        return self._upstreams[element]

    def spans(self) -> Any:
        return zip(self.started_ns, self.ended_ns, strict=True)

    def lane_of(self, element: int) -> str:
        return self.lanes[self._lane[element]]
