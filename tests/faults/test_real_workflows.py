"""The example workflows, killed in the middle and gone on with: the report is that of a run which nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).parents[2] / "workflows"
SMALL = {
    "mirror_crawl": ["-p", "pages=40", "-p", "stalls=0"],
    "source_audit": ["-p", "limit=60", "-p", "probes=[]"],
    "airports": ["-p", 'countries=["CH", "AT", "DE"]', "-p", "chunk=100"],
    "man_index": ["-p", "limit=60", "-p", "queries=5"],
}
pytestmark = [pytest.mark.timeout(170), pytest.mark.skipif(os.name != "posix", reason="SIGKILL")]


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "flowlane", *argv]


def environment(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLOW_")}
    return {**clean, "XDG_STATE_HOME": str(folder / "state"), "PYTHONUNBUFFERED": "1"}


def finished(folder: Path, *argv: str) -> str:
    done = subprocess.run(
        command(*argv, "--quiet"),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def successes(folder: Path) -> int:
    logs = list(folder.glob(".flow/runs/*/events.jsonl"))
    return sum(
        b'"to":"succeeded","reason":"returned"' in line for log in logs for line in log.read_bytes().splitlines()
    )


@pytest.mark.parametrize("name", SMALL)
def test_a_killed_run_goes_on_to_the_same_report(name: str, tmp_path: Path) -> None:
    if name == "airports":
        pytest.importorskip("airportsdata")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    whole.mkdir()
    halved.mkdir()
    run = ["run", str(WORKFLOWS / f"{name}.py"), *SMALL[name]]
    expected = finished(whole, *run)
    enough = successes(whole) // 3
    with subprocess.Popen(
        command(*run, "--quiet"),
        cwd=halved,
        env=environment(halved),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as engine:
        deadline = time.monotonic() + 120
        while successes(halved) < enough and engine.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        engine.send_signal(signal.SIGKILL)
    before = successes(halved)
    assert before >= enough
    assert finished(halved, "resume") == expected
    shown = subprocess.run(
        command("runs", "--json"),
        cwd=halved,
        env=environment(halved),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (told,) = json.loads(shown.stdout)["runs"]
    assert told["state"] == "succeeded"
    if before < successes(whole):  # it was caught in the middle, as a rule
        assert successes(halved) < successes(whole) + before
