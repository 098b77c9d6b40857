"""What `flow run` says while something is wrong, rather than when it is over."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Write

#: Holds the loop until a file appears: it never comes free by itself.
HELD = """
    import os, time
    from flowlane import task, workflow

    @task.io
    async def stuck() -> int:
        while not os.path.exists("go"):
            time.sleep(0.01)
        return 1

    @workflow
    def held() -> int:
        return stuck()
"""


def told(folder: Path, environ: dict[str, str], *options: str) -> Iterator[str]:
    """The lines on stderr, as they come; the task goes on at the first that tells of it."""
    command = [sys.executable, "-m", "flowlane", "run", "held.py", *options]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "has held" in line:
                (folder / "go").touch()
            yield line
        assert running.wait() == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_who_holds_the_loop_is_named_while_it_is_held(
    write: Write, environ: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    write("held.py", HELD)
    lines = list(told(tmp_path, environ, *options))
    (line,) = [line for line in lines if "has held" in line]
    assert line.startswith("! task 'stuck' has held the event loop for ")
    assert " at held.py:8 in stuck" in line


@pytest.mark.timeout(60)
def test_among_events_a_warning_is_an_object_too(write: Write, environ: dict[str, str], tmp_path: Path) -> None:
    write("held.py", HELD)
    events = [json.loads(line) for line in told(tmp_path, environ, "--log-format", "json")]
    (event,) = [event for event in events if event["event"] == "engine.warning"]
    assert list(event) == ["event", "v", "level", "timestamp", "message"]
    assert (event["v"], event["level"]) == (1, "warning")
    assert event["message"].startswith("task 'stuck' has held the event loop for ")


@pytest.mark.timeout(60)
def test_a_file_that_shows_what_is_logged_is_not_repeated(
    write: Write, environ: dict[str, str], tmp_path: Path
) -> None:
    write("held.py", "\n    import logging\n    logging.basicConfig(format='mine: %(message)s')\n" + HELD)
    lines = [line for line in told(tmp_path, environ, "--quiet") if "has held" in line]
    assert [line.startswith("mine: task 'stuck'") for line in lines] == [True]
