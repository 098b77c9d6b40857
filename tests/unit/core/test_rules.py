"""Trigger rules: the engine's, those of the tests, and the tables of docs/trigger-rules.md are the same rules."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from flowlane.core.rules import AT_LEAST, TRIGGERS, Trigger, TriggerRule

from ...simulation.trigger_rules import Counts, decide

PAGE = Path(__file__).parents[3] / "docs" / "trigger-rules.md"
WORDS = {"wait": Trigger.WAIT, "run": Trigger.RUN, "skipped": Trigger.SKIP, "upstream_failed": Trigger.FAIL}
SHORT = {"wait": Trigger.WAIT, "run": Trigger.RUN, "skip": Trigger.SKIP, "fail": Trigger.FAIL}
UP_TO_3 = [Counts(*counts) for counts in product(range(4), repeat=4)]


def table(title: str) -> list[list[str]]:
    """The first table below the heading `title`, its line of dashes left out; code is without its backticks."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert lines is not None, title
    rows = [[cell.strip(" `") for cell in line.strip("| ").split("|")] for line in lines[0].splitlines()]
    return [rows[0], *rows[2:]]


def kinds(counts: Counts) -> frozenset[str]:
    return frozenset(word for word in ("ok", "failed", "skipped") if getattr(counts, word))


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_rule_says_what_its_second_writing_says(name: str) -> None:
    rule = TriggerRule(name)
    for counts in UP_TO_3:
        assert rule.decide(*counts) is WORDS[decide(name, counts)], counts


@pytest.mark.parametrize("number", range(1, 8))
def test_a_join_says_what_its_second_writing_says(number: int) -> None:
    rule = TriggerRule(AT_LEAST, number)
    for counts in UP_TO_3:
        assert rule.decide(*counts) is WORDS[decide(AT_LEAST, counts, number)], counts


@pytest.mark.parametrize(
    ("title", "left"), [("When all upstreams have ended", False), ("While at least one is left", True)]
)
def test_the_tables_of_the_page_are_the_rules(title: str, left: bool) -> None:
    (_, *columns), *rows = table(title)
    situations = [frozenset(re.findall("ok|failed|skipped", column)) for column in columns]
    assert len(set(situations)) == len(situations) == (8 if left else 7)
    assert [row[0] for row in rows] == list(TRIGGERS)
    seen = 0
    for name, *says in rows:
        for counts in UP_TO_3:
            if bool(counts.left) == left and (left or sum(counts)):
                assert TriggerRule(name).decide(*counts) is SHORT[says[situations.index(kinds(counts))]], (name, counts)
                seen += 1
    assert seen == len(TRIGGERS) * (192 if left else 63)


def test_the_table_of_joins_is_the_rule() -> None:
    (*_, head), *rows = table("A number of them: `join=n`")
    rule = TriggerRule(AT_LEAST, int(head.removeprefix("join=")))
    for *counts, says in rows:
        assert rule.decide(*map(int, counts)) is SHORT[says], counts
    assert {says for *_, says in rows} == set(SHORT)


@pytest.mark.parametrize("name", [*TRIGGERS, AT_LEAST])
def test_what_is_said_early_stays_true(name: str) -> None:
    rule = TriggerRule(name, 2 if name == AT_LEAST else 0)
    for counts in UP_TO_3:
        says = rule.decide(*counts)
        if says is Trigger.WAIT or not counts.left:
            continue
        ok, failed, skipped, left = counts
        for after in ((ok + 1, failed, skipped), (ok, failed + 1, skipped), (ok, failed, skipped + 1)):
            assert rule.decide(*after, left - 1) is says, (counts, after)


def test_without_upstreams_a_task_runs() -> None:
    for name in TRIGGERS:
        assert TriggerRule(name).decide(0, 0, 0, 0) is Trigger.RUN
    assert TriggerRule(AT_LEAST, 1).decide(0, 0, 0, 0) is Trigger.RUN


def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no trigger rule 'all_succes'; there are all_success, "):
        TriggerRule("all_succes")
    with pytest.raises(ValueError, match="only 'at_least' takes a number"):
        TriggerRule("all_done", 2)
    with pytest.raises(ValueError, match="only 'at_least' takes a number"):
        TriggerRule(AT_LEAST)
