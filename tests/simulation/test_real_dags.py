"""Real graphs: execution traces of scientific workflows, and three large graphs that are not traces.

They load, validate and run as no-ops with every order constraint kept; and list scheduling in virtual time gives, to the
microsecond, the makespans that an independent simulator found. The reader here is our own; the conventions are those
of the data set's README: whole microseconds, at least 1; edges are the union of `parents` and `children`; a task
belongs to the io lane when its average CPU use is under 50 %, else (or when it is not known) to the cpu lane.
"""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flowlane.core import RULES, Lane, Plan, TaskState
from flowlane.testing import Attempt, simulate

DAGS = Path(__file__).parents[3] / "shared" / "dags"
INSTANCES: list[dict[str, Any]] = (
    json.loads((DAGS / "manifest.json").read_text(encoding="utf-8"))["instances"] if DAGS.is_dir() else []
)

pytestmark = pytest.mark.skipif(not INSTANCES, reason="the DAGs are not here (../shared/dags)")
each = pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance["name"])


class Dag(NamedTuple):
    upstreams: list[list[int]]
    duration: list[int]
    io: list[bool]


@cache
def load(file: str) -> Dag:
    with gzip.open(DAGS / file, "rt", encoding="utf-8") as text:
        workflow = json.load(text)["workflow"]
    tasks = workflow["specification"]["tasks"]
    number = {task["id"]: index for index, task in enumerate(tasks)}
    assert len(number) == len(tasks)
    above: list[set[int]] = [set() for _ in tasks]
    for index, task in enumerate(tasks):
        above[index].update(number[parent] for parent in task.get("parents", ()))
        for child in task.get("children", ()):
            above[number[child]].add(index)
    recorded = {entry["id"]: entry for entry in workflow.get("execution", {}).get("tasks", ())}
    duration, io = [1] * len(tasks), [False] * len(tasks)
    for name, index in number.items():
        entry = recorded.get(name, {})
        if (seconds := entry.get("runtimeInSeconds")) is not None:
            duration[index] = max(1, math.floor(seconds * 1e6 + 0.5))
            io[index] = (use := entry.get("avgCPU")) is not None and use / 100 < 0.5
    return Dag([sorted(up - {index}) for index, up in enumerate(above)], duration, io)


@each
def test_the_graph_is_the_one_described(instance: dict[str, Any]) -> None:
    dag = load(instance["file"])
    plan = Plan.build(dag.upstreams, weight=dag.duration)
    assert plan.size == instance["tasks"]
    assert sum(map(len, plan.upstreams)) == instance["edges"]
    assert sum(dag.duration) == instance["serial_us"]
    assert max(plan.rank) == instance["cp_us"]
    path = plan.longest_path(dag.duration)
    assert sum(dag.duration[node] for node in path) == instance["cp_us"]
    assert max(Plan.build(dag.upstreams).rank) == instance["depth"]


@each
def test_it_runs_as_no_ops_with_every_order_constraint_kept(instance: dict[str, Any]) -> None:
    dag = load(instance["file"])
    plan = Plan.build(dag.upstreams, inputs=dag.upstreams)
    run = simulate(plan, [Lane("any", 7)], lambda element, attempt: Attempt(duration=1, told=False))
    assert run.scheduler.counts() == {TaskState.SUCCEEDED: plan.size}
    # read from the history alone: when each task began and ended, by its place in the record
    began: dict[int, int] = {}
    ended: dict[int, int] = {}
    for place, (element, _, code, _) in enumerate(run.history):
        if RULES[code].target == "running":
            began[element] = place
        elif RULES[code].target == "succeeded":
            ended[element] = place
    for element, above in enumerate(dag.upstreams):
        assert all(ended[up] < began[element] for up in above)
    assert len(run.history) == 3 * plan.size
    run.scheduler.check()


@each
@pytest.mark.parametrize("workers", ["2", "8", "64"])
def test_the_makespan_is_that_of_the_reference(instance: dict[str, Any], workers: str) -> None:
    dag = load(instance["file"])
    plan = Plan.build(dag.upstreams, weight=dag.duration)
    run = simulate(
        plan, [Lane("any", int(workers))], lambda element, attempt: Attempt(dag.duration[element], told=False)
    )
    assert run.ended == instance["makespan_us"][workers]["cp"]
    assert run.ended >= instance["makespan_us"][workers]["lower_bound"]


@each
@pytest.mark.parametrize(("cpu", "io"), [(2, 16), (8, 64)])
def test_the_makespan_on_two_lanes_is_that_of_the_reference(instance: dict[str, Any], cpu: int, io: int) -> None:
    dag = load(instance["file"])
    plan = Plan.build(dag.upstreams, weight=dag.duration, lane=[int(is_io) for is_io in dag.io])
    lanes = [Lane("cpu", cpu), Lane("io", io)]
    run = simulate(plan, lanes, lambda element, attempt: Attempt(dag.duration[element], told=False))
    assert run.ended == instance["lanes_us"][f"cpu{cpu}+io{io}"]["cp"]
