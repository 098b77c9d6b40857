"""Plans: compiled edges, proved order, ranks, and the policies they carry."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlane.core import NO_RETRY, NotAcyclic, Plan, Policy

quick = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def graphs(draw: st.DrawFn, most: int = 8) -> list[list[int]]:
    """Upstreams by node, of a DAG whose numbers are no topological order."""
    size = draw(st.integers(0, most))
    place = draw(st.permutations(range(size)))
    upstreams: list[list[int]] = [[] for _ in range(size)]
    for position in range(1, size):
        above = draw(st.lists(st.integers(0, position - 1), max_size=3))
        upstreams[place[position]] = [place[up] for up in above]
    return upstreams


def paths_from(plan: Plan, node: int) -> list[list[int]]:
    """Every path from `node` to a sink, by brute force."""
    below = plan.dependants[node]
    return [[node]] if not below else [[node, *path] for down in below for path in paths_from(plan, down)]


def test_edges_are_kept_once_and_both_ways() -> None:
    #   0 ─▶ 1 ─▶ 2,  0 ─▶ 2
    plan = Plan.build([[], [0, 0], [1, 0, 1]])
    assert plan.upstreams == ((), (0,), (1, 0))
    assert plan.dependants == ((1, 2), (2,), ())
    assert plan.order == (0, 1, 2)
    assert plan.rank == (3, 2, 1)
    assert plan.size == 3
    assert plan.inputs == ((), (), ())
    assert plan.policies == (NO_RETRY,)


def test_edges_may_be_any_iterable() -> None:
    plan = Plan.build([iter(()), iter([0]), {0, 1}], inputs=[(), iter([0]), [1, 1]], pinned=iter([2]))
    assert plan.upstreams[1:] == ((0,), (0, 1))
    assert plan.inputs == ((), (0,), (1,))
    assert plan.pinned == {2}


def test_tuples_are_shared_when_nothing_repeats_in_them() -> None:
    pair = (0, 1)
    plan = Plan.build([(), (), pair, (0, 1, 0), [0, 1]], inputs=[(), (), pair, (0, 0), (0,)])
    assert plan.upstreams == ((), (), (0, 1), (0, 1), (0, 1))
    assert plan.inputs == ((), (), (0, 1), (0,), (0,))
    assert plan.upstreams[2] is pair
    assert plan.dependants == ((2, 3, 4), (2, 3, 4), (), (), ())


def test_an_empty_plan() -> None:
    plan = Plan.build([])
    assert plan.size == 0
    assert plan.longest_path([]) == []


@quick
@given(graphs())
def test_the_order_is_topological_and_complete(upstreams: list[list[int]]) -> None:
    plan = Plan.build(upstreams)
    place = {node: position for position, node in enumerate(plan.order)}
    assert sorted(place) == list(range(plan.size))
    for node, above in enumerate(upstreams):
        assert all(place[up] < place[node] for up in above)
        assert set(plan.upstreams[node]) == set(above)
        assert all(node in plan.dependants[up] for up in above)
    assert sum(map(len, plan.dependants)) == sum(map(len, plan.upstreams))


@quick
@given(graphs(), st.data())
def test_ranks_and_the_longest_path_are_those_of_brute_force(upstreams: list[list[int]], data: st.DataObject) -> None:
    weight = data.draw(st.lists(st.integers(0, 9), min_size=len(upstreams), max_size=len(upstreams)))
    plan = Plan.build(upstreams, weight=weight)
    for node in range(plan.size):
        assert plan.rank[node] == max(sum(weight[v] for v in path) for path in paths_from(plan, node))
    path = plan.longest_path(weight)
    if plan.size:
        longest = max(
            sum(weight[v] for v in path)
            for node in range(plan.size)
            if not plan.upstreams[node]
            for path in paths_from(plan, node)
        )
        assert sum(weight[v] for v in path) == longest
        assert not plan.upstreams[path[0]]
        assert not plan.dependants[path[-1]]
        assert all(below in plan.dependants[above] for above, below in pairwise(path))


def test_the_longest_path_takes_its_own_weights() -> None:
    #   0 ─▶ 1 ─▶ 3,  0 ─▶ 2 ─▶ 3      4 alone
    plan = Plan.build([[], [0], [0], [1, 2], []])
    assert plan.longest_path([1, 5, 2, 1, 3]) == [0, 1, 3]
    assert plan.longest_path([1, 2, 5, 1, 3]) == [0, 2, 3]
    assert plan.longest_path([1, 1, 1, 1, 9]) == [4]


def test_a_long_chain_neither_recurses_nor_slows_down() -> None:
    size = 100_000
    plan = Plan.build([[node - 1] if node else [] for node in range(size)], weight=[2] * size)
    assert plan.order == tuple(range(size))
    assert plan.rank[0] == 2 * size
    assert plan.longest_path([1] * size) == list(plan.order)


@pytest.mark.parametrize(
    ("upstreams", "nodes"),
    [
        ([[0]], [0]),
        ([[1], [0]], [0, 1]),
        ([[], [0, 2], [1], [2], [0]], [1, 2, 3]),  # 3 is behind the cycle of 1 and 2; 0 and 4 are free
    ],
)
def test_a_cycle_is_refused_and_its_nodes_are_named(upstreams: list[list[int]], nodes: list[int]) -> None:
    with pytest.raises(NotAcyclic, match=f"{len(nodes)} nodes are on a cycle or behind one") as caught:
        Plan.build(upstreams)
    assert caught.value.nodes == nodes
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upstreams": [[], [2]]}, r"node 1 waits for 2, which is not a node \(0\.\.1\)"),
        ({"upstreams": [[], [-1]]}, r"node 1 waits for -1"),
        ({"lane": [0]}, "lane has 1 entries for 2 nodes"),
        ({"policy": [0, 0, 0]}, "policy has 3 entries for 2 nodes"),
        ({"inputs": [()]}, "inputs has 1 entries for 2 nodes"),
        ({"weight": [1]}, "weight has 1 entries for 2 nodes"),
        ({"lane": [0, -1]}, "lane -1 is not an index"),
        ({"policy": [0, 1]}, r"policy must index the 1 policies: 0\.\.1"),
        ({"policy": [-1, 0]}, r"policy must index the 1 policies: -1\.\.0"),
        ({"pinned": [2]}, r"pinned 2 is not a node \(0\.\.1\)"),
        ({"pinned": [-1]}, r"pinned -1 is not a node"),
        ({"inputs": [(1,), ()]}, r"node 0 reads \[1\], which it does not wait for"),
        ({"inputs": [(), (0, 1)]}, r"node 1 reads \[1\], which it does not wait for"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.build(options.pop("upstreams", [[], [0]]), **options)


# ── policies ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_delays_grow_by_the_factor_up_to_the_cap() -> None:
    policy = Policy(attempts=9, backoff=100, factor=3.0, max_delay=1000)
    assert [policy.delay(retry, 1.0) for retry in range(1, 6)] == [100, 300, 900, 1000, 1000]


def test_a_delay_without_a_cap_stays_within_64_bits() -> None:
    policy = Policy(attempts=255, backoff=10**9, factor=10.0)
    assert policy.delay(1, 1.0) == 10**9
    assert policy.delay(3, 1.0) == 100 * 10**9
    assert policy.delay(254, 1.0) == 9 * 10**18
    assert Policy(backoff=1, factor=1e300).delay(3, 1.0) == 9 * 10**18  # the power overflows a float
    assert Policy(backoff=1, factor=1e300, max_delay=7).delay(3, 1.0) == 7
    assert Policy(backoff=10**9, factor=float("inf")).delay(2, 1.0) == 9 * 10**18
    assert 9 * 10**18 < 2**63


def test_jitter_takes_a_share_of_the_delay() -> None:
    policy = Policy(backoff=100, jitter=True)
    assert [policy.delay(1, share) for share in (0.0, 0.25, 0.999)] == [0, 25, 99]
    assert Policy(backoff=100).delay(1, 0.25) == 100  # without jitter the draw does not matter


def test_no_backoff_is_no_delay() -> None:
    assert Policy(attempts=3, factor=9.0, max_delay=5).delay(2, 1.0) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": 256},
        {"factor": -1.0},
        {"factor": float("nan")},
        {"backoff": -1},
        {"max_delay": -1},
        {"timeout": -1},
        {"total_timeout": -1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Policy(**options)


def test_the_limits_of_a_policy_are_allowed() -> None:
    assert Policy(attempts=255, factor=0.0).delay(2, 1.0) == 0
    assert Policy(backoff=50, factor=0.0).delay(1, 1.0) == 50
