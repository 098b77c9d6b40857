"""How worker processes ended, in words. Called when a pool is found broken, in whatever thread finds it."""

from __future__ import annotations

import signal
import time
from typing import Any, Final

__all__ = ["MAIN_GUARD", "REAPED_BY_HOST", "deaths", "ending", "sentence"]

#: The exit code, as we write it, of a process that somebody else has waited for. No process ends with it.
REAPED_BY_HOST: Final = 256

#: The hint for a pool whose workers die while they start.
MAIN_GUARD: Final = (
    "a worker imports the script that was started, so put the call that runs the workflow under"
    ' `if __name__ == "__main__":`, or start it with `flow run FILE`, which needs no guard'
)

# A pipe that closes tells of a death a moment before the process can be waited for.
_PATIENCE: Final = 0.05


def deaths(pool: Any) -> list[tuple[int, int | None]]:
    """(pid, exit code) of the workers of `pool` that have ended; negative codes are signals.

    Knows the process pools of the standard library and of loky; [] for others and when nothing is known. Waits up to
    0.05 s for the first death to show.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            known: dict[int, Any] = getattr(pool, "_processes", None) or {}
            workers = list(known.values())
            ended = [(worker.pid, worker.exitcode) for worker in workers if worker.exitcode is not None]
        except Exception:  # noqa: BLE001 - private parts of somebody else's pool
            return []
        if ended or not workers or time.monotonic() > deadline:
            # A pool that breaks ends its other workers with SIGTERM: they are no cause where there is another.
            return [(pid, code) for pid, code in ended if code != -signal.SIGTERM] or ended
        time.sleep(0.002)


def ending(code: int | None) -> str:
    """An exit code in words: "was killed by SIGSEGV", "exited with code 3"."""
    if code is None:
        return "ended"
    if code == REAPED_BY_HOST:
        return "ended, nobody knows how,"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def sentence(ended: list[tuple[int, int | None]], *, answered: bool) -> str:
    """What is known of the end of a pool, as a clause. `answered`: whether any of its workers ever did."""
    when = "" if answered else " before any answered"
    if not ended:
        return f"a worker process of its pool died{when}"
    shown = ", ".join(f"worker process {pid} {ending(code)}" for pid, code in ended[:4])
    return f"{shown}{when}"
