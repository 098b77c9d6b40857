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


CACHED = """
import functools
from flowlane import run, task, workflow

@functools.lru_cache(maxsize=None)
def double(n):
    return 2 * n

@task.cpu
def use(n):
    return double(n) + double(n)

@workflow
def both():
    return [use(1), use(2)]

print(run(both).value)
"""

POOL = """
from flowlane.futures import ProcessPoolExecutor

def same(x):
    return x

with ProcessPoolExecutor(2) as pool:
    print(list(pool.map(same, range(3))))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there workers import the script")
def test_functions_of_a_script_may_be_cached(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(CACHED)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=50, cwd=tmp_path, check=False
    )
    assert (done.stdout, done.stderr) == ("[4, 8]\n", "")


def test_a_pool_at_the_top_of_an_imported_module_is_refused(tmp_path: Path) -> None:
    """Otherwise each worker would start one more, and so on."""
    (tmp_path / "poolmod.py").write_text(POOL)
    done = subprocess.run(
        [sys.executable, "-c", "import poolmod"], capture_output=True, text=True, timeout=50, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert "a pool was started at the top level of poolmod" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr


def test_a_run_at_the_top_of_the_file_given_to_flow_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "flowlane", "run", "script.py", "-p", "steps=3"],
        capture_output=True, text=True, timeout=50, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'if __name__ == "__main__":' in done.stderr and "Traceback" not in done.stderr
