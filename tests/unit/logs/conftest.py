"""Runs and histories made by hand: by a few words, or at random from the table of legal transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

from flowlane.core.states import RULES, TERMINAL, TaskState, code_of
from flowlane.errors import Failure
from flowlane.runtime.events import SHAPES, History
from flowlane.runtime.ports import CRASHED, FAILED, NEVER, SUCCEEDED, Report, RunInfo

WALL = 1_795_366_800_000_000_000  # 2026-11-22T17:00:00Z
MONO = 5_000_000_000_000

HOSTILE = (
    "parse#2",
    "fetch[us-east]",
    "",
    'quo"te\\',
    "100%s %d %(x)s",
    "esc\x1b[31m\x07",
    "line\nbreak\r\t",
    "nul\0del\x7f",
    "bidi\u202egnp",
    "sep\u2028\u2029",
    "lone\udc80",
    "pair\ud83d\ude00",
    "\N{GRINNING FACE} snöman",
    "\\ud800 literal",
    "{braces} $dollar",
)


def info(
    names: list[str] | None = None,
    upstreams: list[tuple[int, ...]] | None = None,
    **changes: Any,
) -> RunInfo:
    names = ["fetch", "parse", "load"] if names is None else names
    fields: dict[str, Any] = {
        "id": "7f3a2c000001",
        "name": "brisk-otter",
        "workflow": "etl",
        "names": names,
        "kinds": ["io"] * len(names),
        "executors": ["asyncio"] * len(names),
        "upstreams": upstreams or [()] * len(names),
        "wall_ns": WALL,
        "mono_ns": MONO,
        "params": {"day": "secret-value"},
    }
    return RunInfo(**{**fields, **changes})


def code(change: str) -> int:
    """ "running failed raised" → its code."""
    source, target, reason = change.split()
    return next(
        n for n, rule in enumerate(RULES) if (rule.source, rule.target, rule.reason) == (source, target, reason)
    )


READY, STARTED, RETURNED = (
    code("pending ready upstream_done"),
    code("ready running started"),
    code("running succeeded returned"),
)


@dataclass
class Story:
    """A random history: `parts` are chunks (rows, reports), or a number of rows lost."""

    run: RunInfo
    parts: list[tuple[list[Any], dict[Any, Report]] | int]

    def chunks(self) -> list[Any]:
        """The chunks, followed by a History of their own."""
        history = History(self.run)
        out: list[Any] = []
        t = self.run.mono_ns
        for part in self.parts:
            if isinstance(part, int):
                out.append(history.lost(part, t))
            else:
                chunk = history.chunk(*part)
                assert chunk.elapsed is not None
                t = part[0][-1][3]
                out.append(chunk)
        return out


_words = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=8))


@st.composite
def _failures(draw: st.DrawFn) -> Failure:
    where = draw(st.none() | _words)
    return Failure(draw(_words), draw(_words), traceback="", where=where)


@st.composite
def _stories(draw: st.DrawFn) -> Story:
    size = draw(st.integers(1, 5))
    names = draw(st.lists(_words, min_size=size, max_size=size))
    upstreams = [tuple(sorted(draw(st.sets(st.integers(0, n - 1), max_size=3)))) if n else () for n in range(size)]
    run = info(
        names,
        upstreams,
        id=draw(_words),
        name=draw(_words),
        workflow=draw(_words),
        kinds=[draw(st.sampled_from(["io", "cpu"])) for _ in names],
        executors=[draw(st.sampled_from(["asyncio", "processes", 'g"pu%\udc80'])) for _ in names],
        wall_ns=draw(st.sampled_from([WALL, 0, -(10**18), 253_402_300_799_999_999_999, 10**30])),
    )
    state = [TaskState.PENDING] * size
    attempts = [1] * size
    parts: list[tuple[list[Any], dict[Any, Report]] | int] = []
    t = MONO
    for _ in range(draw(st.integers(0, 5))):
        rows: list[Any] = []
        reports: dict[Any, Report] = {}
        for _ in range(draw(st.integers(1, 8))):
            alive = [n for n in range(size) if state[n] not in TERMINAL]
            if not alive:
                break
            element = draw(st.sampled_from(alive))
            rule = draw(st.sampled_from([rule for rule in RULES if rule.source is state[element]]))
            number = code_of(*rule)
            t += draw(
                st.sampled_from([0, 1, 999, 40_000, 99_999, 100_000, 123_456, 10**9 - 1, 10**9, 3_700_000_123, -70])
            )
            rows.append((element, attempts[element], number, t))
            if SHAPES[number].reported and draw(st.booleans()):
                failure = draw(st.none() | _failures())
                kind = SUCCEEDED if failure is None else draw(st.sampled_from([FAILED, CRASHED]))
                cpu = draw(st.sampled_from([NEVER, 0, 1, 1_234_567, 10**10]))
                worker = draw(st.sampled_from(["", "loop", "pid 4711"]) | _words)
                measured = [draw(st.sampled_from([NEVER, NEVER, 0, 1, 1_234_567, 10**12])) for _ in range(4)]
                reports[element, attempts[element]] = Report(
                    1, kind, t, t, None, failure, worker, cpu, *measured, output=draw(st.none() | _words)
                )
            if rule.source is TaskState.RETRYING and rule.target is TaskState.READY:
                attempts[element] += 1
            state[element] = rule.target
        if rows:
            parts.append((rows, reports))
        if draw(st.integers(0, 9)) == 0:
            parts.append(draw(st.integers(1, 10**6)))
    return Story(run, parts)


class Kit:
    """What the tests of this folder share (they cannot import one another)."""

    info = staticmethod(info)
    code = staticmethod(code)
    stories = staticmethod(_stories)
    hostile = HOSTILE
    WALL, MONO = WALL, MONO
    READY, STARTED, RETURNED = READY, STARTED, RETURNED

    @staticmethod
    def simple(run: RunInfo, element: int = 0, t: int = MONO) -> tuple[list[Any], dict[Any, Report]]:
        """One task's way to success: ready at once, 2 ms later running, for 12.3 ms."""
        rows = [
            (element, 1, READY, t),
            (element, 1, STARTED, t + 2_000_000),
            (element, 1, RETURNED, t + 14_300_000),
        ]
        report = Report(1, SUCCEEDED, t + 2_000_000, t + 14_300_000, worker="pid 4711", cpu=11_000_000)
        return rows, {(element, 1): report}


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit
