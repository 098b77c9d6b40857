"""What the SQLite store does beyond the contract: versions, the place it is in, its key, locks, checks, repairs and the broom."""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
import socket
import sqlite3
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.states import RunState, TaskState
from flowlane.errors import ResultDamaged, RunLocked, StoreError, UnknownRun
from flowlane.storage.port import BlockRow, CacheRow, Lease, Owner
from flowlane.storage.upkeep import Swept, Upkeep
from flowlane.testing.stores import attempt, new_run, new_session
from flowlane_plugins.stores.sqlite import SqliteStore, database, key, locks, place, schema
from flowlane_plugins.stores.sqlite.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECRET = bytes(32)
T = 1_764_000_000_000_000_000
HOUR_AGO = time.time() - 4000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "flow.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[[], SqliteStore]]:
    made: list[SqliteStore] = []

    def opened() -> SqliteStore:
        store = SqliteStore(path, secret=SECRET)
        made.append(store)
        store.open()
        return store

    yield opened
    for store in made:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], SqliteStore]) -> SqliteStore:
    return open_store()


def finished(store: SqliteStore, *blobs: bytes, started: int = T, cached: Sequence[CacheRow] = ()) -> Lease:
    """A run that succeeded, with a task for each result."""
    lease = store.begin(new_run(), new_session(started=started))
    store.write(lease, [attempt(n, 1, TaskState.SUCCEEDED, blob) for n, blob in enumerate(blobs)], cached)
    store.close_run(lease, RunState.SUCCEEDED, started, None)
    return lease


def result_files(path: Path) -> list[Path]:
    return sorted(one for one in (path.parent / "results").rglob("*") if one.is_file())


def age(file: Path, to: float = HOUR_AGO) -> None:
    os.utime(file, (to, to))


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wrong_arguments_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        SqliteStore(path, secret=b"short")
    wrong: Any = "disk"
    with pytest.raises(ValueError, match="'process' or 'power'"):
        SqliteStore(path, durability=wrong)


def test_making_a_store_touches_nothing(path: Path) -> None:
    assert SqliteStore(path).path == str(path)
    assert not path.parent.exists()


def test_a_closed_store_says_so(store: SqliteStore) -> None:
    store.close()
    with pytest.raises(StoreError, match="is not open"):
        store.runs()


@pytest.mark.parametrize("run_id", ["../../etc/x", "", "abc", "ABCDEF", "0" * 40, "a/b", "zzzz"])
def test_an_id_that_is_no_file_name_of_ours_is_refused(store: SqliteStore, path: Path, run_id: str) -> None:
    with pytest.raises(StoreError, match="is no run id"):
        store.begin(new_run(id=run_id), new_session())
    assert store.owner(run_id) is None
    assert store.remove([run_id]) == 0
    with pytest.raises(UnknownRun):
        store.reopen(run_id, new_session())
    assert os.listdir(path.parent / "locks") == []


@pytest.mark.parametrize(("element", "number"), [(1 << 24, 1), (0, 1 << 16), (-1, 1), (0, -1)])
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(store: SqliteStore, element: int, number: int) -> None:
    lease = store.begin(new_run(), new_session())
    with pytest.raises(StoreError, match="is too many"):
        store.write(lease, [attempt(0), attempt(element, number)])
    with pytest.raises(StoreError, match="does not fit"):
        store.write(lease, [attempt(0), attempt(1)._replace(ended=1 << 63)])
    assert list(store.attempts(lease.run)) == []


def test_an_interrupt_that_comes_when_a_transaction_has_just_begun_leaves_none(
    store: SqliteStore, open_store: Callable[[], SqliteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    patiently = Database._patiently

    def interrupted(self: Database, call: Callable[[], Any]) -> Any:
        patiently(self, call)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Database, "_patiently", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.begin(new_run(), new_session())
    finished(store)
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    finished(open_store())  # nor is another one kept out


def test_a_statement_that_is_refused_is_no_damage(store: SqliteStore) -> None:
    with pytest.raises(StoreError) as refused, store._database.writing() as db:
        db.execute("BEGIN")
    assert "cannot do what it was asked (cannot start a transaction" in refused.value.message
    assert "damaged" not in str(refused.value)
    finished(store)


# ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def stamp(path: Path, pragma: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA {pragma}")


def test_a_store_of_a_newer_version_is_refused(store: SqliteStore, path: Path, open_store: Any) -> None:
    store.close()
    stamp(path, "user_version = 99")
    before = path.read_bytes()
    with pytest.raises(
        StoreError, match="was written by a newer flowlane: its schema is 99, this one knows 2"
    ) as caught:
        open_store()
    assert "upgrade" in (caught.value.hint or "")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"]
)
def test_a_database_of_another_program_is_refused_and_left_as_it_is(
    path: Path, open_store: Any, statement: str
) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(statement)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is a database of another program"):
        open_store()
    assert path.read_bytes() == before
    store = SqliteStore(path, secret=SECRET)
    with pytest.raises(StoreError, match="is a database of another program"):
        store.repair()


def test_an_older_store_is_copied_and_then_migrated(
    store: SqliteStore, path: Path, open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = finished(store, b"value")
    store.close()
    migrations = (*schema.MIGRATIONS, ["ALTER TABLE runs ADD COLUMN note TEXT", "UPDATE runs SET note = name"])
    monkeypatch.setattr(schema, "MIGRATIONS", migrations)
    store = open_store()
    assert bytes(store.read((lease.run, 1, 0, 1))) == b"value"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(migrations),)
        assert db.execute("SELECT note FROM runs").fetchone() == ("brisk-otter",)
    copy = path.parent / f"flow.db.v{len(migrations) - 1}.bak"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(migrations) - 1,)
        assert db.execute("SELECT count(*) FROM attempts").fetchone() == (1,)
    store.close()
    before = copy.stat()
    open_store()
    assert copy.stat() == before


def test_a_migration_that_fails_leaves_the_old_schema(
    store: SqliteStore, path: Path, open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(store, b"value")
    store.close()
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ["ALTER TABLE runs ADD COLUMN note", "NONSENSE"]))
        with pytest.raises(StoreError):
            open_store()
    store = open_store()  # by the version that wrote it
    assert len(store.runs()) == 1


def test_a_store_that_version_1_wrote_is_read_and_gone_on_with(path: Path, open_store: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.decompress((Path(__file__).parent / "version1.db.gz").read_bytes()))
    store = open_store()
    run = store.find("brisk-otter")
    assert (run.session, run.state, run.counts) == (2, RunState.RUNNING, {"pending": 1, "running": 1, "succeeded": 1})
    rows = list(store.attempts(run.id))
    assert [(row.element, row.adopted) for row in rows] == [(0, True), (2, False)]
    assert bytes(store.read(rows[0].result)) == b"one"
    assert [row[:2] for row in store.attempts(run.id, 1)] == [(0, 1), (1, 1), (1, 2)]
    assert [entry.task for entry in store.cache_entries()] == ["parse"]
    assert (store.blocks(run.id), store.check()) == ([], [])
    store.seize(run.id, 1)
    lease = store.reopen(run.id, new_session())
    store.write(lease, [attempt(3)], (), [BlockRow(3, 1, 1, 0, 0, 0, b"")])
    assert len(store.blocks(run.id)) == 1
    assert (path.parent / "flow.db.v1.bak").exists()


def test_more_tasks_than_a_store_can_number_are_refused(store: SqliteStore) -> None:
    lease = store.begin(new_run(), new_session())
    last = schema.ELEMENTS_MAX - 1
    store.write(lease, [attempt(last)], (), [BlockRow(last, 1, 1, 0, 0, 0, b"")])
    for rows, blocks in (([attempt(last + 1)], []), ([], [BlockRow(last, 2, 1, 0, 0, 0, b"")])):
        with pytest.raises(StoreError, match="task number 16,777,216 is too many") as refused:
            store.write(lease, rows, (), blocks)
        assert "several runs" in str(refused.value.hint)
    assert [row.element for row in store.attempts(lease.run)] == [last]


def test_a_damaged_block_is_never_believed(store: SqliteStore, path: Path) -> None:
    lease = store.begin(new_run(), new_session())
    store.write(lease, [], (), [BlockRow(3, 1, 1, 0, 0, 0, b""), BlockRow(4, 1, 1, 0, 0, 0, b"")])
    store.close_run(lease, RunState.FAILED, 1, None)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE blocks SET owner = 7 WHERE id & 0xffffffffff = 3 << 16")
        db.commit()
    with pytest.raises(StoreError, match="what a run has become is not what was written"):
        store.blocks(lease.run)
    assert any("of blocks is not what was written" in trouble for trouble in store.check())
    assert store.repair().lost == 1
    assert [block.start for block in store.blocks(lease.run)] == [4]


def test_the_schemas_are_never_changed() -> None:
    """A released migration is history: a change of it needs another one behind it."""
    assert len(schema.MIGRATIONS) == 2
    db = sqlite3.connect(":memory:")
    with contextlib.closing(db):
        schema.migrate(db, ":memory:")
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"runs", "sessions", "attempts", "files", "adopted", "cache", "requests", "blocks"} <= tables


# ── where it is ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_refused(
    path: Path, open_store: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(place, "file_system_of", lambda _: kind)
    with pytest.raises(StoreError, match=f"is on a network file system \\({kind}\\)") as caught:
        open_store()
    assert "FLOW_STATE_DIR" in (caught.value.hint or "")
    assert not path.exists()


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.path.realpath(tmp_path)
    mounts = tmp_path / "mounts"
    spaced = f"{home}/with space".replace(" ", "\\040")
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/x {home}/far nfs4 rw 0 0\nb {spaced} tmpfs rw 0 0\nc {home}/far/near xfs rw 0 0\n"
    )
    monkeypatch.setattr(place, "_MOUNTS", str(mounts))
    assert place.file_system_of(home) == "ext4"
    assert place.file_system_of(f"{home}/farther") == "ext4"
    assert place.file_system_of(f"{home}/far/state") == "nfs4"
    assert place.file_system_of(f"{home}/far/near/state") == "xfs"
    assert place.file_system_of(f"{home}/with space/x") == "tmpfs"
    monkeypatch.setattr(place, "_MOUNTS", str(tmp_path / "none"))
    assert place.file_system_of(home) == ""


# ── the key ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return folder


def test_the_key_is_the_user_s_and_not_beside_the_results(home: Path, tmp_path: Path) -> None:
    secrets_of = []
    for name in ("a", "b"):
        store = SqliteStore(tmp_path / name / "flow.db")
        store.open()
        secrets_of.append(store.secret)
        store.close()
        assert not (tmp_path / name / "store.key").exists()
    file = home / ".local" / "state" / "flowlane" / "store.key"
    assert secrets_of == [file.read_bytes()] * 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == ["store.key"]


def test_the_key_follows_the_xdg_specification(home: Path, tmp_path: Path) -> None:
    assert key.key_path({"HOME": "/h"}) == "/h/.local/state/flowlane/store.key"
    assert key.key_path({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == "/s/flowlane/store.key"
    assert key.key_path({"HOME": "/h", "XDG_STATE_HOME": "relative"}) == "/h/.local/state/flowlane/store.key"


def test_without_a_home_the_key_is_beside_the_database(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".local").write_text("in the way")
    store = SqliteStore(tmp_path / "state" / "flow.db")
    store.open()
    store.close()
    assert store.secret == (tmp_path / "state" / "store.key").read_bytes()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.chmod(0o644), "can be read or written by others"),
        (lambda file: file.chmod(0o620), "can be read or written by others"),
        (lambda file: file.write_bytes(b"short"), "has 5 bytes"),
        (lambda file: (file.rename(f"{file}.real"), file.symlink_to(f"{file}.real")), "store.key"),
    ],
)
def test_a_key_that_others_may_know_is_refused(home: Path, path: Path, harm: Any, message: str) -> None:
    key.load_key(str(home))
    harm(home / ".local" / "state" / "flowlane" / "store.key")
    store = SqliteStore(path)
    with pytest.raises(StoreError, match=message):
        store.open()
    with pytest.raises(StoreError):
        store.runs()  # it did not open half-way


def test_two_that_make_the_key_at_once_agree(home: Path) -> None:
    file = str(home / "x" / "store.key")
    key._make(file)
    first = Path(file).read_bytes()
    key._make(file)
    assert Path(file).read_bytes() == first
    assert os.listdir(home / "x") == ["store.key"]


# ── locks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_file_tells_its_owner_and_goes_when_the_run_is_closed(store: SqliteStore, path: Path) -> None:
    owner = Owner(os.getpid(), socket.gethostname())
    lease = store.begin(new_run(), new_session(owner=owner))
    file = path.parent / "locks" / lease.run
    assert file.read_text() == f"{owner.pid} {owner.host}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    store.close_run(lease, RunState.SUCCEEDED, T, None)
    assert os.listdir(file.parent) == []


def test_a_lock_file_without_a_lock_is_nobody_s(store: SqliteStore, path: Path) -> None:
    run = finished(store).run
    file = path.parent / "locks" / run
    file.write_text(f"{os.getpid()} here\n")  # that process lives, and does not have the lock
    assert store.owner(run) is None
    store.reopen(run, new_session())


def test_a_run_of_another_machine_that_never_ended_has_to_be_taken_over(store: SqliteStore, path: Path) -> None:
    lease = store.begin(new_run(), new_session(owner=Owner(77, "far")))
    store.close()
    store.open()
    with pytest.raises(RunLocked, match="begun by process 77 on far") as caught:
        store.reopen(lease.run, new_session())
    assert (caught.value.pid, caught.value.host, caught.value.exit_code) == (77, "far", 75)
    store.seize(lease.run, T)
    store.close_run(store.reopen(lease.run, new_session()), RunState.SUCCEEDED, T, None)
    store.reopen(lease.run, new_session(owner=Owner(5, "elsewhere")))  # it has ended: anybody may


def test_a_stale_owner_does_not_remove_the_lock_of_who_took_over(
    open_store: Callable[[], SqliteStore], path: Path
) -> None:
    store, other = open_store(), open_store()
    lease = store.begin(new_run(), new_session())
    other.seize(lease.run, T)
    other.reopen(lease.run, new_session(owner=Owner(5, "here")))
    store.close()
    assert other.owner(lease.run) == Owner(5, "here")


def test_without_flock_a_lock_is_a_file_of_a_living_process(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    lease = store.begin(new_run(), new_session(owner=Owner(os.getpid(), "here")))
    assert store.owner(lease.run) == Owner(os.getpid(), "here")
    with pytest.raises(RunLocked):
        store.reopen(lease.run, new_session())
    gone = subprocess.Popen(["true"])
    gone.wait()
    (path.parent / "locks" / lease.run).write_text(f"{gone.pid} here\n")
    assert store.owner(lease.run) is None


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_result_is_a_file_of_its_digest(store: SqliteStore, path: Path) -> None:
    finished(store, bytes(70_000), bytes(70_000), b"small", secrets.token_bytes(70_000))
    files = result_files(path)
    assert len(files) == 2  # equal ones are one
    assert all(len(file.parent.name + file.name) == 64 for file in files)


def test_a_result_file_that_is_gone_or_cut_is_told_with_its_path(store: SqliteStore, path: Path) -> None:
    lease = finished(store, secrets.token_bytes(70_000))
    (file,) = result_files(path)
    os.truncate(file, 69_999)
    with pytest.raises(ResultDamaged, match="has not the 70,000 bytes"):
        store.read((lease.run, 1, 0, 1))
    file.unlink()
    with pytest.raises(StoreError, match=f"is missing: {file}"):
        store.read((lease.run, 1, 0, 1))


def test_a_file_that_was_swept_before_its_row_was_committed_is_written_again(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store._files.put
    calls = []

    def put_and_lose(blob: Any) -> bytes:
        digest = put(blob)
        if not calls:
            os.unlink(store._files.path(digest))
        calls.append(digest)
        return digest

    monkeypatch.setattr(store._files, "put", put_and_lose)
    lease = finished(store, bytes(70_000))
    assert len(calls) == 2
    assert store.read((lease.run, 1, 0, 1)) == bytes(70_000)


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_what_the_command_line_wants(store: SqliteStore) -> None:
    assert isinstance(store, Upkeep)


def execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE attempts SET state = 5", "is not what was written"),
        ("UPDATE attempts SET detail = 'x'", "is not what was written"),
        ("UPDATE runs SET name = 'other'", "of runs is not what was written"),
        ("UPDATE sessions SET tasks = 9", "of sessions is not what was written"),
        ("UPDATE sessions SET graph = x'00'", "of sessions is not what was written"),
        ("UPDATE sessions SET error = 'x'", "ended is not what was written"),
        ("UPDATE cache SET task = 'x'", "of cache is not what was written"),
        ("DELETE FROM attempts WHERE id & 65535 = 1 AND size = 5", "the cache refers to it"),
        ("DELETE FROM attempts WHERE id & 65535 = 1 AND size = 5", "another number of them now"),
        ("DELETE FROM files", "the result of attempt 1 of task number 1"),
        ("UPDATE attempts SET result = x'00' WHERE size = 5", "another length"),
        ("UPDATE runs SET session = 9", "latest session"),
    ],
)
def test_what_is_not_what_was_written_is_found(store: SqliteStore, path: Path, statement: str, message: str) -> None:
    finished(store, b"small", bytes(70_000), cached=[CacheRow(bytes(32), "t", "{}", T, 0, 0, 1)])
    assert store.check() == []
    execute(path, statement)
    assert any(message in trouble for trouble in store.check()), store.check()


def test_result_files_are_checked_whole(store: SqliteStore, path: Path) -> None:
    finished(store, secrets.token_bytes(70_000), secrets.token_bytes(80_000), secrets.token_bytes(90_000))
    cut, changed, gone = result_files(path)
    os.truncate(cut, 10)
    content = bytearray(changed.read_bytes())
    content[5] ^= 1
    changed.write_bytes(content)
    gone.unlink()
    found = store.check()
    assert len(found) == 3
    assert any("another length" in one and str(cut) in one for one in found)
    assert any("is not what was written" in one and str(changed) in one for one in found)
    assert any("is missing" in one and str(gone) in one for one in found)


def test_many_troubles_are_counted_and_not_all_told(store: SqliteStore, path: Path) -> None:
    finished(store, *[b"x"] * 500)
    execute(path, "UPDATE attempts SET state = 5")
    found = store.check()
    assert len(found) < 150
    assert any("and 400 more" in one for one in found)


# ── repairs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_store_is_not_changed_by_a_repair(store: SqliteStore, path: Path) -> None:
    lease = finished(store, b"value")
    done = store.repair()
    assert (done.backup, done.lost) == (None, 0)
    assert store.read((lease.run, 1, 0, 1)) == b"value"  # open as it was


def test_a_repair_keeps_what_is_good_and_the_damaged_database(store: SqliteStore, path: Path) -> None:
    large = secrets.token_bytes(70_000)
    lease = finished(store, b"one", large, b"three", cached=[CacheRow(bytes(32), "t", "{}", T, 0, 0, 1)])
    other = finished(store, b"other")
    again = store.reopen(other.run, new_session(adopted=[(4, (other.run, 1, 0, 1))]))
    store.close_run(again, RunState.SUCCEEDED, T, None, {"cached": 7})
    execute(path, "UPDATE attempts SET state = 5 WHERE result = CAST('three' AS BLOB)")
    with pytest.raises(StoreError, match="flow store repair"):
        list(store.attempts(lease.run))
    done = store.repair()
    assert done.lost == 1
    assert done.backup is not None
    with contextlib.closing(sqlite3.connect(done.backup)) as db:
        assert db.execute("SELECT count(*) FROM attempts WHERE state = 5").fetchone() == (1,)
    assert store.check() == []
    assert [row.element for row in store.attempts(lease.run)] == [0, 1]
    assert store.find(lease.run).counts == {"succeeded": 2, "pending": 1}  # counted anew
    assert store.find(other.run).counts == {"cached": 7}  # as it was said
    assert store.read((lease.run, 1, 1, 1)) == large
    assert store.read((other.run, 2, 4, 1)) == b"other"
    entry = store.cached(bytes(32), T)
    assert entry is not None
    assert store.read(entry.result) == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(name for name in os.listdir(path.parent) if "repairing" in name) == []
    store.close_run(store.reopen(lease.run, new_session()), RunState.SUCCEEDED, T, None)  # and it lives on


def test_a_page_of_rubbish_costs_its_rows_and_no_others(store: SqliteStore, path: Path) -> None:
    lease = finished(store, *[b"%d" % n * 20 for n in range(2000)])
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        page = db.execute("PRAGMA page_size").fetchone()[0]
        leaves = [
            number
            for number, kind in db.execute("SELECT pageno, pagetype FROM dbstat WHERE name = 'attempts'")
            if kind == "leaf"
        ]
    content = bytearray(path.read_bytes())
    for number in (leaves[3], leaves[len(leaves) // 2]):
        content[(number - 1) * page : number * page] = bytes([255]) * page
    path.write_bytes(content)
    store = SqliteStore(path, secret=SECRET)
    done = store.repair()
    assert done.backup is not None
    store.open()
    try:
        assert store.check() == []
        found = [row.element for row in store.attempts(lease.run)]
        assert 2000 - 3 * page // 60 < len(found) < 2000
        assert all(store.read((lease.run, 1, n, 1)) == b"%d" % n * 20 for n in found)
    finally:
        store.close()


def test_a_store_in_use_is_not_repaired(open_store: Callable[[], SqliteStore], path: Path) -> None:
    store, other = open_store(), open_store()
    lease = store.begin(new_run(), new_session())
    with pytest.raises(StoreError, match=f"run {lease.run} is under way in process 4321"):
        other.repair()


def test_who_has_the_damaged_one_open_is_told(open_store: Callable[[], SqliteStore], path: Path) -> None:
    store, other = open_store(), open_store()
    finished(store, b"x")
    execute(path, "UPDATE attempts SET state = 5")
    store.repair()
    with pytest.raises(StoreError, match="while it was in use"):
        other.runs()


# ── the broom ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_removed_by_number_and_by_age(store: SqliteStore) -> None:
    now = time.time_ns()
    day = 86_400 * 10**9
    runs = [finished(store, b"x", started=now - days * day).run for days in (40, 30, 20, 10, 0)]
    mine = store.begin(new_run(), new_session(started=now - 99 * day)).run

    def left() -> list[str]:
        return [run.id for run in store.runs()][::-1]

    assert store.gc().runs == 0
    assert store.gc(keep=3, older_than=25 * 86_400).runs == 2
    assert left() == [*runs[2:], mine]
    assert store.gc(older_than=15 * 86_400).runs == 1
    assert left() == [*runs[3:], mine]
    assert store.gc(keep=1).runs == 2
    assert left() == [mine]  # under way, however old
    assert store.gc(keep=0).runs == 0


def test_what_nobody_refers_to_is_swept_once_it_is_old(store: SqliteStore, path: Path) -> None:
    lease = finished(store, secrets.token_bytes(70_000))
    (kept,) = result_files(path)
    results = path.parent / "results"
    young, old = results / "ab" / ("0" * 62), results / "cd" / ("0" * 62)
    orphan, copy = results / "tmp" / f"1.{'0' * 16}", path.parent / "flow.db.v1.bak.123"
    lock, fresh = path.parent / "locks" / "0123456789ab", path.parent / "locks" / "0123456789cd"
    for file in (young, old, orphan, copy, lock, fresh):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"12345")
    for file in (old, orphan, copy, lock, kept):
        age(file)
    swept = store.gc()
    assert swept.files == 2
    assert swept.bytes >= 5
    assert [file.exists() for file in (young, old, orphan, copy, lock, fresh)] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    assert len(store.read((lease.run, 1, 0, 1))) == 70_000


def test_the_broom_takes_nothing_that_is_not_ours(store: SqliteStore, path: Path) -> None:
    folder = path.parent
    names = [
        *("locks/notes.txt", "locks/0123456789ab.txt", "locks/0123456789AB", "locks/abc", "locks/abcd.12345678.x"),
        *("results/tmp/1.x", "results/tmp/notes", "results/tmp/1.0123456789ABCDEF", f"results/ab/{'0' * 61}"),
        *(f"results/AB/{'0' * 62}", f"results/ab/{'A' * 62}", f"results/ab/{'00 ' * 31}", f"results/abc/{'0' * 61}"),
        *("flow.db.v1.bak.notes", "flow.db.v1.bak", "flow.db.vx.bak.1", "other.db.v1.bak.1", "xflow.db.v1.bak.1"),
    ]
    target = folder / "target"
    links = ["locks/0123456789cd", f"results/tmp/2.{'0' * 16}", f"results/cd/{'0' * 62}", "flow.db.v1.bak.12"]
    for name in (*names, "target"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"theirs")
    for name in links:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
        os.utime(folder / name, (HOUR_AGO, HOUR_AGO), follow_symlinks=False)
    os.mkfifo(folder / "locks" / "0123456789ef")
    for name in (*names, "target", "locks/0123456789ef"):
        age(folder / name)
    assert store.gc() == Swept(0, 0, 0, 0)
    assert [name for name in (*names, *links, "locks/0123456789ef") if not os.path.lexists(folder / name)] == []
    assert target.read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["locks", "results", "results/tmp"])
def test_a_folder_that_is_a_link_is_refused_and_not_swept(
    store: SqliteStore, path: Path, tmp_path: Path, name: str
) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "tmp").mkdir(parents=True)
    files = [theirs / "0123456789ab", theirs / f"1.{'0' * 16}", theirs / "tmp" / f"1.{'0' * 16}"]
    for file in files:
        file.write_bytes(b"theirs")
        age(file)
    (path.parent / "results" / "tmp").rmdir()
    if name != "results/tmp":
        (path.parent / name).rmdir()
    (path.parent / name).symlink_to(theirs)
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.gc()
    store.close()
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.open()
    if name != "locks":
        with pytest.raises(StoreError, match="is a symbolic link"):
            store.repair()
    assert all(file.read_bytes() == b"theirs" for file in files)
    (path.parent / name).unlink()
    store.open()


def test_a_result_is_neither_written_nor_removed_through_a_link(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    lease = finished(store, bytes(70_000))
    (file,) = result_files(path)
    theirs = tmp_path / "theirs"
    file.parent.rename(theirs)
    file.parent.symlink_to(theirs)
    with pytest.raises(StoreError, match="is a symbolic link"):
        finished(store, bytes(70_000))
    with pytest.raises(StoreError, match="is a symbolic link"):
        store.remove([lease.run])
    assert (theirs / file.name).exists()


def test_a_folder_of_another_user_is_refused(store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    lstat = os.lstat

    def foreign(name: Any, **options: Any) -> Any:
        found = list(lstat(name, **options))
        found[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", foreign)
    with pytest.raises(StoreError, match=r"locks belongs to another user \(uid "):
        store.open()


def test_a_folder_that_is_a_file_is_refused(store: SqliteStore, path: Path) -> None:
    store.close()
    (path.parent / "locks").rmdir()
    (path.parent / "locks").touch()
    with pytest.raises(StoreError, match="locks is not a folder"):
        store.open()


def test_a_lock_that_is_no_plain_file_is_nobody_s_and_is_not_waited_for(store: SqliteStore, path: Path) -> None:
    lease = finished(store, b"1")
    lock, target = path.parent / "locks" / lease.run, path.parent / "target"
    os.mkfifo(lock)
    assert store.owner(lease.run) is None
    lock.unlink()
    lock.mkdir()
    assert store.owner(lease.run) is None
    lock.rmdir()
    target.write_text("1 here\n")
    lock.symlink_to(target)
    assert store.owner(lease.run) is None
    store.close_run(store.reopen(lease.run, new_session()), RunState.SUCCEEDED, T, None)
    assert target.read_text() == "1 here\n"


def test_the_files_of_removed_runs_and_expired_entries_go(store: SqliteStore, path: Path) -> None:
    now = time.time_ns()
    shared = secrets.token_bytes(70_000)
    cached = [CacheRow(b"e" * 32, "t", "{}", now, now + 2 * 10**8, 1, 1), CacheRow(b"f" * 32, "t", "{}", now, 0, 2, 1)]
    first = finished(store, shared, secrets.token_bytes(70_000), secrets.token_bytes(70_000), cached=cached)
    second = finished(store, shared)
    assert store.size()[2:] == (210_000, 3)
    assert store.remove([first.run]) == 1
    assert len(result_files(path)) == 3
    time.sleep(0.25)
    swept = store.gc()
    assert (swept.entries, swept.files) == (1, 1)
    assert swept.bytes >= 70_000
    assert store.forget([b"f" * 32]) == 1
    assert store.read((second.run, 1, 0, 1)) == shared
    store.remove([second.run])
    assert result_files(path) == []
    assert store.size().runs == 0
    assert store.check() == []


def test_removing_gives_the_space_back(store: SqliteStore, path: Path) -> None:
    finished(store, *[bytes(10_000)] * 100)
    before = store.size()
    assert before.database > 1_000_000
    swept = store.gc(keep=0)
    assert swept.bytes > 1_000_000
    assert path.stat().st_size < 200_000


def test_statements_of_an_adopted_graph_stay_small(store: SqliteStore) -> None:
    """A removed run that is still needed keeps the rows that are, and nothing else."""
    lease = store.begin(new_run(params=b"p" * 10), new_session(graph=b"g" * 100_000))
    store.write(lease, [attempt(n, 1, TaskState.SUCCEEDED, b"x") for n in range(100)])
    store.close_run(lease, RunState.SUCCEEDED, T, None)
    child = store.begin(new_run(parent=lease.run), new_session(adopted=[(0, (lease.run, 1, 5, 1))]))
    store.remove([lease.run])
    assert store.check() == []
    with contextlib.closing(sqlite3.connect(store.path)) as db:
        assert db.execute("SELECT count(*) FROM attempts").fetchone() == (2,)
        assert db.execute("SELECT length(graph) FROM sessions WHERE sid = 1").fetchone() == (0,)
    store.close_run(child, RunState.SUCCEEDED, T, None)
    store.remove([child.run])
    with contextlib.closing(sqlite3.connect(store.path)) as db:
        for table in ("runs", "sessions", "attempts", "files", "adopted", "cache", "requests"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
