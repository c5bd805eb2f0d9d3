"""Robust accuracy by our attacks beside that of their peers, on real checkpoints.

    OMP_NUM_THREADS=1 python tests/bench/parity.py CHECKPOINTS DATA --n 100 --attack autoattack

CHECKPOINTS and DATA are folders of third-party networks and images (`CASES` names those used).
Both sides get the same rightly classified images and the same budget, and every adversarial image
is judged here, by a fresh forward pass and the size of its perturbation. pyautoattack is among the
dependencies; foolbox and torchattacks are not: name their folder in PYTHONPATH, or their rows are
left out. Prints one Markdown row for each network, attack and peer: images still right of n by
ours and by the peer, images on which they differ, and CPU seconds on one thread.
"""

import contextlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from paired import cpu_seconds
from torch import Tensor, nn

from raybench.core.catalog import load_model, open_dataset
from raybench.core.types import Model
from raybench.kernels.attacks.apgd import apgd, apgd_targeted
from raybench.kernels.attacks.autoattack import autoattack
from raybench.kernels.attacks.carlini import carlini_l2
from raybench.kernels.attacks.common import AttackResult, lp_norm
from raybench.kernels.attacks.deepfool import deepfool
from raybench.kernels.attacks.fab import fab_targeted
from raybench.kernels.attacks.pgd import pgd
from raybench.kernels.attacks.square import square
from raybench.kernels.counter import sample_keys

DATA = {
    "mnist": "mnist?root={}/mnist&n={}",
    "cifar10": "npz:{}/cifar10/test-first1000.npz?n={}",
}

CASES = (
    ("mnist-advertorch-clean", "0.1", "1.5"),
    ("mnist-rsl18a-0.1", "0.1", "1.5"),
    ("mnist-wongkolter-0.1", "0.1", "1.5"),
    ("mnist-advertorch-pgd", "0.3", "1.5"),
    ("cifar10-resnet2b-adv", "2/255", "0.25"),
    ("cifar10-oval-wide-kw", "2/255", "0.25"),
    ("cifar10-wongkolter-8", "8/255", "0.25"),
    ("cifar10-oval-wide-madry", "2/255", "0.25"),
)
"""Checkpoint, and its budgets in linf and l2."""


class Answering(nn.Module):
    """A function as the module in evaluation mode that peers want."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One network under one budget, and the images it classifies rightly."""

    model: Model
    images: Tensor
    labels: Tensor
    keys: Tensor
    norm: str
    eps: float

    def standing(self, made: Tensor) -> Tensor:
        """Return which images [N] are still classified rightly; breaking the budget does not count.

        Judged anew, for ours and peers alike.
        """
        size = lp_norm(made - self.images, self.norm)
        inside = (size <= self.eps * (1 + 1e-4) + 1e-6) & ((made >= 0) & (made <= 1)).flatten(
            1
        ).all(1)
        return (self.model.labels(made) == self.labels) | ~inside


STEPS = 40


def ours(attack: str, case: Case) -> Tensor:
    """Return what our attack makes of the images [N, C, H, W]."""
    budget = {"norm": case.norm, "eps": case.eps}
    known: dict[str, Callable[..., AttackResult]] = {
        "autoattack": autoattack,
        "apgd-ce": apgd,
        "apgd-t": apgd_targeted,
        "fab-t": partial(fab_targeted, within=True),
        "square": partial(square, queries=1000),
        "pgd": partial(pgd, steps=STEPS, step_size=2.5 * case.eps / STEPS),
    }
    if attack == "deepfool":
        result = deepfool(case.model.logits, case.images, case.labels, norm="l2")
    elif attack == "carlini-l2":
        result = carlini_l2(case.model.logits, case.images, case.labels, steps=200)
    else:
        result = known[attack](
            case.model.logits, case.images, case.labels, keys=case.keys, **budget
        )
    return result.images


def pyautoattack(attack: str, case: Case) -> Tensor | None:
    """Return what pyautoattack makes of them, or None where it has no such attack."""
    from pyautoattack import AutoAttack

    parts = {"autoattack": None, "apgd-ce": ["apgd-ce"], "apgd-t": ["apgd-t"], "fab-t": ["fab-t"],
             "square": ["square"]}  # fmt: skip
    if attack not in parts:
        return None
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[case.norm]
    one = parts[attack]
    adversary = AutoAttack(
        Answering(case.model.logits), norm=norm, eps=case.eps, device="cpu", seed=0,
        version="custom" if one else "standard", attacks=one,
    )  # fmt: skip
    if attack == "square":
        adversary.square.n_queries = 1000
    if one:  # five restarts otherwise, where attacks are named
        adversary.apgd.n_restarts = adversary.fab.n_restarts = adversary.square.n_restarts = 1
    found = adversary.run_standard_evaluation(case.images, case.labels, batch_size=250)
    return found[0] if isinstance(found, tuple) else found


def foolbox(attack: str, case: Case) -> Tensor | None:
    """Return what foolbox makes of them; the last iterate, as it gives it."""
    import foolbox as fb

    torch.manual_seed(0)
    model = fb.PyTorchModel(Answering(case.model.logits).eval(), bounds=(0, 1), device="cpu")
    if attack == "pgd":
        kind = fb.attacks.LinfPGD if case.norm == "linf" else fb.attacks.L2PGD
        made = kind(steps=STEPS, rel_stepsize=2.5 / STEPS)(
            model, case.images, case.labels, epsilons=case.eps
        )
    elif attack == "deepfool" and case.norm == "l2":
        made = fb.attacks.L2DeepFoolAttack(steps=50)(model, case.images, case.labels, epsilons=None)
    elif attack == "carlini-l2" and case.norm == "l2":
        made = fb.attacks.L2CarliniWagnerAttack(steps=200)(
            model, case.images, case.labels, epsilons=None
        )
    else:
        return None
    return made[1].detach()


def torchattacks(attack: str, case: Case) -> Tensor | None:
    """Return what torchattacks makes of them."""
    import torchattacks as ta

    torch.manual_seed(0)
    network, step = Answering(case.model.logits).eval(), 2.5 * case.eps / STEPS
    if attack == "pgd":
        kind = ta.PGD if case.norm == "linf" else ta.PGDL2
        adversary = kind(network, eps=case.eps, alpha=step, steps=STEPS)
    elif attack == "deepfool" and case.norm == "l2":
        adversary = ta.DeepFool(network, steps=50)
    elif attack == "carlini-l2" and case.norm == "l2":
        adversary = ta.CW(network, steps=200)
    else:
        return None
    found: Tensor = adversary(case.images, case.labels)
    return found.detach()


PEERS = {"pyautoattack": pyautoattack, "foolbox": foolbox, "torchattacks": torchattacks}


def timed(action: Callable[[], Tensor | None]) -> tuple[Tensor | None, float]:
    """Return what `action` makes, quietly, and its CPU seconds."""
    kept: list[Tensor | None] = []
    with contextlib.redirect_stdout(io.StringIO()):
        seconds = cpu_seconds(lambda: kept.append(action()))
    return kept[0], seconds


def main(
    checkpoints: Path,
    data: Path,
    n: int = 100,
    attack: Annotated[list[str], typer.Option()] = ["autoattack"],  # noqa: B006
    network: Annotated[list[str] | None, typer.Option()] = None,
    norm: str = "linf",
) -> None:
    """Compare attacks on the networks named, or all of `CASES`, and print the table."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print("| network | eps | attack | peer | ours | peer's | differ | s ours | s peer | ratio |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|---:|")
    for name, *budgets in CASES:
        if network and name not in network:
            continue
        text = budgets[0 if norm == "linf" else 1]
        model = load_model(f"torchscript:{checkpoints / name / 'model.torchscript.pt'}")
        images = open_dataset(DATA[name.partition("-")[0]].format(data, n))
        batch, truth = images.read(images.ids), images.labels(images.ids)
        labels = torch.from_numpy(truth.astype("int64"))
        right = model.labels(batch.images) == labels
        ids = tuple(name for name, keep in zip(batch.ids, right.tolist(), strict=True) if keep)
        case = Case(
            model=model, images=batch.images[right], labels=labels[right], norm=norm,
            keys=torch.from_numpy(sample_keys(0, "parity", ids)), eps=float(Fraction(text)),
        )  # fmt: skip
        for each in attack:
            made, seconds = timed(partial(ours, each, case))
            assert made is not None
            mine = case.standing(made)
            for peer, function in PEERS.items():
                if importlib.util.find_spec(peer) is None:
                    continue
                theirs, peers_seconds = timed(partial(function, each, case))
                if theirs is None:
                    continue
                other = case.standing(theirs)
                print(
                    f"| {name} | {norm} {text} | {each} | {peer} | {int(mine.sum())} | "
                    f"{int(other.sum())} | {int((mine != other).sum())} | {seconds:.1f} | "
                    f"{peers_seconds:.1f} | {seconds / peers_seconds:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(typer.run(main))
