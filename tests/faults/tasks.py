"""What the tasks of the fault tests do. Loaded by path, as a workflow file is, here and in worker processes.

Those that take a `journal` append a line to it when they start and when they end, with O_APPEND, so that what really ran
is known from a source that shares no code with the engine.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

from flowlane import task

HELD = []


def note(journal, *words):
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (" ".join(str(word) for word in words) + "\n").encode())
    os.close(fd)


@task.cpu
def innocent(number, journal=None, seconds=0.0):
    if journal:
        note(journal, "start", number, os.getpid())
    if seconds:
        time.sleep(seconds)
    if journal:
        note(journal, "end", number, os.getpid())
    return number * number


@task.cpu
def die(how, journal=None):
    if journal:
        note(journal, "start", how, os.getpid())
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(3)
    elif how == "exit 0":
        os._exit(0)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@task.cpu
def die_once(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@task.cpu
def hang(how, marker=None):
    if marker:
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
    if how == "sleep":
        time.sleep(60)
    elif how == "regex":  # in C, holding the GIL, deaf to Python's signal handlers
        re.match(r"(a|a)*$", "a" * 60 + "b")
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    elif how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    elif how == "swallow":
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                time.sleep(60)
            except BaseException:
                continue
    elif how == "python":
        while True:
            pass


@task.cpu
def tidy(marker):
    """Cleans up when it is told to stop."""
    try:
        time.sleep(60)
    finally:
        with open(marker, "w") as file:
            file.write("cleaned up")


@task.cpu
def whoami(*_):
    return os.getpid()


@task.cpu
def close_descriptors(low=3, high=64):
    os.closerange(low, high)
    return "closed"


@task.cpu
def change_directory(path):
    os.chdir(path)
    return os.getcwd()


@task.cpu
def where():
    return os.getcwd()


@task.cpu
def fork_and_return(number):
    os.fork()
    return number


@task.cpu
def nested_pool(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])


@task.cpu
def nested_run():
    from flowlane import Workflow, run

    workflow = Workflow("inner")
    handle = workflow.add(innocent.bind(7))
    return run(workflow.returns(handle)).value


@task.cpu
def daemonise(marker, session):
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=session, stdin=subprocess.DEVNULL
    )
    with open(marker, "w") as file:
        file.write(str(child.pid))
    time.sleep(60)


@task.cpu
def leave(name):
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](7)


@task.cpu
def allocate(size, limit):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        return len(bytearray(size))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@task.cpu
def speak(text, error=""):
    print(text)
    if error:
        print(error, file=sys.stderr)
    os.write(1, b"straight to the descriptor\n")
    subprocess.run([sys.executable, "-c", "print('a program')"], check=True)
    return len(text)


@task.cpu
def speak_and_die(text):
    print(text)
    ctypes.string_at(0)


@task.cpu
def flood(size):
    line = "x" * 99 + "\n"
    for _ in range(size // 100):
        sys.stdout.write(line)
    return size


# ── exceptions of awkward shapes ──────────────────────────────────────────────────────────────────────────────────


class TwoArguments(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class Exploding(Exception):
    def __reduce__(self):
        return (int, ("not a number",))


class Unpicklable(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class BadStr(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class BadRepr(Exception):
    def __repr__(self):
        raise RuntimeError("no words")


class ExitsOnPickle(Exception):
    def __reduce__(self):
        raise SystemExit(3)


class ExitsOnLoad(Exception):
    def __reduce__(self):
        return (sys.exit, (3,))


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, *, code):
        self.code = code

    def __str__(self):
        return f"code {self.code}"


def _shapes():
    class Local(Exception):
        pass

    group = ExceptionGroup(
        "several", [ValueError("one"), TwoArguments(2, "two"), ExceptionGroup("in", [Unpicklable("x")])]
    )
    deep = ValueError("deep")
    for number in range(2000):
        outer = ValueError(f"level {number}")
        outer.__cause__ = deep
        deep = outer
    noted = KeyError("noted")
    noted.add_note("look here")
    return {
        "two arguments": TwoArguments(7, "seven"),
        "exploding": Exploding("boom"),
        "unpicklable": Unpicklable("locked"),
        "bad str": BadStr("hidden"),
        "bad repr": BadRepr("hidden"),
        "exits on pickle": ExitsOnPickle("leaving"),
        "exits on load": ExitsOnLoad("leaving"),
        "slotted": Slotted(code=5),
        "local": Local("here"),
        "group": group,
        "deep chain": deep,
        "noted": noted,
        "long": ValueError("x" * 1_000_000),
        "unicode": ValueError("\udc80 \x00 \x1b[31m"),
        "unicode decode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        "os error": FileNotFoundError(2, "No such file", "/nowhere"),
    }


SHAPES = list(_shapes())


@task.cpu
def fail(shape):
    raise _shapes()[shape]


# ── values that do not travel ─────────────────────────────────────────────────────────────────────────────────────


class ExplodesOnLoad:
    def __reduce__(self):
        return (int, ("not a number",))


class KillsOnLoad:
    """Ends whoever loads it, except the process that made it."""

    def __init__(self):
        self.pid = os.getpid()

    def __reduce__(self):
        return (_kill_unless, (self.pid,))


def _kill_unless(pid):
    if os.getpid() != pid:
        os.kill(os.getpid(), signal.SIGKILL)


@task.cpu
def give(what):
    if what == "lock":
        return {"deep": [threading.Lock()]}
    if what == "explodes":
        return [1, ExplodesOnLoad()]
    if what == "generator":
        return (n for n in range(3))
    if what == "nested":
        nested = []
        for _ in range(100_000):
            nested = [nested]
        return nested
    return bytes(int(what))


@task.cpu
def take(value, *more):
    return type(value).__name__


@task.cpu
def size_of(value):
    return len(value)


@task.cpu
def hold(value):
    """Keeps what it was given, as a careless task does."""
    HELD.append(value)
    return len(HELD)


@task.io
def take_here(value):
    return type(value).__name__
