#!/usr/bin/env python3
"""A leaderboard brought up to date: ``raybench refresh``, for ``ray job submit``.

``jobs/refresh_leaderboard.py leaderboard.yaml --address auto`` takes the options of
``raybench refresh``; without any it refreshes the example beside this file.
"""

import sys
from pathlib import Path

# `ray job submit -- jobs/refresh_leaderboard.py` runs this file alone: its folder, not the
# repository, would be on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.cli import main

EXAMPLE = Path(__file__).resolve().parent / "leaderboard.yaml"

if __name__ == "__main__":
    sys.exit(main(["refresh", *(sys.argv[1:] or [str(EXAMPLE)])]))
