"""What tests of stored runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def _own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are sealed with a key of the test's own, and not with that of whoever runs it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
