#!/usr/bin/env python3
"""The paper's Fig. 1 on MNIST: six networks, n = 1000 test images, k = 1000 samples.

The networks are trained on MNIST on first use (minutes on a GPU, hours on a laptop) and cached.
``--data "mnist?root=/data/mnist"`` says where the idx files are; the networks train on the same.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.core.spec import Spec, parse
from raybench.recipes import run_recipe

NETWORKS = ("mlp2", "mlp2-adv", "cnn3", "cnn3-adv", "cnn5", "cnn5-adv")
DEFAULTS = {"data": "mnist", "n": 1000, "samples": 1000, "skip_missing": True}


def models_for(data: str) -> tuple[str, ...]:
    """Return the six networks, trained on the training split of the dataset `data` names."""
    spec = parse(data)
    options = {"data": spec.scheme, "root": spec.get("root")}
    return tuple(Spec("zoo", name).with_options(**options).canonical() for name in NETWORKS)


if __name__ == "__main__":
    sys.exit(run_recipe(__doc__, DEFAULTS, models_for))
