"""What there is to do, as frozen tuples of ints: built once by ``Plan.build``, read by the scheduler, shared freely.

A node is an int, 0..size-1, in the order of declaration. Names, functions and values live elsewhere. A plan proves its own
topological order when it is built (Kahn 1962), and ranks each node by the longest way from it to a sink, the
upward rank of list scheduling (Topcuoglu, Hariri, Wu 2002).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowlane.core.rules import TriggerRule

__all__ = ["NO_RETRY", "REMAKES", "SLOT", "Guard", "MapSpec", "NotAcyclic", "Plan", "Policy", "Requirement"]


#: How often a value that was lost is made again, unless its policy says otherwise: enough for machines that go one by one.
REMAKES: Final = 3


class NotAcyclic(ValueError):
    """The edges do not form a DAG; `nodes` are those on a cycle or behind one."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__(f"{len(nodes)} nodes are on a cycle or behind one")
        self.nodes = nodes


@dataclass(frozen=True, slots=True)
class Policy:
    """How attempts of a task are limited and repeated. Times in ns; 0 for a timeout means none.

    The k-th retry waits ``min(max_delay, backoff · factor^(k-1))``, or a uniform share of that with `jitter`.

    `remakes` says how often its value may be made again when it is lost before everybody has read it; each time it has all its
    attempts. 0 for a task that must not run twice.
    """

    attempts: int = 1
    backoff: int = 0
    factor: float = 2.0
    max_delay: int = 0
    jitter: bool = False
    timeout: int = 0
    total_timeout: int = 0
    retry_timeouts: bool = False
    retry_crashes: bool = False
    remakes: int = REMAKES

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 255:  # the scheduler counts them in a byte
            raise ValueError(f"attempts must be 1 to 255, not {self.attempts}")
        if not self.factor >= 0:  # written so that NaN is refused as well
            raise ValueError(f"factor must not be negative, not {self.factor}")
        if not 0 <= self.remakes <= 255:
            raise ValueError(f"remakes must be 0 to 255, not {self.remakes}")
        for name in ("backoff", "max_delay", "timeout", "total_timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (none) or ns above it, not {getattr(self, name)}")

    def delay(self, retry: int, share: float) -> int:
        """ns to wait before the `retry`-th retry (from 1); `share` in [0, 1) is the caller's draw for jitter."""
        if not self.backoff:
            return 0
        # factor ** 1000 overflows a float; past the cap the exact power does not matter
        try:
            delay = self.backoff * self.factor ** (retry - 1)
        except OverflowError:
            delay = float("inf")
        if self.max_delay:
            delay = min(delay, float(self.max_delay))
        delay = min(delay, 9e18)  # stay within 64 bits of ns (292 years)
        return int(delay * share) if self.jitter else int(delay)


NO_RETRY: Final = Policy()


class Guard(NamedTuple):
    """A condition: the node runs only if `node` succeeded with bit `bit` set in what was chosen there."""

    node: int
    bit: int


class Requirement(NamedTuple):
    """What an attempt holds while it is out: so many slots of its lane, and of limits (by index) so much."""

    slots: int = 1
    limits: tuple[tuple[int, int], ...] = ()


#: What an attempt holds as a rule.
SLOT: Final = Requirement()


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A node that becomes elements at run time: one for each item of a source of its own, or of the maps it is chained to.

    over         the map nodes that it takes its items from, element by element: one *chain* of maps, whose element i goes on
                 as soon as it is there. Empty: the first of a chain
    window       indices that may be under way in the chain at a time; 0 for `WINDOW`. Counts where it is the first of it
    enough       so many successes end the map; 0: it ends when all its elements have
    cancel_rest  with `enough`: the elements that are left are cancelled; else they run out, and nobody waits for them
    grafts       each element is a graph of its own, made when its turn comes
    fan_in       a reduction of the one map or list it reads: elements merge so many items each, level by level, until one is
                 left; 0: it is no reduction
    """

    over: tuple[int, ...] = ()
    window: int = 0
    enough: int = 0
    cancel_rest: bool = True
    grafts: bool = False
    fan_in: int = 0

    def __post_init__(self) -> None:
        if min(self.window, self.enough) < 0 or self.fan_in < 0 or self.fan_in == 1:
            raise ValueError(f"window, enough and fan_in must be 0 or more, and fan_in not 1: {self}")


#: Indices of a chain of maps that may be under way at a time, unless it says. Enough for 64 slots of asyncio and a process pool
#: that likes 64 jobs a worker in hand, at 1 ms of their work; what is ready beyond that only costs memory.
WINDOW: Final = 1_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A DAG ready to be scheduled. Build it with `build`; every field is indexed by node unless it says otherwise.

    dependants  nodes that wait for this one (each once)
    upstreams   nodes this one waits for (each once)
    inputs      the upstreams whose value it reads
    lane        index of the lane it runs on
    policy      index into `policies`
    rank        longest way to a sink, its own weight included
    order       not by node: all nodes in a topological order
    policies    not by node: the distinct policies
    pinned      not by node: nodes whose value is part of the run's result, so never released
    fail_fast   the first failure stops the run

    What only some graphs have is sparse, by node:

    rules        trigger rules other than "all_success"
    guards       conditions, see Guard
    maps         nodes that become elements
    grafts       nodes that become a graph of their own when their turn comes
    teardowns    nodes that tidy up → the nodes after whose end, however they end, they run; the other upstreams are the set-up
    scopes       not by node: groups of nodes in which the first failure cancels the rest
    may_fail     nodes whose failure does not fail the run
    requirement  index into `requirements`, 0 where it is not said
    priority     higher ones start first, whatever their rank
    max_failures failures that end the run as fail_fast does; 0: none
    max_share    the same as a share of its tasks, per cent; 0: none
    deadline     ns after its start at which the run is cancelled; 0: none
    retry_budget retries that all tasks of the run have together; -1: as many as they like

    Of a graph that an element has become, `fail_fast` and the last four hold for that.
    """

    dependants: tuple[tuple[int, ...], ...]
    upstreams: tuple[tuple[int, ...], ...]
    inputs: tuple[tuple[int, ...], ...]
    lane: tuple[int, ...]
    policy: tuple[int, ...]
    rank: tuple[int, ...]
    order: tuple[int, ...]
    policies: tuple[Policy, ...] = (NO_RETRY,)
    pinned: frozenset[int] = field(default_factory=frozenset[int])
    fail_fast: bool = False
    rules: Mapping[int, TriggerRule] = field(default_factory=dict[int, Any])
    guards: Mapping[int, tuple[Guard, ...]] = field(default_factory=dict[int, Any])
    maps: Mapping[int, MapSpec] = field(default_factory=dict[int, Any])
    grafts: frozenset[int] = frozenset()
    teardowns: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, Any])
    scopes: tuple[tuple[int, ...], ...] = ()
    may_fail: frozenset[int] = frozenset()
    requirement: Mapping[int, int] = field(default_factory=dict[int, Any])
    requirements: tuple[Requirement, ...] = (SLOT,)
    priority: Mapping[int, int] = field(default_factory=dict[int, Any])
    max_failures: int = 0
    max_share: float = 0.0
    deadline: int = 0
    retry_budget: int = -1

    @property
    def size(self) -> int:
        return len(self.upstreams)

    @classmethod
    def build(
        cls,
        upstreams: Sequence[Iterable[int]],
        *,
        inputs: Sequence[Iterable[int]] | None = None,
        lane: Sequence[int] | None = None,
        policy: Sequence[int] | None = None,
        policies: Sequence[Policy] = (NO_RETRY,),
        weight: Sequence[int] | None = None,
        pinned: Iterable[int] = (),
        fail_fast: bool = False,
        **sparse: Any,
    ) -> Plan:
        """Compile edges (``upstreams[v]`` = what v waits for) into a plan.

        `inputs` defaults to no data edges, `lane` and `policy` to index 0, `weight` (for ranks: any unit of time, such as
        learned durations) to 1 each. `sparse` are the fields of that kind, as they are.
        Raises NotAcyclic, and ValueError for an index out of range. O(nodes + edges), iterative.
        """
        size = len(upstreams)
        empty: tuple[int, ...] = ()
        ups = tuple([_distinct(us) for us in upstreams])
        downs: list[list[int] | None] = [None] * size
        left = [0] * size
        for node, us in enumerate(ups):
            left[node] = len(us)
            for up in us:
                if not 0 <= up < size:
                    raise ValueError(f"node {node} waits for {up}, which is not a node (0..{size - 1})")
                below = downs[up]
                if below is None:
                    downs[up] = [node]
                else:
                    below.append(node)
        dependants = tuple([tuple(d) if d else empty for d in downs])
        order = [node for node in range(size) if not left[node]]
        for node in order:  # grows while it is walked: Kahn's queue and its result in one list
            for below_node in dependants[node]:
                left[below_node] -= 1
                if not left[below_node]:
                    order.append(below_node)
        if len(order) != size:
            raise NotAcyclic([node for node in range(size) if left[node]])
        columns = (("inputs", inputs), ("lane", lane), ("policy", policy), ("weight", weight))
        for name, column in columns:
            if column is not None and len(column) != size:
                raise ValueError(f"{name} has {len(column)} entries for {size} nodes")
        data = (empty,) * size if inputs is None else tuple([_distinct(reads) for reads in inputs])
        plan = cls(
            dependants=dependants,
            upstreams=ups,
            inputs=data,
            lane=tuple(lane) if lane is not None else (0,) * size,
            policy=tuple(policy) if policy is not None else (0,) * size,
            rank=tuple(distances_to_sink(dependants, order, weight)),
            order=tuple(order),
            policies=tuple(policies),
            pinned=frozenset(pinned),
            fail_fast=fail_fast,
            **sparse,
        )
        if min(plan.lane, default=0) < 0:
            raise ValueError(f"lane {min(plan.lane)} is not an index")
        if plan.policy and not 0 <= min(plan.policy) <= max(plan.policy) < len(plan.policies):
            raise ValueError(
                f"policy must index the {len(plan.policies)} policies: {min(plan.policy)}..{max(plan.policy)}"
            )
        if foreign := [node for node in plan.pinned if not 0 <= node < size]:
            raise ValueError(f"pinned {foreign[0]} is not a node (0..{size - 1})")
        if inputs is not None:
            for node, reads in enumerate(data):
                if reads and reads != ups[node] and not set(reads) <= set(ups[node]):
                    raise ValueError(
                        f"node {node} reads {sorted(set(reads) - set(ups[node]))}, which it does not wait for"
                    )
        if sparse:
            plan.check_sparse()
        return plan

    def check_sparse(self) -> None:
        """Raise ValueError unless the sparse fields name nodes of this plan, and agree with its edges."""
        size = self.size
        for name in ("rules", "guards", "maps", "teardowns", "requirement", "priority"):
            for node in getattr(self, name):
                if not 0 <= node < size:
                    raise ValueError(f"{name} has {node}, which is not a node (0..{size - 1})")
        for node, guards in self.guards.items():
            for guard in guards:
                if guard.node not in self.upstreams[node]:
                    raise ValueError(f"node {node} is guarded by {guard.node}, which it does not wait for")
        for node, spec in self.maps.items():
            for up in spec.over:
                if up not in self.maps or up not in self.upstreams[node]:
                    raise ValueError(f"node {node} is chained to {up}, which is no map that it waits for")
            if spec.fan_in and spec.over and len(self.upstreams[node]) != 1:
                raise ValueError(f"node {node} reduces one map, and waits for {self.upstreams[node]}")
            if spec.over and node in self.rules:
                raise ValueError(
                    f"node {node} is chained to {spec.over}, and has a trigger rule: it must read them whole"
                )
            if node in self.grafts:
                raise ValueError(f"node {node} is both a map and a graft")
        for node, block in self.teardowns.items():
            if missing := set(block) - set(self.upstreams[node]):
                raise ValueError(f"node {node} tidies up after {sorted(missing)}, which it does not wait for")
        if self.requirement and not 0 <= min(self.requirement.values()) <= max(self.requirement.values()) < len(
            self.requirements
        ):
            raise ValueError(f"requirement must index the {len(self.requirements)} requirements")

    def longest_path(self, weight: Sequence[int]) -> list[int]:
        """The nodes of a longest path from a source to a sink under `weight` (the critical path); [] when empty."""
        if not self.order:
            return []
        reach = distances_to_sink(self.dependants, self.order, weight)
        node = max((v for v in self.order if not self.upstreams[v]), key=reach.__getitem__)
        path = [node]
        while self.dependants[node]:
            node = max(self.dependants[node], key=reach.__getitem__)
            path.append(node)
        return path


def _distinct(nodes: Iterable[int]) -> tuple[int, ...]:
    """The nodes without repeats, in order; the same tuple where it is one already, which saves 100 bytes a node."""
    if isinstance(nodes, tuple) and (len(nodes) < 2 or len(set(nodes)) == len(nodes)):
        return nodes
    return tuple(dict.fromkeys(nodes))


def distances_to_sink(
    dependants: Sequence[Sequence[int]], order: Sequence[int], weight: Sequence[int] | None = None
) -> list[int]:
    """For each node the weight of the heaviest path from it (included) down to a sink."""
    reach = [0] * len(order)
    for node in reversed(order):
        below = dependants[node]
        own = 1 if weight is None else weight[node]
        if not below:
            reach[node] = own
        elif len(below) == 1:
            reach[node] = own + reach[below[0]]
        else:
            reach[node] = own + max([reach[d] for d in below])
    return reach
