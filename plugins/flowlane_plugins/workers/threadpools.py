"""How many threads linear algebra and OpenMP may use in this process, for as long as one job runs.

It takes two ways. Libraries read the environment when they are loaded, which may be in the middle of the job, and so do programs
that the job starts. Those that are loaded already are asked by a call: OpenBLAS, MKL, BLIS and the OpenMP runtimes each
have one, under names that differ with how they were built. The loaded ones are found in this process's map, on Linux; elsewhere
the environment alone must do.

Afterwards everything is as it was; what was loaded meanwhile gets what the environment then says. One thread calls this, that
of the jobs. Light: a worker imports it for the first job that asks for cores.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["VARIABLES", "loaded_pools", "threads"]

#: What libraries look at: OpenMP first, which most of them also take for their own.
VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# The beginning of a library's file name → how many threads it is said to use, by (setter, getter), and its variable.
_OPENBLAS: Final = tuple(
    (f"{prefix}openblas_set_num_threads{suffix}", f"{prefix}openblas_get_num_threads{suffix}")
    for prefix in ("", "scipy_")  # as the wheels of numpy and scipy have it
    for suffix in ("", "64_", "_64", "_64_")
)
_OPENMP: Final = (("omp_set_num_threads", "omp_get_max_threads"),)
_KNOWN: Final = {
    "libopenblas": (_OPENBLAS, "OPENBLAS_NUM_THREADS"),
    "libscipy_openblas": (_OPENBLAS, "OPENBLAS_NUM_THREADS"),
    "libblas": (_OPENBLAS, "OPENBLAS_NUM_THREADS"),
    "libmkl_rt": ((("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),), "MKL_NUM_THREADS"),
    "libblis": ((("bli_thread_set_num_threads", "bli_thread_get_num_threads"),), "BLIS_NUM_THREADS"),
    "libgomp": (_OPENMP, "OMP_NUM_THREADS"),
    "libiomp": (_OPENMP, "OMP_NUM_THREADS"),
    "libomp": (_OPENMP, "OMP_NUM_THREADS"),
}


class Pool(NamedTuple):
    """A loaded library that has threads. `variable` is what it looks at when it is loaded."""

    path: str
    variable: str
    set: Callable[[int], object]
    get: Callable[[], int]


@contextmanager
def threads(count: int) -> Generator[None]:
    """Let this process compute in `count` threads, then in as many as before. Never raises of itself."""
    environ = os.environ
    before = {name: environ.get(name) for name in VARIABLES}
    pools = {pool.path: pool.get() for pool in loaded_pools()}
    environ.update(dict.fromkeys(VARIABLES, str(count)))
    try:
        for pool in loaded_pools():
            pool.set(count)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        for pool in loaded_pools():
            usual = pools.get(pool.path) or _said(pool.variable)
            if usual:
                pool.set(usual)


def loaded_pools() -> list[Pool]:
    """The libraries with threads of their own that this process has loaded; 1 ms where there are many libraries."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            paths = {line[line.index("/") :].rstrip("\n") for line in file if ".so" in line and "/" in line}
    except OSError:  # not Linux, or a task has left no descriptors
        return []
    return [pool for path in sorted(paths) if (pool := _pool_of(path)) is not None]


def _pool_of(path: str) -> Pool | None:
    name = os.path.basename(path)
    known = next((known for beginning, known in _KNOWN.items() if name.startswith(beginning)), None)
    if known is None:
        return None
    pairs, variable = known
    import ctypes

    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:  # unloaded meanwhile, or its file was replaced
        return None
    for setter, getter in pairs:
        put: Any = getattr(library, setter, None)
        get: Any = getattr(library, getter, None)
        if put is not None and get is not None:
            put.argtypes, put.restype = [ctypes.c_int], None
            get.argtypes, get.restype = [], ctypes.c_int
            return Pool(path, variable, put, get)
    return None


def _said(variable: str) -> int:
    """The number that the environment gives a library; 0 where it gives none."""
    for name in (variable, "OMP_NUM_THREADS"):
        first = os.environ.get(name, "").partition(",")[0].strip()  # OpenMP: one for each level of nesting
        if first.isdigit():
            return int(first)
    return 0
