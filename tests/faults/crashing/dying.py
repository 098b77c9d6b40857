"""An engine whose store kills the process, before or after its n-th call that writes.

    python -m tests.faults.crashing.dying FOLDER WORKFLOW VERB     one life; VERB: run | resume
    python -m tests.faults.crashing.dying                          lives and deaths as they are asked for on stdin

The second form is loaded once and forks for each life, which costs a quarter of starting Python anew. A request is one line
of JSON, see `trial.Lives`; the answers are the life's pid, and its exit code once it is over. With words for the command line
a life is `flow` as it is; else it is an engine with a store that kills it.

All those calls are made by one thread, so that whoever counts system calls by thread (strace does) counts them all. Each call
is written to the file ``calls`` of the folder when it begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flowlane
import flowlane.cli.execute
import flowlane.cli.resume
import flowlane.cli.run
import flowlane.cli.summary
import flowlane.engine
from flowlane.cli.main import main
from flowlane.loader import load_file
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WRITES = frozenset({"open", "begin", "reopen", "seize", "write", "close_run", "close"})


class Dying:
    """A store that is in the way of nothing but the process's life. With `n` 0 it lets it live."""

    def __init__(self, store: Any, folder: Path, call: str, n: int, when: str) -> None:
        self._store = store
        self._which = call
        self._left = n
        self._when = when
        self._calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._thread = ThreadPoolExecutor(1)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in WRITES:
            return found
        return lambda *args, **kwargs: self._thread.submit(self._call, name, found, args, kwargs).result()

    def _call(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        os.write(self._calls, f"{name}\n".encode())
        mine = self._which in ("", name)
        self._left -= mine
        if mine and self._left == 0 and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if mine and self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def live(folder: Path, workflow: str, verb: str, death: Sequence[Any] | None = None) -> None:
    """One life, to its end: the value goes to stdout."""
    work = load_file(Path(__file__).with_name("work.py"))
    definition = getattr(work, workflow)
    store: Any = Dying(SqliteStore(folder / "work" / ".flow" / "flow.db"), folder, *(death or ("", 0, "")))
    with flowlane.Engine(store=store, slots={"processes": 2}) as engine:
        new = definition.bind(str(folder / "journal"))
        handle = engine.resume("last", definition) if verb == "resume" else engine.start(new)
        print(json.dumps(handle.result().value), flush=True)
    store.close()


def serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(asked)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(asked: dict[str, Any]) -> None:
    code = 1
    try:
        os.environ.clear()
        os.environ.update(asked["environ"])
        folder = Path(asked["folder"])
        os.chdir(folder / "work")
        for stream, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
            os.dup2(fd, stream)
            os.close(fd)
        if asked["flow"] is not None:
            code = main(asked["flow"])
            return
        time.sleep(max(0.0, asked["at"] - time.monotonic()))
        live(folder, asked["workflow"], asked["verb"], asked["death"])
        code = 0
    except flowlane.FlowError as error:
        print(error, file=sys.stderr, flush=True)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve()
    else:
        words = sys.argv[1:]
        live(Path(words[0]), words[1], words[2])
