"""A trial: `flow run` in a folder of its own, killed at some instant, then `flow resume`, killed too as often as the dice say,
and at last left alone. What it must have come to is in `Judge.settle`.

A life is killed at a moment counted from one of three events, so that kills are spread over start-up, the first commits and
the tasks themselves, however slow the machine is at the time: from its start, from when the database is there, from the first
line that a task writes. How long lives last is learned as they go by.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self, TypeAlias

from . import checker

WORK = Path(__file__).with_name("work.py")
MARK = "FLOWLANE_TEST_LIFE"  # in the environment of every process of a trial
FORKED = 0.8  # of all lives
PATIENCE = 60.0  # seconds that a life may last, on a machine that others use too
GONE = 20.0  # seconds for what a killed engine had started to be gone; a second is promised on an idle machine


class Wrong(AssertionError):
    """What must not be. The first word of its text is what it is counted as."""


@dataclass
class Pace:
    """How long lives last, in seconds: from the start, and from each event that kills are counted from."""

    whole: float = 2.0
    stored: float = 1.5
    tasks: float = 0.5
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self, name: str, seconds: float) -> None:
        with self._lock:
            setattr(self, name, 0.8 * getattr(self, name) + 0.2 * seconds)


class Folder:
    """Where one run lives: its working folder, its user's state, its journal, its mark."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"
        self.work.mkdir(parents=True)
        self.journal = path / "journal"
        self.database = self.work / ".flow" / "flow.db"
        self.mark = f"{MARK}={os.urandom(8).hex()}"
        self.lives = 0

    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOW_")}
        name, value = self.mark.split("=")
        return {**kept, name: value, "XDG_STATE_HOME": str(self.path / "state"), "NO_COLOR": "1"}

    def start(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process here; what it says is in out-N and err-N, N the number of its life."""
        self.lives += 1
        with open(self.path / f"out-{self.lives}", "wb") as out, open(self.path / f"err-{self.lives}", "wb") as err:
            given = {"env": self.environ(), **options}
            return subprocess.Popen(argv, cwd=self.work, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **given)

    def flow(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return self.start([sys.executable, "-m", "flowlane", *words], **options)

    def run(self, workflow: str = "killed", *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return self.flow("run", f"{WORK}:{workflow}", "-p", f"journal={self.journal}", *words, **options)

    def out(self, life: int | None = None) -> str:
        """What a life, the last one unless told, printed on stdout."""
        return (self.path / f"out-{life or self.lives}").read_text()

    def err(self, life: int | None = None) -> str:
        return (self.path / f"err-{life or self.lives}").read_text()

    def alone(self) -> None:
        """Wait until no process of this run is left."""
        deadline = time.monotonic() + GONE
        while left := checker.marked(self.mark):
            if time.monotonic() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise Wrong(f"left: processes {left} {GONE} s after their engine was killed")
            time.sleep(0.01)


@dataclass
class Kill:
    """What there was when everybody was dead: bytes of the journal, and the tasks committed as succeeded."""

    since: int
    committed: frozenset[str]


class Judge:
    """Looks at a run after each kill and after its end. All that raises is Wrong."""

    def __init__(self, folder: Folder, workflow: str) -> None:
        self.folder = folder
        self.workflow = workflow
        self.tasks = checker.TASKS[workflow]
        self.kills: list[Kill] = []
        self.counts: Counter[str] = Counter()

    def recorded(self) -> bool:
        return bool(checker.stored(self.folder.database))

    def look(self) -> None:
        """Once everybody is dead: what is committed, and where the journal ends."""
        self.folder.alone()
        runs = checker.stored(self.folder.database)
        committed = (runs[0].committed if runs else frozenset()) & self.tasks
        journal = checker.Journal.read(self.folder.journal)
        if made_up := committed - set(journal.ends):
            raise Wrong(f"invented: {sorted(made_up)} are stored as succeeded and never ended")
        if lost := {name for kill in self.kills for name in kill.committed} - committed:
            raise Wrong(f"forgotten: {sorted(lost)} were committed at an earlier kill and are not now")
        self.kills.append(Kill(checker.size(self.folder.journal), committed))
        self.counts["kills"] += 1
        if not runs:
            where = "before the run was recorded"
        elif not journal.starts:
            where = "before the first task began"
        elif len(committed) < len(self.tasks):
            where = "between the tasks"
        else:
            where = "after the last task was committed"
        self.counts[where] += 1

    def settle(self, code: int) -> None:
        """What must have become of the run, whose last life ended with this exit code."""
        folder = self.folder
        folder.alone()
        told = f"exit code {code}\n{folder.err()}"
        if code != 0:
            raise Wrong(f"stuck: {told}")
        if (value := _value(folder.out())) != checker.expected(self.workflow):
            raise Wrong(f"wrong: {value!r}\n{told}")
        journal = checker.Journal.read(folder.journal)
        if missing := self.tasks - set(journal.ends):
            raise Wrong(f"lost: {sorted(missing)} never ended\n{told}")
        for kill in self.kills:
            later = checker.Journal.read(folder.journal, kill.since)
            if again := kill.committed & set(later.starts):
                raise Wrong(f"again: {sorted(again)} ran after they were committed\n{told}")
        runs = checker.stored(folder.database)
        if len(runs) != 1:
            raise Wrong(f"runs: {len(runs)} runs are recorded where there is one\n{told}")
        ended = {checker.SUCCEEDED, checker.SKIPPED}
        if runs[0].state != "succeeded" or not ended.issuperset(runs[0].latest.values()):
            raise Wrong(f"untold: the run is stored as {runs[0].state}, its tasks as {runs[0].latest}\n{told}")
        if not self.tasks <= runs[0].committed:
            raise Wrong(f"unstored: {sorted(self.tasks - runs[0].committed)}\n{told}")
        if self.workflow != "grown" and set(runs[0].latest) != self.tasks:
            raise Wrong(f"unstored: {sorted(self.tasks - set(runs[0].latest))}\n{told}")
        twice = sum(count - 1 for count in Counter(journal.starts).values())
        self.counts["ran again, and were not committed"] += twice
        self.counts["resumed"] += bool(self.kills)


Process: TypeAlias = "subprocess.Popen[bytes] | Fork"


class Trial:
    """One run, from its first life to its last, killed up to `kills` times at moments that the dice say."""

    def __init__(
        self, path: Path, dice: Random, pace: Pace, *, kills: int, lives: Lives | None = None, workflow: str = "killed"
    ) -> None:
        self.folder = Folder(path)
        self.judge = Judge(self.folder, workflow)
        self.dice = dice
        self.pace = pace
        self.left = kills
        self.lives = lives

    def carry_out(self) -> None:
        """All lives. Raises Wrong."""
        while True:
            process = self.life()
            if not self.left or not self.survive(process):
                break
            self.left -= 1
            self.judge.look()
        self.judge.counts["finished before a kill"] += bool(self.left)
        self.judge.settle(wait(process))

    def life(self) -> Process:
        """The next one: a new process, or, mostly and where there is one, a fork of a process that has everything loaded."""
        work = [f"{WORK}:{self.judge.workflow}", "-p", f"journal={self.folder.journal}"]
        words = ["resume", "last"] if self.judge.recorded() else ["run", *work]
        if self.lives is not None and self.dice.random() < FORKED:
            return self.lives.flow(self.folder, words)
        return self.folder.flow(*words)

    def survive(self, process: Process) -> bool:
        """Kill the process at a random moment; False when it had ended by itself."""
        began = time.monotonic()
        event = self.dice.choice(("whole", "stored", "tasks", "tasks"))
        journal = checker.size(self.folder.journal)
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            if event == "whole" or (event == "stored" and self.folder.database.exists()):
                break
            if event == "tasks" and checker.size(self.folder.journal) > journal:
                break
            time.sleep(0.002)
        came = time.monotonic()
        deadline = came + self.dice.uniform(0.0, 1.1) * getattr(self.pace, event)
        while process.poll() is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))
        if process.poll() is None:
            process.kill()
            process.wait()
            return True
        ended = time.monotonic()
        self.pace.learn("whole", ended - began)
        if event != "whole" and came < ended:
            self.pace.learn(event, ended - came)
        return False


def _value(text: str) -> object:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text.rstrip("\n")


def wait(process: Process) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Wrong(f"stuck: it has not ended in {PATIENCE} s") from None


@dataclass
class Figures:
    """What many trials came to."""

    trials: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> str:
        kinds = Counter(text.split(":", 1)[0] for text in self.wrong)
        zeros = ("stuck", "wrong", "lost", "again", "left", "invented", "forgotten")
        figures = {"trials": self.trials, **self.counts, **dict.fromkeys(zeros, 0), **kinds}
        return f"{', '.join(f'{name} {count:,}' for name, count in figures.items())}, {self.seconds:.0f} s"


def many(folder: Path, *, kills: int, seed: int, abreast: int = 2, workflow: str = "killed") -> Figures:
    """Trials until so many kills have landed, `abreast` at a time."""
    pace, figures = Pace(), Figures()
    began = time.monotonic()
    numbers = iter(range(10**9))
    lock = threading.Lock()

    def lane() -> None:
        with Lives() as lives:
            take_turns(lives)

    def take_turns(lives: Lives) -> None:
        while True:
            with lock:
                if figures.counts["kills"] >= kills or len(figures.wrong) > 20:
                    return
                number = next(numbers)
            dice = Random(seed * 1_000_003 + number)
            path = folder / str(number)
            trial = Trial(path, dice, pace, kills=dice.randint(1, 8), lives=lives, workflow=workflow)
            try:
                trial.carry_out()
            except AssertionError as error:
                with lock:
                    figures.wrong.append(f"{error}\n({path}, seed {seed})")
            else:
                shutil.rmtree(path)
            with lock:
                figures.trials += 1
                figures.counts.update(trial.judge.counts)

    with ThreadPoolExecutor(abreast) as pool:
        for done in [pool.submit(lane) for _ in range(abreast)]:
            done.result()
    figures.seconds = time.monotonic() - began
    return figures


# ── deaths inside the store ───────────────────────────────────────────────────────────────────────────────────────


ROOT = Path(__file__).parents[3]
DYING = "tests.faults.crashing.dying"


class Fork:
    """A life that the process `parent` has forked; as much of `subprocess.Popen` as is asked of one. One at a time."""

    def __init__(self, parent: subprocess.Popen[bytes]) -> None:
        assert parent.stdout is not None
        self._answers = parent.stdout
        self._code: int | None = None
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self._code is None and select.select([self._answers], [], [], 0)[0]:
            self._code = int(self._answers.readline())
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            self._code = int(self._answers.readline())
        return self._code


#: Of which call ("" for any), at the how many-th of them, "before" or "after".
Death = tuple[str, int, str]


class Lives:
    """Lives of ``dying``, one after another, each a fork of a process that has everything loaded."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", DYING],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` tells nothing of a line that was read ahead
        )
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def live(self, folder: Folder, workflow: str, verb: str, death: Death | None) -> int:
        """One life, to its end; its exit code, -9 where it was killed."""
        return self.start(folder, workflow=workflow, verb=verb, death=death).wait()

    def flow(self, folder: Folder, words: list[str]) -> Fork:
        """The command line in a life of its own."""
        return self.start(folder, flow=words)

    def start(self, folder: Folder, **asked: Any) -> Fork:
        """Have one life begin: `workflow`, `verb`, `death`, and `at` when it does what it is for (monotonic, in seconds)."""
        folder.lives += 1
        asked = {
            "flow": None,
            "death": None,
            "at": 0.0,
            **asked,
            "folder": str(folder.path),
            "environ": folder.environ(),
            "out": str(folder.path / f"out-{folder.lives}"),
            "err": str(folder.path / f"err-{folder.lives}"),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return Fork(self._process)
