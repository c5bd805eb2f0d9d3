#!/usr/bin/env python3
"""Table 1 of the paper, CIFAR-100 rows: four RobustBench checkpoints, n = 3000, k = 1000.

The paper's fifth row, a standard network of robust accuracy 3.95, is no RobustBench entry: give
your own with ``--baseline NAME`` and a model spec. Checkpoints that cannot be had are left out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.recipes import run_recipe

DEFAULTS = {
    "models": tuple(
        f"robustbench:cifar100/Linf/{name}"
        for name in (
            "Rice2020Overfitting",
            "Rebuffi2021Fixing_R18_ddpm",
            "Gowal2020Uncovering",
            "Gowal2020Uncovering_extra",
        )
    ),
    "data": "cifar100",
    "n": 3000,
    "samples": 1000,
    "skip_missing": True,
}

if __name__ == "__main__":
    sys.exit(run_recipe(__doc__, DEFAULTS))
