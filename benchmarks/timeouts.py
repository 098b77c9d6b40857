"""How late a task that hangs is ended: from its deadline, and from deadline + grace, to the engine's word and to real death.

    python benchmarks/timeouts.py                     five kinds, 100 tasks each: some three minutes
    python benchmarks/timeouts.py --kind stopped --tasks 20

Kinds: a regular expression that spins in C and holds the GIL; a loop in C that never looks for signals; `time.sleep`; a worker
that is SIGSTOPped; one that ignores SIGTERM and spins. The tasks of a kind are one run, `--workers` at a time (one, so that a
core is free for the engine: the figures are meant for an idle machine), with `--timeout` and `--grace` in seconds.

Rows, in milliseconds (p50, p99, max):

    told      from deadline + grace until a reader of the run's events sees `timed_out`. Negative: the task answered to
              SIGTERM, and the grace was not used up
    deadline  the same from the deadline alone
    dead      from deadline + grace until the process is gone, reaped included; looked for every 0.2 ms from the moment of
              being told, so the resolution is that

`alive when told` counts tasks reported before their process was gone: right for one that answered to SIGTERM by itself, wrong
for one that had to be killed. `left behind`: processes still there 5 seconds later.

The deadline is reckoned from what each task itself wrote down as its first act (`hanging.py`), not from the engine's times. The
first task of a kind is left out: a pool's start is no matter of its deadlines.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hanging import HANGING, read
from pairs import Table, parser, percentile

from flowlane import Engine, Workflow, task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane import RunHandle

# How long a process may outlive the report before it counts as left behind.
_PATIENCE = 5.0


def gone(pid: int) -> bool:
    """Whether no process of this number is left, not even one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Watch:
    """Reads a run's events as they come, and watches the workers of tasks that timed out die."""

    def __init__(self, diary: str) -> None:
        self.told: dict[int, int] = {}  # task → monotonic ns at which a reader knew
        self.died: dict[int, int] = {}  # task → monotonic ns at which its process was gone
        self.alive_when_told = 0
        self.others: dict[str, int] = {}  # how else tasks ended, should they
        self._diary = diary
        self._deaths: list[threading.Thread] = []

    async def follow(self, handle: RunHandle[Any]) -> None:
        async for event in handle.events():
            if event["event"] != "task.transition" or event["from"] not in ("running", "ready"):
                continue
            if event["to"] == "timed_out":
                now = time.monotonic_ns()
                number = int(event["task"].rpartition("-")[2])
                self.told[number] = now
                pid = next((line.pid for line in read(self._diary) if line.number == number), None)
                if pid is None:
                    self.others["timed out, never begun"] = self.others.get("timed out, never begun", 0) + 1
                elif gone(pid):
                    self.died[number] = now
                else:
                    self.alive_when_told += 1
                    death = threading.Thread(target=self._await_death, args=(number, pid), daemon=True)
                    self._deaths.append(death)
                    death.start()
            elif event["to"] != "running":
                self.others[event["to"]] = self.others.get(event["to"], 0) + 1

    def _await_death(self, number: int, pid: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if gone(pid):
                self.died[number] = time.monotonic_ns()
                return
            time.sleep(0.0002)

    def finish(self) -> None:
        for death in self._deaths:
            death.join()


async def hang(kind: str, args: Any) -> tuple[Watch, dict[int, int]]:
    """One run of tasks that hang: what was seen, and task → monotonic ns at which it began by its own word."""
    with tempfile.TemporaryDirectory() as folder:
        diary = str(Path(folder) / "diary")
        options = {"processes": {"grace": args.grace, **args.options}}
        node = task.cpu(timeout=args.timeout)(HANGING[kind])
        workflow = Workflow("hanging")
        for number in range(args.tasks + 1):
            workflow.add(node.bind(diary, number), name=f"hang-{number}")
        watch = Watch(diary)
        async with Engine(slots={"processes": args.workers}, grace=args.grace, options=options) as engine:
            handle = engine.start(workflow)
            await watch.follow(handle)
        watch.finish()
        return watch, {line.number: line.mono_ns for line in read(diary)}


def measure(table: Table, kind: str, args: Any) -> None:
    watch, began = asyncio.run(hang(kind, args))
    first = min(began, key=began.__getitem__)
    numbers = [number for number in watch.told if number in began and number != first]
    due = {number: began[number] + int(args.timeout * 1e9) for number in numbers}
    ended = {number: due[number] + int(args.grace * 1e9) for number in numbers}
    late = {
        "told": [(watch.told[number] - ended[number]) / 1e6 for number in numbers],
        "deadline": [(watch.told[number] - due[number]) / 1e6 for number in numbers],
        "dead": [(watch.died[number] - ended[number]) / 1e6 for number in numbers if number in watch.died],
    }
    never = sum(number not in watch.died for number in numbers)
    fields: dict[str, Any] = {"kind": kind, "tasks": len(numbers), "options": args.options}
    words = [f"{kind:10} {len(numbers):4} tasks"]
    for what, values in late.items():
        if values:
            shown = [round(percentile(values, share), 2) for share in (0.5, 0.99, 1.0)]
            fields[f"{what}_ms"] = dict(zip(("p50", "p99", "max"), shown, strict=True))
            words.append(f"{what} {shown[0]:7.2f} {shown[1]:7.2f} {shown[2]:7.2f} ms")
    fields.update(alive_when_told=watch.alive_when_told, left_behind=never, others=watch.others)
    words.append(f"alive when told {watch.alive_when_told}, left behind {never}")
    if watch.others:
        words.append(f"otherwise: {watch.others}")
    table.row(fields, "   ".join(words))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, repetitions=None, workers=1)
    arguments.add_argument("--kind", choices=list(HANGING), action="append")
    arguments.add_argument("--tasks", type=int, default=100, help="of each kind (default %(default)s)")
    arguments.add_argument("--timeout", type=float, default=0.2, help="seconds (default %(default)s)")
    arguments.add_argument("--grace", type=float, default=0.2, help="seconds (default %(default)s)")
    args = arguments.parse_args(argv)
    about = f"timeout {args.timeout} s, grace {args.grace} s, {args.workers} workers, options {args.options}"
    table = Table(args.json, about + "; each figure p50, p99, max")
    for kind in args.kind or HANGING:
        measure(table, kind, args)


if __name__ == "__main__":
    main()
