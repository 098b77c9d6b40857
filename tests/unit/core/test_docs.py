"""The pages about the core say what the core does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from flowlane.core import RunState, TaskState, messages

DOCS = Path(__file__).parents[3] / "docs"


def draw_states() -> Any:
    spec = importlib.util.spec_from_file_location("draw_states", DOCS / "draw_states.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_states_is_up_to_date() -> None:
    assert draw_states().main(["--check"]) == 0, "run python docs/draw_states.py"


def test_the_check_of_that_page_can_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = draw_states()
    module.PAGE = tmp_path / "states.md"
    module.PAGE.write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n", encoding="utf-8")
    assert module.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0
    page = module.PAGE.read_text(encoding="utf-8")
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page.splitlines()
    with pytest.raises(SystemExit, match="markers"):
        module.drawn("no markers here")


def test_the_page_explains_every_state() -> None:
    page = (DOCS / "states.md").read_text(encoding="utf-8")
    for state in (*TaskState, *RunState):
        assert f"| `{state}` |" in page


def test_the_embedded_scheduler_prints_what_the_page_shows() -> None:
    page = (DOCS / "embedding-the-scheduler.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 40
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/embedding-the-scheduler.md", "exec"), {})
    assert printed.getvalue() == shown


def test_the_page_names_every_event_and_command() -> None:
    page = (DOCS / "embedding-the-scheduler.md").read_text(encoding="utf-8")
    for message in (*get_args(messages.Event), *get_args(messages.Command)):
        assert f"`{message.__name__}" in page
