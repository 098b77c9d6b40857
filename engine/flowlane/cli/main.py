"""The entry point of ``flow``: help and version at once, everything else through click.

`HELP` is the text of ``flow --help``, written by hand and printed without importing click, which alone takes twice as
long as starting Python. The click group prints the same constant, and a test holds it to the table of verbs.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HELP", "main"]

HELP: Final = """\
Usage: flow VERB [OPTIONS] FILE[:WORKFLOW] or RUN

  Run workflows of io and cpu tasks on asyncio, threads and processes.

Verbs:
  run        run a workflow
  resume     go on with a run from where it was
  cancel     stop a run that another process is at
  runs       list the runs that are stored, latest first
  show       show a run that is stored, or a task of it
  logs       print the events of a stored run, or what its tasks printed
  why        tell why a task of a stored run is in its state
  check      check a workflow and its routes without running it
  plan       tell what a run would do, and what is cached
  graph      print the tasks of a workflow and what they wait for
  cache      list, remove or explain cached results
  executors  list the executors, and what each can do
  store      check, repair or sweep what is stored

Options:
  --version  print the version
  --help     print this; `flow VERB --help` tells the options of a verb

FILE is a path (etl.py) or a module that can be imported from here (pkg.etl).
RUN is a run's name, its id or the beginning of that, or "last".
stdout carries the workflow's value only, everything else goes to stderr.
Exit codes: 0 ok, 1 a task failed, 2 bad input or definition, 74 disk or store,
75 the run is under way elsewhere, 128+N signal N.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line (default: ``sys.argv[1:]``) and return its exit code. Never raises for bad input.

    Owns the process's stdio and signals while it works, so call it from the main thread of a program of its own.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_streams()
    try:
        if args in (["--help"], ["-h"]):
            code = _say(HELP)
        elif args == ["--version"]:
            from flowlane import __version__

            code = _say(f"flow {__version__}\n")
        elif not args:
            sys.stderr.write(HELP)
            code = 2
        else:
            from flowlane.cli.verbs import dispatch

            code = dispatch(args)
    except KeyboardInterrupt:  # while modules were imported: nothing had begun
        code = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            from flowlane.cli.terminal import hush

            hush(stream)
    return code


def _say(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        from flowlane.cli.terminal import OutputError, hush

        hush(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            return OutputError.exit_code
    return 0


def _fill_closed_streams() -> None:
    # Started with stdout or stderr closed (`>&-`), Python has None there; the next file opened would take their
    # descriptor, and what is printed would land in it.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def entry() -> int:
    """The console script: `main`, and an exit that no abandoned thread can spoil.

    A thread that was given up may sit in a call that holds a lock of the interpreter's (``input()`` holds stdin's), and
    then Python ends with SIGABRT instead of our exit code.
    """
    code = main()
    threading = sys.modules.get("threading")
    if threading is not None and any(t.name.startswith("flowlane-thread-") for t in threading.enumerate()):
        os._exit(code)  # everything is flushed: see the end of `main`
    return code


if __name__ == "__main__":
    sys.exit(entry())
