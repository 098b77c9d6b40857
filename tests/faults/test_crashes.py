"""Runs that are killed with SIGKILL, whenever and wherever: each goes on, and nothing that was committed runs again.

The quick forms run always; the long ones on demand, and print their figures. See ``crashing`` for how it is judged.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest

from .crashing.trial import DYING, ROOT, Death, Folder, Judge, Lives, Wrong, many, wait

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workflow", ["killed", "grown"])
def test_kills_at_random_instants_lose_nothing_and_repeat_nothing_committed(tmp_path: Path, workflow: str) -> None:
    figures = many(tmp_path, kills=6, seed=1, workflow=workflow)
    assert not figures.wrong, "\n\n".join(figures.wrong)
    assert figures.counts["resumed"], figures.lines()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workflow", ["killed", "grown"])
def test_a_thousand_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str], workflow: str) -> None:
    figures = many(tmp_path, kills=1_000, seed=2, workflow=workflow)
    with capsys.disabled():
        print(f"\n{figures.lines()}")
    assert not figures.wrong, "\n\n".join(figures.wrong)


# ── inside the store ──────────────────────────────────────────────────────────────────────────────────────────────


def die(lives: Lives, folder: Path, workflow: str, deaths: Sequence[Death]) -> int:
    """A run that dies the first of these deaths, is resumed and dies the next, and at last lives; how often it did die."""
    place = Folder(folder)
    judge = Judge(place, workflow)
    try:
        for death in [*deaths, None]:
            code = lives.live(place, workflow, "resume" if judge.recorded() else "run", death)
            if code != -signal.SIGKILL:
                break
            judge.look()
        judge.settle(code)
    except Wrong as error:
        raise Wrong(f"{deaths}: calls {(place.path / 'calls').read_text().split()}: {error}") from None
    shutil.rmtree(place.path)
    return judge.counts["kills"]


def die_at_each_call(
    folder: Path,
    workflow: str,
    *,
    before: Sequence[Death] = (),
    again: int = 0,
    sides: Sequence[str] = ("before", "after"),
) -> int:
    """Die on those sides of each call there is, after those deaths `before`, and then `again` so often; how many deaths."""
    total = n = 0
    died = True
    with Lives() as lives:
        while died:
            n += 1
            died = False
            for when in sides:
                deaths = -1
                while deaths < len(before):  # on a busy machine a run may be over in fewer writes than that
                    deaths = die(lives, folder / f"{n}-{when}", workflow, [*before, *[("", n, when)] * (1 + again)])
                died |= deaths > len(before)
                total += deaths
    return total


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workflow", ["small", "grown"])
def test_a_death_before_or_after_any_call_of_the_store_repeats_nothing_committed(tmp_path: Path, workflow: str) -> None:
    assert die_at_each_call(tmp_path, workflow) > 10


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workflow", ["small", "grown"])
def test_a_second_death_after_any_call_of_the_store_repeats_nothing_committed(tmp_path: Path, workflow: str) -> None:
    """Of a run that was gone on with once. The state before a call is, but for the tasks, that after the last one."""
    assert die_at_each_call(tmp_path, workflow, before=[("write", 2, "after")], sides=["after"]) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workflow", ["killed", "grown"])
def test_deaths_at_any_call_of_the_store_again_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workflow: str
) -> None:
    deaths = die_at_each_call(tmp_path / "run", workflow, again=2)
    deaths += die_at_each_call(tmp_path / "resume", workflow, before=[("write", 3, "after")], again=2)
    with capsys.disabled():
        print(f"\n{deaths:,} deaths inside the store, each gone on from")


# ── at every system call ──────────────────────────────────────────────────────────────────────────────────────────

#: Those by which the store changes something: SQLite's own, result files, locks, keys, folders.
CALLS = "pwrite64 writev fsync fdatasync rename unlink ftruncate mkdir link chmod flock".split()

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def traced(place: Folder, verb: str, *words: str) -> int:
    """A life of ``dying`` under strace; its exit code, or -9."""
    argv = ["strace", "-f", "-qq", *words, sys.executable, "-m", DYING, str(place.path), "small", verb]
    return wait(place.start(argv, env={**place.environ(), "PYTHONPATH": str(ROOT)}))


def census(folder: Path) -> list[tuple[str, int]]:
    """(call, which) of each system call of a run that ends; by thread, as strace counts: one thread makes all of the store's."""
    place = Folder(folder)
    trace = folder / "trace"
    code = traced(place, "run", "-o", str(trace), "-e", f"trace={','.join(CALLS)}")
    if code and "Operation not permitted" in place.err():
        pytest.skip("strace may not trace here")
    assert code == 0, place.err()
    lines = [re.match(r"(\d+) +(\w+)\(", line) for line in trace.read_text().splitlines()]
    counts = Counter(line.groups() for line in lines if line is not None)
    most = {call: max([count for (_, made), count in counts.items() if made == call], default=0) for call in CALLS}
    return [(call, n) for call, count in most.items() for n in range(1, count + 1)]


def die_at_a_system_call(folder: Path, lives: Lives, call: str, n: int) -> bool:
    """A run is killed when it makes a call for the n-th time, and gone on from; whether it was."""
    place = Folder(folder)
    judge = Judge(place, "small")
    inject = "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={n}"
    code = traced(place, "run", *inject)
    died = code != 0
    try:
        if died:
            assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), place.err()
            judge.look()
            code = lives.live(place, "small", "resume" if judge.recorded() else "run", None)
        judge.settle(code)
    except Wrong as error:
        raise Wrong(f"killed at {call} number {n}: {error}") from None
    shutil.rmtree(folder)
    return died


@strace
@pytest.mark.timeout(300)
def test_a_death_at_some_system_calls_repeats_nothing_committed(tmp_path: Path) -> None:
    points = census(tmp_path / "census")
    assert {"pwrite64", "writev", "rename", "mkdir"} <= {call for call, _ in points}
    with Lives() as lives:
        for call, n in Random(1).sample(points, 4):
            die_at_a_system_call(tmp_path / f"{call}-{n}", lives, call, n)


@strace
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_death_at_every_system_call_repeats_nothing_committed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = census(tmp_path / "census")
    with Lives() as lives:
        died = sum([die_at_a_system_call(tmp_path / f"{call}-{n}", lives, call, n) for call, n in points])
    with capsys.disabled():
        print(f"\n{died:,} deaths at {len(points):,} system calls, each gone on from")
    assert died > 0.9 * len(points)
