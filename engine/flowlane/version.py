"""The version of flowlane that is installed."""

from __future__ import annotations

__all__ = ["version"]


def version() -> str:
    """As in ``pip list``; "0+unknown" for a source tree that was never installed. Takes milliseconds."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("flowlane")
    except PackageNotFoundError:
        return "0+unknown"
