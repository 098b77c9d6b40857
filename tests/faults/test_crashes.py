"""Runs that are killed with SIGKILL, whenever and wherever: each goes on, and nothing that was committed runs again.

The quick forms run always; the long ones on demand, and print their figures. See ``crashing`` for how it is judged.
"""

from __future__ import annotations

import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from .crashing.trial import Death, Folder, Judge, Lives, Wrong, many

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


@pytest.mark.timeout(120)
def test_kills_at_random_instants_lose_nothing_and_repeat_nothing_committed(tmp_path: Path) -> None:
    figures = many(tmp_path, kills=8, seed=1)
    assert not figures.wrong, "\n\n".join(figures.wrong)
    assert figures.counts["resumed"], figures.lines()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = many(tmp_path, kills=1_000, seed=2)
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


def die_at_each_call(folder: Path, workflow: str, *, before: Sequence[Death] = (), again: int = 0) -> int:
    """Die before and after each call there is, after those deaths `before`, and then `again` so often; how many deaths."""
    total = n = 0
    died = True
    with Lives() as lives:
        while died:
            n += 1
            died = False
            for when in ("before", "after"):
                deaths = die(lives, folder / f"{n}-{when}", workflow, [*before, *[("", n, when)] * (1 + again)])
                died |= deaths > len(before)
                total += deaths
    return total


@pytest.mark.timeout(120)
@pytest.mark.parametrize("before", [[], [("write", 2, "after")]], ids=["run", "resume"])
def test_a_death_before_or_after_any_call_of_the_store_repeats_nothing_committed(
    tmp_path: Path, before: list[Death]
) -> None:
    assert die_at_each_call(tmp_path, "small", before=before) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_deaths_at_any_call_of_the_store_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deaths = die_at_each_call(tmp_path / "run", "killed", again=2)
    deaths += die_at_each_call(tmp_path / "resume", "killed", before=[("write", 12, "after")], again=2)
    with capsys.disabled():
        print(f"\n{deaths:,} deaths inside the store, each gone on from")
