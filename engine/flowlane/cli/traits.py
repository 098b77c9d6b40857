"""What a task of a compiled workflow is besides a plain call, in words: mapped, conditional, run by a rule, bound by limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlane.declare.conditions import worded
from flowlane.declare.limits import MEMORY

if TYPE_CHECKING:
    from flowlane.program import Program

__all__ = ["conditions", "is_mapped", "shown_name", "traits", "traits_as_json"]


def is_mapped(program: Program, node: int) -> bool:
    """Whether it becomes elements."""
    return node in program.plan.maps


def shown_name(program: Program, node: int) -> str:
    """Its name; ``fetch[*]`` for all elements of a map."""
    return f"{program.names[node]}[*]" if is_mapped(program, node) else program.names[node]


def conditions(program: Program, node: int) -> dict[int, str]:
    """The nodes whose values decide whether it runs → what those must be."""
    return {
        guard.node: worded(program.choices[guard.node][guard.bit], program.choices[guard.node])
        for guard in program.plan.guards.get(node, ())
    }


def traits(program: Program, node: int) -> list[str]:
    """Each in a few words, the most telling first."""
    plan = program.plan
    found: list[str] = []
    spec, call = plan.maps.get(node), program.maps.get(node)
    if spec is not None and call is not None:
        if spec.fan_in:
            found.append(f"merges {spec.fan_in} at a time")
        else:
            over = " and ".join(program.names[up] for up in spec.over)
            what = (
                f"each of {over}"
                if over
                else {"each": "each item", "zip": "zipped", "product": "product"}[call.combine]
            )
            found.append(f"keeps {what}" if call.filters else f"⟲ {what}")
        if call.batch:
            found.append(f"in batches of {call.batch:,}")
        if spec.enough:
            found.append(f"enough {spec.enough}")
    if node in program.definitions:
        found.append("a workflow each" if spec is not None else "a workflow")
    found += [f"if {program.names[up]} is {what}" for up, what in conditions(program, node).items()]
    if (rule := plan.rules.get(node)) is not None:
        found.append(f"joins {rule.at_least}" if rule.at_least else rule.name)
        if rule.cancel_rest:
            found.append("cancels the rest")
    if node in plan.teardowns:
        count = len(plan.teardowns[node])
        found.append(f"tears down {count} task{'' if count == 1 else 's'}")
    held = _held(program, node)
    if held:
        found.append(
            "limits " + ", ".join(name if weight == 1 else f"{name} {weight}" for name, weight in held.items())
        )
    if (cores := _cores(program, node)) > 1:
        found.append(f"{cores} cores")
    if node in program.memory:
        found.append(f"{program.memory[node] / 1e6:,.0f} MB")
    if node in plan.priority:
        found.append(f"priority {plan.priority[node]}")
    if node in plan.may_fail:
        found.append("may fail")
    return found


def traits_as_json(program: Program, node: int) -> dict[str, Any]:
    """The same as fields; those that it does not have are left out."""
    plan = program.plan
    fields: dict[str, Any] = {}
    spec, call = plan.maps.get(node), program.maps.get(node)
    if spec is not None and call is not None:
        fields["map"] = {
            "over": [program.names[up] for up in spec.over],
            "combine": call.combine,
            "filters": call.filters,
            "fan_in": spec.fan_in or None,
            "enough": spec.enough or None,
            "in_flight": spec.window or None,
            "batch": call.batch or None,
        }
    if node in program.definitions:
        fields["workflow"] = program.definitions[node].name
    if node in plan.guards:
        fields["when"] = [{"task": program.names[up], "is": what} for up, what in conditions(program, node).items()]
    if (rule := plan.rules.get(node)) is not None:
        fields |= {"join": rule.at_least, "cancel_rest": rule.cancel_rest} if rule.at_least else {"trigger": rule.name}
    if node in plan.teardowns:
        fields["tears_down"] = [program.names[up] for up in plan.teardowns[node]]
    if held := _held(program, node):
        fields["limits"] = held
    if (cores := _cores(program, node)) > 1:
        fields["cores"] = cores
    if node in program.memory:
        fields["memory"] = program.memory[node]
    if node in plan.priority:
        fields["priority"] = plan.priority[node]
    if node in plan.may_fail:
        fields["may_fail"] = True
    return fields


def _held(program: Program, node: int) -> dict[str, int]:
    number = program.plan.requirement.get(node)
    if number is None:
        return {}
    pairs = [(program.limits[limit].name, weight) for limit, weight in program.plan.requirements[number].limits]
    return {name: weight for name, weight in pairs if name != MEMORY}


def _cores(program: Program, node: int) -> int:
    number = program.plan.requirement.get(node)
    return 1 if number is None else program.plan.requirements[number].slots
