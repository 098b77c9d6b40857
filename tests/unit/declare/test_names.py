"""The public names: lazy, complete, and each where it says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import flowlane


def test_every_public_name_is_there() -> None:
    for name in flowlane.__all__:
        assert getattr(flowlane, name) is not None
    assert set(flowlane.__all__) <= set(dir(flowlane))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flowlane.nothing  # pyright: ignore


def test_all_errors_are_public() -> None:
    import flowlane.errors

    assert set(flowlane.errors.__all__) <= set(flowlane.__all__)


def test_importing_is_light() -> None:
    code = "import sys, typing; before = set(sys.modules); import flowlane; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) <= 2  # itself and __future__
