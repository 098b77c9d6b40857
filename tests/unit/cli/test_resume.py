"""`flow resume`: whose file it runs, and whose it does not."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from flowlane_plugins.stores.sqlite import SqliteStore
from flowlane_plugins.stores.sqlite.schema import crc

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Flow, Write

ETL = """
from pathlib import Path
from flowlane import task, workflow

@task.io
def step(n: int) -> int:
    with open("began", "a") as file:
        file.write(".")
    if not Path("good").exists():
        raise ValueError("not yet")
    return n

@workflow
def etl(n: int = 7) -> int:
    return step(n)

@workflow
def plain() -> int:
    return step(1)
"""

STRANGERS = """
open("ran", "w").close()
from flowlane import task, workflow

@task.io
def step(n: int) -> int:
    return n

@workflow
def etl(n: int = 7) -> int:
    return step(n)

@workflow
def plain() -> int:
    return step(1)
"""


@pytest.fixture
def stopped(flow: Flow, write: Write, tmp_path: Path) -> Path:
    """Where the file of a run is that failed and would now succeed."""
    path = write("etl.py", ETL)
    assert flow("run", "etl.py:etl", "-p", "n=8", "--quiet").code == 1
    (tmp_path / "good").touch()
    return path


def point_elsewhere(db_path: Path, path: Path) -> None:
    """Make the latest run say that its workflow is in `path`, as anybody can who knows how a row is checked."""
    with closing(sqlite3.connect(db_path)) as db, db:
        key, *fields = db.execute("SELECT key, id, name, workflow, origin, parent, created FROM runs").fetchall()[-1]
        fields[3] = json.dumps({**json.loads(fields[3]), "path": str(path)})
        db.execute("UPDATE runs SET origin = ?, crc = ? WHERE key = ?", (fields[3], crc(*fields), key))


@pytest.mark.usefixtures("stopped")
def test_a_run_goes_on_from_the_file_that_it_was_started_from(flow: Flow) -> None:
    done = flow("resume", "--quiet")
    assert (done.code, done.out) == (0, "8\n")


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("how", [(), ("--fork",)])
def test_an_origin_that_somebody_wrote_over_is_not_followed(
    flow: Flow, write: Write, tmp_path: Path, how: tuple[str, ...]
) -> None:
    point_elsewhere(tmp_path / ".flow" / "flow.db", write("strangers.py", STRANGERS))
    done = flow("resume", "--quiet", *how)
    assert (done.code, done.out) == (0, "8\n")
    assert not (tmp_path / "ran").exists()


def test_the_file_of_a_strangers_folder_is_not_run(
    flow: Flow, stopped: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_elsewhere(tmp_path / ".flow" / "flow.db", write("strangers.py", STRANGERS))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))  # so it was sealed with somebody else's key
    for how in ((), ("--fork",), ("--take-over",), ("--accept-changes",)):
        done = flow("resume", *how)
        assert done.code == 74
        assert "how run " in done.err
        assert "it was not written by this store's owner" in done.err
        assert "--file FILE[:WORKFLOW]" in done.err
    done = flow("resume", "--file", f"{stopped}:etl")
    assert done.code == 74  # nor are its parameters taken
    assert "give its parameters" in done.err
    assert not (tmp_path / "ran").exists()


def test_a_strangers_run_goes_on_from_the_file_that_is_given_and_does_not_pass_on_its_own(
    flow: Flow, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("etl.py", ETL)
    assert flow("run", "etl.py:plain", "--quiet").code == 1
    (tmp_path / "good").touch()
    point_elsewhere(tmp_path / ".flow" / "flow.db", write("strangers.py", STRANGERS))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    done = flow("resume", "--fork", "--file", f"{path}:plain", "--quiet")
    assert (done.code, done.out) == (0, "1\n"), done.err
    assert flow("resume", "last", "--from", "step", "--quiet").code == 0
    assert not (tmp_path / "ran").exists()


def test_a_file_that_was_moved_is_told_before_the_parameters_are_decoded(flow: Flow, stopped: Path) -> None:
    shutil.move(stopped, stopped.with_name("moved.py"))
    done = flow("resume")
    assert "etl.py, which run " in done.err
    assert "is not there any more" in done.err
    assert flow("resume", "--file", "moved.py:etl", "--accept-changes", "--quiet").out == "8\n"


@pytest.mark.usefixtures("stopped")
def test_what_a_run_was_asked_cannot_be_cut_down(flow: Flow, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / ".flow" / "flow.db")
    store.open()
    with store._database.writing() as db:
        db.execute("UPDATE runs SET params = x''")
    store.close()
    done = flow("resume")
    assert (done.code, "cannot be believed: it is empty" in done.err) == (74, True)
    assert "parameters cannot be shown: it is empty" in flow("show").out
