"""An executor of somebody else's: a package of its own, a wheel, installed into an environment of its own and found by name.

wheel of `canvas` ──▶ fresh environment ──▶ flow executors · flow run --route draw=canvas
(its code is the     (flowlane beside it,    with [tool.flow.executors.canvas]
 page's example)      nothing of the tests)
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from tests.docs.pages import blocks

ROOT = Path(__file__).resolve().parents[2]

TASKS = """
import threading

from flowlane import task, workflow


@task.io
def draw(shape: str) -> str:
    return f"{shape} in {threading.current_thread().name}"


@workflow
def drawing(shapes: tuple[str, ...] = ("circle", "square")) -> list[str]:
    return [draw(shape) for shape in shapes]
"""


def wheel(folder: Path) -> Path:
    """A wheel with the executor of docs/writing-an-executor.md and its entry point, as a build backend would write it."""
    (block,) = [block for block in blocks("docs/writing-an-executor.md") if block.mark == "file: one_thread.py"]
    info = "canvas_for_flow-1.0.dist-info"
    files = {
        "canvas_for_flow/__init__.py": "",
        "canvas_for_flow/one_thread.py": block.text,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: canvas-for-flow\nVersion: 1.0\nRequires-Dist: flowlane\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[flowlane.executors]\ncanvas = canvas_for_flow.one_thread:OneThreadExecutor\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    path = folder / "canvas_for_flow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it; flowlane and what it needs lie on its path."""
    folder = tmp_path_factory.mktemp("foreign")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q"]
    done = subprocess.run([*install, str(wheel(folder))], capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        pytest.skip("there is no pip here to install a wheel with")
    assert done.returncode == 0, done.stderr
    paths = [str(ROOT / "engine"), str(ROOT / "plugins"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    inside = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    (Path(inside) / "beside.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "drawing.py").write_text(TASKS)
    (tmp_path / "pyproject.toml").write_text('[tool.flow.executors.canvas]\nname = "main window"\n')
    return tmp_path


def flow(python: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-m", "flowlane", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=50)


def test_it_is_listed_with_what_it_can_do_and_where_it_is_from(python: Path, project: Path) -> None:
    listed = json.loads(flow(python, project, "executors", "--json").stdout)["executors"]
    (row,) = [row for row in listed if row["name"] == "canvas"]
    assert row == {
        "name": "canvas",
        "origin": "canvas_for_flow.one_thread:OneThreadExecutor",
        "accepts": ["sync"],
        "slots": 1,
        "hard_kill": False,
        "pickles": False,
        "remote_values": False,
    }


def test_tasks_run_on_it_with_the_options_of_the_settings(python: Path, project: Path) -> None:
    done = flow(python, project, "run", "drawing.py", "--route", "draw=canvas", "--quiet")
    assert (done.returncode, done.stdout) == (0, '["circle in main window","square in main window"]\n'), done.stderr


def test_a_slip_in_its_options_is_told_by_name(python: Path, project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.flow.executors.canvas]\nnom = "main window"\n')
    done = flow(python, project, "run", "drawing.py", "--route", "draw=canvas")
    assert done.returncode == 2
    assert "executor 'canvas' has no option 'nom'; its options: name" in done.stderr
