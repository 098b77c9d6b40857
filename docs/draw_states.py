"""Draws the diagram and the tables of docs/states.md from the engine's own table of transitions.

    python docs/draw_states.py           rewrites what stands between the markers
    python docs/draw_states.py --check   exits 1 when the page is out of date

The page cannot disagree with the code: a test runs this and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowlane.core import RULES, TERMINAL, TaskState

PAGE = Path(__file__).with_name("states.md")
BEGIN, END = "<!-- begin: drawn by draw_states.py -->", "<!-- end -->"


def diagram() -> str:
    """A Mermaid state diagram: one arrow for each pair of states, the reasons below one another."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for source, target, reason in RULES:
        arrows.setdefault((source, target), []).append(reason)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> pending"]
    lines += [f"    {source} --> {target}: {'<br/>'.join(reasons)}" for (source, target), reasons in arrows.items()]
    lines += [f"    {state} --> [*]" for state in TaskState if state in TERMINAL]
    return "\n".join([*lines, "```"])


def matrix() -> str:
    """From (row) to (column), as a table to read at a glance."""
    targets = [state for state in TaskState if any(rule.target == state for rule in RULES)]
    lines = ["| from \\ to | " + " | ".join(targets) + " |", "|---|" + ":-:|" * len(targets)]
    for source in (state for state in TaskState if state not in TERMINAL):
        legal = {rule.target for rule in RULES if rule.source == source}
        lines.append(f"| {source} | " + " | ".join("●" if target in legal else "" for target in targets) + " |")
    return "\n".join(lines)


def table() -> str:
    """Every legal transition with the code under which logs keep it."""
    lines = ["| code | from | to | reason |", "|---:|---|---|---|"]
    lines += [f"| {code} | {rule.source} | {rule.target} | {rule.reason} |" for code, rule in enumerate(RULES)]
    return "\n".join(lines)


def drawn(page: str) -> str:
    """`page` with its drawn part made anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name}: the markers {BEGIN!r} and {END!r} are missing")
    return f"{before}{begin}\n\n{diagram()}\n\n{matrix()}\n\n{table()}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = drawn(old)
    if "--check" in arguments:
        if new != old:
            sys.stderr.write(f"{PAGE.name} is out of date: run python docs/{Path(__file__).name}\n")
            return 1
        return 0
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
