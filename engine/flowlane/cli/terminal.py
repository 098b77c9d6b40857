"""What reaches the terminal, and what must not: data on stdout, everything else on stderr, never a raw control byte.

stdout carries the workflow's value and nothing else. What user code prints (a ``print`` in a task, a library's
chatter, a worker process) would corrupt that data, so while a verb works, file descriptor 1 points at stderr, and the
value is written to the real stdout afterwards: :class:`DataOutput`.

A closed pipe (``flow run … | head``) is nobody's error: streams of ours go silent instead of raising.
"""

from __future__ import annotations

import io
import os
import sys
from typing import IO, TYPE_CHECKING, Any, Final, Self, TextIO, cast

from flowlane.errors import FlowError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["DataOutput", "Messages", "OutputError", "Page", "hush", "inert", "is_plain"]

# C0 but tab and newline, DEL, C1, bidirectional controls, line and paragraph separators, byte order mark: each can move
# the cursor, colour or reorder what is on the screen, or start a line that we did not write.
_CONTROLS: Final = (
    *range(0x09),
    *range(0x0B, 0x20),
    *range(0x7F, 0xA0),
    0x061C,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
)
_INERT: Final = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_ASCII: Final = str.maketrans({"✔": "ok", "✗": "x", "■": "#", "·": "-", "→": "->", "←": "<-", "…": "...", "▸": ">"})


def inert(text: str, *, newlines: bool = False) -> str:
    """`text` with every control character written as an escape; newlines as well unless `newlines`."""
    text = text.translate(_INERT)
    return text if newlines else text.replace("\n", "\\n")


def is_plain(stream: object) -> bool:
    """Whether `stream` must get no escape byte: not a terminal, or NO_COLOR, CI or TERM=dumb say so."""
    environ = os.environ
    if environ.get("NO_COLOR") or environ.get("CI") or environ.get("TERM") == "dumb":
        return True
    try:
        return not stream.isatty()  # type: ignore[attr-defined]
    except (AttributeError, ValueError, OSError):
        return True


def hush(stream: IO[str]) -> None:
    """Point the descriptor of a broken `stream` at the null device, so that the interpreter's last flush is quiet."""
    try:
        fd = stream.fileno()  # first: a stream that has none costs no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, fd)
        finally:
            os.close(null)
    except (OSError, ValueError, io.UnsupportedOperation):
        return


class OutputError(FlowError):
    """What was to be written to stdout could not be."""

    exit_code = 74  # EX_IOERR of sysexits.h


class Messages(io.TextIOBase):
    """A text stream onto stderr for people's eyes: never raises, goes silent once stderr is gone. Any thread.

    Characters that the terminal's encoding lacks are replaced (marks by ASCII look-alikes, others by escapes).
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__()
        self._stream: IO[str] | None = sys.stderr if stream is None else stream
        encoding = (getattr(self._stream, "encoding", None) or "utf-8").lower()
        self._encoding = None if encoding.replace("-", "") == "utf8" else encoding
        self.plain = is_plain(self._stream)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding or "utf-8"

    def __getattr__(self, name: str) -> Any:
        # In the place of sys.stdout, user code asks for more than a text stream has: buffer, errors, reconfigure.
        if name == "_stream":  # not made yet, or copied
            raise AttributeError(name)
        return getattr(self._stream, name)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return not self.plain

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        stream = self._stream
        if stream is None:
            return len(text)
        if self._encoding is not None:
            shown = text.translate(_ASCII).encode(self._encoding, "backslashreplace").decode(self._encoding)
        else:
            shown = text.encode("utf-8", "backslashreplace").decode("utf-8") if not text.isascii() else text
        try:
            stream.write(shown)
        except (OSError, ValueError):
            self._lose(stream)
        return len(text)

    def flush(self) -> None:
        stream = self._stream
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                self._lose(stream)

    def line(self, text: str = "") -> None:
        """Write one line and flush it."""
        self.write(text + "\n")
        self.flush()

    def mute(self) -> None:
        """Write nothing more."""
        self._stream = None

    def paint(self, text: str, code: str) -> str:
        """`text` in the SGR style `code` ("31", "1;32") on a colour terminal, unchanged elsewhere."""
        return text if self.plain else f"\x1b[{code}m{text}\x1b[0m"

    def _lose(self, stream: IO[str]) -> None:
        self._stream = None
        hush(stream)


class _Sheet(io.StringIO):
    """Text for a stream, as that stream would have it."""

    def __init__(self, like: IO[str]) -> None:
        super().__init__()
        self._like = like

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._like, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self._like.isatty()
        except (AttributeError, ValueError, OSError):
            return False


class Page(Messages):
    """What a verb tells about stored runs, made in memory: it is data, and goes to stdout in one piece (`DataOutput.write`)."""

    def __init__(self, like: IO[str]) -> None:
        self._sheet = _Sheet(like)
        super().__init__(self._sheet)

    def text(self) -> str:
        return self._sheet.getvalue()


class DataOutput:
    """Context manager that keeps stdout for data: inside it, whatever prints goes to stderr; :meth:`write` is stdout.

    The streams that user code prints to never raise: a reader of ours that goes away must not fail a task.
    """

    def __init__(self) -> None:
        self.gone = False  # whether the reader went away: nothing more will be read
        self._real: IO[str] | None = None
        self._replaced: tuple[TextIO, TextIO] | None = None
        self._saved: int | None = None

    def __enter__(self) -> Self:
        self._replaced = real, err = sys.stdout, sys.stderr
        try:
            real.flush()
            if real.fileno() == 1 and err.fileno() == 2:  # not under a test runner that swaps the streams
                self._saved = os.dup(1)
                os.dup2(2, 1)
        except (OSError, ValueError, AttributeError):
            self._saved = None
        if self._saved is None:
            self._real = real
        else:
            self._real = os.fdopen(
                os.dup(self._saved), "w", encoding=real.encoding, errors="backslashreplace", newline="\n"
            )
        sys.stdout = sys.stderr = cast("TextIO", Messages(err))
        return self

    def write(self, text: str) -> None:
        """Write `text` to stdout, whole and verbatim. A reader that went away is not an error; a full disk raises
        OutputError."""
        assert self._real is not None, "DataOutput is not open"
        encoding: str = getattr(self._real, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)  # lone surrogates, or a terminal in LANG=C
        try:
            self._real.write(text)
            self._real.flush()
        except BrokenPipeError:
            self.gone = True
            hush(self._real)
        except OSError as error:
            hush(self._real)
            raise OutputError(f"stdout cannot be written: {(error.strerror or str(error)).lower()}") from None

    def page(self) -> Page:
        """An empty page that fits the real stdout: its encoding, and whether it takes colours."""
        assert self._real is not None, "DataOutput is not open"
        return Page(self._real)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._replaced is not None:
            sys.stdout.flush()
            sys.stdout, sys.stderr = self._replaced
        if self._saved is not None:
            os.dup2(self._saved, 1)
            os.close(self._saved)
            if self._real is not None:
                try:
                    self._real.close()
                except (OSError, ValueError):
                    return
