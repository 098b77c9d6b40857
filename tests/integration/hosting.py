"""A program with ways of its own, in which flowlane is a guest; ``test_hosts.py`` starts it, with the part to play.

    state    every way of ending a run, on every executor and on every loop, with the host's state looked at before each run, at
             each of its events, from within its tasks, and after it
    signals  signals to the whole process group, as from a terminal, while tasks run
    reaping  a host that waits for every child there is
    ignoring a host that ignores SIGCHLD, so that nobody can wait for a child
    embedded a program that is no Python, in which sys.executable is that program

It prints one line when all is well, and raises otherwise.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import Any

import psutil
import structlog

from flowlane import Engine, RunHandle, RunState, arun, run, task, workflow

came: list[int] = []  # signals that reached the host's handlers
heard: list[logging.LogRecord] = []
begun = threading.Event()
stop = threading.Event()  # lets go of the threads that nobody can end


# ── the guest's tasks ─────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
async def coroutine(how: str) -> str:
    compare(f"in a coroutine that is to {how}")
    if how == "fail":
        raise ValueError("as it was told")
    if how in ("cancel", "timeout"):
        await asyncio.Event().wait()
    return how


@task.io
def thread(how: str) -> str:
    compare(f"in a thread that is to {how}")
    if how == "fail":
        raise ValueError("as it was told")
    if how in ("cancel", "timeout"):
        begun.set()
        stop.wait(30)
    return how


@task.cpu
def process(how: str) -> str:
    print("printed in a worker")
    if how == "fail":
        raise ValueError("as it was told")
    if how in ("cancel", "timeout"):
        time.sleep(30)
    return how


@task.cpu
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
def guest(how: str) -> list[str]:
    options: dict[str, Any] = {"timeout": 0.2} if how == "timeout" else {}
    return [each.options(**options)(how) for each in (coroutine, thread, process)]


ENDS = {
    "succeed": RunState.SUCCEEDED,
    "fail": RunState.FAILED,
    "timeout": RunState.FAILED,
    "cancel": RunState.CANCELLED,
}


# ── the host, and what is its own ─────────────────────────────────────────────────────────────────────────────────────


class Listening(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        heard.append(record)


class HostPolicy(asyncio.DefaultEventLoopPolicy):
    pass


def settle() -> None:
    """Set all that a library could be tempted to change to something that is not the default."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()], cache_logger_on_first_use=False)
    logging.basicConfig(level=logging.ERROR, handlers=[Listening()])
    logging.getLogger("host").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: came.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    sys.excepthook = traceback.print_exception
    sys.unraisablehook = lambda broken: failures.append(f"unraisable {broken}")
    threading.excepthook = lambda broken: failures.append(f"in a thread: {broken}")
    warnings.filterwarnings("error", "the host's own")
    sys.path.append("the-host-s-folder")
    os.environ["HOST"] = "1"
    os.umask(0o027)
    faulthandler.enable()
    gc.set_threshold(701, 11, 9)
    atexit.register(lambda: None)
    asyncio.set_event_loop_policy(HostPolicy())


failures: list[str] = []


def state() -> dict[str, object]:
    """What a host may rely on. Loggers of ours are not among it: one has a NullHandler, as libraries should."""
    known = {name: each for name, each in logging.root.manager.loggerDict.items() if isinstance(each, logging.Logger)}
    ours = [each for name, each in known.items() if name.split(".")[0] == "flowlane"]
    return {
        "structlog": structlog.get_config(),
        "root logger": (logging.root.level, list(logging.root.handlers), list(logging.root.filters)),
        "host's logger": (known["host"].level, list(known["host"].handlers), known["host"].disabled),
        "our loggers": {(each.level, each.propagate) for each in ours} <= {(logging.NOTSET, True)},
        "our handlers": {type(one) for each in ours for one in each.handlers} <= {logging.NullHandler},
        "logging": (logging.getLogRecordFactory(), logging.getLoggerClass(), logging.lastResort, logging.root.manager.disable),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}},
        "timers": [signal.getitimer(n) for n in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)][1:],
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, sys.breakpointhook, threading.excepthook),
        "tracing": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "import": (list(sys.path), list(sys.path_hooks), list(sys.meta_path), list(sys.argv)),
        "streams": (sys.stdin, sys.stdout, sys.stderr, [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "at exit": atexit._ncallbacks(),
        "umask": umask(),
        "faulthandler": faulthandler.is_enabled(),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks), gc.get_freeze_count()),
        "loop policy": id(asyncio.get_event_loop_policy()),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), threading.stack_size()),
        "kernel": (os.nice(0), os.sched_getaffinity(0), os.getpgid(0), os.getsid(0), locale.setlocale(locale.LC_ALL)),
        "limits": [resource.getrlimit(n) for n in range(resource.RLIM_NLIMITS if hasattr(resource, "RLIM_NLIMITS") else 16)],
    }  # fmt: skip


def umask() -> str:
    """Read, not set: a moment with another umask would be seen by other threads."""
    with open("/proc/self/status") as status:
        return next(line for line in status if line.startswith("Umask"))


def loop_state() -> dict[str, object]:
    loop = asyncio.get_running_loop()
    return {
        "exception handler": loop.get_exception_handler(),
        "debug": (loop.get_debug(), loop.slow_callback_duration),
        "task factory": loop.get_task_factory(),
        "async generators": sys.get_asyncgen_hooks(),
        "structlog's context": structlog.contextvars.get_contextvars(),
    }


def compare(when: str) -> None:
    """Take down what is not as it was."""
    global looks
    looks += 1
    now = state()
    for name, was in BEFORE.items():
        if now[name] != was:
            failures.append(f"{when}: {name} was {was}, and is {now[name]}")


BEFORE: dict[str, object] = {}
looks = 0


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def watched(handle: RunHandle[Any], how: str, before: dict[str, object]) -> None:
    out: set[str] = set()
    async for event in handle.events():
        compare(f"while a run is to {how}")
        if loop_state() != before:
            failures.append(f"while a run is to {how}: the loop was {before}, and is {loop_state()}")
        if event.get("to") == "running":
            out.add(event["task"])
        if how == "cancel" and len(out) == 3:
            handle.cancel()
            stop.set()
        if event.get("to") == "timed_out" and event["task"] == "thread":
            stop.set()
    assert handle.state is ENDS[how], (how, handle.state)


async def on_the_host_s_loop(method: str) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(f"on the loop: {context}"))
    loop.slow_callback_duration = 30.0
    structlog.contextvars.bind_contextvars(host="its own")
    before = loop_state()
    async with Engine(options={"processes": {"start_method": method}}) as engine:
        for how in ENDS:
            stop.clear()
            await watched(engine.start(guest, how), how, before)
            compare(f"after a run that was to {how}")
    stop.clear()
    begun.clear()
    running = asyncio.ensure_future(arun(guest, "cancel"))
    while not begun.is_set():
        await asyncio.sleep(0.005)
    running.cancel()
    stop.set()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    compare("after arun was cancelled")
    assert loop_state() == before
    structlog.contextvars.clear_contextvars()


def play_state() -> None:
    settle()
    BEFORE.update(state())
    compare("to begin with")
    for method in ("nursery", "spawn"):
        asyncio.run(on_the_host_s_loop(method))
        compare("after the loop")
    with Engine() as engine:
        for how in ("succeed", "fail"):
            handle = engine.start(guest, how)
            with contextlib.suppress(Exception):
                handle.result(30)
            assert handle.state is ENDS[how]
            compare(f"after a run on a loop of the engine's that was to {how}")
    for how in ("succeed", "fail"):
        assert run(guest.bind(how), check=False).state is ENDS[how]
        compare(f"after run() that was to {how}")
    assert not came
    names = {record.name for record in heard}
    assert names == {"flowlane"}, names  # at the host's level, in the host's handler
    assert {record.levelno for record in heard} == {logging.ERROR}
    assert not failures, "\n".join(failures)
    assert not psutil.Process().children(recursive=True)
    print("nothing changed" if looks > 100 else f"only {looks} looks")


@task.cpu
def computes(path: str) -> str:
    """Ends when its file is gone."""
    while os.path.exists(path):
        time.sleep(0.001)
    return "computed"


@task.io
def waits(path: str) -> str:
    while os.path.exists(path):
        time.sleep(0.001)
    return "waited"


@workflow
def both(path: str) -> list[str]:
    return [computes(path), waits(path)]


def play_signals() -> None:
    """`path` is there while the signals come."""
    settle()
    path = "under-way"

    async def main() -> None:
        async with Engine() as engine:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                open(path, "w").close()
                handle, running = engine.start(both, path), 0
                async for event in handle.events():
                    running += event.get("to") == "running"
                    if running == 2 and os.path.exists(path):
                        os.killpg(0, number)
                        os.unlink(path)
                assert (await handle).value == ["computed", "waited"]

    asyncio.run(main())
    assert came == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], came
    print("all runs succeeded")


@workflow
def with_a_death() -> list[Any]:
    return [process("succeed"), dies(), process.options(timeout=0.2, name="slow")("timeout")]


def play_with_children() -> None:
    for method in ("nursery", "spawn"):
        with Engine(options={"processes": {"start_method": method}}) as engine:
            result = None
            try:
                engine.start(with_a_death).result(30)
            except Exception as error:
                result = getattr(error, "result", None)
            assert result is not None
            states = {name: str(each.state) for name, each in result.tasks.items()}
            assert states == {"process": "succeeded", "dies": "crashed", "slow": "timed_out"}, states
            message = result.failures["dies"].message
            assert "exited with code" not in message, message
        assert engine.runs == {}
        assert not psutil.Process().children(recursive=True)
    print("all ended as it should")


def reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@workflow
def computing() -> str:
    return process("succeed")


def play_embedded() -> None:
    python = sys.executable
    for method in ("nursery", "spawn"):
        for executable in ("/bin/false", ""):
            sys.executable = executable
            failed = run(computing.bind(), check=False, options={"processes": {"start_method": method}})
            told = str(failed.error) if failed.error else " ".join(failed.failures["process"].notes)
            told = told or str(failed.failures["process"])
            assert "set sys.executable to" in told, (method, executable, told)
        sys.executable = python
        assert run(computing.bind(), options={"processes": {"start_method": method}}).value == "succeed"
    print("told what to do")


if __name__ == "__main__":
    match sys.argv[1]:
        case "state":
            play_state()
        case "signals":
            play_signals()
        case "embedded":
            play_embedded()
        case "reaping":
            signal.signal(signal.SIGCHLD, reap)
            play_with_children()
        case "ignoring":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            play_with_children()
