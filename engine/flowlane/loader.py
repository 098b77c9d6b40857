"""Where functions live: workflow files are loaded by path, and every function is found again in another process.

A file given to ``flow run`` is executed under a *private module name* made of its stem (``etl.py`` → ``_flow_etl``).
The name depends on neither the folder nor the content, so that what was pickled by name loads after a move or an edit;
it is not ``__main__``, so that no guard is needed; and it is not ``etl``, so that a file named like a package on the
path shadows nothing. The file is compiled afresh on every load and no bytecode is kept: a stale cache (an edit within
one second, of equal length) would run code that nobody wrote.

An :class:`Address` is how a function travels: module and qualified name, and the file's path for modules loaded by
:func:`load_file`. Functions of ``__main__``, closures and lambdas have none; they can only travel by value.

Called by the command line (load), the declaring layer (addresses) and worker processes (resolve); so this module
imports next to nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.errors import FlowError, LoadError, TransportError, UsageError, qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

__all__ = [
    "Address",
    "address_of",
    "is_user_code",
    "load_file",
    "load_for",
    "load_module",
    "loading",
    "marked",
    "module_name_for",
    "refuse_while_importing",
    "resolve",
    "shown_path",
    "user_frame",
]

_PREFIX: Final = "_flow_"
_PATH: Final = "__flow_path__"  # set in modules loaded by path: the absolute path, for workers
_BY_VALUE: Final = frozenset({"__main__", "__mp_main__"})  # the latter is what spawn calls the parent's __main__

# Two threads that unpickle values of one file must not execute it twice: its classes would exist twice.
_loading: Final = threading.RLock()
_here: Final = threading.local()  # .files: those that this thread is executing, innermost last


class Address(NamedTuple):
    """Where a function can be imported. `path` is set only for modules that :func:`load_file` made."""

    module: str
    qualname: str
    path: str | None


def module_name_for(path: str | os.PathLike[str]) -> str:
    """The private module name of the file at `path`: ``_flow_`` and its stem, other characters as ``_``.

    Takes only the last component into account; the file need not exist.
    """
    stem: str = os.path.splitext(os.path.basename(str(path)))[0]
    return _PREFIX + "".join(c if c == "_" or (c.isalnum() and f"a{c}".isidentifier()) else "_" for c in stem)


def shown_path(path: str) -> str:
    """`path` as people should read it: relative to the working directory when inside it, otherwise unchanged."""
    try:
        relative = os.path.relpath(path)
    except (ValueError, OSError):  # another drive, or the working directory is gone
        return path
    return path if relative.startswith(os.pardir) else relative


# ── loading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def load_file(path: str | os.PathLike[str], name: str | None = None) -> ModuleType:
    """Execute the Python file at `path` as module `name` (default: :func:`module_name_for`) and return it.

    The module is in ``sys.modules`` while and after it runs, and its folder (symbolic links resolved, as python does
    with a script) is put first on ``sys.path``. Each call executes the file again; when that fails, the module that
    had the name before is put back.

    Raises LoadError when the file cannot be read, is not Python, or raises; its ``__cause__`` is the original error
    and `where` the innermost line of the user's own code. Errors of ours that the file provokes (a badly declared
    task) pass, with the user's line where they had none. Runs on the caller's thread.
    """
    given = os.fspath(path)
    name = name or module_name_for(given)
    source = _read(given)
    full = os.path.abspath(given)
    try:
        code = compile(source, full, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _syntax_error(error, given, full) from error
    except ValueError as error:  # null bytes, before 3.12
        raise LoadError(f"{shown_path(given)} is not a Python source file: {error}", where=shown_path(given)) from error
    except (RecursionError, MemoryError, OverflowError) as error:
        raise LoadError(
            f"{shown_path(given)} is nested too deeply for the Python compiler", where=shown_path(given)
        ) from error

    folder = os.path.dirname(os.path.realpath(full))
    _put_first_on_path(folder)
    module = _empty_module(name, full)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with marked(given):
            _execute(lambda: exec(code, module.__dict__), shown_path(given))  # noqa: S102 - that is the point
    except BaseException:
        if before is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = before
        raise
    return sys.modules.get(name, module)  # a module may replace itself in sys.modules, as with a plain import


def loading() -> str | None:
    """The file (or module) that this thread is executing for a function of this module or under :class:`marked`, as
    people should read it, or None.

    A ``run(...)`` at the top level of a file given to ``flow run`` would run the workflow a second time, and once more
    in each worker; it can be refused by asking here.
    """
    stack: list[str] | None = _here.__dict__.get("files")
    return shown_path(stack[-1]) if stack else None


def refuse_while_importing(what: str) -> None:
    """Raise UsageError where each worker process would start the run again, and each of theirs, without end.

    That is at the top level of a file that `flow run` or one of its workers loads, and of a script that a worker of
    multiprocessing imports. Inside a task it is fine.
    """
    file = loading()
    if file is not None:
        raise UsageError(
            f"{what} was started at the top level of {file} while the file was being loaded",
            hint='`flow run` starts the workflow itself; put your own call under `if __name__ == "__main__":`',
        )
    process = sys.modules.get("multiprocessing.process")
    if process is not None and getattr(process.current_process(), "_inheriting", False):
        raise UsageError(
            f"{what} was started while a worker process imported your script, so each worker would start it again",
            hint='put the call under `if __name__ == "__main__":`, or start the file with `flow run`',
        )


class marked:  # noqa: N801 - it is used like a function
    """``with marked(what):`` is how :func:`loading` knows that `what` is being loaded, by this thread."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        _here.__dict__.setdefault("files", []).append(self._what)

    def __exit__(self, *error: object) -> None:
        _here.__dict__["files"].pop()


def load_module(name: str) -> ModuleType:
    """Import the dotted module `name` with the working directory first on the path, as ``python -m`` does.

    Raises LoadError when there is no such module or it raises; see :func:`load_file`.
    """
    import importlib

    _put_first_on_path(os.getcwd())
    importlib.invalidate_caches()  # the file may be younger than the cached listing of its folder
    loaded: list[ModuleType] = []
    try:
        with marked(name):
            _execute(lambda: loaded.append(importlib.import_module(name)), f"module '{name}'")
    except LoadError as error:
        missing = error.__cause__
        if (
            isinstance(missing, ModuleNotFoundError)
            and missing.name
            and (name == missing.name or name.startswith(missing.name + "."))
            and user_frame(missing) is None
        ):
            raise LoadError(
                f"there is no module '{missing.name}'",
                hint="give a file (path/to/etl.py) or a module that can be imported from here (pkg.mod)",
            ) from missing
        raise
    return loaded[0]


def _read(path: str) -> bytes:
    shown = shown_path(path)
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise LoadError(f"there is no file {shown}", hint=_similar_file(path)) from None
    except NotADirectoryError:
        raise LoadError(f"there is no file {shown}") from None
    except IsADirectoryError:
        raise LoadError(
            f"{shown} is a directory", hint=f"name a file in it: {os.path.join(shown, 'NAME.py')}"
        ) from None
    except PermissionError:
        raise LoadError(f"{shown} cannot be read: permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LoadError(f"{shown} cannot be read: {reason.lower()}") from None


def _similar_file(path: str) -> str | None:
    folder, wanted = os.path.split(path)
    try:
        names = [entry.name for entry in os.scandir(folder or ".") if entry.name.endswith(".py")]
    except OSError:
        return None
    import difflib

    close = difflib.get_close_matches(wanted if wanted.endswith(".py") else wanted + ".py", names, 1, 0.7)
    return f"did you mean {os.path.join(folder, close[0])}?" if close else None


def _empty_module(name: str, path: str) -> ModuleType:
    # A spec and a loader make inspect, pickle, linecache and importlib.resources work as for an imported module.
    from importlib.machinery import ModuleSpec, SourceFileLoader
    from importlib.util import module_from_spec

    loader = SourceFileLoader(name, path)
    spec = ModuleSpec(name, loader, origin=path)
    spec.has_location = True
    spec.cached = None
    module = module_from_spec(spec)
    module.__file__ = path
    setattr(module, _PATH, path)
    return module


def _put_first_on_path(folder: str) -> None:
    # Only the first occurrence counts when importing, so moving is the same as adding, and repeated loads add nothing.
    if sys.path[:1] != [folder]:
        sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]


def _execute(action: Callable[[], Any], shown: str) -> None:
    """Run the user's top-level code; whatever it raises becomes a LoadError that points at the user's line."""
    try:
        action()
    except FlowError as error:
        if error.where is None:
            error.where = user_frame(error)
        raise
    except SyntaxError as error:
        raise _syntax_error(error, shown, None) from error
    except SystemExit as error:
        raise LoadError(
            f"{shown} called sys.exit({error.code!r}) while it was loaded",
            where=user_frame(error),
            hint='move what should run only as a script under: if __name__ == "__main__":',
        ) from error
    except Exception as error:
        message = _first_line(error)
        hint = None
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"is '{error.name.partition('.')[0]}' installed in this environment ({sys.prefix})?"
        elif isinstance(error, ImportError) and "relative import" in str(error):
            hint = "a file has no package; for relative imports name the module instead: flow run pkg.mod"
        raise LoadError(
            f"{shown} raised {qualified_name(type(error))}{message} while it was loaded",
            where=user_frame(error),
            hint=hint,
        ) from error


def _syntax_error(error: SyntaxError, given: str, full: str | None) -> LoadError:
    file = error.filename
    path = given if file is None or file == full or file.startswith("<") else file
    shown = shown_path(path)
    where = f"{shown}:{error.lineno}" if error.lineno else shown
    return LoadError(f"{shown} is not valid Python: {error.msg}", where=where)


def _first_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide where the error came from
        return ""
    lines = text.strip().splitlines()
    return f": {lines[0]}" if lines else ""


# ── the user's own frames ─────────────────────────────────────────────────────────────────────────────────────────


def user_frame(error: BaseException) -> str | None:
    """``"file:line"`` of the innermost frame of `error` in the user's own code, or None.

    Own code is what is neither ours nor installed: not in the standard library, site-packages or a ``<string>``.
    """
    found: str | None = None
    tb: TracebackType | None = error.__traceback__
    while tb is not None:
        if is_user_code(tb.tb_frame.f_code.co_filename, tb.tb_frame.f_globals.get("__name__", "")):
            found = f"{shown_path(tb.tb_frame.f_code.co_filename)}:{tb.tb_lineno}"
        tb = tb.tb_next
    return found


def is_user_code(filename: str, module: str) -> bool:
    """Whether a frame of `filename` in module `module` is the user's own code (see :func:`user_frame`)."""
    if filename.startswith("<") or module.partition(".")[0] in ("flowlane", "flowlane_plugins"):
        return False
    if "site-packages" in filename or "dist-packages" in filename or filename.startswith(_OURS):
        return False
    return not filename.startswith(_STDLIB)


_STDLIB: Final = os.path.dirname(os.__file__) + os.sep
_OURS: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep  # from a checkout it lies anywhere


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────


def address_of(fn: Callable[..., Any], owner: object = None) -> Address | None:
    """Where `fn` can be found again, or None when it can only travel by value.

    None for functions of ``__main__``, closures, lambdas, and whatever is not found under its own name. What is found
    may be `fn` itself, `owner` (the task made of it), or an object whose ``.fn`` is `fn`. Never raises.
    """
    module_name: Any = getattr(fn, "__module__", None)
    qualname: Any = getattr(fn, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str) or module_name in _BY_VALUE:
        return None
    if "<" in qualname:  # <locals>, <lambda>
        return None
    module = sys.modules.get(module_name)
    if module is None:
        return None
    try:
        found: Any = _walk(module, qualname)
        same = found is fn or (owner is not None and found is owner) or getattr(found, "fn", None) is fn
    except Exception:  # noqa: BLE001 - a module-level __getattr__ or a descriptor of the user's may raise anything
        return None
    if not same:
        return None
    path: Any = module.__dict__.get(_PATH)
    return Address(module_name, qualname, path if isinstance(path, str) else None)


def resolve(address: Address) -> Callable[..., Any]:
    """The function at `address`, in any process; a task found there gives its function.

    Imports the module, or loads its file under the private name, unless that was already done. Raises TransportError
    that names what is missing. Thread-safe.
    """
    module_name, qualname, path = address
    with _loading:
        module = sys.modules.get(module_name)
        if module is None or (path is not None and module.__dict__.get(_PATH) != path):
            module = _load_for(address)
    try:
        found: Any = _walk(module, qualname)
    except Exception as error:
        raise TransportError(
            f"function '{qualname}' is not in {_shown_module(address)} as this worker sees it",
            hint="was the file changed, or does it declare tasks depending on where it runs?",
        ) from error
    # A plain function may carry an attribute `fn` of the user's; only tasks and the like stand for another function.
    return found if isinstance(found, FunctionType) else getattr(found, "fn", found)


def load_for(files: Iterable[tuple[str, str]]) -> None:
    """Load modules, each (private name, path), that are not loaded here yet: what pickled data needs. Raises TransportError."""
    for module, path in files:
        resolve(Address(module, "__name__", path))


def _load_for(address: Address) -> ModuleType:
    try:
        if address.path is not None:
            return load_file(address.path, address.module)
        import importlib

        # as load_file does: a run() at the top level of an importable module must be refused here too
        with marked(address.module):
            return importlib.import_module(address.module)
    except Exception as error:
        ours = error if isinstance(error, FlowError) else None
        reason = ours.message if ours is not None else f"{type(error).__name__}{_first_line(error)}"
        raise TransportError(
            f"function '{address.qualname}' cannot be found: {_shown_module(address)} does not load in this worker"
            f" ({reason})",
            where=(ours.where if ours is not None else None) or user_frame(error),
            hint=ours.hint if ours is not None else None,
        ) from error


def _shown_module(address: Address) -> str:
    return shown_path(address.path) if address.path is not None else f"module '{address.module}'"


def _walk(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
