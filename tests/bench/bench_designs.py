"""Accuracy per query of mask designs, on real third-party networks.

`run()` needs folders of checkpoints and data, ``RAYBENCH_CHECKPOINTS`` and ``RAYBENCH_DATA`` (by
default ../shared beside the checkout); without them it says so and measures nothing.

For each network and image the weights are estimated from many independent sets of k masks:

- ``weights_variance_DESIGN_over_bernoulli_NET``: their variance over the sets, summed over
  segments, over that of independent masks at equal k. As the variance falls as 1 / k, 0.5 means
  that half the queries give the same accuracy;
- ``score_variance_DESIGN_over_bernoulli_NET``: the same of the score, the mean of |w|;
- ``score_mean_DESIGN_over_bernoulli_NET``: the score itself; less noise folds less of it upwards.

Medians and ranges are over images.
"""

import os
import sys
from pathlib import Path

import torch
from paired import Spread, spread
from torch import Tensor

from raybench.core.catalog import load_model, open_dataset
from raybench.core.types import Batch, Model
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.models.speed import speed_up

SHARED = Path(__file__).resolve().parents[3] / "shared"
SAMPLES, IMAGES, SETS = 256, 8, 40
DESIGNS = ("antithetic", "hadamard")
MNIST, CIFAR10 = "mnist?root={}/mnist&n={}", "npz:{}/cifar10/test-first1000.npz?n={}"
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
NETS = {
    "mnist-advertorch-clean": (MNIST, GREY),
    "mnist-wongkolter-0.1": (MNIST, GREY),
    "cifar10-resnet2b-adv": (CIFAR10, COLOUR),
    "cifar10-onepixel-lenet": (CIFAR10, COLOUR),
}


def folders() -> tuple[Path, Path] | None:
    """Return the folders of checkpoints and data; None, and a line that says so, without them."""
    checkpoints = Path(os.environ.get("RAYBENCH_CHECKPOINTS", SHARED / "checkpoints"))
    data = Path(os.environ.get("RAYBENCH_DATA", SHARED / "data"))
    if checkpoints.is_dir() and data.is_dir():
        return checkpoints, data
    print(
        f"no checkpoints at {checkpoints} or no data at {data}: set RAYBENCH_CHECKPOINTS and "
        "RAYBENCH_DATA",
        file=sys.stderr,
    )
    return None


def run() -> dict[str, object]:
    """Return the ratios named in the module's docstring."""
    where = folders()
    if where is None:
        return {}
    checkpoints, data = where
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    for net, (name, shape) in NETS.items():
        size = "x".join(map(str, shape))
        file = checkpoints / net / "model.torchscript.pt"
        model = load_model(f"torchscript:{file}?shape={size}")
        speed_up(model)
        dataset = open_dataset(name.format(data, IMAGES))
        found |= compare(net, model, dataset.read(dataset.ids), shape)
    return found


def compare(net: str, model: Model, batch: Batch, shape: tuple[int, int, int]) -> dict[str, Spread]:
    plain = estimates(model, batch, reading("bernoulli", shape))
    found: dict[str, Spread] = {}
    for design in DESIGNS:
        other = estimates(model, batch, reading(design, shape))
        scores, plain_scores = other.abs().mean(2), plain.abs().mean(2)
        for what, above, below in (
            ("weights_variance", other.var(0).sum(1), plain.var(0).sum(1)),
            ("score_variance", scores.var(0), plain_scores.var(0)),
            ("score_mean", scores.mean(0), plain_scores.mean(0)),
        ):
            found[f"{what}_{design}_over_bernoulli_{net}"] = spread((above / below).tolist())
    return found


def reading(design: str, shape: tuple[int, int, int]) -> LimeEvaluation:
    text = f"grid?design={design}&target=margin_pred"
    found = parse_reading(text, samples=SAMPLES, shape=shape)
    assert isinstance(found, LimeEvaluation), type(found)
    return found


def estimates(model: Model, batch: Batch, reading: LimeEvaluation) -> Tensor:
    """Return the weights [SETS, images, segments] float64, each set from a seed of its own."""
    sets = []
    for seed in range(SETS):
        rows = reading(model, batch, seed=seed, batch_size=128)
        assert set(rows.column("status").to_pylist()) == {"ok"}
        sets.append(rows.column("weights").to_pylist())
    return torch.tensor(sets, dtype=torch.float64)


if __name__ == "__main__":
    for key, value in run().items():
        print(key, {name: round(number, 3) for name, number in value.items()})
