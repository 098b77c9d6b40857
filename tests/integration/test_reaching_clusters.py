"""Clusters that are not there: told in time and in words, without secrets, and with nothing left behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, UsageError, task, workflow

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(100)


@task.cpu
def answer() -> int:
    return 42


@workflow
def asking() -> int:
    return answer()


def refusal(name: str, **options: Any) -> str:
    """What is told of a run that cannot reach its cluster."""
    with (
        Engine(routes={"cpu": name}, options={name: options}) as engine,
        pytest.raises(UsageError) as caught,
    ):
        engine.start(asking).result(60)
    return str(caught.value)


def left_behind() -> list[str]:
    """Threads of the executors and of Dask's clients that do not end."""
    ours = [each for each in threading.enumerate() if each.name.startswith(("IO loop", "flowlane-"))]
    for each in ours:
        each.join(10)
    return [each.name for each in ours if each.is_alive()]


def test_a_dask_scheduler_that_does_not_answer_leaves_no_thread_behind() -> None:
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    told = refusal("dask", address="tcp://127.0.0.1:1", connect_timeout=0.5)
    assert "executor 'dask' finds no scheduler at tcp://127.0.0.1:1" in told
    assert left_behind() == []


def test_a_dask_scheduler_that_never_writes_its_file_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    place = tmp_path / "scheduler.json"
    told = refusal("dask", scheduler_file=str(place), connect_timeout=0.2)
    assert f"finds no scheduler at {place}: TimeoutError: there is no such file after 0.2 s" in told


def test_a_ray_head_that_does_not_answer_is_not_waited_for_for_minutes() -> None:
    pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
    told = refusal("ray", address="127.0.0.1:1", connect_timeout=0.2)
    assert "executor 'ray' finds no cluster at 127.0.0.1:1: TimeoutError: nobody answers there within 0.2 s" in told
    assert left_behind() == []


@pytest.mark.parametrize(
    ("name", "package", "address"),
    [
        ("dask", "distributed", "tls://me:pa55word@127.0.0.1:1"),
        ("ray", "ray", "ray://me:pa55word@127.0.0.1:1"),
    ],
)
def test_a_password_in_an_address_is_not_told(name: str, package: str, address: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed: flowlane[{name}]")
    told = refusal(name, address=address, connect_timeout=0.2)
    assert "pa55word" not in told and "me:***@127.0.0.1:1" in told
