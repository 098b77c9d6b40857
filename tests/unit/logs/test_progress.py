"""The live view on a pseudo-terminal, read back by a small terminal of our own."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flowlane.runtime.events import History
from flowlane.runtime.ports import RunOutcome, Sink
from flowlane_plugins.sinks import progress
from flowlane_plugins.sinks.progress import ProgressSink

DONE = RunOutcome("succeeded", 5_000_100_000_000, {"succeeded": 1})
TOKEN = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\s\S])")


class Screen:
    """As much of a terminal as a live view uses: text, CR, LF, cursor up, erase line, hide and show the cursor."""

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.cursor = True

    def feed(self, text: str) -> None:
        for arguments, verb, char in TOKEN.findall(text):
            match verb, arguments:
                case ("", _):
                    self._char(char)
                case ("A", count):
                    self.row = max(0, self.row - int(count or 1))
                case ("K", "2"):
                    self.lines[self.row] = ""
                case ("h" | "l", "?25"):
                    self.cursor = verb == "h"
                case ("m", _):
                    pass
                case _:
                    raise AssertionError(f"unexpected ESC[{arguments}{verb}")

    def _char(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row += 1
            self.column = 0  # the terminal driver's ONLCR
            if self.row == len(self.lines):
                self.lines.append("")
        else:
            assert char.isprintable()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
            self.column += 1

    @property
    def text(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


class Tty(io.StringIO):
    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.broken: Exception | None = None

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.broken is not None:
            raise self.broken
        return super().write(text)

    @property
    def screen(self) -> Screen:
        screen = Screen()
        screen.feed(self.getvalue())
        return screen


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setattr(progress, "FRAME", 3600.0)  # frames are drawn by hand
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def draw(sink: ProgressSink) -> None:
    sink._live.refresh()


def test_it_is_a_sink_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(ProgressSink(io.StringIO()), Sink)
    assert ProgressSink(Tty()).wants
    assert not ProgressSink(io.StringIO()).wants
    closed = io.StringIO()
    closed.close()
    assert not ProgressSink(closed).wants
    assert not ProgressSink(None).wants  # type: ignore[arg-type]
    monkeypatch.setenv("TERM", "dumb")
    assert not ProgressSink(Tty()).wants


def test_the_view(kit: Any) -> None:
    names = [f"parse[{n}]" for n in range(8)] + ["fetch\x1b[2J"]
    run = kit.info(names, kinds=["cpu"] * 8 + ["io"], executors=["processes"] * 8 + ["asyncio"])
    stream = Tty()
    sink = ProgressSink(stream, slots={"processes": 9}, clock=lambda: kit.MONO + 8_000_000_000)
    history = History(run)
    sink.open(run)
    rows, reports = kit.simple(run, 0)
    rows += [(8, 2, kit.STARTED, kit.MONO + 500_000_000)]
    rows += [(n, 1, kit.STARTED, kit.MONO + n * 10**9) for n in range(1, 7)]
    rows += [(6, 1, kit.code("running failed raised"), kit.MONO + 7 * 10**9)]
    rows += [(5, 1, kit.code("running retrying raised"), kit.MONO + 7 * 10**9)]
    sink.write(history.chunk(rows, reports))
    draw(sink)
    assert stream.screen.text == [
        "etl · run brisk-otter (7f3a2c) · 9 tasks · cpu 8 · io 1",
        f"  2/9 {'━' * 7}{'─' * 27} 0:08  eta 0:28  asyncio 1  processes 4/9  retry 1  failed 1",
        "  ▶ fetch\\x1b[2J  asyncio  7.5s  attempt 2",
        "  ▶ parse[1]      processes  7.0s",
        "  ▶ parse[2]      processes  6.0s",
        "  ▶ parse[3]      processes  5.0s  +1 more running",
    ]
    sink.write(history.chunk([(5, 1, kit.code("retrying ready backoff_elapsed"), kit.MONO + 7 * 10**9)], {}))
    draw(sink)
    assert "retry" not in stream.screen.text[1]
    sink.close(run, DONE)
    assert stream.screen.text == []  # nothing stays
    assert (stream.screen.row, stream.screen.column, stream.screen.cursor) == (0, 0, True)
    assert sink.take_faults() == []


def test_two_runs_and_one_after_another(kit: Any) -> None:
    stream = Tty()
    sink = ProgressSink(stream, clock=lambda: kit.MONO)
    one, two = kit.info(id="1", name="one"), kit.info([], id="2", name="two")
    sink.open(one)
    sink.open(two)
    draw(sink)
    assert [line.split()[3] for line in stream.screen.text if line.startswith("etl")] == ["one", "two"]
    sink.close(one, DONE)
    draw(sink)
    assert "one" not in " ".join(stream.screen.text)
    sink.close(two, DONE)
    sink.open(one)
    draw(sink)
    assert "one" in " ".join(stream.screen.text)
    sink.close(one, DONE)
    assert stream.screen.text == []


def test_a_thousand_running_tasks_cost_a_few_lines(kit: Any) -> None:
    run = kit.info([f"t{n}" * 30 for n in range(1000)])
    stream = Tty()
    sink = ProgressSink(stream, clock=lambda: kit.MONO)
    sink.open(run)
    sink.write(History(run).chunk([(n, 1, kit.STARTED, kit.MONO) for n in range(1000)], {}))
    draw(sink)
    assert len(stream.screen.text) == 6
    assert stream.screen.text[-1].endswith("+996 more running")
    assert max(map(len, stream.screen.text)) <= 120
    sink.close(run, DONE)


def test_frames_do_not_count_all_tasks_again(kit: Any) -> None:
    class Asked(list[str]):
        count = 0

        def __getitem__(self, index: Any) -> Any:
            Asked.count += 1
            return super().__getitem__(index)

    run = kit.info([f"t{n}" for n in range(1000)])
    kinds = Asked(run.kinds)
    sink = ProgressSink(Tty(), clock=lambda: kit.MONO)
    sink.open(dataclasses.replace(run, kinds=kinds))
    for _ in range(5):
        draw(sink)
    assert Asked.count == 1000
    kinds.append("cpu")  # one more has come into being
    draw(sink)
    assert Asked.count == 1001
    sink.close(run, DONE)


def test_wide_names_stay_within_the_line(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    run = kit.info(["a" * 100])
    stream = Tty()
    sink = ProgressSink(stream, clock=lambda: kit.MONO)
    sink.open(run)
    sink.write(History(run).chunk([(0, 1, kit.STARTED, kit.MONO)], {}))
    draw(sink)
    assert max(map(len, stream.screen.text)) <= 30
    sink.close(run, DONE)
    assert stream.screen.text == []


def test_an_ascii_terminal(kit: Any) -> None:
    class Ascii(Tty):
        encoding = "ascii"

        def write(self, text: str) -> int:
            return super().write(text.encode("ascii").decode())

    stream = Ascii()
    sink = ProgressSink(stream, clock=lambda: kit.MONO)
    run = kit.info(["snö"])
    sink.open(run)
    sink.write(History(run).chunk([(0, 1, kit.STARTED, kit.MONO)], {}))
    draw(sink)
    assert stream.screen.text[2] == "  > sn\\xf6  asyncio  0.0s"
    sink.close(run, DONE)
    assert sink.take_faults() == []


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "I/O error"), ValueError("closed")])
@pytest.mark.parametrize("when", ["open", "drawing", "end"])
def test_a_terminal_that_goes_away(
    kit: Any, error: Exception, when: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FRAME", 0.001)
    stream = Tty()
    sink = ProgressSink(stream, prints=True)
    run = kit.info()
    stdout = os.fstat(1)
    if when == "open":
        stream.broken = error
    sink.open(run)
    if when == "drawing":
        stream.broken = error
        assert sink._drawer is not None
        sink._drawer.join(10)  # it ends by itself
        assert not sink._drawer.is_alive()
    if when == "end":
        stream.broken = error
    sink.write(History(run).chunk(*kit.simple(run)))
    sink.close(run, DONE)
    (fault,) = sink.take_faults()
    assert str(error) in fault
    assert sink.take_faults() == []
    assert not sink.wants
    assert os.fstat(1) == stdout  # rich would have put /dev/null there
    assert capfd.readouterr() == ("", "")
    sink.open(run)  # a later run: nothing is drawn, nothing fails
    sink.close(run, DONE)


def test_a_fault_in_drawing_ends_the_view_quietly(
    kit: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FRAME", 0.001)
    sink = ProgressSink(Tty())
    sink.open(kit.info())
    monkeypatch.setattr(sink, "_draw_run", lambda *_: 1 / 0)
    assert sink._drawer is not None
    sink._drawer.join(10)
    sink.close(kit.info(), DONE)
    assert "division by zero" in sink.take_faults()[0]
    assert capfd.readouterr() == ("", "")


def test_prints_appear_above_the_view_and_stdout_is_given_back(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Tty()
    monkeypatch.setattr(sys, "stdout", stream)
    before = (sys.stdout, sys.stderr)
    sink = ProgressSink(stream, prints=True, clock=lambda: kit.MONO)
    sink.open(kit.info())
    print("hello from a task")
    draw(sink)
    assert stream.screen.text[0] == "hello from a task"
    assert stream.screen.text[1].startswith("etl · run")
    sink.close(kit.info(), DONE)
    assert stream.screen.text == ["hello from a task"]
    assert (sys.stdout, sys.stderr) == before


def test_printing_threads_and_the_drawer_do_not_wait_for_each_other(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FRAME", 0.0001)
    stream = Tty()
    monkeypatch.setattr(sys, "stdout", stream)
    sink = ProgressSink(stream, prints=True)
    run = kit.info([f"t{n}" for n in range(50)])
    history = History(run)
    sink.open(run)
    threads = [threading.Thread(target=lambda: [print("x") for _ in range(50)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for element in range(50):
        sink.write(history.chunk(*kit.simple(run, element)))
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    sink.close(run, DONE)
    assert stream.screen.text == ["x"] * 100


def test_a_terminal_that_takes_no_output_does_not_hold_up_the_end(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FRAME", 0.001)
    monkeypatch.setattr(progress, "_PATIENCE", 0.05)
    go, stuck = threading.Event(), threading.Event()

    class Stopped(Tty):
        def write(self, text: str) -> int:
            if threading.current_thread().name == "flowlane-progress":
                stuck.set()
                go.wait(30)
            return super().write(text)

    stream = Stopped()
    monkeypatch.setattr(sys, "stdout", stream)
    sink = ProgressSink(stream, prints=True)
    sink.open(kit.info())
    assert sys.stdout is not stream
    drawer = sink._drawer
    assert drawer is not None
    assert stuck.wait(30)
    sink.close(kit.info(), DONE)
    assert sys.stdout is stream
    assert "takes no output" in sink.take_faults()[0]
    go.set()
    drawer.join(30)
