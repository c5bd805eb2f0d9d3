#!/usr/bin/env python3
"""Table 1 of the paper, CIFAR-10 rows: six RobustBench checkpoints, n = 3000, k = 1000.

The checkpoints are downloaded on first use; those that cannot be had are left out, which is said.
``--data "cifar10?root=/data"`` says where the dataset is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.recipes import run_recipe

# Names of spec 01 section 1.6, in the order of the table: the standard model first.
DEFAULTS = {
    "models": tuple(
        f"robustbench:cifar10/Linf/{name}"
        for name in (
            "Standard",
            "Ding2020MMA",
            "Engstrom2019Robustness",
            "Wu2020Adversarial",
            "Sehwag2021Proxy",
            "Rebuffi2021Fixing_70_16_cutmix_extra",
        )
    ),
    "data": "cifar10",
    "n": 3000,
    "samples": 1000,
    "skip_missing": True,
}

if __name__ == "__main__":
    sys.exit(run_recipe(__doc__, DEFAULTS))
