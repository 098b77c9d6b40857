"""What one bad task does to its pool: the same faults on the standard library's pool, loky, pebble and flowlane, as a table.

    python benchmarks/pool_faults.py                             everything installed: some minutes
    python benchmarks/pool_faults.py --who stdlib --fault SIGKILL --json

A pool of 2 workers gets 4 innocent tasks, the bad one, and 16 more innocent ones; each innocent takes 20 ms and has an answer
of its own. Then one more innocent task goes to the same pool, and the pool is shut down. A row tells

    bad task  what became of it, as its waiter hears it
    lost      innocents, of 20, that never gave their answer: an error, or nothing for 6 s
    wrong     innocents that gave somebody else's answer
    alive     whether the same pool object still works afterwards
    hung      where somebody waits for ever: "bad" its waiter, "innocent" that of another task, "shutdown" the pool's end
              (each is given 3 to 6 s), "exit" the whole process, which is killed after 15 s
    left      processes still there a second after the program's end

Nobody retries: that one task failed is no loss. A task that waits for ever in a stopped worker is told a timeout where the
pool knows one (flowlane, pebble); others only stop waiting for it.

Then orphans: the program is killed (SIGKILL) while its workers are idle, busy, or have started a process in a session of its own;
`left` counts the processes alive 3 seconds later.

Each row is a process of its own with a deadline, found again by a mark in its environment: nothing a pool leaves behind outlives
the row. Peers that are not installed are left out with a message.
"""

from __future__ import annotations

import json
import os
import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from guard import Guarded, tell
from misbehaving import FAULTS, answer, innocent, linger, with_grandchild
from pairs import Table, parser
from subjects import SUBJECTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from subjects import Call

_INNOCENTS: Final = 20
_BEFORE: Final = 4  # of them go in front of the bad task

# Seconds, all within the deadline of a row: until everybody has answered, one more task, the pool's end.
_ANSWERED: Final = 6.0
_ONE_MORE: Final = 3.0
_SHUT: Final = 3.0
_DEADLINE: Final = 15.0

# Seconds after which what is still there counts as left behind.
_SETTLED: Final = 1.0
_ORPHANED: Final = 3.0


# ── one row, in a process of its own ──────────────────────────────────────────────────────────────────────────────────


def commit(who: str, fault: str) -> None:
    """Commit `fault` in a pool of `who`'s, and tell what became of everybody."""
    subject = SUBJECTS[who]()
    function, arguments = FAULTS[fault].make()
    warm = subject.batch([(innocent, (0,))] * 4, -1, None, _ANSWERED)
    if any(one.value != answer(0) for one in warm):
        raise RuntimeError(f"{who} does not even work without a fault: {[str(one) for one in warm]}")
    calls: list[Call] = [(innocent, (number,)) for number in range(_INNOCENTS)]
    calls.insert(_BEFORE, (function, arguments))
    answers = subject.batch(calls, _BEFORE, FAULTS[fault].timeout, _ANSWERED)
    bad = answers.pop(_BEFORE)
    good = [one.error is None and not one.silent and one.value == answer(n) for n, one in enumerate(answers)]
    wrong = [one.error is None and not one.silent and one.value != answer(n) for n, one in enumerate(answers)]
    hung = ["bad"] if bad.silent else []
    if any(one.silent for one in answers):
        hung.append("innocent")
    row: dict[str, Any] = {"bad": str(bad), "lost": _INNOCENTS - sum(good), "wrong": sum(wrong), "hung": hung}
    tell(json.dumps({**row, "hung": [*hung, "afterwards"]}))
    (more,) = subject.batch([(innocent, (99,))], -1, None, _ONE_MORE)
    row["alive"] = more.value == answer(99)
    tell(json.dumps({**row, "hung": [*hung, "shutdown"]}))
    ending = threading.Thread(target=subject.shutdown, daemon=True)
    ending.start()
    ending.join(_SHUT)
    if ending.is_alive():
        hung.append("shutdown")
    tell(json.dumps(row))


ORPHANS: Final[dict[str, Call | None]] = {
    "idle": None,
    "busy": (linger, (30.0,)),
    "with a grandchild": (with_grandchild, (30.0,)),
}


def await_death(who: str, how: str) -> None:
    """Get a pool into the state `how`, say so, and wait to be killed."""
    subject = SUBJECTS[who]()
    subject.batch([(innocent, (number,)) for number in range(8)], -1, None, _ANSWERED)
    call = ORPHANS[how]
    if call is not None:
        threading.Thread(target=subject.batch, args=([call] * 2, -1, None, 60.0), daemon=True).start()
        time.sleep(1.0)
    tell("ready")
    time.sleep(60)


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_fault(who: str, fault: str) -> dict[str, Any]:
    unknown: dict[str, Any] = {"bad": "?", "lost": None, "wrong": None, "alive": None, "hung": []}
    with Guarded(__file__, "--commit", who, fault) as program:
        exited = program.ended(_DEADLINE)
        left = program.left(_SETTLED) if exited else None
        told = program.told()
        row: dict[str, Any] = {**unknown, **(json.loads(told) if told is not None else {}), "left": left}
    if not exited:
        row["hung"].append("exit")
    return row


def run_orphans(who: str, how: str) -> dict[str, Any]:
    with Guarded(__file__, "--await-death", who, how) as program:
        deadline = time.monotonic() + _DEADLINE
        while program.told() is None and time.monotonic() < deadline and not program.ended(0.05):
            pass
        if program.told() is None:
            return {"before": None, "left": None}
        before = program.left() - 1
        program.kill()
        return {"before": before, "left": program.left(_ORPHANED)}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, repetitions=None)
    arguments.add_argument("--who", choices=list(SUBJECTS), action="append")
    arguments.add_argument("--fault", choices=list(FAULTS), action="append")
    arguments.add_argument("--no-orphans", action="store_true", help="leave the orphans out")
    arguments.add_argument("--commit", nargs=2, metavar=("WHO", "FAULT"), help="one row, in this process, unguarded")
    arguments.add_argument("--await-death", nargs=2, metavar=("WHO", "HOW"), help="get ready, and wait to be killed")
    args = arguments.parse_args(argv)
    if args.commit:
        commit(*args.commit)
        return
    if args.await_death:
        await_death(*args.await_death)
        return
    if not os.path.isdir("/proc/self"):
        arguments.exit(message="this finds what pools leave behind in /proc, and there is none here\n")
    table = Table(args.json, "2 workers, 20 innocent tasks; stdlib and pebble with the platform's start method")
    present: list[str] = []
    for who in args.who or SUBJECTS:
        if who in ("loky", "pebble") and find_spec(who) is None:
            table.say(f"{who}: not installed, left out")
        else:
            present.append(who)
    for fault in args.fault or FAULTS:
        for who in present:
            row = run_fault(who, fault)
            alive = {True: "yes", False: "no", None: "?"}[row["alive"]]
            table.row(
                {"fault": fault, "who": who, **row},
                f"{fault:37} {who:9} bad task {row['bad'][:28]:28} lost {row['lost']!s:>4}   wrong {row['wrong']!s:>4}   "
                f"alive {alive:3}   hung {', '.join(row['hung']) or '-':20}   left {'?' if row['left'] is None else row['left']}",
            )
    for how in () if args.no_orphans else ORPHANS:
        for who in present:
            row = run_orphans(who, how)
            table.row(
                {"orphans": how, "who": who, **row},
                f"kill -9 of the program, workers {how:18} {who:9} processes before {row['before']}   left {row['left']}",
            )


if __name__ == "__main__":
    main()
