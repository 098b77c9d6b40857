"""Real and large graphs through the whole engine: declared one by one, compiled, run as no-ops, every order kept.

The files are not part of this project; where they are absent the tests are skipped.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flowlane import Workflow, run, task

DAGS = Path(__file__).resolve().parents[3] / "shared" / "dags"
FILES = sorted(DAGS.glob("*.json.gz"))

pytestmark = pytest.mark.skipif(not FILES, reason="the graphs of ../shared/dags are not here")


def read(path: Path) -> tuple[list[str], set[tuple[str, str]]]:
    """Ids of the tasks in file order, and the edges that parents and children name, each once."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        tasks: list[dict[str, Any]] = json.load(file)["workflow"]["specification"]["tasks"]
    edges = {(parent, each["id"]) for each in tasks for parent in each.get("parents", ())}
    edges |= {(each["id"], child) for each in tasks for child in each.get("children", ())}
    return [each["id"] for each in tasks], {(a, b) for a, b in edges if a != b}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_order_constraint_is_kept(path: Path) -> None:
    ids, edges = read(path)
    order: list[int] = []

    @task.io
    async def note(number: int) -> None:
        order.append(number)

    workflow = Workflow(path.name.partition(".")[0])
    handles = {each: workflow.add(note.bind(number)) for number, each in enumerate(ids)}
    for before, after in edges:
        workflow.order(handles[before], handles[after])
    result = run(workflow)
    assert result.state == "succeeded"
    assert len(order) == len(ids)
    position = {ids[number]: place for place, number in enumerate(order)}
    assert all(position[before] < position[after] for before, after in edges)
