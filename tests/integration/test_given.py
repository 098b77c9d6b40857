"""What an engine or a run is given that is not of the kind that is asked for: one sentence, the place, and how to write it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowlane import DefinitionError, Engine, FlowError, Limit, RouteError, Secret, SettingsError, run, task, workflow


@task.io
async def one() -> int:
    return 1


@workflow
def flow() -> int:
    return one()


KINDS: list[tuple[dict[str, Any], str, str]] = [
    ({"slots": 3}, "slots is 3", 'slots={"threads": 8}'),
    ({"slots": {3: 1}}, "slots has the key 3, which is no text", 'slots={"threads": 8}'),
    ({"routes": "threads"}, "routes is 'threads'", 'routes={"cpu": "threads"}'),
    ({"routes": {"cpu": 3}}, "routes has 3 for 'cpu', which is no executor's name", 'routes={"cpu": "threads"}'),
    ({"options": {"processes": 3}}, "options has 3 for 'processes'", '"processes": {'),
    ({"executors": {"mine": 3}}, "executors has 3 for 'mine', which is no executor", "FuturesExecutor(pool)"),
    ({"executors": {"mine": ThreadPoolExecutor}}, "which is no executor", "FuturesExecutor(pool)"),
    ({"sinks": 3}, "sinks is 3", "sinks=[...]"),
    ({"grace": -1}, "grace is -1", "seconds, 0 or more"),
    ({"grace": math.nan}, "grace is nan", "seconds, 0 or more"),
]


def told(error: FlowError) -> tuple[str, str | None]:
    assert error.where is not None
    assert "test_given.py:" in error.where
    return str(error), error.hint


@pytest.mark.parametrize(("given", "message", "hint"), KINDS)
@pytest.mark.parametrize("by", ["engine", "run"])
def test_the_wrong_kind_is_told_at_once(given: dict[str, Any], message: str, hint: str, by: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Engine(**given) if by == "engine" else run(flow.bind(), **given)
    said, advice = told(raised.value)
    assert message in said
    assert advice is not None
    assert hint in advice


def test_a_pool_of_the_standard_library_is_no_executor() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(SettingsError, match="which is no executor"):
        Engine(executors={"mine": pool})  # type: ignore[dict-item]  # that is the slip


@pytest.mark.parametrize("limits", [Limit("api", 3), "api", 3])
def test_limits_are_a_list(limits: Any) -> None:
    with pytest.raises(DefinitionError, match=r"limits=\.\.\.\)? is ") as raised:
        Engine(limits=limits)
    assert told(raised.value)[1] == 'a list of them: limits=[Limit("api", 8)]'


def test_options_of_an_executor_that_is_not_there_are_refused_before_anything_starts() -> None:
    with pytest.raises(RouteError, match="there is no executor 'proceses'") as raised:
        run(flow.bind(), options={"proceses": {"max_tasks": 3}})
    assert raised.value.hint == "did you mean 'processes'?"


def test_a_secret_that_is_no_text_is_refused_as_one_without_a_name() -> None:
    with pytest.raises(ValueError, match="a secret is named, not given"):
        Secret(3)  # type: ignore[arg-type]  # that is the slip
