"""A folder of its own for every test of the command line, and the command itself: in this process, or as a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from flowlane.cli.main import main
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Done(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str


class Flow(Protocol):
    """``flow(*argv)``: the command line."""

    def __call__(self, *argv: str) -> Done: ...


class Write(Protocol):
    """``write(name, text)``: a file in the test's folder."""

    def __call__(self, name: str, text: str) -> Path: ...


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # the store's key
    for name in [name for name in os.environ if name.startswith("FLOW_") or name in ("NO_COLOR", "CI")]:
        monkeypatch.delenv(name)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_flow_"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def flow(capsys: pytest.CaptureFixture[str]) -> Flow:
    """The command in this process."""

    def flow(*argv: str) -> Done:
        capsys.readouterr()
        code = main(argv)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return flow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """The store of the test's folder, made with it."""
    found = SqliteStore(tmp_path / ".flow" / "flow.db")
    found.open()
    yield found
    found.close()


@pytest.fixture
def environ() -> dict[str, str]:
    """The environment for a real process: our source roots on its path, UTF-8 whatever the locale."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}


@pytest.fixture
def flow_process(environ: dict[str, str]) -> Flow:
    """The command as a process of its own."""

    def flow(*argv: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "flowlane", *argv],
            env=environ,
            capture_output=True,
            encoding="utf-8",
            timeout=50,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return flow
