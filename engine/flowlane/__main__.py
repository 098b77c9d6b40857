"""``python -m flowlane`` is ``flow``."""

from __future__ import annotations

import sys

from flowlane.cli.main import entry

if __name__ == "__main__":
    sys.exit(entry())
