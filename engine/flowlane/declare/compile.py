"""Workflow → Program: options checked, every task given its lane, the order proved. Nothing is started.

Options and routes are worked out once per distinct set of options, not per node, so that compiling costs a few
microseconds a node. Which executor a task gets, the first that says something:

    1. the run's routes                      run(etl.bind(...), routes={...}), flow run --route
    2. executor= of the call or the task
    3. the engine's routes                   Engine(routes={...}), settings
    4. built in                              io + async def → asyncio, io + def → threads, cpu → processes

and within routes the most specific key: a node's name (``parse#2``), a task's name, ``io.async`` / ``io.sync``,
``io`` / ``cpu``, ``*``. Each choice is then held against what the executor accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.plan import NotAcyclic, Plan
from flowlane.declare.bounds import NO_BOUNDS
from flowlane.declare.callsite import did_you_mean
from flowlane.declare.task import Task
from flowlane.errors import RouteError
from flowlane.program import CacheRule, Item, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowlane.core.plan import Policy
    from flowlane.declare.bounds import Bounds
    from flowlane.declare.limits import Limit
    from flowlane.declare.nodes import OnFailure, Workflow
    from flowlane.declare.options import Settings
    from flowlane.declare.spec import TaskSpec
    from flowlane.declare.workflow import WorkflowDefinition
    from flowlane.program import MapCall
    from flowlane.runtime.ports import Capabilities, Target

__all__ = ["BUILTIN_ROUTES", "check_definitions", "compile_workflow"]

#: Where tasks go unless told otherwise.
BUILTIN_ROUTES: Final[Mapping[str, str]] = {"io.async": "asyncio", "io.sync": "threads", "cpu": "processes"}
_NO_LIMITS: Final[Mapping[str, Limit]] = {}
_NO_SLOTS: Final[Mapping[str, int]] = {}
_KIND_KEYS: Final = ("*", "io", "io.async", "io.sync", "cpu")


class _Row(NamedTuple):
    """What nodes with the same options have in common."""

    lane: int
    policy: int
    kind: str
    target: Target
    once: bool
    cache: CacheRule | None
    persist: bool


def compile_workflow(
    workflow: Workflow,
    *,
    capabilities: Callable[[str], Capabilities],
    routes: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
    on_failure: OnFailure | None = None,
    bounds: Bounds = NO_BOUNDS,
    limits: Mapping[str, Limit] = _NO_LIMITS,
    slots: Mapping[str, int] = _NO_SLOTS,
    added: bool = False,
) -> Program:
    """Everything a run of `workflow` needs. Linear in nodes and edges, iterative; blocks the caller's thread.

    `capabilities` tells what an executor can do, and raises RouteError for an unknown one. `routes` are this run's,
    `defaults` the engine's; see the module's text. `on_failure` and `bounds` are this run's word, else the workflow's counts.
    `limits` are the run's and the engine's by name, `slots` those that the engine gives to executors.
    `added`: it is added to a run under way, whose routes these are.

    Raises DefinitionError (bad options), UnknownName (an edge to nowhere), RouteError, CycleError.
    """
    lanes = _Lanes(workflow, capabilities, routes or {}, defaults or {}, added=added)
    policies: dict[tuple[Policy, tuple[type[BaseException], ...], Any], int] = {}
    policy_by_spec: dict[int, int] = {}
    rows: dict[Settings, _Row] = {}
    specs: dict[Any, TaskSpec] = {}
    targets: dict[Task[Any, Any, Any], Target] = {}
    settings = workflow.settings
    for each in dict.fromkeys(settings):
        spec = _spec_of(each, specs)
        policy = policy_by_spec.get(id(spec))
        if policy is None:
            policy = policies.setdefault((spec.policy, spec.retry_on, spec.retry_when), len(policies))
            policy_by_spec[id(spec)] = policy
        target = targets.get(each.task)
        if target is None:
            target = targets[each.task] = _target_of(each.task)
        rows[each] = _Row(
            lanes.of(each, spec), policy, each.task.kind, target, spec.at_most_once, _cache_of(spec), spec.persist
        )
    once = {each for each, row in rows.items() if row.once}
    passing = {each for each, row in rows.items() if not row.persist}
    cached = {each: row.cache for each, row in rows.items() if row.cache is not None}
    edges = workflow.edges()
    result, pinned = workflow.result(edges)
    if settings:
        lane_of, policy_of, kinds, targets_of, *_ = zip(*[rows[each] for each in settings], strict=True)
    else:
        lane_of, policy_of, kinds, targets_of = (), (), (), ()
    lane_by_node = lanes.override_by_name(lane_of)
    plan_fields, program_fields = _sparse_fields(workflow, edges, lane_by_node, lanes, limits, slots)
    bounds = bounds.over(workflow.bounds)
    if bounds is not NO_BOUNDS and bounds != NO_BOUNDS:
        plan_fields |= bounds.fields
    try:
        plan = Plan.build(
            edges,
            inputs=workflow.inputs,
            lane=lane_by_node,
            policy=policy_of,
            policies=[policy for policy, *_ in policies] or [_no_retry()],
            pinned=pinned,
            fail_fast=(on_failure or workflow.on_failure) == "fail_fast",
            **plan_fields,
        )
    except NotAcyclic as refused:
        from flowlane.declare.graph import cycle_error

        raise cycle_error(workflow, edges, refused.nodes) from None
    return Program(
        workflow=workflow.name,
        plan=plan,
        lanes=tuple(lanes.names),
        names=tuple(workflow.names),
        kinds=kinds,
        targets=_batched(workflow, targets_of, program_fields.get("maps", {})),
        arguments=tuple(workflow.arguments),
        retry_on=tuple([on for _, on, _ in policies]) or ((),),
        result=result,
        params=workflow.params,
        routes=routes or {},
        known_limits={**_brought(rows), **limits},
        once=frozenset([node for node, each in enumerate(settings) if each in once]) if once else frozenset(),
        passing=frozenset([node for node, each in enumerate(settings) if each in passing]) if passing else frozenset(),
        caches=_caches(settings, cached, program_fields.get("maps", {})) if cached else {},
        part=workflow.named_by,
        retry_when={number: when for (_, _, when), number in policies.items() if when is not None},
        **program_fields,
    )


def _brought(rows: Iterable[Settings]) -> dict[str, Limit]:
    """The limits that tasks bring along."""
    specs = [each.spec for each in rows if each.spec is not None and each.spec.limits]
    return {held.name: held.limit for spec in specs for held in spec.limits if held.limit is not None}


def _sparse_fields(
    workflow: Workflow,
    edges: Sequence[tuple[int, ...]],
    lane_of: Sequence[int],
    lanes: _Lanes,
    limits: Mapping[str, Limit],
    slots: Mapping[str, int],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What only some graphs have, as keywords for Plan and for Program."""
    specs = {each: each.spec for each in dict.fromkeys(workflow.settings) if each.spec is not None}
    if workflow.found_sparse is None and all(spec.is_plain for spec in specs.values()):
        return {}, {}
    from flowlane.declare.fields import Fields

    fields = Fields(workflow, edges, specs, lane_of, lambda lane: lanes.slots_of(lane, slots), limits)
    return fields.plan, fields.program


def check_definitions(
    definition: WorkflowDefinition[..., Any], capabilities: Callable[[str], Capabilities] | None = None
) -> list[str]:
    """Check what can be checked without running the body, because required parameters are missing.

    That is: the workflow's parameters, and the options of every task that the body (or its module) names; with
    `capabilities`, also the executors these ask for. Returns the names of the checked tasks. Raises as compiling does.
    """
    for _ in definition.parameters:
        pass
    checked: dict[str, Task[Any, Any, Any]] = {}
    scope: Mapping[str, Any] = getattr(definition.fn, "__globals__", {})
    for value in list(scope.values()):
        if isinstance(value, Task):
            task: Task[Any, Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
            spec = _spec_of(task.settings, {})
            if capabilities is not None and spec.executor is not None:
                _ask(capabilities, spec.executor, f"task {task.name!r}", task.where)
            checked[task.name] = task
    return list(checked)


def _spec_of(settings: Settings, specs: dict[Any, TaskSpec]) -> TaskSpec:
    """The checked options: one for all settings that say the same, for a loop may write ``.options`` a million times."""
    if settings.spec is None:
        key: Any = (settings.task.name, *settings.options.items())
        try:
            known = specs.get(key)
        except TypeError:  # an unhashable value, which will not pass anyway
            key, known = None, None
        if known is None:
            from flowlane.declare.spec import TaskSpec

            known = TaskSpec.of(settings.options, settings.task.name, settings.where)
            if key is not None:
                specs[key] = known
        settings.spec = known
    return settings.spec


def _target_of(task: Task[Any, Any, Any]) -> Target:
    from flowlane.loader import address_of
    from flowlane.runtime.ports import Target

    return Target(task.name, task.fn, task.is_async, address_of(task.fn, task))


def _batched(workflow: Workflow, targets: Sequence[Target], maps: Mapping[int, MapCall]) -> tuple[Target, ...]:
    """The targets by node, those of maps in batches taking a batch at a time."""
    from flowlane.batch import Batch

    found = list(targets)
    for node, call in maps.items():
        if call.batch:
            target = found[node]
            place = next(place for place, arg in enumerate(workflow.arguments[node].args) if type(arg) is Item)
            found[node] = type(target)(
                target.name, Batch(target.fn, place, star=call.star), is_async=False, address=None
            )
    return tuple(found)


def _cache_of(spec: TaskSpec) -> CacheRule | None:
    cache = spec.cache
    return None if cache is None else CacheRule(cache.version, round(cache.ttl * 1e9) if cache.ttl else 0)


def _caches(
    settings: Sequence[Settings], cached: Mapping[Settings, CacheRule], maps: Mapping[int, MapCall]
) -> dict[int, CacheRule]:
    """By node, how its results are cached, if they are."""
    rules = {node: cached[each] for node, each in enumerate(settings) if each in cached}
    for node, call in maps.items():
        if call.filters and node in rules:
            rules[node] = rules[node]._replace(filters=True)
    return rules


def _no_retry() -> Policy:
    from flowlane.core.plan import NO_RETRY

    return NO_RETRY


# ── routes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Lanes:
    """Chooses an executor for each set of options and numbers those in use."""

    def __init__(
        self,
        workflow: Workflow,
        capabilities: Callable[[str], Capabilities],
        routes: Mapping[str, str],
        defaults: Mapping[str, str],
        *,
        added: bool = False,
    ) -> None:
        self.names: dict[str, int] = {}
        self._workflow = workflow
        self._capabilities = capabilities
        self._routes = routes
        self._defaults = defaults
        self._known: dict[str, Capabilities] = {}
        task_names = {each.task.name for each in dict.fromkeys(workflow.settings)}
        # keys that name a single node are looked up by name; all others hold for a set of options
        by_node = {*routes, *defaults} - task_names - set(_KIND_KEYS)
        self._nodes = {name: node for node, name in enumerate(workflow.names) if name in by_node} if by_node else {}
        if not added:  # else they were checked with the run, and many may be meant for other tasks of it
            self._check_keys(task_names)

    def of(self, settings: Settings, spec: TaskSpec) -> int:
        """The lane of nodes with these options, as far as their own names do not say otherwise."""
        task = settings.task
        speed = "async" if task.is_async else "sync"
        keys = (task.name, f"io.{speed}", "io", "*") if task.kind == "io" else (task.name, "cpu", "*")
        for key in keys:
            if key in self._routes:
                return self._lane(self._routes[key], task, f"route {key}={self._routes[key]}", None)
        if spec.executor is not None:
            return self._lane(spec.executor, task, f"task {task.name!r}", settings.where)
        for key in keys:
            if key in self._defaults:
                return self._lane(self._defaults[key], task, f"route {key}={self._defaults[key]}", None)
        builtin = BUILTIN_ROUTES[keys[1]]
        return self._lane(builtin, task, f"task {task.name!r}", task.where)

    def slots_of(self, lane: int, given: Mapping[str, int]) -> int:
        """How many slots a lane has: what the engine gives it, else its executor's own number."""
        name = list(self.names)[lane]
        return given.get(name) or self._known[name].default_slots

    def override_by_name(self, lane: Sequence[int]) -> Sequence[int]:
        """`lane` by node, with routes that name a node put in."""
        if not self._nodes:
            return lane
        changed = list(lane)
        for name, node in self._nodes.items():
            settings = self._workflow.settings[node]
            executor = self._routes.get(name)
            if executor is None:
                if self._routed_by_run(settings.task) or settings.options.get("executor") is not None:
                    continue
                executor = self._defaults[name]
            changed[node] = self._lane(executor, settings.task, f"route {name}={executor}", None)
        return changed

    def _routed_by_run(self, task: Task[Any, Any, Any]) -> bool:
        kinds = ("io.async" if task.is_async else "io.sync", "io") if task.kind == "io" else ("cpu",)
        return any(key in self._routes for key in (task.name, *kinds, "*"))

    def _lane(self, name: str, task: Task[Any, Any, Any], who: str, where: str | None) -> int:
        can = self._known.get(name)
        if can is None:
            can = self._known[name] = _ask(self._capabilities, name, who, where)
        need = "async" if task.is_async else "sync"
        if need not in can.accepts:
            raise self._refused(name, can, task, need, who, where)
        return self.names.setdefault(name, len(self.names))

    def _refused(
        self, name: str, can: Capabilities, task: Task[Any, Any, Any], need: str, who: str, where: str | None
    ) -> RouteError:
        form = {"async": "an async def", "sync": "a plain def"}
        runs = " and ".join(form[each] for each in sorted(can.accepts) if each in form) or "nothing"
        by = "" if who.startswith("task") else f" by {who}"
        if task.kind == "cpu":
            fits = "processes, threads or inline"
        else:
            fits = "asyncio or inline" if task.is_async else "threads or inline"
        key = f"io.{need}" if task.kind == "io" else "cpu"
        hint = f"{fits} would do: leave the choice out, or route {key}=..."
        if "io" in self._routes and who.startswith("route io="):
            hint = (
                f"route only what it can run: io.{'sync' if need == 'async' else 'async'}={name}; {need} tasks: {fits}"
            )
        return RouteError(
            f"task {task.name!r} is {form[need]} and is sent to executor {name!r}{by}, which runs {runs} only",
            where=where or task.where,
            hint=hint,
        )

    def _check_keys(self, task_names: set[str]) -> None:
        for key, executor in self._routes.items():
            if key not in _KIND_KEYS and key not in task_names and key not in self._nodes:
                close = did_you_mean(key, (*_KIND_KEYS[1:], *task_names, *self._workflow.names))
                raise RouteError(
                    f"route {key}={executor} matches nothing in workflow {self._workflow.name!r}",
                    where=self._workflow.where,
                    hint=f"did you mean {close!r}?"
                    if close
                    else f"a route's key is one of {', '.join(_KIND_KEYS)}, a task's name or a node's",
                )
            # asked for even when nothing is sent there: a slip in the executor's name should not wait for its day
            self._known[executor] = _ask(self._capabilities, executor, f"route {key}={executor}", None)


def _ask(capabilities: Callable[[str], Capabilities], name: str, who: str, where: str | None) -> Capabilities:
    try:
        return capabilities(name)
    except RouteError as error:
        raise RouteError(
            f"{who} asks for executor {name!r}: {error.message}", where=error.where or where, hint=error.hint
        ) from None
