"""``flow store``: what it prints, where, and with which exit code."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import stat
from typing import TYPE_CHECKING

import pytest

from flowlane.cli.state import existing_store, made_state_dir, open_store, prepare_state_dir
from flowlane.cli.terminal import Messages
from flowlane.errors import UsageError
from flowlane.settings import load_settings
from flowlane.testing.stores import attempt, new_run, new_session

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Flow, Write


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A store with a run that was killed."""
    assert made_state_dir(load_settings(), Messages(io.StringIO()))
    with open_store(load_settings()) as store:
        lease = store.begin(new_run(), new_session())
        store.write(lease, [attempt(n) for n in range(10)])
    return tmp_path / ".flow" / "flow.db"


ONE = """
from flowlane import task, workflow

@task.io
async def one() -> int:
    return 1

@workflow
def single() -> int:
    return one()
"""


def harm(database: Path) -> None:
    db = sqlite3.connect(database)
    db.execute("UPDATE attempts SET state = 5 WHERE id & 16777215 < 200000")
    db.commit()
    db.close()


def test_opening_makes_the_state_directory_as_a_run_does(database: Path) -> None:
    assert (database.parent / ".gitignore").read_text() == "*\n"
    assert (database.parent.stat().st_mode & 0o777, database.stat().st_mode & 0o777) == (0o700, 0o600)


def test_a_state_directory_that_cannot_be_made_is_told_with_where_it_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOW_STATE_DIR", "file/state")
    said = io.StringIO()
    assert not made_state_dir(load_settings(), Messages(said))
    assert "the run cannot be resumed: file/state: not a directory (FLOW_STATE_DIR)" in said.getvalue()


def test_a_sound_store_prints_nothing_and_exits_with_0(flow: Flow, database: Path) -> None:
    done = flow("store", "check")
    assert (done.code, done.out) == (0, "")
    assert "is sound: 1 run, " in done.err


def test_what_is_wrong_is_data_and_exits_with_1(flow: Flow, database: Path) -> None:
    harm(database)
    done = flow("store", "check")
    assert done.code == 1
    assert "is not what was written" in done.out
    assert "flow store repair" in done.err
    done = flow("store", "check", "--json")
    told = json.loads(done.out)
    assert done.code == 1
    assert told["version"] == 1
    assert told["troubles"]
    assert told["size"]["runs"] == 1


def test_a_repair_tells_what_it_saved_and_where_the_old_one_is(flow: Flow, database: Path) -> None:
    done = flow("store", "repair")
    assert done.code == 0
    assert "nothing was changed" in done.err
    harm(database)
    done = flow("store", "repair", "--json")
    told = json.loads(done.out)
    assert done.code == 0
    assert os.path.isfile(told["backup"])
    assert told["lost"] > 0
    assert "dropped" in done.err
    assert flow("store", "check").code == 0


def test_the_broom_removes_runs_only_when_told(flow: Flow, database: Path) -> None:
    assert json.loads(flow("store", "gc", "--json").out)["runs"] == 0
    assert json.loads(flow("store", "gc", "--json", "--keep", "1").out)["runs"] == 0
    assert json.loads(flow("store", "gc", "--json", "--older-than", "100000w").out)["runs"] == 0
    done = flow("store", "gc", "--older-than", "0s")
    assert (done.code, done.out) == (0, "")
    assert "removed 1 run, 0 cached results" in done.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["store"], "needs to be told what to do"),
        (["store", "chek"], "chek"),
        (["store", "gc", "--older-than", "3x"], "'3x' is no age"),
        (["store", "gc", "--keep", "-1"], "-1"),
        (["store", "check", "x"], "x"),
    ],
)
def test_what_is_typed_wrong_exits_with_2_and_does_nothing(
    flow: Flow, database: Path, argv: list[str], said: str
) -> None:
    done = flow(*argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("verb", ["check", "repair", "gc"])
def test_without_a_store_nothing_is_made(flow: Flow, tmp_path: Path, verb: str) -> None:
    done = flow("store", verb)
    assert (done.code, done.out) == (2, "")
    assert "there is no .flow" in done.err
    assert os.listdir(tmp_path) == []
    with pytest.raises(UsageError):
        existing_store(load_settings()).__enter__()


def test_the_path_is_told_whether_it_is_there_or_not(flow: Flow, tmp_path: Path) -> None:
    done = flow("store", "path")
    assert (done.code, done.out, done.err) == (0, f"{tmp_path}/.flow/flow.db\n", "")
    assert json.loads(flow("store", "path", "--json").out)["exists"] is False
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("verb", ["check", "repair", "gc"])
def test_a_database_that_is_none_exits_with_74(flow: Flow, database: Path, verb: str) -> None:
    database.write_bytes(b"rubbish" * 1000)
    done = flow("store", verb)
    assert (done.code, done.out) == (74, "")
    assert "is not a database" in done.err
    assert "Traceback" not in done.err


def test_what_a_removed_run_told_goes_with_it(write: Write, flow: Flow, tmp_path: Path) -> None:
    write("one.py", ONE)
    for _ in range(3):
        assert flow("run", "one.py", "--quiet").code == 0
    told = tmp_path / ".flow" / "runs"
    (told / "mine").mkdir()
    assert len(list(told.iterdir())) == 4
    assert flow("store", "gc", "--keep", "1").code == 0
    assert len(list(told.iterdir())) == 2
    assert (told / "mine").is_dir()


def test_what_runs_told_is_not_removed_where_their_folder_is_a_link(write: Write, flow: Flow, tmp_path: Path) -> None:
    write("one.py", ONE)
    assert flow("run", "one.py", "--quiet").code == 0
    theirs = tmp_path / "theirs"
    runs = tmp_path / ".flow" / "runs"
    (told,) = runs.iterdir()
    runs.rename(theirs)
    runs.symlink_to(theirs)
    assert flow("store", "gc", "--keep", "0").code == 0
    assert (theirs / told.name / "events.jsonl").exists()


@pytest.mark.parametrize("umask", [0, 0o277])
def test_the_state_directory_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        prepare_state_dir(str(tmp_path / "made"))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("made", "made/runs")]
    assert modes == [0o700, 0o700]
