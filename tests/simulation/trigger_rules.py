"""The trigger rules once more, for tests: what each one asks of its upstreams, written as Airflow's documentation words it.

Nothing here comes from `flowlane.core.rules`. A rule is a pair of questions about four counts: is it certain that the task
runs, and what does it end as when it is certain that it does not. The tests hold the engine's rules, the table in
docs/trigger-rules.md and these against each other.
"""

from __future__ import annotations

from typing import NamedTuple

WAIT, RUN, SKIP, FAIL = "wait", "run", "skipped", "upstream_failed"


class Counts(NamedTuple):
    """How many upstreams stand how. `failed` is whatever ended without a value and was not skipped."""

    ok: int
    failed: int
    skipped: int
    left: int

    @property
    def all(self) -> int:
        return sum(self)


def decide(rule: str, counts: Counts, at_least: int = 0) -> str:
    """WAIT, RUN, SKIP or FAIL: what `rule` says when its upstreams stand like that; `at_least` is the number of a join."""
    ok, failed, skipped, left = counts
    if counts.all == 0 or rule == "always":
        return RUN
    ended = left == 0
    if at_least:
        if ok >= at_least:
            return RUN
        if ok + left >= at_least:
            return WAIT
        if failed:
            return FAIL
        return SKIP if ended else WAIT
    match rule:
        case "all_success":
            if failed:
                return FAIL
            if left:
                return WAIT
            return SKIP if skipped else RUN
        case "all_failed":
            if failed == counts.all:
                return RUN
            return WAIT if failed + left == counts.all else SKIP
        case "all_skipped":
            if skipped == counts.all:
                return RUN
            return WAIT if skipped + left == counts.all else SKIP
        case "all_done":
            return RUN if ended else WAIT
        case "one_success":
            if ok:
                return RUN
            if not ended:
                return WAIT
            return SKIP if skipped == counts.all else FAIL
        case "one_failed":
            if failed:
                return RUN
            return SKIP if ended else WAIT
        case "one_done":
            if ok or failed:
                return RUN
            return SKIP if ended else WAIT
        case "none_failed":
            if failed:
                return FAIL
            return RUN if ended else WAIT
        case "none_skipped":
            if skipped:
                return SKIP
            return RUN if ended else WAIT
        case "none_failed_min_one_success":
            if failed:
                return FAIL
            if not ended:
                return WAIT
            return RUN if ok else SKIP
        case "all_done_min_one_success":
            if not ended:
                return WAIT
            if ok:
                return RUN
            return FAIL if failed else SKIP
        case _:
            raise ValueError(rule)
