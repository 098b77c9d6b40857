"""What every store promises, over those that ship with flowlane. See ``flowlane.testing.stores``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowlane.testing.stores import StoreContract
from flowlane_plugins.stores.memory import MemoryStore
from flowlane_plugins.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flowlane.storage.port import Store

SECRET = bytes(32)


class TestMemory(StoreContract):
    @pytest.fixture
    def make(self) -> Callable[[], Store]:
        store = MemoryStore()
        return lambda: store


class TestSqlite(StoreContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: SqliteStore(tmp_path / "state" / "flow.db", secret=SECRET)


class TestSqliteAgainstPowerCuts(StoreContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: SqliteStore(tmp_path / "state" / "flow.db", durability="power", secret=SECRET)
