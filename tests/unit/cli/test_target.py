"""FILE[:WORKFLOW]: which workflow of which file, and how parameters reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowlane.cli.target import bind, build, find_workflows, one_of, parse_parameters
from flowlane.errors import LoadError, ParameterError, UsageError

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Write

TWO = """
from flowlane import Workflow, task, workflow

@task.io
def read(x: int = 0) -> int:
    return x

@workflow
def first(n: int = 1):
    return read(n)

@workflow(name="second-one")
def second():
    return read()

alias = first
"""


def names(text: str) -> list[str]:
    return [found.name for found in find_workflows(text)]


def test_workflows_come_in_the_order_of_the_file_each_once(write: Write) -> None:
    write("etl.py", TWO)
    assert names("etl.py") == ["first", "second"]
    with pytest.raises(LoadError) as caught:
        one_of("etl.py", find_workflows("etl.py"))
    assert caught.value.message == "etl.py holds several workflows: first, second"
    assert caught.value.hint == "name one: etl.py:first; what only others call may have a name that begins with _"


def test_workflows_for_the_others_to_call_count_when_they_are_named_or_alone(write: Write) -> None:
    inner = TWO.replace("def second", "def _second")
    write("etl.py", inner)
    assert names("etl.py") == ["first"]
    assert names("etl.py:_second") == ["_second"]
    write("etl.py", inner.replace("def first", "def _first").replace("alias = first", ""))
    assert names("etl.py") == ["_first", "_second"]


@pytest.mark.parametrize("name", ["first", "second", "alias"])
def test_a_workflow_is_named_after_a_colon(write: Write, name: str) -> None:
    write("etl.py", TWO)
    assert len(find_workflows(f"etl.py:{name}")) == 1


def test_imported_workflows_count_only_when_there_are_no_others(write: Write) -> None:
    write("library_of_test.py", TWO)
    write("main_of_test.py", "from library_of_test import first\n")
    assert names("main_of_test.py") == ["first"]
    write(
        "main_of_test.py",
        "from library_of_test import first, workflow, read\n@workflow\ndef own():\n    return read()\n",
    )
    assert names("main_of_test.py") == ["own"]
    assert names("main_of_test.py:first") == ["first"]


def test_a_workflow_with_its_result_is_one_workflow(write: Write) -> None:
    write("etl.py", TWO.split("@workflow\n")[0] + "wf = Workflow('w')\na = wf.add(read.bind(3))\njob = wf.returns(a)\n")
    assert names("etl.py") == ["job"]
    found = one_of("etl.py", find_workflows("etl.py"))
    assert build(bind(found, {}, {})).name == "w"


def test_a_bare_program_is_a_workflow(write: Write) -> None:
    write("etl.py", TWO.split("@workflow\n")[0] + "wf = Workflow('w')\na = wf.add(read.bind(3))\n")
    assert names("etl.py") == ["wf"]


def test_a_file_whose_name_holds_a_colon(write: Write) -> None:
    write("a:b.py", TWO)
    assert names("a:b.py") == ["first", "second"]
    assert names("a:b.py:first") == ["first"]


def test_modules_are_found_by_their_dotted_name(write: Write) -> None:
    write("pkg_target_test/__init__.py", "")
    write("pkg_target_test/etl.py", TWO)
    assert names("pkg_target_test.etl") == ["first", "second"]
    assert names("pkg_target_test.etl:second") == ["second"]


@pytest.mark.parametrize("text", ["etl.py:", ":first", "etl.py:a b", "etl.py:1"])
def test_a_malformed_target_is_refused(write: Write, text: str) -> None:
    write("etl.py", TWO)
    with pytest.raises(UsageError, match="FILE"):
        find_workflows(text)


def test_parameters_from_the_line_win_over_the_file(write: Write) -> None:
    write("p.json", '{"a": 1, "b": [2]}')
    assert parse_parameters(["a=x=y", "c="], "p.json") == ({"a": "x=y", "c": ""}, {"b": [2]})
    assert parse_parameters([], None) == ({}, {})


@pytest.mark.parametrize("pair", ["a", "=1", "a b=1", "1=a", ""])
def test_a_pair_needs_a_name(pair: str) -> None:
    with pytest.raises(UsageError, match="not of the form name=value"):
        parse_parameters([pair], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[", "not valid JSON"), ("3", "a number"), ('"x"', "a string"), ("true", "a boolean"), ("[" * 100_000, "nested")],
)
def test_a_parameter_file_is_a_json_object(write: Write, content: str, message: str) -> None:
    write("p.json", content)
    with pytest.raises(ParameterError, match=message):
        parse_parameters([], "p.json")
