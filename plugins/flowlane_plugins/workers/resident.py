"""How much memory a process holds: its resident set, in bytes. Asked by a worker of itself, and by the engine of its workers.

On Linux one small file of the kernel's tells (20 µs). Elsewhere psutil knows, which the engine has; a worker imports it for the
first job whose memory is limited.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["resident"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident(pid: int) -> int:
    """Bytes that process `pid` holds; 0 when that cannot be told, because it is gone, say."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0
    import psutil  # type: ignore[import-untyped]  # ships no types

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
