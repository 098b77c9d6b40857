"""Bad workflow files and bad command lines: one clear message, the right exit code, no traceback, nothing started.

Every task in these files touches ``ran.txt`` when it runs; none may. Most cases call the command's ``main`` in this
process, which is the same code as the console script's; some start a real one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from flowlane.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PRELUDE = """\
import pathlib
from flowlane import RetryPolicy, Workflow, run, task, workflow

def ran():
    pathlib.Path("ran.txt").touch()

@task.io
def read(x: object = 0) -> int:
    ran()
    return 1

@task.io
async def fetch(x: object = 0) -> int:
    ran()
    return 1

@task.cpu
def work(x: object = 0) -> int:
    ran()
    return 1

"""

GOOD = """
@workflow
def etl(n: int = 1):
    return work(fetch(read(n)))
"""

TYPED = """
import datetime

@workflow
def etl(day: datetime.date, names: list[str], n: int = 1, strict: bool = True):
    return work(fetch(read(n)))
"""


@dataclass
class Case:
    """A file ``etl.py`` (`body` behind the prelude, or `content` alone) and a command line, with what must be said."""

    argv: str
    says: list[str]
    body: str = GOOD
    content: bytes | str | None = None
    files: Mapping[str, bytes | str] = field(default_factory=dict[str, bytes | str])
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    code: int = 2


def body(text: str) -> str:
    """The lines of a workflow's body, as a workflow."""
    return "@workflow\ndef etl():\n" + textwrap.indent(textwrap.dedent(text).strip("\n"), "    ") + "\n"


RUN = "run etl.py"

CASES: dict[str, Case] = {
    # ── command lines ─────────────────────────────────────────────────────────────────────────────────────────────
    "unknown verb": Case("rnu etl.py", ["no verb 'rnu'", "did you mean `flow run`?"]),
    "a file as verb": Case("etl.py", ["no verb 'etl.py'", "flow run etl.py"]),
    "unknown option": Case("run etl.py --rout cpu=threads", ["no option --rout", "did you mean --route"]),
    "unknown option of the group": Case("--verbos run etl.py", ["no option --verbos"]),
    "no file given": Case("run", ["`flow run` needs FILE[:WORKFLOW]", "flow run --help"]),
    "two files given": Case("run etl.py other.py", ["`flow run`", "other.py"]),
    "option without value": Case("run etl.py --route", ["--route", "requires an argument"]),
    "flag with a value": Case("run etl.py --quiet=yes", ["--quiet", "does not take a value"]),
    "bad log format": Case("run etl.py --log-format xml", ["--log-format", "'xml'", "console", "json"]),
    "bad graph format": Case("graph etl.py --format svg", ["--format", "'svg'", "mermaid"]),
    "graph without file": Case("graph", ["`flow graph` needs FILE[:WORKFLOW]"]),
    "executors takes no file": Case("executors etl.py", ["`flow executors`", "etl.py"]),
    # ── finding the file and the workflow ─────────────────────────────────────────────────────────────────────────
    "missing file": Case("run nope.py", ["there is no file nope.py"]),
    "missing file, near miss": Case("run elt.py", ["there is no file elt.py", "did you mean etl.py?"]),
    "missing folder": Case("run no/such/etl.py", ["there is no file no/such/etl.py"]),
    "directory": Case("run folder", ["folder is a directory"], files={"folder/x.py": ""}),
    "directory named like a file": Case("run folder.py", ["folder.py is a directory"], files={"folder.py/x.py": ""}),
    "missing module": Case("run nopkg.etl", ["there is no module 'nopkg'"]),
    "module that lacks the suffix": Case("run etl", ["there is no file etl", "did you mean etl.py?"]),
    "empty name": Case("run etl.py:", ["'etl.py:' is not of the form FILE[:WORKFLOW]"]),
    "name without file": Case("run :etl", ["':etl' is not of the form"]),
    "unknown workflow": Case("run etl.py:elt", ["no workflow 'elt' in etl.py", "did you mean 'etl'?"]),
    "a task asked for": Case("run etl.py:read", ["'read' in etl.py is a task, not a workflow"]),
    "a function asked for": Case("run etl.py:ran", ["'ran' in etl.py is not a workflow", "@workflow"]),
    "no workflow": Case(RUN, ["there is no workflow in etl.py", "@workflow"], body=""),
    "empty file": Case(RUN, ["there is no workflow in etl.py"], content=""),
    "several workflows": Case(
        RUN,
        ["etl.py holds several workflows: etl, second", "flow", "etl.py:etl"],
        body=GOOD + "\n@workflow\ndef second():\n    return read()\n",
    ),
    "several workflows to graph": Case(
        "graph etl.py",
        ["several workflows: etl, second"],
        body=GOOD + "\n@workflow\ndef second():\n    return read()\n",
    ),
    # ── files that are not Python, or raise ───────────────────────────────────────────────────────────────────────
    "syntax error": Case(RUN, ["etl.py is not valid Python", "etl.py:2"], content="x = 1\ndef f(:\n    pass\n"),
    "indentation error": Case(RUN, ["unexpected indent", "etl.py:2"], content="x = 1\n  y = 2\n"),
    "tabs and spaces": Case(RUN, ["etl.py is not valid Python", "etl.py:3"], content="if 1:\n        x = 1\n\ty = 2\n"),
    "unterminated string": Case(RUN, ["etl.py is not valid Python", "etl.py:1"], content="x = 'abc\n"),
    "not UTF-8": Case(RUN, ["etl.py is not valid Python"], content=b"x = '\xe9\xff'\n"),
    "null bytes": Case(RUN, ["etl.py", "null bytes"], content=b"x = 1\x00\n"),
    "binary": Case(RUN, ["etl.py"], content=bytes(range(256)) * 4),
    "unknown encoding": Case(RUN, ["unknown encoding"], content="# -*- coding: klingon -*-\n"),
    "json instead of python": Case("run data.json", ["data.json"], files={"data.json": '{"a": true}'}),
    "missing import": Case(
        RUN, ["No module named 'no_such_package'", "etl.py:1", "installed"], content="import no_such_package\n"
    ),
    "relative import": Case(RUN, ["relative import", "flow run pkg.mod"], content="from . import helpers\n"),
    "error at import": Case(
        RUN, ["etl.py raised ZeroDivisionError: division by zero", "etl.py:3"], content="def f():\n\n    1 / 0\nf()\n"
    ),
    "error in a helper": Case(
        RUN,
        ["raised KeyError", "helper_mod.py:2", "etl.py:1"],
        content="import helper_mod\n",
        files={"helper_mod.py": "x = {}\nx['a']\n"},
    ),
    "syntax error in a helper": Case(
        RUN,
        ["helper_mod2.py is not valid Python", "helper_mod2.py:1"],
        content="import helper_mod2\n",
        files={"helper_mod2.py": "x = (\n"},
    ),
    "sys.exit at import": Case(RUN, ["called sys.exit(0)", "__main__"], content="import sys\nsys.exit(0)\n"),
    "run() at import": Case(
        RUN, ["at the top level of etl.py", "etl.py:", "__main__"], body=body("return read()") + "run(etl)\n"
    ),
    # ── declarations ──────────────────────────────────────────────────────────────────────────────────────────────
    "cpu coroutine": Case(RUN, ["'bad'", "async", "etl.py:"], body="@task.cpu\nasync def bad(): ...\n"),
    "generator task": Case(RUN, ["'bad'", "etl.py:"], body="@task.io\ndef bad():\n    yield 1\n"),
    "async generator task": Case(RUN, ["'bad'", "etl.py:"], body="@task.io\nasync def bad():\n    yield 1\n"),
    "async workflow": Case(
        RUN, ["'etl'", "async def", "etl.py:"], body="@workflow\nasync def etl():\n    return read()\n"
    ),
    "generator workflow": Case(RUN, ["'etl'", "yield"], body="@workflow\ndef etl():\n    yield read()\n"),
    "unknown task option": Case(RUN, ["retrys", "did you mean"], body="@task.io(retrys=3)\ndef bad(): ...\n"),
    "unknown workflow option": Case(RUN, ["on_failur"], body="@workflow(on_failur='continue')\ndef etl(): ...\n"),
    "bad on_failure": Case(RUN, ["on_failure", "fail_fast"], body="@workflow(on_failure='stop')\ndef etl(): ...\n"),
    "bad task name": Case(RUN, ["a/b"], body="@task.io(name='a/b')\ndef bad(): ...\n" + body("return bad()")),
    "control character in a name": Case(
        RUN, ["name"], body="@task.io(name='a\\x1b[31mb')\ndef bad(): ...\n" + body("return bad()")
    ),
    "both retries and retry": Case(
        RUN,
        ["retries", "retry"],
        body="@task.io(retries=1, retry=RetryPolicy(attempts=2))\ndef bad(): ...\n" + body("return bad()"),
    ),
    "negative timeout": Case(
        RUN, ["timeout", "bad"], body="@task.io(timeout=-1)\ndef bad(): ...\n" + body("return bad()")
    ),
    "timeout as text": Case(
        RUN, ["timeout", "bad"], body="@task.io(timeout='soon')\ndef bad(): ...\n" + body("return bad()")
    ),
    "too many retries": Case(
        RUN, ["retries", "bad"], body="@task.io(retries=1000)\ndef bad(): ...\n" + body("return bad()")
    ),
    # ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────
    "error in the body": Case(
        RUN, ["workflow 'etl' raised ValueError: no day", "etl.py:"], body=body("raise ValueError('no day')")
    ),
    "error deep in the body": Case(
        RUN, ["JSONDecodeError", "etl.py:"], body="import json\n" + body("return read(json.loads('{'))")
    ),
    "sys.exit in the body": Case(RUN, ["workflow 'etl' called sys.exit(3)"], body="import sys\n" + body("sys.exit(3)")),
    "handle as bool": Case(RUN, ["read", "etl.py:"], body=body("x = read()\nif x:\n    return x")),
    "handle compared": Case(RUN, ["read", "etl.py:"], body=body("x = read()\nif x == 1:\n    return x")),
    "handle iterated": Case(RUN, ["read", "etl.py:"], body=body("return [work(y) for y in read()]")),
    "handle measured": Case(RUN, ["read", "etl.py:"], body=body("return len(read())")),
    "handle indexed": Case(RUN, ["read", "etl.py:"], body=body("return read()[0]")),
    "handle's attribute": Case(RUN, ["read", "etl.py:"], body=body("return read().name")),
    "handle as text": Case(RUN, ["read", "etl.py:"], body=body("return work(str(read()))")),
    "handle formatted": Case(RUN, ["read", "etl.py:"], body=body("return work(f'x{read()}')")),
    "handle as a key": Case(RUN, ["read", "etl.py:"], body=body("return work({read(): 1})")),
    "handle added": Case(RUN, ["read", "etl.py:"], body=body("return work(read() + 1)")),
    "handle pickled": Case(RUN, ["read", "etl.py:"], body="import pickle\n" + body("pickle.dumps(read())")),
    "handle of another body": Case(
        RUN,
        ["'other'", "'etl'"],
        body="kept = []\n@workflow\ndef other():\n    kept.append(read())\nother.bind().build()\n"
        + body("return work(kept[0])")
        + "del other\n",
    ),
    "task called outside": Case(RUN, ["'read'", "etl.py:"], body="read()\n" + GOOD),
    "workflow called in its own body": Case(RUN, ["'etl'", "bind"], body=body("return etl()")),
    "wrong arguments": Case(RUN, ["'read'", "etl.py:"], body=body("return read(1, 2, 3)")),
    "unknown argument": Case(RUN, ["'read'", "z"], body=body("return read(z=1)")),
    "duplicate names": Case(
        RUN, ["'a'", "etl.py:"], body=body("x = read.options(name='a')()\ny = read.options(name='a')()\nreturn [x, y]")
    ),
    "unknown name in after": Case(RUN, ["'nope'", "etl.py:"], body=body("return read.options(after=['nope'])()")),
    # ── graphs built by programs ──────────────────────────────────────────────────────────────────────────────────
    "cycle": Case(
        RUN,
        ["a → b → a"],
        body="wf = Workflow('w')\na = wf.add(read.bind(), name='a', after=['b'])\nwf.add(read.bind(a), name='b')\n",
    ),
    "self-cycle": Case(RUN, ["a → a"], body="wf = Workflow('w')\nwf.add(read.bind(), name='a', after=['a'])\n"),
    "long cycle": Case(
        RUN,
        ["t0 → "],
        body="wf = Workflow('w')\nfor i in range(5000):\n"
        "    wf.add(read.bind(), name=f't{i}', after=[f't{(i + 1) % 5000}'])\n",
    ),
    "order of unknown": Case(
        RUN, ["'nope'", "etl.py:"], body="wf = Workflow('w')\nwf.add(read.bind(), name='a')\nwf.order('a', 'nope')\n"
    ),
    "name taken": Case(
        RUN,
        ["'a'", "etl.py:"],
        body="wf = Workflow('w')\nwf.add(read.bind(), name='a')\nwf.add(read.bind(), name='a')\n",
    ),
    "bad workflow name": Case(RUN, ["etl.py:"], body="wf = Workflow('a/b')\n"),
    "parameters for a program": Case(
        "run etl.py -p n=1", ["takes no parameters", "'n'"], body="wf = Workflow('w')\nwf.add(read.bind(), name='a')\n"
    ),
    # ── parameters ────────────────────────────────────────────────────────────────────────────────────────────────
    "malformed -p": Case("run etl.py -p n", ["-p 'n' is not of the form name=value"]),
    "nameless -p": Case("run etl.py -p =3", ["-p '=3' is not of the form name=value"]),
    "-p that is no name": Case("run etl.py -p a-b=3", ["-p 'a-b=3' is not of the form"]),
    "-p twice": Case("run etl.py -p n=1 -p n=2", ["parameter 'n' is given twice"]),
    "wrong type": Case("run etl.py -p n=many", ["n", "'many'", "int", "etl.py:"]),
    "unknown parameter": Case("run etl.py -p m=1", ["'m'", "'etl'"]),
    "unknown parameter, near miss": Case("run etl.py -p dya=2026-11-21 -p names=[]", ["'dya'", "'day'"], body=TYPED),
    "missing parameters": Case(RUN, ["day", "names"], body=TYPED),
    "missing parameter to graph": Case("graph etl.py", ["day"], body=TYPED),
    "bad date": Case("run etl.py -p day=yesterday -p names=[]", ["day", "'yesterday'"], body=TYPED),
    "bad list": Case('run etl.py -p day=2026-11-21 -p names=["a"', ["names"], body=TYPED),
    "bad bool": Case(
        'run etl.py -p day=2026-11-21 -p names=["a"] -p strict=perhaps', ["strict", "'perhaps'"], body=TYPED
    ),
    "no parameter file": Case("run etl.py --params nope.json", ["there is no parameter file nope.json"]),
    "parameter file not JSON": Case(
        "run etl.py --params p.json", ["p.json is not valid JSON", "p.json:2"], files={"p.json": '{\n"n": }'}
    ),
    "parameter file an array": Case("run etl.py --params p.json", ["an array, not an object"], files={"p.json": "[1]"}),
    "parameter file null": Case("run etl.py --params p.json", ["null, not an object"], files={"p.json": "null"}),
    "parameter file not UTF-8": Case("run etl.py --params p.json", ["not UTF-8"], files={"p.json": b'{"n": "\xff"}'}),
    "parameter file a folder": Case("run etl.py --params d", ["parameter file d", "is a directory"], files={"d/x": ""}),
    "parameter file, unknown name": Case("run etl.py --params p.json", ["'m'"], files={"p.json": '{"m": 1}'}),
    "parameter file, wrong type": Case("run etl.py --params p.json", ["n", "int"], files={"p.json": '{"n": [1]}'}),
    # ── routes, slots, settings ───────────────────────────────────────────────────────────────────────────────────
    "malformed route": Case("run etl.py --route cpu", ["'cpu' is not of the form KEY=EXECUTOR", "--route"]),
    "route to an unknown executor": Case(
        "run etl.py --route cpu=thread",
        ["no executor 'thread'", "known:", "did you mean 'threads'?", "--route cpu=thread"],
    ),
    "route of an unknown key": Case("run etl.py --route cpuu=threads", ["route cpuu=threads", "did you mean 'cpu'"]),
    "coroutine routed to threads": Case("run etl.py --route io=threads", ["'fetch'", "'threads'", "etl.py:"]),
    "function routed to asyncio": Case("run etl.py --route cpu=asyncio", ["'work'", "'asyncio'", "etl.py:"]),
    "all routed to asyncio": Case("check etl.py --route *=asyncio", ["'asyncio'", "etl.py:"]),
    "executor of a task unknown": Case(
        RUN, ["'bad'", "'gpu'", "known:"], body="@task.cpu(executor='gpu')\ndef bad(): ...\n" + body("return bad()")
    ),
    "executor of a task, checked without parameters": Case(
        "check etl.py",
        ["'bad'", "'gpu'"],
        body="@task.cpu(executor='gpu')\ndef bad(x): ...\n@workflow\ndef etl(n: int):\n    return bad(n)\n",
    ),
    "malformed slots": Case("run etl.py --slots threads", ["'threads' is not of the form EXECUTOR=N"]),
    "slots not a number": Case("run etl.py --slots threads=many", ["slots of 'threads'", "'many'", "--slots"]),
    "no slots": Case("run etl.py --slots threads=0", ["slots of 'threads'", "at least 1"]),
    "slots of an unknown executor": Case(
        "run etl.py --slots thread=3", ["no executor 'thread'", "'threads'", "--slots"]
    ),
    "pyproject broken": Case(
        RUN, ["pyproject.toml is not valid TOML"], files={"pyproject.toml": "[tool.flow]\nroutes = {\n"}
    ),
    "pyproject, unknown setting": Case(
        RUN,
        ["no setting 'route'", "routes", "pyproject.toml"],
        files={"pyproject.toml": "[tool.flow.route]\ncpu='x'\n"},
    ),
    "pyproject, unknown executor": Case(
        RUN,
        ["no executor 'gpu'", "pyproject.toml [tool.flow.routes]"],
        files={"pyproject.toml": "[tool.flow.routes]\ncpu = 'gpu'\n"},
    ),
    "pyproject, bad slots": Case(
        RUN,
        ["slots of 'threads'", "pyproject.toml [tool.flow.slots]"],
        files={"pyproject.toml": "[tool.flow.slots]\nthreads = -1\n"},
    ),
    "pyproject, unknown executor option": Case(
        RUN,
        ["executor 'threads' has no option 'colour'"],
        files={"pyproject.toml": "[tool.flow.executors.threads]\ncolour = 1\n"},
    ),
    "environment, bad routes": Case(RUN, ["FLOW_ROUTES", "'cpu'"], env={"FLOW_ROUTES": "cpu"}),
    "environment, bad slots": Case(RUN, ["FLOW_SLOTS", "'x'"], env={"FLOW_SLOTS": "threads=x"}),
    "environment, unknown executor": Case(RUN, ["FLOW_ROUTES", "'gpu'"], env={"FLOW_ROUTES": "cpu=gpu"}),
    "environment, bad log format": Case(RUN, ["FLOW_LOG_FORMAT", "'xml'"], env={"FLOW_LOG_FORMAT": "xml"}),
    "environment, a slip": Case(RUN, ["FLOW_ROUTE", "did you mean FLOW_ROUTES"], env={"FLOW_ROUTE": "cpu=threads"}),
    "environment, bad JSON": Case(RUN, ["FLOW_EXECUTORS", "JSON"], env={"FLOW_EXECUTORS": "{threads}"}),
    # ── hostile text ──────────────────────────────────────────────────────────────────────────────────────────────
    "escape in a file name": Case("run a\x1b[31mb.py", ["there is no file a\\x1b[31mb.py"]),
    "escape in a message": Case(RUN, ["\\x1b[2J"], body=body("raise ValueError('\\x1b[2J')")),
    "bidi in a message": Case(RUN, ["\\u202e"], body=body("raise ValueError('\\u202eabc')")),
    "message of many lines": Case(
        RUN, ["line 0"], body=body("raise ValueError('\\n'.join(f'line {i}' for i in range(999)))")
    ),
    "broken __str__": Case(
        RUN,
        ["'etl' raised"],
        body="class Bad(Exception):\n    def __str__(self):\n        return 1\n" + body("raise Bad()"),
    ),
}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in os.environ if name.startswith("FLOW_")]:
        monkeypatch.delenv(name)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("flowlane", "networkx", "pydantic", "structlog", "rich", "click")) and (
            name.startswith("_flow_") or "helper_mod" in name
        ):
            del sys.modules[name]


def lay_out(case: Case, folder: Path) -> None:
    content = PRELUDE + case.body if case.content is None else case.content
    for name, text in {"etl.py": content, **case.files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def judge(case: Case, code: int, out: str, err: str, folder: Path) -> None:
    assert code == case.code, err
    assert "Traceback" not in err
    assert len(re.findall(r"(?m)^error: ", err)) == 1, err
    assert len(err.splitlines()) <= 15, err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", err), repr(err)
    missing = [fragment for fragment in case.says if fragment not in err]
    assert not missing, err
    assert str(folder) not in err, "paths inside the working directory are shown relative to it"
    assert out == ""
    assert not (folder / "ran.txt").exists(), "a task ran"
    assert not (folder / ".flow").exists(), "a refused command line leaves nothing behind"


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    lay_out(case, tmp_path)
    for variable, value in case.env.items():
        monkeypatch.setenv(variable, value)
    code = main(case.argv.split(" "))
    out, err = capsys.readouterr()
    judge(case, code, out, err, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["syntax error", "missing file", "cycle", "error in the body", "cpu coroutine", "wrong type", "unknown option"],
)
def test_the_same_from_a_real_process(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    lay_out(case, tmp_path)
    done = start(case.argv.split(" "), tmp_path)
    judge(case, done.returncode, done.stdout, done.stderr, tmp_path)


def start(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLOW_")}
    environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    environ["PYTHONUTF8"] = "1"
    return subprocess.run(
        [sys.executable, "-m", "flowlane", *argv],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


def test_an_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "etl.py"
    path.write_text("x = 1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert main(["run", "etl.py"]) == 2
    assert "etl.py cannot be read: permission denied" in capsys.readouterr().err


def test_no_verb_at_all_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: flow" in err


def test_check_lists_every_workflow_and_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(Case("", [], body=GOOD + "\n@workflow\ndef needy(n: int):\n    return read(n)\n"), tmp_path)
    assert main(["check", "etl.py"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "✔ etl  3 tasks (io 2, cpu 1) · 2 edges · asyncio 1, processes 1, threads 1" in err
    assert "✔ needy  definitions only" in err
    assert not (tmp_path / "ran.txt").exists()


def test_there_are_at_least_sixty_cases() -> None:
    assert len(CASES) >= 60
