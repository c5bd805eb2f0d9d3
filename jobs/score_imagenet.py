#!/usr/bin/env python3
"""Table 1 of the paper, ImageNet rows: RobustBench checkpoints, n = 100, k = 1000, superpixels.

``--data imagenet:/data/val`` says where the images are. Wong2020Fast takes 288-pixel crops where
the others take 224, so it is scored in a table of its own: sizes, segments and image content
differ, and its score does not compare (spec 01 section 1.1). Checkpoints that cannot be had are
left out, which is said.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.core.spec import parse
from raybench.recipes import run_recipe

WONG = "robustbench:imagenet/Linf/Wong2020Fast"
DEFAULTS = {
    "models": tuple(
        f"robustbench:imagenet/Linf/{name}"
        for name in ("Standard_R50", "Engstrom2019Robustness", "Salman2020Do_50_2")
    ),
    "data": "imagenet:data/val",
    "n": 100,
    "samples": 1000,
    "reading": ("superpixel",),
    "skip_missing": True,
}


def wong_as_well(data: str) -> dict[str, object]:
    """Return the options of the second table: Wong2020Fast on 288-pixel crops."""
    spec = parse(data).with_options(preprocess="Crop288")
    return {"models": (WONG,), "data": spec.canonical()}


if __name__ == "__main__":
    sys.exit(run_recipe(__doc__, DEFAULTS, and_then=wong_as_well))
