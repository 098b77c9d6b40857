"""The entry point: help without click, versions, closed and broken streams."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from flowlane.cli.main import HELP
from flowlane.cli.verbs import VERBS

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Flow, Write

HELLO = """
from flowlane import task, workflow

@task.io
def greet(name: str) -> str:
    print("chatter")
    return f"hello {name}"

@workflow
def hello(name: str = "world"):
    return greet(name)
"""


def test_the_help_lists_exactly_the_verbs_there_are_with_their_short_help() -> None:
    listed = dict(re.findall(r"^  (\w+) +(\w.*)$", HELP.split("Verbs:")[1].split("Options:")[0], re.MULTILINE))
    assert list(listed) == list(VERBS)
    for verb, module in VERBS.items():
        command = getattr(__import__(module, fromlist=["command"]), "command")  # noqa: B009 - a name that mypy cannot know
        assert command.short_help == listed[verb]
        assert command.name == verb


def test_the_help_fits_a_terminal_of_80_columns() -> None:
    assert max(map(len, HELP.splitlines())) <= 80


@pytest.mark.parametrize("argv", [("--help",), ("-h",), ("--help", "run")])
def test_help_is_data_and_no_error(flow: Flow, argv: tuple[str, ...]) -> None:
    done = flow(*argv)
    assert (done.code, done.out.rstrip("\n"), done.err) == (0, HELP.rstrip("\n"), "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_own_help(flow: Flow, verb: str) -> None:
    done = flow(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: flow {verb} ")


def test_the_version_is_one_line(flow: Flow) -> None:
    done = flow("--version")
    assert done.code == 0
    assert re.fullmatch(r"flow \S+\n", done.out)


def test_help_imports_next_to_nothing(environ: dict[str, str]) -> None:
    code = (
        "import sys; from flowlane.cli.main import main; main(['--help']);"
        "heavy = {'click', 'asyncio', 'networkx', 'pydantic', 'structlog', 'rich', 'inspect', 'tomllib', 'json'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_usage_error_imports_click_only(environ: dict[str, str]) -> None:
    code = (
        "import sys; from flowlane.cli.main import main; main(['run', '--help']);"
        "heavy = {'asyncio', 'networkx', 'pydantic', 'structlog', 'rich'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.skipif(not os.path.exists("/bin/sh"), reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("redirect", "code"),
    [
        ("| true", 0),
        ("2>&1 | true", 0),
        (">&- 2>&-", 0),
        ("2>&-", 0),
        pytest.param(
            ">/dev/full", 74, marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
        ),
    ],
)
@pytest.mark.parametrize("argv", ["--help", "run hello.py"])
def test_streams_that_are_closed_broken_or_full_never_end_in_a_traceback(
    write: Write, environ: dict[str, str], argv: str, redirect: str, code: int
) -> None:
    write("hello.py", HELLO)
    script = f'{{ "{sys.executable}" -m flowlane {argv}; echo "code $?" >code.txt; }} {redirect}'
    done = subprocess.run(
        ["/bin/sh", "-c", script], env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    with open("code.txt") as file:
        assert file.read() == f"code {code}\n"
