"""What travels with its code still knows its file."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import byvalue
from flowlane_plugins.executors.pickling import pickled, pickled_apart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRIPT = """\
from flowlane import run, task, workflow

def halve(number):
    def inner(divisor):
        return number // divisor
    return inner(0)

@task.cpu
def plain(number):
    return halve(number)

@workflow
def numbers():
    return plain(1), task.cpu(lambda number: halve(number)).options(name="anonymous")(2)

result = run(numbers.bind(), check=False)
for failure in result.failures.values():
    print(failure.where.rpartition("/")[2], "return number // divisor" in failure.traceback)
"""


def _apart(value: Any) -> bytes:
    pieces, buffers = pickled_apart(value)
    assert buffers == []
    return b"".join(bytes(piece) for piece in pieces)


@pytest.mark.parametrize("dump", [byvalue.dumps, pickled, _apart])
def test_a_function_that_travels_by_value_keeps_its_file_and_so_do_those_inside_it(
    dump: Callable[[Any], bytes],
) -> None:
    def outer() -> Callable[[], int]:
        return lambda: 1

    there: Any = pickle.loads(dump(outer))
    assert isinstance(there, types.FunctionType)
    assert there is not outer
    assert there.__code__.co_filename == __file__
    assert there().__code__.co_filename == __file__
    assert there.__code__.co_firstlineno == outer.__code__.co_firstlineno


def test_an_error_in_a_worker_names_the_line_of_the_script(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(file)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert ran.stdout.splitlines() == ["script.py:5 in inner True"] * 2, ran.stderr
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_open_file_does_not_travel_as_a_copy_of_its_text(tmp_path: Path) -> None:
    """Red when cloudpickle has its way: what arrives reads like the file, and is none."""
    path = tmp_path / "a.txt"
    path.write_text("text")
    with path.open() as file, pytest.raises(TypeError, match=r"an open file .*: pass its path"):
        byvalue.dumps(file)
    with path.open() as file, pytest.raises(TypeError, match="an open file"):
        byvalue.dumps(lambda: file.read().upper())
    assert callable(pickle.loads(byvalue.dumps(lambda: print("x", file=sys.stderr))))
