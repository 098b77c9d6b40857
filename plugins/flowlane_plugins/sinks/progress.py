"""A live view of the runs on a terminal, gone without a trace when they end.

    etl · run brisk-otter (7f3a2c) · 42 tasks · cpu 12 · io 30
      17/42 ━━━━━━━━━━━━╸─────────────── 0:08  eta 0:11   processes 2/2  asyncio 9/64  retry 1
      ▶ parse[3]         processes  2.1s
      ▶ fetch[us-east]   asyncio    0.8s  attempt 2                                 +6 running

The journal's thread keeps the figures: two dictionary operations a transition. A thread of the sink's own draws at most four
frames a second, each of a few plain lines whatever the number of tasks (a rich table costs 18 ms, these lines about
one). What tasks of worker processes printed is written above the view when their attempt has ended. Nothing is drawn
where there is no terminal. A stream that breaks ends the view, is told once, and no more.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from flowlane.core.states import RULES, TERMINAL, TaskState
from flowlane.runtime.encode import inert
from flowlane.runtime.events import outputs
from flowlane_plugins.sinks.console import encodable, heading, printed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.text import Text

    from flowlane.runtime.ports import Chunk, RunInfo, RunOutcome

__all__ = ["ProgressSink"]

FRAME: Final = 0.25  # seconds between frames; more often costs more than anybody sees
_PATIENCE: Final = 1.0  # seconds to wait at the end for a frame that is being drawn
_SHOWN: Final = 4  # running tasks listed per run
_RUNS_SHOWN: Final = 4  # a screen has so many lines
_DUMB: Final = ("dumb", "unknown")
_NAME_WIDTH: Final = 40
_BAR_WIDTH: Final = 34
_FINE: Final = ("━", "─", "▶", "·", "│")
_PLAIN: Final = ("=", "-", ">", "-", "|")

_BEGINS: Final = tuple(rule.target is TaskState.RUNNING for rule in RULES)
_LEAVES: Final = tuple(rule.source is TaskState.RUNNING for rule in RULES)
_ENDS: Final = tuple(rule.target in TERMINAL for rule in RULES)
_FAILED: Final = (TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN)
_FAILS: Final = tuple(rule.target in _FAILED for rule in RULES)
_WAITS: Final = tuple(rule.target is TaskState.RETRYING for rule in RULES)
_WAITED: Final = tuple(rule.source is TaskState.RETRYING for rule in RULES)


class _Terminal:
    """The stream as rich sees it: writing never raises, `error` says why it stopped.

    rich answers a broken pipe with SystemExit and /dev/null in the place of stdout. And with `prints` a task's own print
    comes through here: the terminal's going away must not fail the task.
    """

    def __init__(self, stream: TextIO) -> None:
        self.error = ""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def knows(self, text: str) -> bool:
        """Whether the stream's encoding has all of `text`."""
        return encodable(self._stream, text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _try(self, act: Callable[[], object]) -> None:
        if not self.error:
            try:
                act()
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self.error = str(error) or type(error).__name__


class _Figures:
    """What the view knows of one run."""

    __slots__ = ("busy", "done", "failed", "kinds", "retrying", "run", "running")

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.done = 0
        self.failed = 0
        self.retrying = 0
        self.running: dict[int, tuple[int, int]] = {}  # task → (start, attempt), oldest first
        self.busy: Counter[str] = Counter(dict.fromkeys(run.executors, 0))
        self.kinds: Counter[str] = (
            Counter()
        )  # of the tasks that there are so far; each is counted once, not in each frame

    def count(self) -> Counter[str]:
        """Kind → tasks, those that have come into being since included."""
        known, kinds = self.kinds.total(), self.run.kinds
        self.kinds.update([kinds[element] for element in range(known, len(kinds))])
        return self.kinds

    def follow(self, chunk: Chunk) -> None:
        executors, running, busy = self.run.executors, self.running, self.busy
        for element, attempt, code, t in chunk.transitions:
            if _BEGINS[code]:
                running[element] = (t, attempt)
                busy[executors[element]] += 1
                continue
            if _LEAVES[code] and running.pop(element, None) is not None:
                busy[executors[element]] -= 1
            if _ENDS[code]:
                self.done += 1
                self.failed += _FAILS[code]
            self.retrying += _WAITS[code] - _WAITED[code]


class ProgressSink:
    """Draws on `stream`, a terminal; elsewhere it asks to be left out (`wants`).

    `slots`, executor → number, adds "of how many" to the usage of each lane. `prints` lets what tasks print to the
    same terminal appear above the view rather than across it, by putting rich's proxies in the place of ``sys.stdout``
    and ``sys.stderr`` while the view is up: for a command line, not for a library.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        slots: Mapping[str, int] | None = None,
        prints: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stream = stream
        self._slots = dict(slots or {})
        self._prints = prints
        self._clock = clock
        self._terminal = _Terminal(stream)
        self._glyphs = _FINE if self._terminal.knows("".join(_FINE)) else _PLAIN
        self._runs: dict[str, _Figures] = {}
        # Guards the figures and nothing else. It is never held while rich is called: rich has a lock of its own, and
        # under it calls _frame, from whatever thread prints.
        self._lock = threading.Lock()
        self._live: Any = None
        self._stop = threading.Event()
        self._drawer: threading.Thread | None = None
        self._told = False

    @property
    def wants(self) -> bool:
        """False where there is no terminal to draw on, or it broke."""
        return not self._terminal.error and _is_terminal(self._stream) and os.environ.get("TERM") not in _DUMB

    def open(self, run: RunInfo) -> None:
        with self._lock:
            self._runs[run.id] = _Figures(run)
        if self._live is None and not self._terminal.error:
            self._begin()

    def write(self, chunk: Chunk) -> None:
        with self._lock:
            figures = self._runs.get(chunk.run.id)
            if figures is not None:
                figures.follow(chunk)
        for index, report in outputs(chunk):
            self._show(chunk.run.names[chunk.transitions[index][0]], report.output or "")

    def _show(self, task: str, text: str) -> None:
        """Write what a task printed above the view. Not under our lock: rich calls _frame under its own."""
        live = self._live
        if live is None or self._terminal.error:
            return
        from rich.text import Text

        with contextlib.suppress(Exception):  # a terminal that broke is told of by `take_faults`
            live.console.print(Text(printed(task, text, self._glyphs[4]).removesuffix("\n")), soft_wrap=True)

    def close(self, run: RunInfo, outcome: RunOutcome) -> None:  # noqa: ARG002 - the protocol has it
        with self._lock:
            self._runs.pop(run.id, None)
            last = not self._runs
        if last:
            self._end()

    def take_faults(self) -> list[str]:
        """What went wrong since the last call, for people. Called by the journal."""
        if self._told or not self._terminal.error:
            return []
        self._told = True
        return [f"the terminal broke ({self._terminal.error}); the live view has ended"]

    # ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> None:
        from rich.console import Console  # 60 ms: only where there is a terminal
        from rich.live import Live

        console = Console(file=cast("TextIO", self._terminal), force_terminal=True, highlight=False)
        self._live = Live(
            console=console,
            get_renderable=self._frame,
            auto_refresh=False,  # rich's own thread has no answer to an error
            transient=True,
            redirect_stdout=self._prints and _is_terminal(sys.stdout),
            redirect_stderr=self._prints and _is_terminal(sys.stderr),
            vertical_overflow="crop",
        )
        self._stop.clear()
        self._live.start(refresh=True)
        self._drawer = threading.Thread(target=self._draw, args=(self._live,), name="flowlane-progress", daemon=True)
        self._drawer.start()

    def _draw(self, live: Any) -> None:
        try:
            while not self._stop.wait(FRAME) and not self._terminal.error:
                live.refresh()
        except Exception as error:  # noqa: BLE001 - a thread's traceback would go to the very terminal we draw on
            self._terminal.error = str(error) or type(error).__name__
        if self._terminal.error:
            with contextlib.suppress(Exception):
                live.stop()  # at once: it gives sys.stdout back

    def _end(self) -> None:
        self._stop.set()
        if self._drawer is not None:
            self._drawer.join(_PATIENCE)
            if self._drawer.is_alive():  # a terminal stopped with Ctrl-S: the run must not wait for it
                self._terminal.error = self._terminal.error or "it takes no output"
                self._drawer = self._live = None
                _give_back()
                return
            self._drawer = None
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(Exception):
                live.stop()

    def _frame(self) -> Text:
        """All runs as plain lines. Costs the same with ten tasks running as with a thousand."""
        from rich.text import Text

        view = Text(no_wrap=True, overflow="ellipsis", end="")
        with self._lock:
            now = self._clock()
            figures = list(itertools.islice(self._runs.values(), _RUNS_SHOWN))
            for index, run in enumerate(figures):
                if index:
                    view.append("\n")
                self._draw_run(view, run, now)
            if len(self._runs) > _RUNS_SHOWN:
                view.append(f"\n+{len(self._runs) - _RUNS_SHOWN} more runs", "dim")
        return view

    def _draw_run(self, view: Text, figures: _Figures, now: int) -> None:
        run = figures.run
        kinds = figures.count()
        total, done = kinds.total(), figures.done
        spent = max(0, now - run.mono_ns) / 1e9
        done_glyph, left_glyph, mark, dot, _ = self._glyphs
        view.append(heading(run, dot, kinds), "bold")
        filled = _BAR_WIDTH * done // total if total else _BAR_WIDTH
        view.append(f"\n  {done}/{total} ")
        view.append(done_glyph * filled, "red" if figures.failed else "green")
        view.append(left_glyph * (_BAR_WIDTH - filled), "dim")
        view.append(f" {_clock_time(spent)}")
        if 0 < done < total:
            view.append(f"  eta {_clock_time(spent / done * (total - done))}")
        for executor, busy in sorted(figures.busy.items()):
            slots = self._slots.get(executor)
            view.append(
                f"  {inert(executor)} {busy}" if slots is None else f"  {inert(executor)} {busy}/{slots}", "cyan"
            )
        if figures.retrying:
            view.append(f"  retry {figures.retrying}", "yellow")
        if figures.failed:
            view.append(f"  failed {figures.failed}", "red")
        shown = list(itertools.islice(figures.running.items(), _SHOWN))
        names = [_cut(inert(run.names[element])) for element, _ in shown]
        width = max(map(len, names), default=0)
        for (element, (start, attempt)), name in zip(shown, names, strict=True):
            again = f"  attempt {attempt}" if attempt > 1 else ""
            lasted = max(0, now - start) / 1e9
            view.append(f"\n  {mark} {name:<{width}}  {inert(run.executors[element])}  {lasted:.1f}s{again}")
        more = len(figures.running) - len(shown)
        if more > 0:
            view.append(f"  +{more} more running", "dim")


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 3]}..."


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _give_back() -> None:
    """Take rich's proxies away by hand: ``Live.stop`` would wait for the lock that the stuck frame holds."""
    for name in ("stdout", "stderr"):
        inner = getattr(getattr(sys, name), "rich_proxied_file", None)
        if inner is not None:
            setattr(sys, name, inner)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # no stream at all (pythonw), or a closed one
        return False
