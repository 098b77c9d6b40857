"""What an engine compiles workflows with: its routes and limits, the slots it was given, and what its executors can do.

Names and numbers are checked with the first workflow rather than when the engine is made: that needs the executors, and those may
be plug-ins that take a while to import.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from flowlane.declare.bounds import Bounds
from flowlane.declare.compile import compile_workflow
from flowlane.declare.part import part_of, part_options
from flowlane.errors import SettingsError
from flowlane.given import check_routes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flowlane.declare.limits import Adaptive, Limit
    from flowlane.declare.nodes import Workflow
    from flowlane.declare.workflow import Bound, OnFailure
    from flowlane.program import Program, SlotBounds
    from flowlane.runtime.registry import Registry

__all__ = ["CompileOptions", "Compiler", "slots_of"]


class CompileOptions(TypedDict, total=False):
    """Options of one run that decide what is compiled; see StartOptions."""

    routes: Mapping[str, str] | None
    on_failure: OnFailure | None
    max_failures: int | str | None
    deadline: float | None
    retry_budget: int | None
    limits: Sequence[Limit]
    only: Sequence[str]
    start_at: Sequence[str]
    until: Sequence[str]


def slots_of(slots: Mapping[str, int | Adaptive]) -> tuple[dict[str, int], dict[str, SlotBounds]]:
    """Slots by executor, the most where they adapt; and the bounds of those that do."""
    numbers: dict[str, int] = {}
    adaptive: dict[str, SlotBounds] = {}
    wishes: Mapping[str, Any] = slots
    for name, wish in wishes.items():
        if hasattr(wish, "bounds"):  # not by its class, which is not imported for those who have no use for it
            adaptive[name] = wish.bounds
            numbers[name] = wish.highest
        else:
            numbers[name] = wish
    return numbers, adaptive


class Compiler:
    """Makes programs. Any thread.

    registry  the executors
    routes    the engine's
    limits    the engine's
    slots     by executor, and `adaptive` the bounds of those that adapt: see `slots_of`
    options   names of executors that were given options
    """

    def __init__(
        self,
        registry: Registry,
        *,
        routes: Mapping[str, str],
        limits: Sequence[Limit],
        slots: Mapping[str, int],
        adaptive: Mapping[str, SlotBounds],
        options: Collection[str],
    ) -> None:
        self._registry = registry
        self._routes = dict(routes)
        self._limits = _named(limits, "Engine(limits=...)")
        self._slots = slots
        self._adaptive = adaptive
        self._options = tuple(options)
        self._one_at_a_time = threading.Lock()

    def compile(self, bound: Bound[Any], **options: Unpack[CompileOptions]) -> Program:
        """Build and check a workflow for a run of its own. Raises DefinitionError, RouteError, SettingsError."""
        bounds = Bounds.of(options, "a run")
        limits = {**self._limits, **_named(options.get("limits") or (), "a run's limits=...")}
        check_routes(options.get("routes"))
        part = part_options(options)
        workflow = bound.build()
        if part:
            workflow = part_of(workflow, part)
        with self._one_at_a_time:
            for name in self._options:
                self._registry.check(name)
            self._check_slots()
            return self._compiled(workflow, options.get("routes") or {}, limits, options.get("on_failure"), bounds)

    def compile_added(self, bound: Bound[Any], to: Program) -> Program:
        """Build and check work that is added to a run of `to`: its routes and limits hold. Raises DefinitionError."""
        workflow = bound.build()
        with self._one_at_a_time:
            return self._compiled(workflow, to.routes, to.known_limits, None, Bounds.of({}, "a run"), added=True)

    def _compiled(
        self,
        workflow: Workflow,
        routes: Mapping[str, str],
        limits: Mapping[str, Limit],
        on_failure: OnFailure | None,
        bounds: Bounds,
        *,
        added: bool = False,
    ) -> Program:
        return compile_workflow(
            workflow,
            capabilities=self._registry.capabilities,
            routes=routes,
            defaults=self._routes,
            on_failure=on_failure,
            bounds=bounds,
            limits=limits,
            slots=self._slots,
            added=added,
        )

    def _check_slots(self) -> None:
        for name, number in self._slots.items():
            if type(number) is not int or number < 1:
                raise SettingsError(f"slots of '{name}' must be a whole number of at least 1, not {number!r}")
            self._registry.capabilities(name)
            if name in self._adaptive and hasattr(self._registry.get(name), "appetite"):
                raise SettingsError(
                    f"slots of '{name}' cannot adapt: it measures by itself how much it takes",
                    hint="Adaptive is for executors that wait: asyncio, threads",
                )


def _named(limits: Sequence[Limit], who: str) -> dict[str, Limit]:
    if not limits:
        return {}
    from flowlane.declare.limits import by_name

    return by_name(limits, who)
