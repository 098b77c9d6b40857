"""Verdicts: given where the figures are clear, and nowhere else. Each threshold has a case on either side."""

from __future__ import annotations

import os

import pytest

from flowlane.runtime.runner import Note
from flowlane.verdicts import Verdict, verdicts_of

from .sample_record import MS, Made

US = 1_000


def only(made: Made) -> Verdict:
    (verdict,) = verdicts_of(made.record)
    return verdict


def shipped(count: int, body: int, pause: int, *, lane: str = "processes", kind: str = "cpu") -> Made:
    """`count` tasks one after another on one worker that has the next in hand, `pause` ns between two bodies."""
    made = Made({lane: 1}, stretched=(lane,), pickling=("processes",))
    at = 30 * MS  # the start of the worker is no cost of a task
    for _ in range(count):
        made.add("shop.parse", lane, (0, 0, at, at + body), kind=kind, cpu=body)
        at += body + pause
    return made


# ── too small to ship ─────────────────────────────────────────────────────────────────────────────────────────────


def test_bodies_below_the_cost_of_shipping_are_too_small() -> None:
    verdict = only(shipped(1_000, 20 * US, 310 * US))
    assert (verdict.task, verdict.code) == ("shop.parse", "too_small")
    assert verdict.sentence == (
        "shop.parse is too small to ship: 20 µs of work a task, 0.31 ms to ship it (1,000 tasks); give each task a"
        " batch, or run it inline or on threads"
    )
    assert verdict.figures["body_s"] == pytest.approx(20e-6)
    assert verdict.figures["cost_s"] == pytest.approx(310e-6, rel=0.01)
    assert verdict.figures["tasks"] == 1_000


def test_bodies_above_the_cost_are_not() -> None:
    assert verdicts_of(shipped(1_000, 320 * US, 310 * US).record) == []
    assert only(shipped(1_000, 300 * US, 310 * US)).code == "too_small"


def test_a_few_tasks_and_little_time_are_no_reason() -> None:
    assert verdicts_of(shipped(19, 1 * MS, 9 * MS).record) == []
    assert only(shipped(21, 1 * MS, 9 * MS)).code == "too_small"
    assert verdicts_of(shipped(100, 20 * US, 310 * US).record) == []  # 31 ms in all


def test_only_what_is_shipped_can_be_too_small_to_ship() -> None:
    assert verdicts_of(shipped(1_000, 20 * US, 310 * US, lane="threads").record) == []
    assert verdicts_of(shipped(1_000, 20 * US, 310 * US, kind="io").record) == []


def test_idle_slots_are_no_cost() -> None:
    #   a chain on two slots: launched when the one before has ended, 1 ms apart, begun 0.1 ms later
    made = Made({"processes": 2}, pickling=("processes",))
    for number in range(300):
        at = number * 2 * MS
        made.add("a", "processes", (at, at, at + 100 * US, at + 1 * MS), cpu=900 * US)
    assert verdicts_of(made.record) == []


def test_measured_pickling_is_the_least_that_shipping_costs() -> None:
    made = Made({"processes": 1}, pickling=("processes",))
    for number in range(100):
        at = number * 10 * MS
        made.add("a", "processes", (at, at, at, at + 1 * MS), cpu=1 * MS, pickling=2 * MS)
    verdict = only(made)
    assert verdict.code == "too_small"
    assert verdict.figures["cost_s"] == pytest.approx(2e-3)


# ── cpu and io ────────────────────────────────────────────────────────────────────────────────────────────────────


def ran(wall: int, cpu: int, *, kind: str, lane: str, count: int = 1, at_once: bool = False) -> Made:
    made = Made({lane: 4}, pickling=("processes",))
    for number in range(count):
        at = 0 if at_once else number * wall
        made.add("work", lane, (at, at, at, at + wall), kind=kind, cpu=cpu)
    return made


def test_an_io_task_that_computes() -> None:
    verdict = only(ran(100 * MS, 61 * MS, kind="io", lane="threads"))
    assert verdict.code == "burns_cpu"
    assert verdict.sentence == (
        "work is tagged io, but used the CPU for 61% of its 100 ms; tag it @task.cpu, so that it runs on cores of its own"
    )
    assert verdicts_of(ran(100 * MS, 59 * MS, kind="io", lane="threads").record) == []
    assert verdicts_of(ran(50 * MS, 49 * MS, kind="io", lane="threads").record) == []
    assert verdicts_of(ran(10 * MS, 10 * MS, kind="io", lane="threads", count=4).record) == []
    assert only(ran(10 * MS, 10 * MS, kind="io", lane="threads", count=5)).code == "burns_cpu"


def test_io_threads_that_take_turns_at_the_interpreters_lock() -> None:
    #   four at once, each with a quarter of the one core that they share
    verdict = only(ran(100 * MS, 25 * MS, kind="io", lane="threads", count=4, at_once=True))
    assert verdict.sentence.startswith("work is tagged io, but kept 1.0 cores busy with 100 ms of CPU time")
    assert verdicts_of(ran(100 * MS, 22 * MS, kind="io", lane="threads", count=4, at_once=True).record) == []


def test_an_io_task_sent_to_processes_is_left_alone() -> None:
    assert verdicts_of(ran(100 * MS, 99 * MS, kind="io", lane="processes").record) == []


def test_a_cpu_task_that_waits() -> None:
    verdict = only(ran(100 * MS, 19 * MS, kind="cpu", lane="processes"))
    assert verdict.code == "waits"
    assert verdict.sentence == (
        "work is tagged cpu, but used the CPU for 19% of its 100 ms; it is io: tag it @task.io, and it waits without"
        " holding a worker"
    )
    assert verdicts_of(ran(100 * MS, 21 * MS, kind="cpu", lane="processes").record) == []
    assert verdicts_of(ran(49 * MS, 0, kind="cpu", lane="processes").record) == []


def test_more_workers_than_cores_do_not_make_a_cpu_task_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = ran(100 * MS, 18 * MS, kind="cpu", lane="processes", count=10, at_once=True)  # 1.8 cores between them
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert verdicts_of(crowd.record) == []
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert only(crowd).code == "waits"


def test_what_was_not_measured_is_not_judged() -> None:
    assert verdicts_of(ran(100 * MS, -1, kind="io", lane="threads").record) == []
    assert verdicts_of(ran(100 * MS, -1, kind="cpu", lane="processes").record) == []


# ── the event loop ────────────────────────────────────────────────────────────────────────────────────────────────


def test_whoever_held_the_loop_is_named_with_the_worst_place() -> None:
    made = Made({"asyncio": 4})
    for _ in range(3):
        made.add("fetch", "asyncio", (0, 0, 0, 400 * MS), kind="io")
    made.notes = [
        Note(0, 1, "held the event loop for 312 ms at etl.py:12 in fetch"),
        Note(1, 1, "held the event loop for 1.9 s at etl.py:41 in fetch"),
        Note(2, 1, "is very slow"),
    ]
    verdict = only(made)
    assert verdict.sentence == (
        "fetch held the event loop for 1.9 s at etl.py:41, 2.2 s in 2 times; make it a plain `def`, which runs on"
        " threads, or await an async client"
    )
    assert verdict.figures == {"longest_s": 1.9, "total_s": pytest.approx(2.212), "times": 2}


def test_the_costliest_comes_first_and_tasks_are_told_apart() -> None:
    made = Made({"threads": 4})
    made.add("little", "threads", (0, 0, 0, 60 * MS), kind="io", cpu=60 * MS)
    made.add("much", "threads", (0, 0, 0, 900 * MS), kind="io", cpu=900 * MS)
    assert [verdict.task for verdict in verdicts_of(made.record)] == ["much", "little"]


def test_a_run_over_in_no_time_gets_none() -> None:
    made = Made({"threads": 4, "processes": 2}, pickling=("processes",))
    made.add("a", "threads", (0, 0, 0, 5 * MS), kind="io", cpu=5 * MS)
    made.add("b", "processes", (0, 0, 1 * MS, 2 * MS), cpu=0)
    assert verdicts_of(made.record) == []
    assert verdicts_of(Made({}).record) == []
