"""A fresh interpreter that finds what this process finds: how the nursery, or a spawned worker, comes to life.

It has our sys.path, arguments, folder, environment and interpreter options, and ``__main__.__file__`` as we have it;
but it does not run ``__main__``: a plain script without a guard would start its workflow again in every worker. What
it is to be is told in a *letter*, an unnamed file with a marshalled dict, because arguments and pipes have limits.

:func:`launch` is for the engine; :func:`settle` runs in the child, so this module imports next to nothing.
"""

from __future__ import annotations

import importlib
import marshal
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias, cast
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from subprocess import Popen

__all__ = ["MARK", "Letter", "above_stdio", "entry_of", "keep_from_forks", "launch", "rewrite", "settle", "with_mark"]

#: name of the environment variable by which descendants are known, however deep
MARK: Final = "FLOWLANE_MARK"

Letter: TypeAlias = "dict[str, Any]"  # of what marshal can write

# sys, marshal and os are built in or frozen: a file of that name in the working directory is not taken for them.
_BOOTSTRAP: Final = (
    "import marshal,os,sys;f=int(sys.argv[2]);l=marshal.loads(os.pread(f,os.fstat(f).st_size,0));"
    "sys.path[:]=l['path'];from flowlane_plugins.workers.interpreter import settle;settle(l,f)"
)
_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class _Closable(Protocol):
    def close(self) -> None: ...


# Descriptors whose end-of-file means "the engine is gone". A child that the host forks (no exec) would hold them open.
# Process-wide on purpose: there is one process to be forked.
_kept: WeakSet[_Closable] = WeakSet()


def keep_from_forks(held: _Closable) -> None:
    """Close `held` in every process that Python forks from this one from now on."""
    _kept.add(held)


def _close_kept() -> None:
    for held in list(_kept):
        try:
            held.close()
        except OSError:
            pass
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_kept)


def with_mark(environ: Mapping[str, str], mark: str) -> dict[str, str]:
    """The environment of a child: ours, `environ` on top, one thread for linear algebra unless said otherwise.

    As many workers as cores with as many threads each are slower than one thread each, and a process with threads
    cannot be forked. A run inside a worker adds its `mark` to the outer one, so either finds its descendants.
    """
    whole = {**dict.fromkeys(_ONE_THREAD, "1"), **os.environ, **environ}
    outer = os.environ.get(MARK)
    whole[MARK] = f"{outer}:{mark}" if outer else mark
    return whole


def launch(
    title: str, entry: str, letter: Letter, fds: Sequence[int], environ: Mapping[str, str], output: int
) -> Popen[bytes]:
    """Start a process that calls `entry` ("module:function") with the letter and its descriptor; about 1 ms.

    `title` is what ``ps`` shows; `fds` are inherited under their numbers; what it prints goes to `output`. The child is in
    a session of its own, so Ctrl-C, Ctrl-Z and hang-ups of a terminal do not reach it, and it reads nothing from stdin.
    Raises OSError.
    """
    import signal
    import subprocess

    if not sys.executable:
        raise FileNotFoundError("there is no Python interpreter to start: set sys.executable to the path of one")
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if isinstance(main, str):
        try:
            main = os.path.abspath(main)
        except OSError:  # the working directory was deleted
            pass
    whole: Letter = {
        **letter,
        "entry": entry,
        "path": [str(each) for each in sys.path],
        "argv": [str(each) for each in getattr(sys, "argv", ())],
        "main": main if isinstance(main, str) else None,
    }
    fd = _unnamed_file()
    try:
        rewrite(fd, whole)
        # as multiprocessing does for its own children: -O, -W, -X dev and the like
        options = cast("list[str]", cast("Any", subprocess)._args_from_interpreter_flags())
        # Unbuffered, or text printed before a crash is lost; as an option, because -E and -I disregard the environment.
        command = [sys.executable, *options, "-u", "-c", _BOOTSTRAP, title, str(fd)]
        # A signal mask outlives exec. The child lifts it once it ignores SIGINT.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(fd, *fds),
                env=dict(environ),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    finally:
        os.close(fd)


def rewrite(fd: int, letter: Letter) -> None:
    """Make `letter` the content of the letter at `fd`."""
    text = marshal.dumps(letter)
    os.ftruncate(fd, 0)
    done = 0
    while done < len(text):
        done += os.pwrite(fd, text[done:], done)


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("flowlane-letter", os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    return above_stdio(fd)


def above_stdio(fd: int) -> int:
    """`fd`, moved to a number above 2 where the host has closed its stdin, stdout or stderr and `fd` got their number.

    A child that inherits it would take it for its own stdout.
    """
    if fd > 2:
        return fd
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def settle(letter: Letter, fd: int) -> NoReturn:
    """Become what the letter says. In the child, called by its command line; ends the process with `entry`."""
    sys.argv = letter["argv"]
    main = sys.modules["__main__"]
    for name in [name for name in vars(main) if not name.startswith("__")]:
        delattr(main, name)  # what the command line left there
    if letter["main"] is not None:
        main.__file__ = letter["main"]
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # whatever is opened next must not become stdout because the host closed it
    os.close(spare)
    os.set_inheritable(fd, False)
    entry_of(letter["entry"])(letter, fd)
    raise SystemExit


def entry_of(name: str) -> Callable[..., Any]:
    """The function that "module:function" names; raises ImportError or AttributeError."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
