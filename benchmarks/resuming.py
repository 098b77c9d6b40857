"""What a large run costs to resume and to look at.

    python benchmarks/resuming.py                    100,000 tasks, and a store of 1,000 runs
    python benchmarks/resuming.py --tasks 1000000    also what it takes of memory to record them

A run of `--tasks` no-op tasks in layers is recorded; half of it is done when it is stopped. Printed are the seconds of
recording it, the peak memory of the process that did, and for a fresh process, from its first import on, how long it takes until the first task
that was left has begun. Then the same command line that a person types: ``flow runs`` over `--runs` runs.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING

from pairs import Table, parser

if TYPE_CHECKING:
    from collections.abc import Sequence

FILE = textwrap.dedent(
    '''
    """Layers of no-op tasks, half of which end the run the first time."""

    import os
    import time

    from flowlane import task, workflow

    WIDTH = 100


    @task.io
    async def step(number: int, *before: int) -> int:
        return number


    @task.io(executor="inline")
    def middle(number: int, *before: int) -> int:
        if not os.path.exists("go-on"):
            raise RuntimeError("half of it is enough")
        with open("began", "a") as file:
            file.write(f"{time.time():.6f}\\n")
        return number


    @workflow
    def layers(tasks: int) -> int:
        rows = max(4, tasks // WIDTH)
        last = [step(column) for column in range(WIDTH)]
        for row in range(1, rows):
            work = middle if row == rows // 2 else step
            last = [work(row, last[column], last[(column + 1) % WIDTH]) for column in range(WIDTH)]
        return step(rows, *last)
    '''
)


def timed(command: Sequence[str], folder: str) -> tuple[float, float, int]:
    """(seconds, when it began, exit code)."""
    began, before = perf_counter(), time()
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return perf_counter() - began, before, done.returncode


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tasks", type=int, default=100_000)
    arguments.add_argument("--runs", type=int, default=1_000)
    args = arguments.parse_args(argv)
    table = Table(args.json)
    flow = [sys.executable, "-m", "flowlane"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "layers.py").write_text(FILE, encoding="utf-8")
        os.environ["XDG_STATE_HOME"] = folder
        seconds, _, code = timed([*flow, "run", "layers.py", "-p", f"tasks={args.tasks}", "--quiet"], folder)
        if code != 1:
            raise RuntimeError(f"the run should have failed half-way, and exited with {code}")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = Path(folder, ".flow", "flow.db").stat().st_size / 2**20
        table.row(
            {"recorded": args.tasks, "seconds": round(seconds, 2), "peak_mb": round(peak), "store_mb": round(size, 1)},
            f"recorded  {args.tasks:>9,} tasks, half of them run   {seconds:6.2f} s   peak {peak:5.0f} MB   store {size:.1f} MB",
        )
        Path(folder, "go-on").touch()
        total, before, code = timed([*flow, "resume", "--quiet"], folder)
        if code != 0:
            raise RuntimeError(f"the resume exited with {code}")
        first = min(map(float, Path(folder, "began").read_text(encoding="utf-8").split()))
        table.row(
            {"resumed": args.tasks, "to_first_task": round(first - before, 2), "seconds": round(total, 2)},
            f"resumed   {args.tasks:>9,} tasks   first task begins after {first - before:5.2f} s   all {total:6.2f} s",
        )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "small.py").write_text(
            "from flowlane import task, workflow\n\n\n@task.io\nasync def one() -> int:\n    return 1\n\n\n"
            "@workflow\ndef small() -> int:\n    return one()\n",
            encoding="utf-8",
        )
        os.makedirs(os.path.join(folder, ".flow"), exist_ok=True)
        code_text = (
            "import sys; sys.path.insert(0, '.')\nfrom small import small\nfrom flowlane import Engine\n"
            "with Engine(store='.flow/flow.db') as engine:\n"
            f"    for _ in range({args.runs}):\n        engine.start(small).result()\n"
        )
        subprocess.run([sys.executable, "-c", code_text], cwd=folder, check=True)
        samples = sorted(timed([*flow, "runs"], folder)[0] for _ in range(args.repetitions))
        median = samples[len(samples) // 2]
        table.row(
            {"flow_runs": args.runs, "seconds": round(median, 3)},
            f"flow runs over {args.runs:,} runs   {median:.3f} s   [{samples[0]:.3f} … {samples[-1]:.3f}]",
        )


if __name__ == "__main__":
    main()
