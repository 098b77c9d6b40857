"""Sentences of the README that no other test holds."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
from flowlane import run, task, workflow

class Point:
    def __init__(self, x): self.x = x

@task.cpu
def moved(point, by):
    return Point(point.x + by)

@workflow
def walk(steps: int):
    point = Point(0)
    for _ in range(steps):
        point = moved(point, 2)
    return point

print(run(walk, steps=3).value.x)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there workers import the script")
def test_a_plain_script_needs_no_guard(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=50, cwd=tmp_path, check=False
    )
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_a_run_at_the_top_of_the_file_given_to_flow_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "flowlane", "run", "script.py", "-p", "steps=3"],
        capture_output=True, text=True, timeout=50, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'if __name__ == "__main__":' in done.stderr and "Traceback" not in done.stderr
