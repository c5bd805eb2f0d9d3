"""What bfloat16 does to scores, on real third-party networks.

`run()` needs folders of checkpoints and data, as `bench_designs`. ``bf16_score_change_NET`` is the
mean score of the network in bfloat16 over that in float32, less one (k = 500, grid, same masks);
``bf16_same_class_NET`` the share of images of the same predicted class.
"""

import torch
from bench_designs import CIFAR10, COLOUR, GREY, MNIST, folders
from paired import Spread, spread

from raybench.core.catalog import load_model, open_dataset
from raybench.evaluations.readings import parse_reading
from raybench.models.speed import speed_up

IMAGES, SAMPLES = 16, 500
NETS = {
    "mnist-advertorch-clean": (MNIST, GREY),
    "mnist-wongkolter-0.1": (MNIST, GREY),
    "cifar10-resnet2b-adv": (CIFAR10, COLOUR),
    "cifar10-akamaster-resnet20": (CIFAR10, COLOUR),
}


def run() -> dict[str, object]:
    """Return the figures named in the module's docstring; ranges are over images."""
    found: dict[str, Spread] = {}
    where = folders()
    if where is None:
        return {}
    checkpoints, data = where
    torch.set_num_threads(1)
    for net, (name, shape) in NETS.items():
        dataset = open_dataset(name.format(data, IMAGES))
        batch = dataset.read(dataset.ids)
        reading = parse_reading("grid", samples=SAMPLES, shape=shape)
        size = "x".join(map(str, shape))
        spec = f"torchscript:{checkpoints / net / 'model.torchscript.pt'}?shape={size}"
        tables = []
        for precision in ("float32", "bfloat16"):
            model = load_model(f"{spec}&precision={precision}")
            speed_up(model)
            tables.append(reading(model, batch, seed=0, batch_size=128))
        single, half = (torch.tensor(table.column("score").to_pylist()) for table in tables)
        classes = [table.column("predicted").to_pylist() for table in tables]
        each = (half / single - 1).tolist()
        total = float(half.mean() / single.mean()) - 1
        found[f"bf16_score_change_{net}"] = {"median": total, "low": min(each), "high": max(each)}
        same = sum(a == b for a, b in zip(*classes, strict=True)) / len(each)
        found[f"bf16_same_class_{net}"] = spread([same])
    return dict(found)


if __name__ == "__main__":
    for key, value in run().items():
        print(key, value)
