"""For all tests: signals mean what they mean at a terminal, and the collector leaves pytest's own objects alone."""

from __future__ import annotations

import gc
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def leave_alone_what_is_there() -> None:
    """Many tests collect garbage, to see that nothing is left: without this, 300,000 objects are looked at each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish(session: pytest.Session) -> None:
    leave_alone_what_is_there()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Between files, where nothing is there but what belongs to the session: the reports of tests heap up too."""
    yield
    if nextitem is None or nextitem.path != item.path:
        leave_alone_what_is_there()


@pytest.fixture(scope="session", autouse=True)
def _signals_as_at_a_terminal() -> Iterator[None]:
    """A shell's background job, and what is under ``nohup``, ignores signals, and so would every program that tests start."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = [number for name in names if signal.getsignal(number := getattr(signal, name)) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
