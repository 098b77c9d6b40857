"""Runs CPython's own tests of ``concurrent.futures``, as shipped with this interpreter, over ``flowlane.futures``.

    python tests/faults/run_cpython_futures_tests.py [WORD ...]      only tests whose id contains one of the words

The two pool classes are replaced in ``concurrent.futures`` before the test modules are imported; in tests that start an
interpreter of their own, there too. Each module runs in a process of its own, under a time limit. Prints what failed, what was
left out and why, and one line of counts; the exit status is 0 if nothing failed.

A test may be left out only by an entry of `EXCLUDED`, and an entry has to prove itself: its `evidence` must stand in the
source of the test or of its ``setUp``.

Needs an interpreter that comes with the package ``test.test_concurrent_futures``, as 3.13 does unless a distribution leaves it
out; the exit status is 77 without it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "test.test_concurrent_futures"
MODULES = (
    "test_thread_pool",
    "test_process_pool",
    "test_shutdown",
    "test_init",
    "test_as_completed",
    "test_wait",
    "test_future",
    "test_deadlock",
)
NOT_THERE = 77
LIMIT = 300.0  # seconds for a module; the slowest takes a minute and a half on two cores


class Excluded(NamedTuple):
    """Tests whose id matches `pattern` are left out; `evidence` stands in their source or their ``setUp``."""

    pattern: str
    evidence: str
    why: str


PRIVATE = "looks at a private attribute of the standard library's class"
EXCLUDED = (
    Excluded(r"ThreadPool\w*\.test_(saturation|idle_thread_reuse)$", "executor._threads", PRIVATE),
    Excluded(
        r"ThreadPoolShutdownTest\.test_(threads_terminate|context_manager_shutdown|del_shutdown|shutdown_no_wait"
        r"|thread_names_assigned|thread_names_default)$",
        "executor._threads",
        PRIVATE,
    ),
    Excluded(
        r"ProcessPool\w+\.test_(saturation|idle_process_reuse_one|idle_process_reuse_multiple)$",
        "executor._processes",
        PRIVATE,
    ),
    Excluded(r"ProcessPool(Spawn|Forkserver)\w+\.test_max_tasks_per_child$", "executor._processes", PRIVATE),
    Excluded(r"\.test_max_tasks_per_child_defaults_to_spawn_context$", "executor._mp_context", PRIVATE),
    Excluded(r"ProcessPool\w+ShutdownTest\.test_processes_terminate$", "executor._processes", PRIVATE),
    Excluded(r"ProcessPool\w+ShutdownTest\.test_context_manager_shutdown$", "e._processes", PRIVATE),
    Excluded(r"ProcessPool\w+ShutdownTest\.test_(del_shutdown|shutdown_no_wait)$", "executor._call_queue", PRIVATE),
    Excluded(r"\.test_shutdown_deadlock_pickle$", "executor._executor_manager_thread", PRIVATE),
    Excluded(
        r"ProcessPool\w+\.test_killed_child$",
        "executor._processes",
        PRIVATE + ", and demands that one dead worker breaks the pool, which it does not here",
    ),
    Excluded(
        r"\.test_python_finalization_error$",
        "threading._start_joinable_thread",
        "replaces a private function so that the pool's second thread cannot start; this pool has but one",
    ),
    Excluded(
        r"ProcessPoolForkFailingInitializerTest\.test_initializer$",
        "self.mp_context.Queue()",
        "hands on a lock of the 'fork' context, which only processes forked from this one can have; workers are not",
    ),
    Excluded(
        r"\.test_exit_during_result_pickle_on_worker$",
        "SystemExit, _return_instance, ExitAtPickle",
        "wants SystemExit, raised while a *result* is pickled, to reach the caller and end it; here it is NotDelivered",
    ),
)


# ── in the process of one module ──────────────────────────────────────────────────────────────────────────────────


def patch() -> None:
    """Put our pools in the place of the standard library's."""
    import concurrent.futures

    from flowlane.futures import ProcessPoolExecutor, ThreadPoolExecutor

    namespace: Any = concurrent.futures
    namespace.ProcessPoolExecutor = ProcessPoolExecutor
    namespace.ThreadPoolExecutor = ThreadPoolExecutor


def patch_started_interpreters(module: Any) -> None:
    """``assert_python_ok("-c", code)`` of `module` runs `code` with our pools, too."""
    import flowlane
    import flowlane_plugins

    folders = [str(Path(str(package.__file__)).parents[1]) for package in (flowlane, flowlane_plugins)]
    folders.append(str(Path(__file__).parent))
    original = module.assert_python_ok

    def assert_python_ok(*args: str, **env: str) -> Any:
        prelude = f"import sys; sys.path[:0] = {folders!r}\nimport {Path(__file__).stem} as runner; runner.patch()\n"
        return original(*args[:-1], prelude + args[-1], **env)

    module.assert_python_ok = assert_python_ok


def tests_in(suite: Any) -> Iterator[unittest.TestCase]:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_in(each)
        else:
            yield each


def exclusion(test: unittest.TestCase) -> Excluded | None:
    for entry in EXCLUDED:
        if re.search(entry.pattern, test.id()):
            source = "".join(inspect.getsource(getattr(type(test), name)) for name in (test._testMethodName, "setUp"))
            if entry.evidence not in source:
                raise SystemExit(f"{test.id()} does not contain {entry.evidence!r}: it must not be left out for that")
            return entry
    return None


class Told(unittest.TestResult):
    """Writes a JSON line at each start and each outcome, so that what was running is known when a module is killed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process

    def tell(self, what: str, test: Any, text: str = "") -> None:
        self._file.write(json.dumps([what, test.id(), text]) + "\n")
        self._file.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.tell("started", test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.tell("passed", test)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.tell("failed", test, self.failures[-1][1])

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.tell("failed", test, self.errors[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.tell("failed", test, str(err[1]))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.tell("skipped", test, reason)


def run_module(name: str, words: list[str], path: str) -> None:
    import faulthandler

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    patch()
    module = importlib.import_module(f"{PACKAGE}.{name}")
    if hasattr(module, "assert_python_ok"):
        patch_started_interpreters(module)
    told = Told(path)
    chosen = unittest.TestSuite()
    for test in tests_in(unittest.defaultTestLoader.loadTestsFromModule(module)):
        if words and not any(word in test.id() for word in words):
            continue
        entry = exclusion(test)
        if entry is not None:
            told.tell("excluded", test, f"{entry.why} ({entry.evidence})")
        else:
            chosen.addTest(test)
    chosen.run(told)


# ── in the process that was started ───────────────────────────────────────────────────────────────────────────────


def lines_of(name: str, words: list[str]) -> list[tuple[str, str, str]]:
    """Run a module in a process of its own; what became of each test."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "told")
        child = subprocess.Popen(
            [sys.executable, __file__, "--module", name, "--told", path, *words], start_new_session=True
        )
        late = False
        try:
            child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            late = True
            child.send_signal(signal.SIGUSR1)  # where does it hang?
            time.sleep(1)
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        told: list[tuple[str, str, str]] = []
        if os.path.exists(path):
            told = [tuple(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    ended = [entry for entry in told if entry[0] != "started"]
    if late or child.returncode:
        running = [test for what, test, _ in told if what == "started"][-1:]
        why = f"took more than {LIMIT:g} s" if late else f"ended with status {child.returncode}"
        ended.append(("failed", running[0] if running else f"{PACKAGE}.{name}", f"the module's process {why}"))
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description="CPython's tests of concurrent.futures over flowlane.futures")
    parser.add_argument("words", nargs="*", help="only tests whose id contains one of these")
    parser.add_argument("--only", action="append", choices=MODULES, help="only this module")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--told", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.module:
        run_module(options.module, options.words, options.told)
        return 0
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(PACKAGE) is None:
        print(f"this interpreter ({sys.version.split()[0]}) comes without {PACKAGE}")
        return NOT_THERE
    counts = dict.fromkeys(("passed", "failed", "excluded", "skipped"), 0)
    failed: list[str] = []
    for name in options.only or MODULES:
        print(f"── {name}", flush=True)
        of_module = dict.fromkeys(counts, 0)
        for what, test, text in lines_of(name, options.words):
            of_module[what] += 1
            short = test.removeprefix(f"{PACKAGE}.{name}.")
            if what == "failed":
                failed.append(test)
                print(f"FAILED   {short}\n{text}")
            elif what != "passed":
                print(f"{what:8} {short}: {text}")
        print("  " + ", ".join(f"{number} {what}" for what, number in of_module.items()), flush=True)
        for what, number in of_module.items():
            counts[what] += number
    print("\n" + ", ".join(f"{number} {what}" for what, number in counts.items()))
    for test in failed:
        print(f"  failed: {test}")
    return 1 if failed or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
