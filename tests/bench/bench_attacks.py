"""What attacks cost beyond the passes they need, and beside other packages.

`run()` returns ratios of CPU time on one thread, each pair run back to back:

- ``pgd_over_passes``: PGD of which no image leaves, over the bare forward and backward passes;
- ``pgd_shrunk_over_active_share``: PGD with images leaving, over (share of passes x full time);
- ``pgd_step_ms_free``: milliseconds of one step at batch 256 of 3x32x32 on a near-free model;
- ``pgd_PEER_over_ours_free``: a peer's PGD at the same settings over ours, where the package is
  installed (foolbox and torchattacks are no dependencies; name their folder in PYTHONPATH);
- ``apgd_pyautoattack_over_ours``, ``square_pyautoattack_over_ours``: pyautoattack's over ours;
- ``autoattack_pyautoattack_over_ours``: the whole cascade, on a network of which some images stand.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from paired import Spread, cpu_seconds, paired_ratio, spread, wall_seconds
from torch import Tensor, nn

from raybench.core.catalog import load_model, open_dataset
from raybench.kernels.attacks.apgd import apgd
from raybench.kernels.attacks.autoattack import autoattack
from raybench.kernels.attacks.pgd import pgd
from raybench.kernels.attacks.square import square
from raybench.kernels.counter import sample_keys
from raybench.models.zoo_nets import build

STEPS = 10


class NearFree(nn.Module):
    """Ten logits [N, 10] from the first values of each image: almost no work to differentiate."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10]


class Answering(nn.Module):
    """A function as the module that pyautoattack wants."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def run() -> dict[str, object]:
    """Return the ratios named in the module's docstring, each with its range."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return over_passes() | near_free() | beside_pyautoattack()
    finally:
        torch.set_num_threads(before)


def material(count: int, network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, the classes the network gives them, and keys."""
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = network(images).argmax(1)
    ids = tuple(map(str, range(count)))
    return images, labels, torch.from_numpy(sample_keys(0, "bench", ids))


def over_passes() -> dict[str, Spread]:
    """Compare PGD on the zoo's CNN with the passes alone."""
    network = build("cnn3", (3, 32, 32), 10).eval().requires_grad_(False)
    images, labels, keys = material(64, network)
    attack = partial(
        pgd, network, images, labels, keys=keys, norm="linf", eps=8 / 255, step_size=2 / 255,
        steps=STEPS,
    )  # fmt: skip

    def passes() -> None:
        for _ in range(STEPS):
            leaf = images.detach().requires_grad_(True)
            loss = nn.functional.cross_entropy(network(leaf), labels, reduction="sum")
            torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            network(images)

    full = partial(attack, shrink=False)
    found = attack()
    spent = (found.queries.sum() + found.gradients.sum()).item()
    share = spent / (len(images) * (2 * STEPS + 1))
    shrunk = paired_ratio(attack, full, 9)
    return {
        "pgd_over_passes": paired_ratio(full, passes, 9),
        "pgd_active_share": spread([share]),
        "pgd_shrunk_over_active_share": {key: value / share for key, value in shrunk.items()},
    }


def near_free() -> dict[str, Spread]:
    """Measure what a step costs where the model costs nothing, beside the peers at hand."""
    network = NearFree()
    images, labels, keys = material(256, network)
    settings = {"eps": 8 / 255, "step_size": 2 / 255, "steps": STEPS}
    ours = partial(pgd, network, images, labels, keys=keys, norm="linf", shrink=False, **settings)
    ours()
    times = [1000 * cpu_seconds(ours) / STEPS for _ in range(9)]
    results = {"pgd_step_ms_free": spread(times)}
    for name, make in (("foolbox", _foolbox), ("torchattacks", _torchattacks)):
        if importlib.util.find_spec(name) is not None:
            results[f"pgd_{name}_over_ours_free"] = paired_ratio(
                make(network, images, labels), ours, 9
            )
    return results


def _foolbox(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    import foolbox

    model = foolbox.PyTorchModel(network.eval(), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=2 / 255)
    return lambda: attack(model, images, labels, epsilons=8 / 255)


def _torchattacks(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    import torchattacks

    attack = torchattacks.PGD(network.eval(), eps=8 / 255, alpha=2 / 255, steps=STEPS)
    return lambda: attack(images, labels)


def beside_pyautoattack() -> dict[str, Spread]:
    """Compare APGD, Square and the cascade with pyautoattack's on the zoo's trained network."""
    from pyautoattack import AutoAttack

    model = load_model("zoo:cnn3-adv")
    data = open_dataset("digits?n=48")
    images, truth = data.read(data.ids).images, data.labels(data.ids)
    assert truth is not None
    labels = torch.from_numpy(truth.astype(np.int64))
    right = model.labels(images) == labels
    images, labels = images[right], labels[right]
    keys = torch.from_numpy(sample_keys(0, "bench", tuple(map(str, range(len(images))))))
    eps = 0.1
    shared = {"keys": keys, "norm": "linf", "eps": eps}

    def peer(*attacks: str) -> object:
        adversary = AutoAttack(
            Answering(model.logits), norm="Linf", eps=eps, version="custom", attacks=list(attacks),
            seed=0,
        )  # fmt: skip
        # A cascade of one's own would take five restarts of each, the standard one takes one.
        adversary.apgd.n_restarts = adversary.fab.n_restarts = adversary.square.n_restarts = 1
        with contextlib.redirect_stdout(io.StringIO()):
            return adversary.run_standard_evaluation(images, labels, batch_size=len(images))

    cases: dict[str, tuple[Callable[[], object], tuple[str, ...], int]] = {
        "apgd": (lambda: apgd(model.logits, images, labels, **shared), ("apgd-ce",), 5),
        "square": (lambda: square(model.logits, images, labels, **shared), ("square",), 3),
        "autoattack": (
            lambda: autoattack(model.logits, images, labels, **shared),
            ("apgd-ce", "apgd-t", "fab-t", "square"),
            1,
        ),
    }
    results = {}
    for name, (ours, names, repeats) in cases.items():
        results[f"{name}_pyautoattack_over_ours"] = paired_ratio(
            partial(peer, *names), ours, repeats, seconds=wall_seconds
        )
    return results
