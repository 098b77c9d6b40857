"""CPython's own tests of ``concurrent.futures`` pass over ``flowlane.futures``; see `run_cpython_futures_tests`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_cpython_futures_tests.py")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cpythons_own_tests_pass() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=1100, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-20_000:]
