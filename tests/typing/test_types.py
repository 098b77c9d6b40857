"""The checkers see through the graph: what is right passes, what is wrong is flagged, line by line, by mypy and by pyright.

Lines ending in ``# E:`` of the files beside this one must be flagged by each checker, and no other line by either.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = ("declaring.py", "running.py")

Lines = set[tuple[str, int]]


def expected() -> Lines:
    found: Lines = set()
    for name in FILES:
        for number, line in enumerate((HERE / name).read_text().splitlines(), 1):
            if line.endswith("# E:"):
                found.add((name, number))
    return found


def test_marks_are_there() -> None:
    assert len(expected()) > 50


def run_checker(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def config(tmp_path: Path, checker: str) -> str:
    """The project's strictness, without its list of files."""
    if checker == "mypy":
        path = tmp_path / "mypy.ini"
        path.write_text(
            "[mypy]\nstrict = true\npython_version = 3.11\nnamespace_packages = true\nexplicit_package_bases = true\n"
            f"mypy_path = {ROOT / 'engine'}:{ROOT / 'plugins'}\nfollow_imports = silent\n"
            f"cache_dir = {tmp_path / 'cache'}\n"
        )
    else:
        path = tmp_path / "pyrightconfig.json"
        path.write_text(
            json.dumps(
                {
                    "include": [
                        os.path.relpath(HERE / name, tmp_path) for name in FILES
                    ],  # absolute ones match nothing
                    "extraPaths": [str(ROOT / "engine"), str(ROOT / "plugins")],
                    "pythonVersion": "3.11",
                    "typeCheckingMode": "strict",
                    # the point of a wrong line is often an expression without effect
                    "reportUnusedExpression": False,
                    "reportUnusedCoroutine": False,
                    "reportUnusedFunction": False,
                }
            )
        )
    return str(path)


def explain(missed: Lines, extra: Lines, output: str) -> str:
    wanted = "".join(f"\n  not flagged: {name}:{number}" for name, number in sorted(missed))
    said = "".join(f"\n  flagged: {name}:{number}" for name, number in sorted(extra))
    return f"{wanted}{said}\n{output}"


@pytest.mark.timeout(300)
def test_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (extra 'lint')")
    done = run_checker(
        [sys.executable, "-m", "mypy", "--config-file", config(tmp_path, "mypy"), "--no-error-summary"]
        + ["--show-absolute-path", "--no-pretty", *(str(HERE / name) for name in FILES)]
    )
    flagged: Lines = set()
    for path, number in re.findall(r"^(.+?):(\d+): error:", done.stdout, re.MULTILINE):
        flagged.add((Path(path).name, int(number)))
    assert flagged == expected(), explain(expected() - flagged, flagged - expected(), done.stdout + done.stderr)


@pytest.mark.timeout(300)
def test_pyright(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="pyright is not installed (extra 'lint')")
    done = run_checker(
        [sys.executable, "-m", "pyright", "--project", config(tmp_path, "pyright"), "--outputjson"]
        + ["--pythonpath", sys.executable]
    )
    try:
        diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):  # its node part is fetched on first use, and cannot be without a network
        pytest.skip(f"pyright did not run: {(done.stderr or done.stdout).strip()[-200:]}")
    flagged: Lines = set()
    for each in diagnostics:
        if each["severity"] == "error":
            flagged.add((Path(each["file"]).name, each["range"]["start"]["line"] + 1))
    assert flagged == expected(), explain(expected() - flagged, flagged - expected(), done.stdout[-6000:])
