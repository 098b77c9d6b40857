"""A worker that stops at the worst moment, as one does that is descheduled: for the tests of taking jobs back."""

from __future__ import annotations

import os
import time

from flowlane_plugins.workers import worker as real


def quick(number, ran, gate=None):
    """Ends at once, or when the file `gate` is gone."""
    with open(ran, "a") as file:
        file.write(f"{number} ")
    wait_for_the_end_of(gate)
    return number


def wait_for_the_end_of(path):
    deadline = time.monotonic() + 20
    while path and os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.001)


class Stalling(real.Worker):
    """Stops after the answer to the job whose number stands in the file, before it touches the next, until the file is gone."""

    def _write(self, record):
        super()._write(record)
        path = os.environ["FLOWLANE_TEST_STALL"]
        if os.path.exists(path):
            with open(path) as file:
                number = int(file.read())
            if record[0] == number:
                self._tell()
                wait_for_the_end_of(path)


def live(socket_fd, page_fd, output_fd, wid):
    real.Worker = Stalling
    real.live(socket_fd, page_fd, output_fd, wid)
