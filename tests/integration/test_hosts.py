"""flowlane as a guest: what belongs to the program around it stays as it is, before, during and after runs.

The programs are in ``hosting.py``, each in a process of its own: pytest has hooks, filters and handlers of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOST = Path(__file__).with_name("hosting.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def play(part: str, folder: Path) -> str:
    """What the host printed; to stderr it may print nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HOST), part],
        cwd=folder, capture_output=True, text=True, timeout=50, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_nothing_of_the_host_s_changes_whatever_runs_and_however_it_ends(tmp_path: Path) -> None:
    assert play("state", tmp_path) == "nothing changed\n"


def test_signals_to_the_whole_group_reach_the_host_and_disturb_no_task(tmp_path: Path) -> None:
    assert play("signals", tmp_path) == "all runs succeeded\n"


def test_a_program_that_is_no_python_is_told_how_to_have_workers(tmp_path: Path) -> None:
    assert play("embedded", tmp_path) == "told what to do\n"


@pytest.mark.parametrize("part", ["reaping", "ignoring"])
def test_a_host_that_takes_the_news_of_its_children_keeps_its_workers(part: str, tmp_path: Path) -> None:
    assert play(part, tmp_path) == "all ended as it should\n"
