"""What the store promises when processes are killed, disks are full, and files are damaged, deleted or nobody's."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core.states import RunState, TaskState
from flowlane.errors import FlowError, StoreError, UnknownRun
from flowlane.testing.stores import attempt, new_run, new_session
from flowlane_plugins.stores.sqlite import SqliteStore, database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowlane.storage.port import AttemptRow

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SECRET = bytes(32)
T = 1_764_000_000_000_000_000
AS_ROOT = sys.platform == "linux" and os.geteuid() == 0


def perform(mode: str, folder: Path, *arguments: object, patience: float = 50) -> dict[str, Any]:
    """Have ``storing.py`` do it, in a process of its own."""
    program = str(Path(__file__).with_name("storing.py"))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, mode, str(folder), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=patience,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@contextlib.contextmanager
def opened(folder: Path, **options: Any) -> Iterator[SqliteStore]:
    store = SqliteStore(folder / "flow.db", secret=SECRET, **options)
    store.open()
    try:
        yield store
    finally:
        store.close()


def rows(at: int, count: int, size: int = 0) -> list[AttemptRow]:
    return [
        attempt(n, 1, TaskState.SUCCEEDED, *([bytes([n % 251]) * size] if size else [])) for n in range(at, at + count)
    ]


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def kill(folder: Path, rounds: int, seconds: float) -> None:
    told = perform("kills", folder, rounds, seconds, patience=seconds + 30)
    assert told["rounds"] >= rounds / 10
    assert told["rows"] > told["rounds"]  # or nothing was tried
    assert (told["lost"], told["holes"], told["damage"], told["owned"]) == (0, 0, 0, 0)


def test_what_was_committed_survives_killed_writers(tmp_path: Path) -> None:
    kill(tmp_path, 200, seconds=10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_committed_survives_many_killed_writers(tmp_path: Path) -> None:
    kill(tmp_path, 2000, seconds=500)


def test_eight_processes_never_see_a_locked_database(tmp_path: Path) -> None:
    told = perform("crowd", tmp_path, 8, 200)
    assert told == {"codes": [0] * 8, "counts": [200] * 8, "troubles": [], "locks": []}


def test_of_two_that_reopen_a_run_exactly_one_owns_it(tmp_path: Path) -> None:
    told = perform("race", tmp_path, 200)
    assert told == {"codes": [0, 0], "owners": [1], "rounds": 200, "agreed": 200}


def test_a_stopped_owner_that_goes_on_writes_nothing_more(tmp_path: Path) -> None:
    told = perform("stopped", tmp_path, 15)
    assert (told["rounds"], told["lost"], told["stale"], told["two_owners"]) == (15, 15, 0, 0)


def test_a_child_does_not_keep_its_dead_parent_s_run(tmp_path: Path) -> None:
    told = perform("forked", tmp_path)
    assert told["owner"] is None
    assert told["message"].endswith("was opened before this process was forked")


def test_a_crash_in_a_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    told = perform("migration", tmp_path, 12)
    assert (told["rounds"], told["neither"]) == (12, 0)
    assert told["old"] > 0


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 500, 70_000])
def test_a_file_that_may_not_grow_stops_loudly_and_the_same_write_works_later(tmp_path: Path, size: int) -> None:
    told = perform("starve", tmp_path, size)
    assert told["at"] > 0
    assert told["readable"] == told["at"]
    assert told["rows"] == told["at"] + 100
    assert told["troubles"] == told["temporary"] == []
    for error in (told["error"], told["again"]):
        assert str(tmp_path) in error
        assert "hint: " in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB of our own."""
    if not AS_ROOT:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.mark.parametrize("size", [0, 500, 70_000])
def test_a_full_disk_stops_loudly_and_the_same_write_works_when_there_is_room(small_disk: Path, size: int) -> None:
    with opened(small_disk) as store:
        lease = store.begin(new_run(), new_session())
        at = 0
        with pytest.raises(StoreError) as caught:  # noqa: PT012 - which of them it is depends on the disk
            for at in range(0, 100_000, 50):
                store.write(lease, rows(at, 50, size))
        message = str(caught.value)
        assert "no room is left" in message or "no space left" in message
        assert "hint: make room" in message
        assert not caught.value.lost
        with pytest.raises(StoreError):  # still, and still able to say so
            store.write(lease, rows(at, 50, size))
        assert [row.element for row in store.attempts(lease.run)] == list(range(at))
        remount(small_disk, "size=40m")
        store.write(lease, rows(at, 50, size))
        store.close_run(lease, RunState.SUCCEEDED, T, None)
        assert store.runs()[0].counts == {"succeeded": at + 50}
        assert store.check() == []
        assert os.listdir(small_disk / "results" / "tmp") == []


def test_a_store_on_a_full_disk_cannot_be_opened_and_says_so(small_disk: Path) -> None:
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    with pytest.raises(StoreError, match=r"no room is left|no space left|cannot be"), opened(small_disk):
        pass


def test_a_store_that_became_read_only_says_so_in_a_line(small_disk: Path) -> None:
    with opened(small_disk) as store:
        store.begin(new_run(), new_session())
    remount(small_disk, "ro")
    with pytest.raises(StoreError) as caught, opened(small_disk):
        pass
    assert "read-only" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_says_so_in_a_line(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    try:
        with pytest.raises(StoreError, match="permission denied"), opened(tmp_path):
            pass
    finally:
        os.chmod(tmp_path, 0o700)


# ── system calls ──────────────────────────────────────────────────────────────────────────────────────────────────────


def inject(folder: Path, calls: str, what: str, number: int) -> tuple[bool, int, str]:
    """Let the `number`-th of `calls` go wrong in a run: whether there was one, what had been committed, and the error told."""
    folder.mkdir()
    trace = folder / "trace"
    program = str(Path(__file__).with_name("storing.py"))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # strace's faster way of watching injects no signals
    fast = ["--seccomp-bpf"] if what.startswith("error") else []
    strace = ["strace", "-f", *fast, "-o", str(trace), "-e", f"trace={calls}"]
    done = subprocess.run(
        [*strace, "-e", f"inject={calls}:{what}:when={number}", sys.executable, program, "once", str(folder)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    told = [int(line) for line in done.stderr.splitlines() if line.isdigit()]
    assert "Traceback" not in done.stderr, done.stderr
    error = ""
    if done.stdout:
        answer = json.loads(done.stdout)
        error = answer["error"]
        assert answer["done"] == (told or [0])[-1]
    happened = "INJECTED" in trace.read_text() or done.returncode in (-9, 137)  # strace dies as its program did
    return happened, (told or [0])[-1], error


def check_injection(folder: Path, calls: str, what: str, number: int) -> bool:
    happened, committed, error = inject(folder, calls, what, number)
    if not happened:
        return False
    if error:
        assert str(folder) in error  # and it is a StoreError: storing.py catches no other
    with opened(folder) as store:
        assert store.check() == []
        found = [row.element for run in store.runs() for row in store.attempts(run.id)]
        assert found == list(range(len(found)))
        assert len(found) % 5 == 0
        assert committed <= len(found) <= committed + 5  # what was told is there; what was under way may be
    return True


def can_inject() -> bool:
    """Whether there is an strace that may do so."""
    try:
        command = ["strace", "-f", "--seccomp-bpf", "-e", "trace=chdir", "-e", "inject=chdir:error=EIO", "true"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


#: What a store changes anything with.
CALLS = "pwrite64,writev,ftruncate,fdatasync,fsync,rename,unlink"


@pytest.mark.parametrize(("what", "numbers"), [("error=EIO", (2, 9, 16, 23, 30)), ("signal=KILL", (3, 12, 21, 28, 35))])
def test_a_system_call_that_fails_or_is_the_last_leaves_a_prefix(
    tmp_path: Path, what: str, numbers: tuple[int, ...]
) -> None:
    if not can_inject():
        pytest.skip("needs strace, and the right to use it")
    for number in numbers:
        assert check_injection(tmp_path / str(number), CALLS, what, number)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["error=EIO", "error=ENOSPC", "signal=KILL"])
def test_any_system_call_that_fails_or_is_the_last_leaves_a_prefix(tmp_path: Path, what: str) -> None:
    if not can_inject():
        pytest.skip("needs strace, and the right to use it")
    number = 1
    while check_injection(tmp_path / str(number), CALLS, what, number):
        number += 1
    assert number > 50


# ── files that are gone, or damaged ───────────────────────────────────────────────────────────────────────────────────


def unlink(folder: Path) -> None:
    os.unlink(folder / "flow.db")


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    shutil.copy(folder / "flow.db", folder / "copy")
    os.replace(folder / "copy", folder / "flow.db")


def unlink_log(folder: Path) -> None:
    os.unlink(folder / "flow.db-wal")


@pytest.mark.parametrize("harm", [unlink, remove_all, replace, unlink_log])
def test_files_that_go_while_they_are_in_use_stop_it_loudly(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = tmp_path / "state"
    store = SqliteStore(folder / "flow.db", secret=SECRET)
    store.open()
    lease = store.begin(new_run(), new_session())
    store.write(lease, rows(0, 10))
    harm(folder)
    for ask in (
        lambda: store.write(lease, rows(10, 10)),
        lambda: store.write(lease, rows(20, 1, 70_000)),
        lambda: store.close_run(lease, RunState.FAILED, T, None),
        store.runs,
    ):
        with pytest.raises(StoreError, match=r"deleted|replaced|no such file"):
            ask()
    store.close()


def read_all(folder: Path) -> tuple[list[int], bool]:
    """The elements of the one run in `folder`; False instead of what is wrong is raised. Anything wrong fails the test."""
    with opened(folder) as store:
        run = store.runs()[0]
        found = list(store.attempts(run.id))
        for row, expected in zip(found, rows(0, len(found), 300), strict=True):
            assert row[:8] == (*expected[:7], expected.detail)
            assert row.result is not None
            assert bytes(store.read(row.result)) == expected.result[0]
        return [row.element for row in found], True


def test_a_log_that_ends_anywhere_leaves_a_prefix(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    with opened(origin) as store:
        lease = store.begin(new_run(), new_session())
        with contextlib.closing(sqlite3.connect(origin / "flow.db")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for at in range(0, 120, 4):
            store.write(lease, rows(at, 4, 300))
        kept = tmp_path / "kept"
        shutil.copytree(origin, kept)  # as a power cut finds it
    log = (kept / "flow.db-wal").read_bytes()
    page = struct.unpack(">I", log[8:12])[0]
    frames = list(range(32, len(log) + 1, page + 24))
    assert len(frames) > 60
    rng = random.Random(1)
    counts: list[int] = []
    for length in sorted({0, 1, 31, *frames, *(rng.randrange(len(log)) for _ in range(40))}):
        folder = tmp_path / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        os.truncate(folder / "flow.db-wal", length)
        os.unlink(folder / "flow.db-shm")
        elements, _ = read_all(folder)
        assert elements == list(range(len(elements)))
        assert len(elements) % 4 == 0
        counts.append(len(elements))
        if length % 7 == 0:
            with opened(folder) as store:
                assert store.check() == []
    assert counts == sorted(counts)  # the more of the log there is, the more is there
    assert (counts[0], counts[-1]) == (0, 120)


class Damaged:
    """A store with two runs (one ended, one killed), to be copied and damaged; and what must be read from it or refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, Any] = {}
        self.rows: dict[str, list[Any]] = {}
        self.blobs: dict[Any, bytes] = {}
        with opened(folder / "origin") as store:
            for name in ("ended", "killed"):
                lease = store.begin(new_run(name), new_session(graph=b"g" * 500))
                for at in range(0, 400, 40):
                    store.write(lease, rows(at, 40, 40))
                store.write(lease, rows(400, 1, 70_000))
                if name == "ended":
                    store.close_run(lease, RunState.FAILED, T, "task: Error: text")
            for run in store.runs():
                self.runs[run.id] = run
                self.rows[run.id] = list(store.attempts(run.id))
                self.blobs.update((row.result, bytes(store.read(row.result))) for row in self.rows[run.id])  # type: ignore[arg-type]
        self.content = (folder / "origin" / "flow.db").read_bytes()

    def flipped(self, rng: random.Random, flips: int) -> Path:
        folder = self.folder / "flipped"
        for name in os.listdir(folder) if folder.exists() else ():
            if name.startswith("flow.db"):
                os.unlink(folder / name)
        if not folder.exists():
            shutil.copytree(self.folder / "origin", folder)
        content = bytearray(self.content)
        for _ in range(flips):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / "flow.db").write_bytes(content)
        return folder

    def read(self, folder: Path, *, repaired: bool = False) -> str:
        """ "refused", "right", or "missing" when what was read is right and not all; anything wrong fails the test."""
        verdict = "right"
        try:
            with opened(folder) as store:
                found = store.runs()
                if len(found) < len(self.runs):
                    verdict = "missing"
                for run in found:
                    assert run.id in self.runs
                    expected = self.runs[run.id]
                    fields = ["name", "workflow", "origin", "created", "started", "session"]
                    if run.ended or not repaired:  # a repaired one whose end was damaged counts as killed
                        fields += ["ended", "state", "error"]
                    assert [getattr(run, field) for field in fields] == [getattr(expected, field) for field in fields]
                    assert store.session(run.id).graph == b"g" * 500
                    got = list(store.attempts(run.id))
                    known = {row.element: row for row in self.rows[run.id]}
                    assert all(row == known[row.element] for row in got)
                    if len(got) < len(known):
                        assert repaired or not run.ended  # that is known to be incomplete
                        verdict = "missing"
                    for row in [*got[::7], *got[-1:]]:
                        assert row.result is not None
                        # the seal of a result is its reader's to check: here only its length is
                        try:
                            assert len(store.read(row.result)) == len(self.blobs[row.result])
                        except StoreError:
                            if not repaired:
                                raise
                            verdict = "missing"  # the name of its file was damaged: the row is saved, the result is not
                for run in found:
                    assert store.find(run.name).id == store.find(run.id[:8]).id == run.id
        except FlowError as error:  # nothing but our own
            return "refused" if isinstance(error, (StoreError, UnknownRun)) else f"raised {error!r}"
        return verdict


def flip(damaged: Damaged, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    verdicts = {"refused": 0, "right": 0, "missing": 0}
    for number in range(rounds):
        folder = damaged.flipped(rng, 1 if number % 2 else 8)
        before = (folder / "flow.db").read_bytes()
        verdict = damaged.read(folder)
        verdicts[verdict] += 1
        if verdict == "missing" or number % 5 == 0:
            (folder / "flow.db").write_bytes(before)
            store = SqliteStore(folder / "flow.db", secret=SECRET)
            try:
                store.open()
                troubles = store.check()
            except StoreError:
                troubles = ["not even that"]
            store.close()
            assert verdict == "right" or troubles  # what is not there is found missing
            with contextlib.suppress(StoreError):  # not ours any more: its header
                done = store.repair()
                assert not troubles or done.backup is not None
                with opened(folder) as store:
                    assert [trouble for trouble in store.check() if not trouble.startswith("the result of")] == []
                assert damaged.read(folder, repaired=True) in ("right", "missing")
    assert verdicts["refused"] > 0
    assert verdicts["right"] > 0


def test_flipped_bits_are_refused_or_harmless_and_never_wrong(tmp_path: Path) -> None:
    flip(Damaged(tmp_path), 60, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_flipped_bits_are_refused_or_harmless_and_never_wrong(tmp_path: Path) -> None:
    flip(Damaged(tmp_path), 3000, seed=2)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"not a database at all\n" * 100, bytes(8192)])
def test_a_file_that_is_no_store_is_refused_or_made_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flow.db"
    path.write_bytes(content)
    if not content:
        with opened(tmp_path) as store:
            assert store.runs() == []
        return
    with pytest.raises(StoreError, match=r"not a database|damaged"), opened(tmp_path):
        pass
    assert path.read_bytes() == content


def test_somebody_s_lock_is_told_after_a_while_and_the_write_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    with opened(tmp_path) as store:
        lease = store.begin(new_run(), new_session())
        with contextlib.closing(sqlite3.connect(tmp_path / "flow.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="kept locked by another process"):
                store.write(lease, rows(0, 10))
            assert list(store.attempts(lease.run)) == []  # reading goes on
            other.execute("ROLLBACK")
        store.write(lease, rows(0, 10))
        assert sum(1 for _ in store.attempts(lease.run)) == 10


def test_files_are_their_user_s_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o022):
        before = os.umask(umask)
        try:
            folder = tmp_path / f"{umask:o}" / "state"
            with opened(folder) as store:
                lease = store.begin(new_run(), new_session())
                store.write(lease, rows(0, 3, 70_000))
                found = [folder, *folder.rglob("*")]
                assert len(found) > 8
                for path in found:
                    assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        finally:
            os.umask(before)
