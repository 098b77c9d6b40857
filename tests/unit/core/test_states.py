"""The table of transitions, and the purity of the core that keeps to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flowlane.core
from flowlane.core import DONE, RULES, TERMINAL, Reason, Rule, RunState, TaskState, code_of
from flowlane.core import states as ints

CORE = Path(flowlane.core.__file__).parent
ALLOWED = {
    "__future__",
    "abc",
    "array",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "heapq",
    "math",
    "typing",
}


def test_a_final_state_is_left_for_a_lost_result_only_and_every_other_can_be_left() -> None:
    taken_back = {rule for rule in RULES if rule.source in TERMINAL}
    assert {rule.source for rule in set(RULES) - taken_back} == set(TaskState) - TERMINAL
    assert taken_back == {Rule(state, TaskState.PENDING, Reason.RESULT_LOST) for state in DONE}


def test_every_state_but_the_first_can_be_reached_from_it() -> None:
    reached = {TaskState.PENDING}
    while more := {rule.target for rule in RULES if rule.source in reached} - reached:
        reached |= more
    assert reached == set(TaskState)
    assert {rule.reason for rule in RULES if rule.target is TaskState.PENDING} == {Reason.RESULT_LOST}


def test_every_reason_is_used_and_no_rule_stands_twice() -> None:
    assert {rule.reason for rule in RULES} == set(Reason)
    assert len(set(RULES)) == len(RULES)
    assert len(RULES) <= 256


def test_codes_index_the_table() -> None:
    for code, rule in enumerate(RULES):
        assert code_of(*rule) == code
    with pytest.raises(KeyError):
        code_of(TaskState.PENDING, TaskState.RUNNING, Reason.STARTED)


def test_codes_that_were_written_to_logs_keep_their_meaning() -> None:
    """Append to this list; never change it."""
    s, r = TaskState, Reason
    assert list(RULES[:5]) == [
        Rule(s.PENDING, s.READY, r.UPSTREAM_DONE),
        Rule(s.READY, s.RUNNING, r.STARTED),
        Rule(s.RUNNING, s.SUCCEEDED, r.RETURNED),
        Rule(s.RUNNING, s.FAILED, r.RAISED),
        Rule(s.RUNNING, s.TIMED_OUT, r.ATTEMPT_TIMEOUT),
    ]
    # the rest by a checksum that reads: source, target and reason of each code
    digest = [f"{rule.source[0]}{rule.target[0]}:{rule.reason}" for rule in RULES]
    assert digest[5:29] == [
        "rt:total_timeout",
        "rc:worker_died",
        "rc:cancel_requested",
        "rc:fail_fast",
        "rr:raised",
        "rr:attempt_timeout",
        "rr:worker_died",
        "rr:backoff_elapsed",
        "rt:total_timeout",
        "rc:cancel_requested",
        "rc:fail_fast",
        "rc:drained",
        "rt:total_timeout",
        "rc:cancel_requested",
        "rc:fail_fast",
        "rc:drained",
        "rf:rejected",
        "rr:rejected",
        "rc:worker_died",
        "rr:worker_died",
        "pu:upstream_failed",
        "pc:cancel_requested",
        "pc:fail_fast",
        "pc:drained",
    ]


def test_states_are_their_own_words_and_their_numbers_follow_their_order() -> None:
    assert [f"{state}" for state in TaskState] == [state.name.lower() for state in TaskState]
    assert [f"{state}" for state in RunState] == [state.name.lower() for state in RunState]
    assert [getattr(ints, state.name) for state in ints.STATES] == list(range(len(TaskState)))


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_the_core_imports_nothing_impure(path: Path) -> None:
    """No clock, no randomness, no threads, no event loop, nothing from outside the standard library."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            assert module in ALLOWED or module.startswith("flowlane.core"), f"{path.name} imports {module}"
