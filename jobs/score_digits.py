#!/usr/bin/env python3
"""The paper's controlled experiment on scikit-learn's handwritten digits: no download, no GPU.

Six networks (2-layer MLP, 3-layer CNN, 5-layer CNN, each trained plainly and against PGD) are
trained on first use and scored on held-out digits. Options: ``--help``.
"""

import sys
from pathlib import Path

# `ray job submit -- jobs/score_digits.py` runs this file alone: its folder, not the repository,
# would be on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.recipes import run_recipe

DEFAULTS = {
    "models": ("zoo:mlp2", "zoo:mlp2-adv", "zoo:cnn3", "zoo:cnn3-adv", "zoo:cnn5", "zoo:cnn5-adv"),
    "data": "digits",
    "n": 400,
}

if __name__ == "__main__":
    sys.exit(run_recipe(__doc__, DEFAULTS))
