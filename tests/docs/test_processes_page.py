"""docs/how-processes-work.md names tests that exist, cells that the page of a worker has, and options that executors take."""

from __future__ import annotations

import inspect
import re
import tomllib
from typing import Any

import pytest

from flowlane_plugins.executors.processes import ProcessesExecutor
from flowlane_plugins.workers import page as worker_page
from flowlane_plugins.workers import records

from .pages import PAGES, ROOT, blocks, read

PAGE = "docs/how-processes-work.md"
_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)#]+)\)")
_ROW = re.compile(r"^\| (\d+) \|.*\|$", re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if _TEST.search(read(page))])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    for name, path in _TEST.findall(read(page)):
        source = ((ROOT / page).parent / path).resolve().read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), f"{page}: there is no {name} in {path}"


def test_every_promise_is_numbered_and_names_a_test() -> None:
    rows = [match for match in _ROW.finditer(read(PAGE)) if _TEST.search(match[0])]
    assert [int(row[1]) for row in rows] == list(range(1, 23))


def test_every_process_fault_that_is_tested_is_promised() -> None:
    """A fault test that the table does not know is a promise that nobody makes."""
    source = (ROOT / "tests/faults/test_processes.py").read_text(encoding="utf-8")
    tested = set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE))
    assert tested - {name for name, _ in _TEST.findall(read(PAGE))} == set()


def test_the_cells_are_those_of_the_code() -> None:
    section = read(PAGE).partition("## The page")[2].partition("\n## ")[0]
    told = {name: int(number) for number, name in re.findall(r"(\d+) `([A-Z_]+)`", section)}
    cells = {name: vars(worker_page)[name] for name in told}
    assert told == cells
    assert sorted(told.values()) == list(range(len(told)))
    assert set(re.findall(r"^\| `\(([A-Z]+),", section, re.MULTILINE)) == {
        name for name in records.__all__ if name in ("FUNCTION", "JOBS", "FREE", "DROP", "FORGET", "EXIT")
    }


def test_the_options_in_the_readme_are_the_constructors() -> None:
    (table,) = [tomllib.loads(block.text) for block in blocks("README.md") if block.language == "toml"]
    options: dict[str, Any] = table["tool"]["flow"]["executors"]["processes"]
    parameters = inspect.signature(ProcessesExecutor).parameters
    assert sorted(options) == sorted(parameters)
    assert {name: parameters[name].default for name in ("grace", "output_limit")} == {
        name: options[name] for name in ("grace", "output_limit")
    }
    assert ProcessesExecutor(**options).capabilities.default_slots == options["slots"]
