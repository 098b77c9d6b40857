"""The graphs that the benchmarks run, as lists of upstream numbers: everything a scheduler needs, and nothing else.

`upstreams[v]` names tasks below v, so the order of numbers is a topological order.

Shapes    wide, chain, layers, tree: what is hard for a scheduler in four ways.
Patterns  the dependences of Task Bench (Slaughter et al., SC'20, "Task Bench: A Parameterized Benchmark for Evaluating
          Parallel Runtime Performance", table 2): `width` points, `steps` timesteps, a task depends on points of the
          timestep before. Written from those definitions; points outside 0 … width-1 fall away.

              trivial     nothing
              stencil_1d  p-1, p, p+1
              fft         p-2^s, p, p+2^s with s going round 0 … log2(width)-1 from timestep to timestep
              nearest     the `radix` points around p
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PATTERNS", "SHAPES", "Edges", "pattern", "points", "shape"]

Edges = list[list[int]]

SHAPES = ("wide", "chain", "layers", "tree")
PATTERNS = ("trivial", "stencil_1d", "fft", "nearest")


def shape(name: str, size: int, width: int = 100) -> Edges:
    """About `size` tasks. layers: `width` tasks each, three upstreams; tree: a binary reduction."""
    if name == "wide":
        return [[] for _ in range(size)]
    if name == "chain":
        return [[node - 1] if node else [] for node in range(size)]
    if name == "layers":
        return [
            [(node // width - 1) * width + (node + step) % width for step in (-1, 0, 1)] if node >= width else []
            for node in range(size)
        ]
    if name != "tree":
        raise ValueError(f"no shape {name!r}; there are {', '.join(SHAPES)}")
    level = list(range((size + 1) // 2))
    edges: Edges = [[] for _ in level]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = list[int]()
        for pair in pairs:
            if len(pair) == 2:
                edges.append(pair)
                level.append(len(edges) - 1)
            else:
                level.append(pair[0])
    return edges


def points(name: str, step: int, point: int, width: int, radix: int = 5) -> Sequence[int]:
    """The points of timestep `step` - 1 that `point` of timestep `step` depends on, ascending. Timestep 0 has none."""
    if step == 0 or name == "trivial":
        return ()
    if name == "stencil_1d":
        reached: Sequence[int] = (point - 1, point, point + 1)
    elif name == "fft":
        stages = max(0, (width - 1).bit_length())
        stride = 1 << ((step - 1) % stages) if stages else 1
        reached = (point - stride, point, point + stride)
    elif name == "nearest":
        first = point - radix // 2
        reached = range(first, first + radix)
    else:
        raise ValueError(f"no pattern {name!r}; there are {', '.join(PATTERNS)}")
    return [other for other in reached if 0 <= other < width]


def pattern(name: str, width: int, steps: int, radix: int = 5) -> Edges:
    """A Task Bench graph: task ``step * width + point``."""
    return [
        [(step - 1) * width + other for other in points(name, step, point, width, radix)]
        for step in range(steps)
        for point in range(width)
    ]
