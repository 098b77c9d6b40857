"""The guard of the fault table finds and ends whatever a program started, and hears only the program itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the guard finds processes in /proc")

HIDES = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    os.write(1, f"{os.getpid()} a copy\\n".encode())
    time.sleep(60)
time.sleep(0.2)
os.write(1, f"{os.getpid()} first\\n".encode())
os.write(1, f"{os.getpid()} ready\\n".encode())
time.sleep(60)
"""


def test_what_hides_in_sessions_of_its_own_is_found_and_ended(script: Callable[[str], Any]) -> None:
    guard = script("guard")
    with guard.Guarded("-c", HIDES) as program:
        while program.told() != "ready":
            assert not program.ended(0.02)
        assert program.left() == 3
        program.kill()
        assert program.left(0.1) == 2
    assert guard.marked(program.mark) == []


def test_a_program_that_ends_by_itself(script: Callable[[str], Any]) -> None:
    guard = script("guard")
    with guard.Guarded("-c", "pass") as program:
        assert program.ended(30)
        assert program.left() == 0
        assert program.told() is None


def test_the_guard_does_not_count_itself(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    guard = script("guard")
    monkeypatch.setenv("BENCHMARK_MARK", "this")
    assert os.getpid() not in guard.marked("this")
