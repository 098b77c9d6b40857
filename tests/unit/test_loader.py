"""The loader: files under private names, addresses that lead back, and errors that point at the user's line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import loader
from flowlane.errors import DefinitionError, LoadError, TransportError, UsageError
from flowlane.loader import Address, address_of, load_file, load_module, module_name_for, resolve, shown_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _forget_what_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


class Wrapped:
    """Stands for a task: an object with the function as ``fn``."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn


TASK_FILE = """
    class Wrapped:
        def __init__(self, fn):
            self.fn = fn

    def plain():
        return "plain"

    @Wrapped
    def wrapped():
        return "wrapped"

    class Group:
        @staticmethod
        def member():
            return "member"

    def outer():
        def inner():
            return "inner"
        return inner

    nameless = lambda: None
    replaced = plain
    def plain():
        return "second"
"""


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("etl.py", "_flow_etl"),
        ("some/where/etl.py", "_flow_etl"),
        ("/abs/etl.py", "_flow_etl"),
        ("my-etl v2.py", "_flow_my_etl_v2"),
        ("2026.py", "_flow_2026"),
        ("straße.py", "_flow_straße"),
        ("x².py", "_flow_x_"),
        ("a.b.py", "_flow_a_b"),
        ("noext", "_flow_noext"),
    ],
)
def test_the_module_name_depends_on_the_stem_only(path: str, name: str) -> None:
    assert module_name_for(path) == name
    assert module_name_for(path).isidentifier()


def test_a_file_is_loaded_under_its_private_name_with_its_folder_first_on_the_path(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "helper_of_etl.py", "VALUE = 7\n")
    file = write(tmp_path / "sub" / "etl.py", "import helper_of_etl\nname = __name__\nvalue = helper_of_etl.VALUE\n")
    module = load_file("sub/etl.py")
    assert module.name == "_flow_etl"
    assert sys.modules["_flow_etl"] is module
    assert module.value == 7
    assert module.__file__ == str(file)
    assert sys.path[0] == os.path.realpath(tmp_path / "sub")


def test_loading_twice_executes_twice_and_adds_no_second_path_entry(tmp_path: Path) -> None:
    write(tmp_path / "etl.py", "x = 1\n")
    load_file("etl.py")
    write(tmp_path / "etl.py", "x = 2\n")  # same length, same second: a bytecode cache would give 1
    assert load_file("etl.py").x == 2
    assert sys.path.count(os.path.realpath(tmp_path)) == 1
    assert not (tmp_path / "__pycache__").exists()


def test_a_module_that_does_not_load_leaves_the_earlier_one_in_place(tmp_path: Path) -> None:
    write(tmp_path / "etl.py", "x = 1\n")
    first = load_file("etl.py")
    write(tmp_path / "etl.py", "1 / 0\n")
    with pytest.raises(LoadError):
        load_file("etl.py")
    assert sys.modules["_flow_etl"] is first
    write(tmp_path / "other.py", "1 / 0\n")
    with pytest.raises(LoadError):
        load_file("other.py")
    assert "_flow_other" not in sys.modules


def test_a_file_can_be_asked_for_while_it_is_executed(tmp_path: Path) -> None:
    assert loader.loading() is None
    write(tmp_path / "etl.py", "from flowlane.loader import loading\nseen = loading()\n")
    assert load_file("etl.py").seen == "etl.py"
    write(tmp_path / "etl.py", "1 / 0\n")
    with pytest.raises(LoadError):
        load_file("etl.py")
    assert loader.loading() is None


def test_source_and_dataclasses_work_as_in_an_imported_module(tmp_path: Path) -> None:
    write(
        tmp_path / "etl.py",
        """
        from __future__ import annotations
        import dataclasses, inspect, pickle

        @dataclasses.dataclass
        class Row:
            n: int

        def f():
            return Row(1)

        source = inspect.getsource(f)
        again = pickle.loads(pickle.dumps(f()))
        """,
    )
    module = load_file("etl.py")
    assert "return Row(1)" in module.source
    assert module.again == module.Row(1)


def test_what_the_file_raises_is_told_with_the_line_of_the_users_own_code(tmp_path: Path) -> None:
    write(tmp_path / "etl.py", "import json\n\ndef read():\n    return json.loads('{')\n\nread()\n")
    with pytest.raises(LoadError) as caught:
        load_file("etl.py")
    assert caught.value.message.startswith("etl.py raised json.decoder.JSONDecodeError: ")
    assert caught.value.where == "etl.py:4"  # not the line in json


def test_our_own_errors_pass_unchanged(tmp_path: Path) -> None:
    write(
        tmp_path / "etl.py",
        "from flowlane.errors import DefinitionError\nraise DefinitionError('wrong', where='etl.py:2')\n",
    )
    with pytest.raises(DefinitionError) as caught:
        load_file("etl.py")
    assert caught.value.message == "wrong"


@pytest.mark.parametrize(
    ("content", "message", "where"),
    [
        (b"def f(:\n    pass\n", "etl.py is not valid Python", "etl.py:1"),
        (b"x = 1\n  y = 2\n", "unexpected indent", "etl.py:2"),
        (b"x = '\xff\xfe'\n", "etl.py is not valid Python", "etl.py"),
        (b"x = 1\x00\n", "null bytes", "etl.py"),
        (b"# coding: klingon\n", "unknown encoding", "etl.py"),
        (b"import os\nos._no_such_name\n", "AttributeError", "etl.py:2"),
        (b"import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'", "etl.py:1"),
        (b"from . import x\n", "relative import", "etl.py:1"),
        (b"x = 1\nraise SystemExit(3)\n", "called sys.exit(3)", "etl.py:2"),
        (b"(" * 500 + b")" * 500, "etl.py", "etl.py"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, content: bytes, message: str, where: str) -> None:
    (tmp_path / "etl.py").write_bytes(content)
    with pytest.raises(LoadError) as caught:
        load_file("etl.py")
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert (caught.value.where or "").startswith(where)


def test_a_syntax_error_in_an_imported_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path / "broken_part.py", "x = (\n")
    write(tmp_path / "etl.py", "import broken_part\n")
    with pytest.raises(LoadError) as caught:
        load_file("etl.py")
    assert caught.value.where == "broken_part.py:1"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "pipeline.py", "")
    (tmp_path / "folder.py").mkdir()
    for path, message, hint in [
        ("pipelin.py", "there is no file pipelin.py", "did you mean pipeline.py?"),
        ("folder.py", "folder.py is a directory", "NAME.py"),
        ("pipeline.py/etl.py", "there is no file pipeline.py/etl.py", ""),
        ("a\0b.py", "cannot be read", ""),
        ("n" * 300 + ".py", "cannot be read", ""),
    ]:
        with pytest.raises(LoadError) as caught:
            load_file(path)
        assert message in caught.value.message
        assert hint in (caught.value.hint or "")


def test_a_dotted_module_is_imported_from_the_working_directory(tmp_path: Path) -> None:
    write(tmp_path / "pkg_of_test" / "__init__.py", "")
    write(tmp_path / "pkg_of_test" / "etl.py", "from . import part\nvalue = part.VALUE\n")
    write(tmp_path / "pkg_of_test" / "part.py", "VALUE = 3\n")
    assert load_module("pkg_of_test.etl").value == 3
    assert address_of(load_module) == Address("flowlane.loader", "load_module", None)


@pytest.mark.parametrize("name", ["no_such_pkg_here", "no_such_pkg_here.etl"])
def test_a_missing_module_is_told_apart_from_one_that_misses_another(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoadError, match="there is no module 'no_such_pkg_here'"):
        load_module(name)
    write(tmp_path / "needy_module.py", "import no_such_pkg_here\n")
    with pytest.raises(LoadError, match="module 'needy_module' raised ModuleNotFoundError") as caught:
        load_module("needy_module")
    assert caught.value.where == "needy_module.py:1"


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_functions_of_a_loaded_file_have_an_address_with_its_path(tmp_path: Path) -> None:
    file = write(tmp_path / "etl.py", TASK_FILE)
    module = load_file("etl.py")
    assert address_of(module.plain) == Address("_flow_etl", "plain", str(file))
    assert address_of(module.wrapped.fn) == Address("_flow_etl", "wrapped", str(file))
    assert address_of(module.wrapped.fn, owner=module.wrapped) == Address("_flow_etl", "wrapped", str(file))
    assert address_of(module.Group.member) == Address("_flow_etl", "Group.member", str(file))


def test_what_is_not_found_again_has_no_address(tmp_path: Path) -> None:
    write(tmp_path / "etl.py", TASK_FILE)
    module = load_file("etl.py")
    assert address_of(module.outer()) is None
    assert address_of(module.nameless) is None
    assert address_of(module.replaced) is None  # another function has its name now
    gone = module.plain
    del sys.modules["_flow_etl"]
    assert address_of(gone) is None
    assert address_of(Wrapped(gone)) is None  # type: ignore[arg-type]  # no name at all


@pytest.mark.parametrize("module", ["__main__", "__mp_main__"])
def test_functions_of_main_have_no_address(module: str) -> None:
    def function() -> None: ...

    function.__module__, function.__qualname__ = module, "function"
    assert address_of(function) is None


def test_a_module_whose_lookup_raises_gives_no_address() -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    def function() -> None: ...

    function.__module__, function.__qualname__ = "hostile_module_of_test", "function"
    sys.modules["hostile_module_of_test"] = Hostile()  # type: ignore[assignment]
    assert address_of(function) is None


def test_an_address_resolves_to_the_function_behind_a_task(tmp_path: Path) -> None:
    write(tmp_path / "etl.py", TASK_FILE)
    module = load_file("etl.py")
    for name in ("plain", "wrapped"):
        fn = getattr(module, name)
        fn = fn.fn if name == "wrapped" else fn
        address = address_of(fn)
        assert address is not None
        assert resolve(address) is fn


def test_a_plain_function_with_an_attribute_fn_stays_itself(tmp_path: Path) -> None:
    write(tmp_path / "etl.py", "def f():\n    return 'f'\nf.fn = len\n")
    module = load_file("etl.py")
    assert resolve(Address("_flow_etl", "f", module.__file__)) is module.f


def test_an_address_resolves_in_another_process(tmp_path: Path) -> None:
    file = write(tmp_path / "etl.py", TASK_FILE)
    code = f"from flowlane.loader import *; print(resolve(Address('_flow_etl', 'wrapped', {str(file)!r}))())"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.stdout == "wrapped\n", done.stderr


def test_two_threads_that_resolve_load_the_file_once(tmp_path: Path) -> None:
    import threading

    write(tmp_path / "count_me.txt", "")
    file = write(
        tmp_path / "etl.py",
        """
        import time
        with open("count_me.txt", "a") as f:
            f.write("x")
        time.sleep(0.05)
        def f(): ...
        """,
    )
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve(Address("_flow_etl", "f", str(file))))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count_me.txt").read_text() == "x"
    assert len(set(found)) == 1


def test_a_file_of_the_same_name_elsewhere_is_not_taken_for_the_other(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "etl.py", "def f():\n    return 'a'\n")
    two = write(tmp_path / "b" / "etl.py", "def f():\n    return 'b'\n")
    assert resolve(Address("_flow_etl", "f", str(one)))() == "a"
    assert resolve(Address("_flow_etl", "f", str(two)))() == "b"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (Address("no_such_module_x", "f", None), "function 'f' cannot be found: module 'no_such_module_x'"),
        (Address("flowlane.loader", "no_such_function", None), "'no_such_function' is not in module 'flowlane.loader'"),
        (Address("_flow_gone", "f", "gone.py"), "there is no file gone.py"),
    ],
)
def test_an_address_that_leads_nowhere_says_what_is_missing(address: Address, message: str) -> None:
    with pytest.raises(TransportError) as caught:
        resolve(address)
    assert message in caught.value.message


UNGUARDED = """
    from flowlane import run, task, workflow

    @task.io
    def f(): ...

    @workflow
    def wf():
        f()

    run(wf)
"""


@pytest.fixture
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is not refused fails here, before anything is started."""

    def started(*_: Any, **__: Any) -> Any:
        raise AssertionError("an engine was made")

    monkeypatch.setattr("flowlane.engine.Engine.__init__", started)


@pytest.mark.usefixtures("_no_engine")
def test_a_run_at_the_top_level_of_a_module_that_resolve_imports_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "unguarded_module.py", UNGUARDED)
    sys.path.insert(0, str(tmp_path))
    with pytest.raises(TransportError) as caught:
        resolve(Address("unguarded_module", "f", None))
    assert isinstance(caught.value.__cause__, UsageError)
    assert "run() was started at the top level of unguarded_module" in caught.value.message
    assert caught.value.where == "unguarded_module.py:11"
    assert 'if __name__ == "__main__":' in (caught.value.hint or "")
    assert "unguarded_module" not in sys.modules
    assert loader.loading() is None


@pytest.mark.usefixtures("_no_engine")
def test_a_run_at_the_top_level_of_a_module_given_by_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "unguarded_given.py", UNGUARDED)
    with pytest.raises(UsageError, match="top level of unguarded_given") as caught:
        load_module("unguarded_given")
    assert caught.value.where == "unguarded_given.py:11"
    assert loader.loading() is None


def test_paths_are_shown_relative_only_inside_the_working_directory(tmp_path: Path) -> None:
    assert shown_path(str(tmp_path / "sub" / "etl.py")) == os.path.join("sub", "etl.py")
    assert shown_path(str(tmp_path.parent / "etl.py")) == str(tmp_path.parent / "etl.py")
    assert shown_path("sub/etl.py") == "sub/etl.py"


def test_the_loader_is_light() -> None:
    code = (
        "import sys; import flowlane.loader;"
        "print([m for m in ('asyncio','pydantic','networkx','click','inspect') if m in sys.modules])"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert loader.__doc__
