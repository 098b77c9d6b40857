"""Reads our Markdown pages: their fenced blocks, their links, and what a comment above a block says about it.

    <!-- file: etl.py -->   the block is that file, in the page's folder
    <!-- run -->            the block is a script, run in the page's folder
    <!-- output -->         the block is what the script above it prints, to the letter
    <!-- fragment -->       the block is part of something; it is only compiled
    <!-- tested: ... -->    a test of the page's own runs it (``OWN``), and knows what it is

A ``console`` block needs no comment: lines that begin with ``$`` are commands, the lines below what they print. A line ``…``
stands for lines left out, and lines that are not shown at all are allowed: a page shows what matters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from flowlane.runtime import naming

ROOT = Path(__file__).parents[2]
#: The pages that this folder's tests answer for.
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
]
#: Pages with blocks that are "tested: ...", and the test that runs those.
OWN = {"docs/embedding.md": "test_embedding_page.py"}
ELSEWHERE = {
    "docs/embedding-the-scheduler.md",
    "docs/events.md",
    "docs/states.md",
}  # their blocks have tests of their own


class Block(NamedTuple):
    """A fenced block: `mark` is the comment right above it, `line` that of its first line of text."""

    language: str
    mark: str
    text: str
    line: int


_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n+)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = read(page)
    return [
        Block(m["language"], m["mark"] or "", m["text"], text.count("\n", 0, m.start("text")) + 1)
        for m in _FENCE.finditer(text)
    ]


def prose(page: str) -> str:
    """The page without its fenced blocks and without code between backticks."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", read(page)))


def anchors(page: str) -> set[str]:
    """What ``#...`` may follow the page's name in a link: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines shown below it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


_NAMES = re.compile(rf"\b(?:{'|'.join(naming._ADJECTIVES)})-(?:{'|'.join(naming._NOUNS)})\b")


def plain(line: str) -> str:
    """`line` without what differs from run to run: names and ids of runs, dates, times, shares, processes and threads."""
    line = _NAMES.sub("RUN-NAME", line)
    line = re.sub(r"\b[0-9a-f]{12}\b", "RUN-ID", line)
    line = re.sub(r"(?:<\s*)?\b\d+(?:\.\d+)?\s?(?:ms|s|min)\b", "TIME", line)
    line = re.sub(r"\b[0-9a-f]{6}\b", "ID", line)
    line = re.sub(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b", "DATE", line)
    line = re.sub(r"\b(?:just now|TIME ago)\b", "AGO", line)
    line = re.sub(r"^ *\d+\.\d{3}  ", "OFFSET ", line)
    line = re.sub(r"\bpid \d+|\bthread-\d+", "WORKER", line)
    if line.startswith("  ran on "):
        line = re.sub(r", peak [\d.]+ [kMG]?B\b", "", line)  # asked for after a millisecond only
    if line.startswith("  time: "):
        return "time:"  # parts too small to matter come and go
    if line.startswith("  slots: "):
        line = re.sub(r"\d+%", "SHARE", line)
        line = re.sub(r"(?<=processes SHARE of )\d+", "CORES", line)
    if line.startswith("  critical path "):
        line = re.sub(r"#\d+", "", line)  # equal branches race
    return " ".join(line.split())
