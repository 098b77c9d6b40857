"""A worker that sleeps at the worst moment, as one does that is descheduled: for the tests of taking jobs back."""

from __future__ import annotations

import os
import time

from flowlane_plugins.workers import worker as real


def quick(number, ran, seconds=0.0):
    with open(ran, "a") as file:
        file.write(f"{number} ")
    time.sleep(seconds)
    return number


class Stalling(real.Worker):
    """Sleeps after the answer to the job whose number stands in the file, before it touches the next."""

    def _write(self, record):
        super()._write(record)
        path = os.environ["FLOWLANE_TEST_STALL"]
        if os.path.exists(path):
            with open(path) as file:
                number = int(file.read())
            if record[0] == number:
                self._tell()
                time.sleep(0.2)


def live(socket_fd, page_fd, output_fd, wid):
    real.Worker = Stalling
    real.live(socket_fd, page_fd, output_fd, wid)
