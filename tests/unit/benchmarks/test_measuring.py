"""The arithmetic of the benchmarks: pairs, percentiles, slopes, and the search for METG."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ratio_is_formed_within_each_round(script: Callable[[str], Any]) -> None:
    # The machine slowed down from round to round; the ratio of the medians would be 20 / 5.
    ratio = script("pairs").ratio([2, 6, 20, 30, 100], [1, 3, 5, 15, 50])
    assert ratio == (2, 2, 2, 5)
    ratio = script("pairs").ratio([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert ratio == (3, 2, 4, 5)


def test_a_single_pair_is_its_own_quartiles(script: Callable[[str], Any]) -> None:
    assert script("pairs").ratio([3], [2]) == (1.5, 1.5, 1.5, 1)


def test_what_is_no_pair_is_refused(script: Callable[[str], Any]) -> None:
    pairs = script("pairs")
    with pytest.raises(ValueError, match="shorter"):
        pairs.ratio([1, 2], [1])
    with pytest.raises(ValueError, match="at least one pair"):
        pairs.ratio([], [])


def test_rounds_interleave_and_turn_and_drop_the_first(script: Callable[[str], Any]) -> None:
    called: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def once() -> float:
            called.append(name)
            return float(len(called))

        return once

    samples = script("pairs").rounds({name: contender(name) for name in "abc"}, 3)
    assert "".join(called) == "abcbcacababc"
    assert samples == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}


def test_a_percentile_is_a_value_that_occurred(script: Callable[[str], Any]) -> None:
    percentile = script("pairs").percentile
    hundred = list(range(100, 0, -1))
    assert [percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([7], 0.5) == 7
    assert percentile([1, 2], 0.99) == 2
    assert percentile([1, 2], 0.0) == 1


def test_a_slope(script: Callable[[str], Any]) -> None:
    slope = script("pairs").slope
    assert slope([(0, 5), (10, 25), (20, 45)]) == pytest.approx(2)
    assert slope([(100, 3.5), (200, 3.5), (300, 3.5)]) == 0
    assert slope([(100, 3.5)]) == 0
    assert slope([]) == 0


def test_a_table_says_first_where_it_was_measured(
    script: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    table = script("pairs").Table(True, "3 rounds")
    table.row({"ratio": 2.0}, "2.0×")
    table.say("ray: not installed, left out")
    out, err = capsys.readouterr()
    head, row = map(json.loads, out.splitlines())
    assert set(head["platform"]) == {"python", "implementation", "system", "machine", "cores"}
    assert head["about"] == "3 rounds"
    assert row == {"ratio": 2.0}
    assert "ray" in err


# ── METG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def modelled(module: Any, overhead: float) -> Callable[[float], Any]:
    """A pool whose every task costs `overhead` on top of its work: at 50 % both are equal, so METG is twice the overhead."""
    return lambda work: module.Probe(work, work / (work + overhead), work + overhead)


@given(st.floats(1e-4, 1e3), st.floats(0.2, 0.9), st.floats(0.05, 20))
def test_metg_of_a_known_pool(overhead: float, target: float, away: float) -> None:
    module = _granularity()
    answer, tried = module.metg(modelled(module, overhead), overhead * away, target=target)
    assert answer == pytest.approx(overhead / (1 - target), rel=0.01)
    assert len(tried) < 20


def test_metg_is_told_as_never(script: Callable[[str], Any]) -> None:
    module = script("granularity")
    # threads under a GIL: two cores do the work of one, at any size
    answer, tried = module.metg(lambda work: module.Probe(work, 0.49, 2 * work), 1.0)
    assert answer is None
    assert tried[-1].work == max(probe.work for probe in tried) > 500


def test_metg_of_a_pool_without_overhead_is_an_upper_bound(script: Callable[[str], Any]) -> None:
    module = script("granularity")
    answer, tried = module.metg(lambda work: module.Probe(work, 1.0, work), 1.0)
    assert answer == min(probe.work for probe in tried) < 0.002


def test_metg_lies_between_probes_that_are_close(script: Callable[[str], Any]) -> None:
    module = script("granularity")
    _, tried = module.metg(modelled(module, 1.0), 50.0)
    reached = min(probe.work for probe in tried if probe.efficiency >= 0.5)
    missed = max(probe.work for probe in tried if probe.efficiency < 0.5)
    assert missed < 1.0 <= reached * (1 + 1e-9)
    assert reached / missed <= 1.1
    assert all(math.isfinite(probe.granularity) for probe in tried)


def _granularity() -> Any:
    """As `script` does it; hypothesis does not mix with fixtures of a function's scope."""
    import importlib.util

    from .conftest import FOLDER

    spec = importlib.util.spec_from_file_location("_granularity", FOLDER / "granularity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
