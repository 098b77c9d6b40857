"""Real nurseries and workers: they are born, they die, they are told of, and nobody is left behind.

What workers run here is a stand-in, a module written into the test's folder. Every process of a test carries a token of
that test in its environment; that is how survivors are counted, whoever their parent is by then.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from flowlane_plugins.workers import spawned
from flowlane_plugins.workers.interpreter import MARK, with_mark
from flowlane_plugins.workers.nest import Nest
from flowlane_plugins.workers.orphans import kill_sessions, sweep
from flowlane_plugins.workers.spawned import Spawned

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

pytestmark = [
    pytest.mark.timeout(40),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

STANDIN = '''
import json, os, re, signal, socket, subprocess, sys, time


def echo(sock, page, output, wid):
    """Answer every message; end with the status that is asked for."""
    with socket.socket(fileno=sock) as link:
        while data := link.recv(100):
            if data.startswith(b"exit"):
                os._exit(int(data[4:]))
            link.send(b"%d:%s" % (wid, data))
    os._exit(0)


def describe(sock, page, output, wid):
    os.write(output, b"output of %d" % wid)
    main = sys.modules["__main__"]
    told = {
        "path": sys.path, "argv": sys.argv, "cwd": os.getcwd(), "optimize": sys.flags.optimize,
        "main": vars(main).get("__file__"),
        "names": sorted(name for name in vars(main) if not name.startswith("__")), "page": os.pread(page, 4, 0).decode(),
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "wakeup": signal.set_wakeup_fd(-1),
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "session": os.getsid(0) == os.getpid(),
        "inheritable": [fd for fd in (sock, page, output) if os.get_inheritable(fd)], "given": [sock, page, output],
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
        "blas": os.environ.get("OPENBLAS_NUM_THREADS"), "omp": os.environ.get("OMP_NUM_THREADS"),
        "modules": sorted(sys.modules), "unbuffered": sys.flags.unbuffered if hasattr(sys.flags, "unbuffered") else None,
    }
    with socket.socket(fileno=sock) as link:
        link.sendall(json.dumps(told).encode() + b"\\n")
        link.recv(1)
    os._exit(0)


def spin(sock, page, output, wid):
    """Hold the GIL, in C, for ever."""
    os.write(sock, b"spinning")
    re.match(r"(a+)+$", "a" * 100 + "b")


SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def parent(sock, page, output, wid):
    """Have children: one like that, one in a group of its own, one in a session of its own; then echo."""
    children = [
        subprocess.Popen(SLEEP), subprocess.Popen(SLEEP, process_group=0), subprocess.Popen(SLEEP, start_new_session=True)
    ]
    os.write(sock, json.dumps([child.pid for child in children]).encode())
    echo(sock, page, output, wid)


def returns(sock, page, output, wid):
    return None


def raises(sock, page, output, wid):
    raise SystemExit(0)


def portable(letter, fd):
    """What a worker does where the kernel kills nobody for us."""
    from flowlane_plugins.workers import solitary

    sys.platform = "darwin"
    solitary.main(letter, fd)
'''

ENGINE = """
import asyncio, os, socket, sys
sys.path.insert(0, {folder!r})
from flowlane_plugins.workers.{module} import {kind} as Nest

async def main():
    born = asyncio.Event()
    nest = Nest(
        asyncio.get_running_loop(), born=lambda *a: born.set(), exited=print, failed=print, lost=print, entry={entry!r},
        environ={{"TEST_TOKEN": {token!r}}}, preload={preload!r},
    )
    {start}
    {before}
    ours, theirs = socket.socketpair()
    nest.fork(1, (theirs.fileno(), theirs.fileno(), theirs.fileno()))
    theirs.close()
    if {waits}:
        await born.wait()
        ours.setblocking(False)
        if {hears}:
            await asyncio.get_running_loop().sock_recv(ours, 100)
    {after}
    print(nest.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""

Kind = type[Nest] | type[Spawned]
both = pytest.mark.parametrize("kind", [Nest, Spawned])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "standin.py").write_text(STANDIN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.fixture
def token() -> Iterator[str]:
    """Whatever carries it when the test is over is a failure of the test, and is killed."""
    value = f"token-{uuid4().hex}"
    yield value
    gone = eventually(lambda: not carriers(value))
    left = carriers(value)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert gone, f"left behind: {left}"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = descriptors(), threading.active_count(), zombies()
    yield
    assert (descriptors(), threading.active_count(), zombies()) == before


def descriptors(pid: int | None = None) -> int:
    return len(os.listdir(f"/proc/{pid or 'self'}/fd"))


def zombies() -> int:
    found = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                state, parent, *_ = Path(f"/proc/{name}/stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            found += state == "Z" and int(parent) == os.getpid()
    return found


def carriers(token: str) -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                environ = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if token.encode() in environ:
                found.append(int(name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


async def until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)


class House:
    """A nest, and what it told."""

    def __init__(self, kind: Kind, token: str, entry: str = "standin:echo", **options: Any) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.born: dict[int, tuple[int, int]] = {}
        self.exited: dict[int, tuple[int, int]] = {}
        self.failed: dict[int, OSError] = {}
        self.lost = 0
        self.links: dict[int, socket.socket] = {}
        environ = {"TEST_TOKEN": token, **options.pop("environ", {})}
        self.nest = kind(
            asyncio.get_running_loop(),
            born=self._born,
            exited=self._exited,
            failed=self.failed.__setitem__,
            lost=self._lost,
            entry=entry,
            environ=environ,
            **options,
        )

    def _born(self, wid: int, pid: int, pidfd: int) -> None:
        assert wid not in self.born
        self.born[wid] = pid, pidfd

    def _exited(self, wid: int, status: int, rss: int) -> None:
        assert wid in self.born and wid not in self.exited
        self.exited[wid] = status, rss

    def _lost(self) -> None:
        self.lost += 1

    def fork(self, wid: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.links[wid] = ours
        page, output = os.memfd_create("page"), os.memfd_create("output")
        os.write(page, b"page")
        try:
            self.nest.fork(wid, (theirs.fileno(), page, output))
        finally:
            theirs.close()
            os.close(page)
            os.close(output)
        return ours

    async def worker(self, wid: int) -> int:
        """Fork it and wait for its birth: its pid."""
        self.fork(wid)
        await until(lambda: wid in self.born)
        return self.born[wid][0]

    async def hear(self, wid: int, size: int = 65536) -> bytes:
        async with asyncio.timeout(15):
            return await asyncio.get_running_loop().sock_recv(self.links[wid], size)

    async def hear_line(self, wid: int) -> Any:
        text = b""
        while not text.endswith(b"\n"):
            more = await self.hear(wid)
            assert more, "the worker ended before it had said all"
            text += more
        return json.loads(text)


@asynccontextmanager
async def housed(kind: Kind, token: str, entry: str = "standin:echo", **options: Any) -> AsyncGenerator[House]:
    house = House(kind, token, entry, **options)
    house.nest.start()
    try:
        yield house
    finally:
        await house.nest.close(5)
        for link in house.links.values():
            link.close()


def crowd(house: House) -> None:
    """Ask a stopped nursery for more than the socket holds."""
    control: Any = house.nest
    control._control._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert house.nest.pid is not None
    os.kill(house.nest.pid, signal.SIGSTOP)
    for wid in range(1, 41):
        house.fork(wid)
    assert len(control._control._unsent) > 10


# ── a worker's life ───────────────────────────────────────────────────────────────────────────────────────────────


@both
async def test_workers_are_born_work_and_are_reaped(kind: Kind, token: str) -> None:
    async with housed(kind, token) as house:
        for wid in (1, 2, 3):
            house.fork(wid)
        await until(lambda: len(house.born) == 3)
        for wid in (1, 2, 3):
            house.links[wid].send(b"hello")
            assert await house.hear(wid) == b"%d:hello" % wid
        house.links[2].send(b"exit7")
        await until(lambda: 2 in house.exited)
        status, rss = house.exited[2]
        assert status == 7
        assert 1_000_000 < rss < 1_000_000_000
        assert set(house.exited) == {2}
        assert not house.nest.signal(2, signal.SIGTERM)
    assert set(house.exited) == {2} and not house.lost and not house.failed


@both
async def test_a_worker_killed_by_a_signal_is_told_as_such(kind: Kind, token: str) -> None:
    async with housed(kind, token) as house:
        pid = await house.worker(1)
        assert house.nest.signal(1, signal.SIGKILL)
        await until(lambda: 1 in house.exited)
        assert house.exited[1][0] == -signal.SIGKILL
        assert not alive(pid)
        assert not house.nest.signal(1, signal.SIGKILL)
        assert not house.nest.signal(99, signal.SIGKILL)


@both
async def test_a_signal_sent_before_the_birth_is_not_lost(kind: Kind, token: str) -> None:
    async with housed(kind, token) as house:
        house.fork(1)
        assert house.nest.signal(1, signal.SIGTERM)
        await until(lambda: 1 in house.exited)
        assert house.exited[1][0] == -signal.SIGTERM


@both
async def test_a_sigterm_right_after_the_birth_kills_every_time(kind: Kind, token: str) -> None:
    async with housed(kind, token) as house:
        for wid in range(1, 4 if kind is Spawned else 30):
            await house.worker(wid)
            house.nest.signal(wid, signal.SIGTERM)
        await until(lambda: len(house.exited) == len(house.born))
        assert {status for status, _ in house.exited.values()} == {-signal.SIGTERM}


@both
@pytest.mark.parametrize("entry", ["returns", "raises"])
async def test_a_worker_that_comes_back_ends(kind: Kind, token: str, entry: str, capfd: Any) -> None:
    async with housed(kind, token, f"standin:{entry}") as house:
        await house.worker(1)
        await until(lambda: 1 in house.exited)
        assert house.exited[1][0] == 70


@both
async def test_a_worker_finds_what_the_engine_finds_and_nothing_else(kind: Kind, token: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(sys, "argv", ["prog", "--x", "\udc80"])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "prog.py", raising=False)
    async with housed(kind, token, "standin:describe") as house:
        house.fork(1)
        told = await house.hear_line(1)
    assert told["path"] == sys.path and told["argv"] == sys.argv and told["cwd"] == os.getcwd()
    assert told["optimize"] == sys.flags.optimize
    assert told["main"] == os.path.abspath("prog.py")
    assert told["names"] == []
    assert told["page"] == "page"
    assert told["sigint"] and told["sigterm"] and told["sigchld"] and told["wakeup"] == -1 and told["mask"] == []
    assert told["session"]
    assert told["threads"] == 1
    assert told["inheritable"] == []
    # stdio, what it was given, the life pipe of a spawned worker, and the listing's own descriptor
    assert len(told["fds"]) == 3 + 3 + (kind is Spawned) + 1
    assert told["blas"] == "1" and told["omp"] == "3"
    heavy = {"asyncio", "subprocess", "multiprocessing", "networkx", "pydantic", "click", "rich"} & set(told["modules"])
    assert heavy <= {"subprocess"}  # the stand-in's own


@both
async def test_a_hundred_workers_leave_no_descriptor(kind: Kind, token: str) -> None:
    async with housed(kind, token) as house:
        await house.worker(1)
        before = descriptors(), descriptors(house.nest.pid)
        for wid in range(2, 102 if kind is Nest else 8):
            await house.worker(wid)
            house.links[wid].send(b"exit0")
            await until(lambda wid=wid: wid in house.exited)
            house.links.pop(wid).close()
        await until(lambda: descriptors(house.nest.pid) <= before[1])
        assert descriptors() == before[0]


async def test_a_fork_that_fails_is_told_and_harms_nobody(token: str, folder: Path) -> None:
    (folder / "refusing.py").write_text(
        textwrap.dedent("""
        import os
        from standin import echo
        forks = [os.fork, os.fork]
        def fork():
            if len(forks) == 1:
                forks.append(forks[0])
                raise BlockingIOError(11, "Resource temporarily unavailable")
            forks.pop()
            return forks[0]()
        os.fork = fork
        """)
    )
    async with housed(Nest, token, "refusing:echo") as house:
        await house.worker(1)
        house.fork(2)
        await until(lambda: 2 in house.failed)
        assert house.failed[2].errno == 11
        assert not house.nest.signal(2, signal.SIGKILL)
        await house.worker(3)
        house.links[1].send(b"a")
        assert await house.hear(1) == b"1:a"


async def test_a_process_that_cannot_be_started_is_told(token: str, monkeypatch: Any) -> None:
    async with housed(Spawned, token) as house:
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        house.fork(1)
        assert not house.failed  # never from within fork
        await until(lambda: 1 in house.failed)
        assert isinstance(house.failed[1], FileNotFoundError)
        monkeypatch.undo()
    house = House(Nest, token)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError):
        house.nest.start()
    await house.nest.close(1)


async def test_what_does_not_fit_into_the_socket_waits(token: str) -> None:
    async with housed(Nest, token, "standin:returns") as house:
        await until(lambda: house.nest.ready)
        assert house.nest.pid is not None
        crowd(house)
        assert house.nest.signal(40, signal.SIGKILL)
        os.kill(house.nest.pid, signal.SIGCONT)
        await until(lambda: len(house.exited) == 40)


async def test_waiting_requests_end_with_the_nest(token: str) -> None:
    async with housed(Nest, token) as house:
        await until(lambda: house.nest.ready)
        assert house.nest.pid is not None
        crowd(house)


# ── leaving nobody behind ─────────────────────────────────────────────────────────────────────────────────────────


@both
async def test_close_kills_whatever_workers_do(kind: Kind, token: str) -> None:
    async with housed(kind, token, "standin:spin") as house:
        await house.worker(1)
        await house.worker(2)
        assert await house.hear(1) == b"spinning"
        assert house.nest.signal(2, signal.SIGSTOP)
        await house.nest.close(5)
        assert not carriers(token)
        with pytest.raises(RuntimeError):
            house.fork(3)
    assert not house.exited and not house.lost


@both
async def test_close_may_come_at_any_time(kind: Kind, token: str) -> None:
    never = House(kind, token)
    await never.nest.close(1)
    await never.nest.close(1)
    early = House(kind, token)
    early.nest.start()
    early.fork(1)
    await asyncio.gather(early.nest.close(5), early.nest.close(5))
    early.links[1].close()
    late = House(kind, token)
    late.nest.start()
    await late.worker(1)
    closing = asyncio.create_task(late.nest.close(5))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await late.nest.close(5)
    late.links[1].close()
    assert not carriers(token)


@both
async def test_close_finds_grandchildren(kind: Kind, token: str) -> None:
    async with housed(kind, token, "standin:parent") as house:
        await house.worker(1)
        children = json.loads(await house.hear(1))
        assert all(alive(pid) for pid in children)
        await house.nest.close(5)
        assert not any(alive(pid) for pid in children)


async def test_a_stopped_nursery_is_closed(token: str) -> None:
    async with housed(Nest, token) as house:
        await house.worker(1)
        assert house.nest.pid is not None
        os.kill(house.nest.pid, signal.SIGSTOP)
        await house.nest.close(5)
        assert not carriers(token)


async def test_a_nursery_that_does_not_end_is_killed(token: str, folder: Path) -> None:
    (folder / "stuck.py").write_text(
        "from standin import parent\nfrom flowlane_plugins.workers import nursery\nimport time\n"
        "nursery.kill_children = lambda: time.sleep(600)\n"
    )
    async with housed(Nest, token, "stuck:parent") as house:
        await house.worker(1)
        children = json.loads(await house.hear(1))
        await house.nest.close(0.05)
        assert not any(alive(pid) for pid in children)


async def test_a_dead_workers_session_goes_with_it(token: str) -> None:
    async with housed(Nest, token, "standin:parent") as house:
        await house.worker(1)
        plain, grouped, daemon = json.loads(await house.hear(1))
        await house.worker(2)
        others = json.loads(await house.hear(2))
        house.nest.signal(1, signal.SIGKILL)
        await until(lambda: not alive(plain) and not alive(grouped))
        assert alive(daemon)  # left the session on purpose; it goes with the nursery
        assert all(alive(pid) for pid in others)


async def test_a_dead_spawned_workers_group_goes_with_it(token: str) -> None:
    async with housed(Spawned, token, "standin:parent") as house:
        await house.worker(1)
        plain, *_ = json.loads(await house.hear(1))
        house.nest.signal(1, signal.SIGKILL)
        await until(lambda: not alive(plain))


async def test_a_killed_nursery_takes_all_along(token: str) -> None:
    async with housed(Nest, token, "standin:parent") as house:
        await house.worker(1)
        children = json.loads(await house.hear(1))
        assert house.nest.pid is not None
        os.kill(house.nest.pid, signal.SIGSTOP)  # so that what follows is asked for, but never born
        house.fork(2)
        os.kill(house.nest.pid, signal.SIGKILL)
        house.fork(3)
        await until(lambda: house.lost == 1)
        assert not carriers(token) and not any(alive(pid) for pid in children)
        assert not house.nest.signal(1, signal.SIGKILL)
        with pytest.raises(RuntimeError):
            house.fork(4)
        async with housed(Nest, token) as another:
            await another.worker(1)
        await asyncio.sleep(0.05)
    assert house.lost == 1 and not house.exited


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1])
async def test_only_the_engine_decides_when_the_nursery_ends(token: str, signum: signal.Signals) -> None:
    async with housed(Nest, token) as house:
        await until(lambda: house.nest.ready)
        assert house.nest.pid is not None
        os.kill(house.nest.pid, signum)
        await house.worker(1)
        house.links[1].send(b"a")
        assert await house.hear(1) == b"1:a"
        assert not house.lost


# ── when the engine dies ──────────────────────────────────────────────────────────────────────────────────────────


def engine(folder: Path, token: str, kind: Kind, entry: str, **holes: Any) -> subprocess.Popen[bytes]:
    filled = {"start": "nest.start()", "before": "", "after": "", "waits": True, "hears": False, "preload": (), **holes}
    text = ENGINE.format(
        folder=str(folder),
        module=kind.__module__.rpartition(".")[2],
        kind=kind.__name__,
        entry=entry,
        token=token,
        **filled,
    )
    script = folder / "engine.py"
    script.write_text(text)
    return subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def dies_with_all(process: subprocess.Popen[bytes], token: str, least: int) -> None:
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline().strip()
            assert eventually(lambda: len(carriers(token)) >= least)  # amid an exec, a process shows no environment
        finally:
            process.kill()
    assert eventually(lambda: not carriers(token))


@both
def test_idle_workers_die_with_the_engine(kind: Kind, token: str, folder: Path) -> None:
    dies_with_all(engine(folder, token, kind, "standin:echo"), token, 1)


@both
def test_workers_busy_in_c_die_with_the_engine(kind: Kind, token: str, folder: Path) -> None:
    dies_with_all(engine(folder, token, kind, "standin:spin", hears=True), token, 1)


@both
def test_stopped_workers_die_with_the_engine(kind: Kind, token: str, folder: Path) -> None:
    after = "import signal; nest.signal(1, signal.SIGSTOP)"
    dies_with_all(engine(folder, token, kind, "standin:spin", hears=True, after=after), token, 1)


@both
def test_workers_being_born_die_with_the_engine(kind: Kind, token: str, folder: Path) -> None:
    dies_with_all(engine(folder, token, kind, "standin:echo", waits=False), token, 1)


def test_a_stopped_nursery_dies_with_the_engine(token: str, folder: Path) -> None:
    after = "import signal; os.kill(nest.pid, signal.SIGSTOP)"
    dies_with_all(engine(folder, token, Nest, "standin:parent", hears=True, after=after), token, 5)


def test_workers_die_when_engine_and_nursery_are_killed_at_once(token: str, folder: Path) -> None:
    after = (
        "import signal; print('up', flush=True); sys.stdin.read(1);"
        " os.kill(nest.pid, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with engine(folder, token, Nest, "standin:spin", hears=True, after=after) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().strip() == b"up"
        assert eventually(lambda: len(carriers(token)) >= 2)
        process.stdin.close()
        assert process.wait(10) == -signal.SIGKILL
    assert eventually(lambda: not carriers(token))


def test_daemons_die_with_the_engine(token: str, folder: Path) -> None:
    dies_with_all(engine(folder, token, Nest, "standin:parent", hears=True), token, 5)


def test_a_nursery_busy_with_an_import_dies_with_the_engine(token: str, folder: Path) -> None:
    (folder / "slow.py").write_text("import re\nre.match(r'(a+)+$', 'a' * 100 + 'b')")
    dies_with_all(engine(folder, token, Nest, "standin:echo", waits=False, preload=("slow",)), token, 1)


@pytest.mark.parametrize("how", ["fork", "exec"])
@both
def test_children_of_the_host_do_not_keep_workers_alive(kind: Kind, how: str, token: str, folder: Path) -> None:
    before = ""
    if how == "exec":
        after = (
            "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'], close_fds=False)"
        )
    else:
        after = "import time; os.fork() == 0 and (time.sleep(3), os._exit(0))"
    process = engine(folder, token, kind, "standin:echo", before=before, after=after)
    with process:
        assert process.stdout is not None and process.stdout.readline().strip()
        assert eventually(lambda: bool(carriers(token)))
        process.kill()
        gone = eventually(lambda: not carriers(token), 2.5)  # before the child ends
    assert gone


def test_a_nursery_notices_without_its_socket(token: str, folder: Path) -> None:
    """A library may fork in C, past every hook of Python's, and keep a copy of our end."""
    after = (
        "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'],"
        " pass_fds=[nest._control._sock.fileno()])"
    )
    process = engine(folder, token, Nest, "standin:echo", after=after)
    with process:
        assert process.stdout is not None and process.stdout.readline().strip()
        process.kill()
        gone = eventually(lambda: not carriers(token), 2.5)
    assert gone


def test_without_help_of_the_kernel_spawned_workers_die_too(token: str, folder: Path) -> None:
    before = "import flowlane_plugins.workers.spawned as s; s._WORKER = 'standin:portable'"
    dies_with_all(engine(folder, token, Spawned, "standin:echo", before=before), token, 1)


# ── preloading ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_workers_are_born_with_what_was_preloaded(token: str, folder: Path, caplog: Any, capfd: Any) -> None:
    (folder / "warm.py").write_text("print('warming up')")
    (folder / "broken.py").write_text("raise SystemExit('no')")
    (folder / "flow.py").write_text("")
    (folder / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    (folder / "brief.py").write_text("import threading\nt = threading.Thread(target=int)\nt.start()")
    preload = ["broken", "threaded", "warm", "missing", "brief", str(folder / "flow.py")]
    caplog.set_level("DEBUG", logger="flowlane")
    async with housed(Nest, token, "standin:describe", preload=preload) as house:
        house.fork(1)
        told = await house.hear_line(1)
        assert house.nest.ready
    assert {"warm", "brief", "_flow_flow"} <= set(told["modules"])
    assert not {"broken", "threaded", "missing"} & set(told["modules"])
    assert told["threads"] == 1
    said = caplog.text
    assert "workers do not have 'broken' from the start: SystemExit: no" in said
    assert "workers do not have 'threaded' from the start: it starts a thread" in said
    assert "workers do not have 'missing' from the start: ModuleNotFoundError" in said
    assert "warming up" not in capfd.readouterr().out


async def test_a_preloaded_module_that_ends_the_nursery_is_told(token: str, folder: Path) -> None:
    (folder / "fatal.py").write_text("import os\nos._exit(3)")
    async with housed(Nest, token, preload=["fatal"]) as house:
        house.fork(1)
        await until(lambda: house.lost == 1)
        assert not house.nest.ready


# ── where the kernel has less to offer ────────────────────────────────────────────────────────────────────────────


@both
async def test_without_pidfds_and_memfds(kind: Kind, token: str, monkeypatch: Any) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    async with housed(kind, token, "standin:echo") as house:
        fork = house.fork
        if kind is Spawned:

            def without(wid: int) -> socket.socket:
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                with monkeypatch.context() as patch:
                    for name in ("memfd_create", "pidfd_open", "waitid"):
                        patch.delattr(os, name)
                    house.nest.fork(wid, (theirs.fileno(), theirs.fileno(), theirs.fileno()))
                theirs.close()
                house.links[wid] = ours
                return ours

            fork = without
        fork(1)
        fork(2)
        await until(lambda: len(house.born) == 2)
        house.links[1].send(b"exit3")
        await until(lambda: 1 in house.exited)
        assert house.exited[1][0] == 3
        assert house.nest.signal(2, signal.SIGKILL)
        await until(lambda: 2 in house.exited)
        fork(3)
        await until(lambda: 3 in house.born)
        monkeypatch.setattr(os, "pidfd_open", refuse)
        if kind is Nest:
            another = House(Nest, token)
            another.nest.start()
            await another.worker(1)
            assert another.nest.pid is not None
            os.kill(another.nest.pid, signal.SIGKILL)
            await until(lambda: another.lost == 1)
            another.links[1].close()


async def test_a_nursery_without_pidfds_passes_signals_on(token: str, folder: Path) -> None:
    (folder / "old.py").write_text("import os\nfrom standin import echo\ndel os.pidfd_open\n")
    (folder / "old.py").write_text(
        "import os\nfrom standin import echo\n"
        "def refuse(pid, flags=0):\n    raise OSError(38, 'Function not implemented')\nos.pidfd_open = refuse\n"
    )
    async with housed(Nest, token, "old:echo") as house:
        await house.worker(1)
        assert house.born[1][1] == -1
        assert house.nest.signal(1, signal.SIGKILL)
        await until(lambda: 1 in house.exited)
        assert house.exited[1][0] == -signal.SIGKILL


@both
def test_a_host_without_stdio(kind: Kind, token: str, folder: Path) -> None:
    """Descriptors 0 to 2 are closed, so ours get their numbers, and a child takes what has them for its own stdio."""
    done = folder / "done"
    after = f"ours.send(b'a'); ours.setblocking(True); open({str(done)!r}, 'wb').write(ours.recv(9)); await nest.close(5); return"
    with engine(folder, token, kind, "standin:echo", start="os.closerange(0, 3); nest.start()", after=after) as process:
        assert process.wait(20) == 0
    assert done.read_bytes() == b"1:a"


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mark_within_a_mark_shows_both(monkeypatch: Any) -> None:
    monkeypatch.setenv(MARK, "outer")
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    environ = with_mark({"OMP_NUM_THREADS": "2"}, "inner")
    assert environ[MARK] == "outer:inner"
    assert [environ[f"{name}_NUM_THREADS"] for name in ("OPENBLAS", "OMP", "MKL")] == ["1", "2", "4"]
    monkeypatch.delenv(MARK)
    assert with_mark({}, "inner")[MARK] == "inner"


def test_a_sweep_kills_the_marked_and_nobody_else() -> None:
    mark, other = uuid4().hex, uuid4().hex
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    with (
        subprocess.Popen(command, env={MARK: f"{mark}:{other}"}) as marked,
        subprocess.Popen(command, env={MARK: other}) as unmarked,
    ):
        assert sweep(mark, 5)
        assert marked.wait(10) == -signal.SIGKILL
        assert unmarked.poll() is None
        unmarked.kill()


def test_the_members_of_a_session_are_killed_and_nobody_else() -> None:
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    with (
        subprocess.Popen(command, start_new_session=True) as member,
        subprocess.Popen(command, start_new_session=True) as stranger,
    ):
        assert eventually(lambda: os.getsid(member.pid) == member.pid)
        assert kill_sessions({member.pid})
        assert member.wait(10) == -signal.SIGKILL
        assert not kill_sessions({member.pid})
        assert stranger.poll() is None
        stranger.kill()


def test_what_runs_where() -> None:
    assert Nest.supported() and Spawned.supported()
    assert spawned.Spawned is Spawned
