"""Runs that are kept, against what happens to real processes, terminals and disks: nothing committed is lost or run again.

All of it through the command line, and judged by the tasks' own journal and by SQL of our own; see ``crashing``.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from .crashing.checker import Journal, copied, stored
from .crashing.trial import Folder, Judge, Lives, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, mounts"), pytest.mark.timeout(180)]

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "trial")
    yield folder
    folder.alone()


def gate(place: Folder) -> Path:
    return place.path / "gate"


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.005)


def held_up(
    place: Folder, workflow: str = "gated", at: str = "wait", *, start_new_session: bool = False
) -> subprocess.Popen[bytes]:
    """A run whose first task is committed, and that waits in its second for the gate."""
    process = place.run(workflow, "-p", f"gate={gate(place)}", start_new_session=start_new_session)
    until(lambda: at in Journal.read(place.journal).starts or process.poll() is not None, f"the task {at}")
    assert process.poll() is None, place.err()
    until(lambda: "first" in stored(place.database)[0].committed, "the first commit")
    return process


def starts(place: Folder) -> Counter[str]:
    return Counter(Journal.read(place.journal).starts)


def finished(process: subprocess.Popen[bytes], place: Folder, value: str = "6") -> None:
    assert wait(process) == 0, place.err()
    assert place.out().strip() == value


def one_line(text: str) -> str:
    """What is said, where that is one error and nothing but a hint beside it."""
    lines = text.splitlines()
    assert "Traceback" not in text, text
    assert lines and lines[0].startswith("error: "), text
    assert all(line.startswith("  hint: ") for line in lines[1:]) and len(lines) <= 2, text
    return text


# ── signals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_one_signal_lets_what_runs_finish_and_begins_nothing(place: Folder, name: str) -> None:
    process = held_up(place)
    process.send_signal(getattr(signal, name))
    until(lambda: "stopping: what runs may finish" in place.err(), "the message")
    gate(place).touch()
    assert wait(process) == 128 + getattr(signal, name), place.err()
    assert "Traceback" not in place.err()
    assert starts(place) == {"first": 1, "wait": 1}
    (run,) = stored(place.database)
    assert (run.state, run.committed) == ("interrupted", {"first", "wait"})
    finished(place.flow("resume"), place)
    assert starts(place) == {"first": 1, "wait": 1, "last": 1}


def test_a_ctrl_c_at_the_terminal_reaches_everybody_and_is_the_engines_affair(place: Folder) -> None:
    """A terminal sends SIGINT to all processes of the group, those of cpu tasks too."""
    process = held_up(place, "gated_cpu", start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)
    until(lambda: "stopping: what runs may finish" in place.err(), "the message")
    gate(place).touch()
    assert wait(process) == 130, place.err()
    assert "Traceback" not in place.err()
    assert starts(place) == {"first": 1, "wait": 1}
    place.alone()
    finished(place.flow("resume"), place)
    assert starts(place) == {"first": 1, "wait": 1, "last": 1}


def test_two_signals_stop_at_once_and_the_run_goes_on_later(place: Folder) -> None:
    process = held_up(place)
    for text in ("stopping: what runs may finish", "stopping at once"):
        process.send_signal(signal.SIGINT)
        until(lambda text=text: text in place.err(), text)
    assert wait(process) == 130, place.err()
    assert "Traceback" not in place.err()
    assert stored(place.database)[0].committed == {"first"}
    gate(place).touch()
    finished(place.flow("resume"), place)
    assert starts(place) == {"first": 1, "wait": 2, "last": 1}


def interrupted_at(place: Folder, delay: float, signum: int) -> str:
    """Send a signal so long after the start, or let it end before; then resume. What became of it."""
    judge = Judge(place, "small")
    process = place.run("small")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    there = place.database.exists()
    if process.poll() is None:
        process.send_signal(signum)
    code = wait(process)
    if there:  # before that it may have been Python's own start-up, which says what it likes
        assert code in (128 + signum, -signum, 0), (code, place.err())
        assert "Traceback" not in place.err()
    if code == 0:
        judge.settle(code)
        return "ended"
    judge.look()
    recorded = judge.recorded()
    judge.settle(wait(place.flow("resume", "last") if recorded else place.run("small")))
    return "resumed" if recorded else "before it was recorded"


def sweep(folder: Path, count: int, seed: int) -> Counter[str]:
    dice = random.Random(seed)
    place = Folder(folder / "measured")
    began = time.monotonic()
    assert wait(place.run("small")) == 0, place.err()
    life = time.monotonic() - began
    found: Counter[str] = Counter()
    for number in range(count):
        place = Folder(folder / str(number))
        delay = (number + dice.random()) / count * life * 1.1
        found[interrupted_at(place, delay, dice.choice((signal.SIGINT, signal.SIGTERM)))] += 1
        shutil.rmtree(place.path)
    return found


def test_a_signal_at_any_time_is_no_traceback_and_loses_nothing(tmp_path: Path) -> None:
    assert sum(sweep(tmp_path, 3, seed=1).values()) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_signals_at_any_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sweep(tmp_path, 200, seed=2)
    with capsys.disabled():
        print(f"\nsignals: {', '.join(f'{name} {count}' for name, count in found.items())}")


# ── owners ────────────────────────────────────────────────────────────────────────────────────────────────────────


def content(place: Folder) -> list[list[tuple[object, ...]]]:
    """Every row of the database."""
    with copied(place.database) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]


def test_a_stopped_owner_is_named_then_taken_over_and_writes_nothing_when_it_wakes(place: Folder) -> None:
    owner = held_up(place)
    owners_life = place.lives
    owner.send_signal(signal.SIGSTOP)
    try:
        assert wait(place.flow("resume", "last")) == 75
        assert str(owner.pid) in one_line(place.err())
        assert wait(place.flow("resume")) == 75, "what is owned is not gone on with, also when it is the only one"
        gate(place).touch()
        finished(place.flow("resume", "last", "--take-over"), place)
        before = content(place)
        assert starts(place) == {"first": 1, "wait": 2, "last": 1}
    finally:
        owner.send_signal(signal.SIGCONT)
    assert wait(owner) == 75
    assert "taken over" in place.err(owners_life)
    assert "Traceback" not in place.err(owners_life)
    assert content(place) == before, "stale writes"
    # What the sleeper had just been told to begin it may begin, before it hears that nothing of it counts any more.
    assert starts(place)["last"] <= 2


def test_a_run_under_way_is_named_and_left_alone(place: Folder) -> None:
    owner = held_up(place)
    assert wait(place.flow("resume", "last")) == 75
    assert str(owner.pid) in one_line(place.err())
    owner.kill()
    owner.wait()
    gate(place).touch()
    finished(place.flow("resume"), place)


def race(place: Folder, one: Lives, other: Lives, lag: float) -> list[int]:
    """A run that died half-way is resumed by two processes, the second `lag` seconds behind; their exit codes."""
    judge = Judge(place, "small")
    assert one.live(place, "small", "run", ("write", 1, "after")) == -signal.SIGKILL
    judge.look()
    at = time.monotonic() + 0.05
    first = one.start(place, workflow="small", verb="resume", at=at)
    second = other.start(place, workflow="small", verb="resume", at=at + lag)
    codes = [first.wait(), second.wait()]
    said = "\n".join(place.err(life) for life in (2, 3))
    assert 0 in codes and set(codes) <= {0, 75}, said
    place.lives = 2 if codes[0] == 0 else 3
    judge.settle(0)
    later = Journal.read(place.journal, judge.kills[0].since)
    assert Counter(later.starts) == Counter(judge.tasks - judge.kills[0].committed), "double starts"
    if codes != [0, 0]:
        assert "is under way in process" in said or "belongs to process" in said or "a moment ago" in said, said
    return codes


def races(folder: Path, count: int, seed: int) -> Counter[str]:
    dice = random.Random(seed)
    found: Counter[str] = Counter()
    with Lives() as one, Lives() as other:
        for number in range(count):
            place = Folder(folder / str(number))
            codes = race(place, one, other, dice.choice((0.0, 0.0, 0.003, 0.01, 0.05)) * dice.random())
            found["one after the other" if codes == [0, 0] else "one was refused"] += 1
            shutil.rmtree(place.path)
    return found


def test_of_two_that_resume_one_run_at_once_one_does(tmp_path: Path) -> None:
    assert races(tmp_path, 5, seed=1)["one was refused"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_races_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = races(tmp_path, 200, seed=2)
    with capsys.disabled():
        print(f"\nraces: {', '.join(f'{name} {count}' for name, count in found.items())}; double starts 0")


def test_two_commands_that_resume_one_run_at_once(place: Folder) -> None:
    owner = held_up(place)
    owner.kill()
    owner.wait()
    place.alone()
    gate(place).touch()
    processes = [place.flow("resume", "last") for _ in range(2)]
    codes = [wait(process) for process in processes]
    assert 0 in codes and set(codes) <= {0, 75}, place.err(2) + place.err(3)
    assert starts(place) == {"first": 1, "wait": 2, "last": 1}


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def disk(place: Folder) -> Iterator[Callable[[str], None]]:
    """Mounts a file system in memory where the run works; the function mounts it again with other options."""
    if not ROOT or shutil.which("mount") is None:
        pytest.skip("mounts a file system, which only root may")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "flowlane", str(place.work)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(place.work)], check=True)

    yield remount
    subprocess.run(["umount", "-l", str(place.work)], check=True)


def goes_on(place: Folder, count: int) -> None:
    """After the store had no more room: the run is resumed, and repeats nothing that was committed."""
    runs = stored(place.database)
    committed = runs[0].committed if runs else frozenset()
    assert len(committed) < count
    since = place.journal.stat().st_size
    process = place.flow("resume")
    assert wait(process) == 0, place.err()
    journal = Journal.read(place.journal)
    assert {f"block-{n}" for n in range(count)} <= set(journal.ends)
    again = set(Journal.read(place.journal, since).starts) & committed
    assert not again, again


@pytest.mark.parametrize("size", [60_000, 200_000], ids=["rows", "files"])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    place: Folder, disk: Callable[[str], None], size: int
) -> None:
    assert wait(place.run("growing", "-p", "count=60", "-p", f"size={size}", "--quiet")) == 74, place.err()
    said = one_line(place.err())
    assert "room" in said, said
    assert "resume" in said, said
    disk("size=64m")
    goes_on(place, 60)


def test_a_disk_that_is_full_from_the_start_is_one_line(place: Folder, disk: Callable[[str], None]) -> None:
    few = "-p", "count=2", "-p", "size=9", "--quiet"
    assert wait(place.run("growing", *few)) == 0, place.err()
    with contextlib.suppress(OSError), open(place.work / "filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert wait(place.run("growing", *few)) == 74, place.err()
    assert "room" in one_line(place.err())
    (place.work / "filler").unlink()
    assert wait(place.run("growing", *few)) == 0, place.err()


@pytest.mark.parametrize("size", [60_000, 1_500_000], ids=["rows", "files"])
def test_a_limit_on_the_size_of_files_stops_the_run_and_it_goes_on_without(place: Folder, size: int) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    first = "-p", "count=30", "-p", f"size={size}", "--quiet"
    assert wait(place.run("growing", *first, preexec_fn=limited)) == 74, place.err()
    one_line(place.err())
    if size < 1_000_000:
        goes_on(place, 30)
    else:
        assert wait(place.flow("resume")) == 0, place.err()


def test_a_state_directory_that_is_deleted_stops_the_run_loudly(place: Folder) -> None:
    process = held_up(place)
    shutil.rmtree(place.database.parent)
    gate(place).touch()
    assert wait(process) == 74, place.err()
    assert "was deleted while it was in use" in place.err()
    assert "Traceback" not in place.err()
    assert "last  running → succeeded" not in place.err(), "what is not stored is not told"


@pytest.mark.parametrize("verb", ["run", "resume"])
def test_a_read_only_state_directory_is_one_line(place: Folder, disk: Callable[[str], None], verb: str) -> None:
    process = held_up(place)
    process.kill()
    process.wait()
    place.alone()
    gate(place).touch()
    disk("ro")
    process = place.flow("resume") if verb == "resume" else place.run("gated", "-p", f"gate={gate(place)}", "--quiet")
    if verb == "resume":
        assert wait(process) == 74, place.err()
        assert "read-only" in one_line(place.err())
    else:
        assert wait(process) == 0, place.err()
        assert place.err().startswith("warning: nothing is recorded, and the run cannot be resumed: ")
        assert place.err().count("\n") == 1
    disk("rw")
    finished(place.flow("resume"), place)


# ── schemas ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["run", "resume"])
def test_a_store_of_a_newer_schema_is_refused_and_not_touched(place: Folder, verb: str) -> None:
    gate(place).touch()
    finished(place.run("gated", "-p", f"gate={gate(place)}"), place)
    with contextlib.closing(sqlite3.connect(place.database)) as db:
        db.execute("PRAGMA user_version = 99")
    before = place.database.read_bytes()
    words = (place.run("gated", "-p", f"gate={gate(place)}"),) if verb == "run" else (place.flow("resume", "last"),)
    assert wait(words[0]) == 74, place.err()
    assert "newer flowlane" in one_line(place.err())
    assert place.database.read_bytes() == before
    assert sum(starts(place).values()) == 3


# ── what must not begin twice ─────────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_was_killed_and_may_run_once_is_unknown_until_somebody_says_so(place: Folder) -> None:
    process = held_up(place, "once", "charge")
    process.kill()
    process.wait()
    place.alone()
    gate(place).touch()
    for _ in range(2):
        assert wait(place.flow("resume", "last")) == 1, place.err()
        assert "unknown" in place.err()
        assert "--rerun charge" in place.err()
        assert starts(place) == {"first": 1, "charge": 1}
    finished(place.flow("resume", "last", "--rerun", "charge"), place)
    assert starts(place) == {"first": 1, "charge": 2, "last": 1}
