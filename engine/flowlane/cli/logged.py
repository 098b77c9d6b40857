"""What the library logs while a run goes on, shown on the terminal at once: a blocked event loop may never come free to tell.

The library configures no logging, so without this a warning would reach nobody before the summary. A workflow file that sets up
logging of its own shows warnings already; then nothing is added.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from flowlane.cli.terminal import inert
from flowlane.redaction import redacted
from flowlane.runtime.encode import encode
from flowlane.runtime.events import SCHEMA_VERSION

if TYPE_CHECKING:
    from types import TracebackType

    from flowlane.cli.terminal import Messages

__all__ = ["ShownWarnings"]

#: What the engine and its executors have to say besides the history. That goes to the logger above, by way of a sink that takes
#: no time as long as nobody hears it.
_LOGGER: Final = "flowlane.engine"


class ShownWarnings(logging.Handler):
    """Context manager: inside it, warnings of the library are written to stderr, as lines or as events of the schema. Any thread.

    messages  the stream that events go to; lines go where ``sys.stderr`` is, above a live view if there is one
    """

    def __init__(self, messages: Messages, *, as_events: bool) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages
        self._as_events = as_events

    def __enter__(self) -> Self:
        logging.getLogger(_LOGGER).addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logging.getLogger(_LOGGER).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_shown():
            return
        try:
            text = redacted(record.getMessage())
            if self._as_events:
                self._messages.line(encode(_event(record, text)))
            else:
                sys.stderr.write(f"! {inert(text)}\n")
                sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as the standard library's handlers: a message must not end what it tells of
            return

    def _is_shown(self) -> bool:
        """Whether a handler of somebody else's gets it as well."""
        logger: logging.Logger | None = logging.getLogger(_LOGGER)
        while logger is not None:
            if any(each is not self and not isinstance(each, logging.NullHandler) for each in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def _event(record: logging.LogRecord, text: str) -> dict[str, object]:
    return {
        "event": "engine.warning",
        "v": SCHEMA_VERSION,
        "level": "error" if record.levelno > logging.WARNING else "warning",
        "timestamp": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "message": text,
    }
