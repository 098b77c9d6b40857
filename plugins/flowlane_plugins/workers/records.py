"""What stands in the two rings of a worker's page: the vocabulary of engine and worker, and nothing else.

To the worker, each one record:

    (FUNCTION, fid, header)             a function from now on known as `fid`; `header` is transport's, or the chunk it lies in
    (JOBS, first, jobs)                 a frame: jobs numbered first, first + 1, …; each (fid, task, attempt, payload[, files[,
                                        needs]]), `needs` being (cores, memory) where they are others than (1, 0)
    (FREE, refs)                        chunks of this worker's own that nobody reads any more
    (DROP, arenas)                      arenas of other workers that nobody reads any more
    (FORGET, fids)                      functions that will not be called again
    (EXIT,)                             end when everything before it is done

To the engine, one record a job: (number, status, started, ended, cpu, pickling, output, payload[, more]), times in ns
(NEVER where it did not come to that), `pickling` what decoding the call and encoding its outcome took, `output` the
length of the output file at the job's end, and `more` only where there is more to tell: (peak RSS in bytes, refs of
chunks of the result, refs of chunks that the task still holds, refs of those that it held and does no longer).

A payload is bytes, or for long ones the reference of the chunk that holds them.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "ARENA",
    "ARENA_FORMAT",
    "DROP",
    "EXIT",
    "FORGET",
    "FREE",
    "FUNCTION",
    "JOBS",
    "RAISED",
    "REFUSED",
    "RETURNED",
    "STOPPED",
    "WAKE",
]

FUNCTION: Final = 0
JOBS: Final = 1
FREE: Final = 2
DROP: Final = 3
FORGET: Final = 4
EXIT: Final = 5

RETURNED: Final = 0
RAISED: Final = 1  # the function raised, or its result cannot travel
REFUSED: Final = 2  # it never began: the function is not found here, or an argument does not load
STOPPED: Final = 3  # it ended because it was told to; the worker ends as well

# On the socket, where only these two travel: a byte that says "look", and the descriptor of an arena.
WAKE: Final = b"."
ARENA: Final = b"A"
ARENA_FORMAT: Final = struct.Struct("<cqq")  # b"A", the arena's id, its size
