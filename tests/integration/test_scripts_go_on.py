"""A run that a plain script began goes on without being told where its workflow is: that is in the script."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
    import sys
    from pathlib import Path

    from flowlane import Engine, RunFailed, task, workflow

    @task.cpu
    def square(number: int) -> int:
        with Path("ran.txt").open("a") as ran:
            print(number, file=ran)
        return number * number

    @task.io
    def add(numbers: list[int]) -> int:
        if not Path("allowed").exists():
            raise RuntimeError("not yet")
        return sum(numbers)

    @workflow
    def squares(count: int) -> int:
        return add(square.map(range(count)))

    def hidden():
        @workflow
        def squares(count: int) -> int:
            return add(square.map(range(count)))
        return squares

    if __name__ == "__main__":
        with Engine(store="kept/flow.db") as engine:
            if sys.argv[1] == "resume":
                print(engine.resume("last").result().value)
            else:
                flow = squares if sys.argv[1] == "start" else hidden()
                try:
                    engine.start(flow.bind(3)).result()
                except RunFailed as error:
                    print(error.result.state)
"""
OTHER = """
    from flowlane import Engine

    with Engine(store="kept/flow.db") as engine:
        print(engine.resume("last").result().value)
"""


def told(folder: Path, *arguments: str, status: int = 0) -> list[str]:
    environment = os.environ | {"FLOW_STATE_DIR": "kept"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return (done.stdout if status == 0 else done.stderr).splitlines()


def begin(folder: Path, *how: str) -> None:
    """A run of which three squares have succeeded, and their sum has failed; the next try may succeed."""
    package = folder / "pkg"
    package.mkdir()
    (package / "script.py").write_text(textwrap.dedent(SCRIPT))
    (folder / "other.py").write_text(textwrap.dedent(OTHER))
    assert told(folder, *how) == ["failed"]
    (folder / "allowed").touch()


def ran(folder: Path) -> list[str]:
    return sorted((folder / "ran.txt").read_text().split())


def test_by_the_same_script(tmp_path: Path) -> None:
    begin(tmp_path, "pkg/script.py", "start")
    assert told(tmp_path, "pkg/script.py", "resume") == ["5"]
    assert ran(tmp_path) == ["0", "1", "2"]


def test_by_the_command(tmp_path: Path) -> None:
    begin(tmp_path, "pkg/script.py", "start")
    assert told(tmp_path, "-m", "flowlane", "resume", "--quiet") == ["5"]
    assert ran(tmp_path) == ["0", "1", "2"]


def test_by_another_script(tmp_path: Path) -> None:
    begin(tmp_path, "pkg/script.py", "start")
    assert told(tmp_path, "other.py") == ["5"]
    assert ran(tmp_path) == ["0", "1", "2"]


def test_of_a_module_that_python_runs(tmp_path: Path) -> None:
    begin(tmp_path, "-m", "pkg.script", "start")
    assert told(tmp_path, "-m", "flowlane", "resume", "--quiet") == ["5"]
    assert told(tmp_path, "-m", "pkg.script", "resume") == ["5"]
    assert ran(tmp_path) == ["0", "1", "2"]


def test_a_workflow_inside_a_function_has_to_be_given(tmp_path: Path) -> None:
    begin(tmp_path, "pkg/script.py", "hidden")
    last = told(tmp_path, "-m", "flowlane", "resume", "--quiet", status=2)
    assert "does not say where its workflow 'squares' is" in last[0]
