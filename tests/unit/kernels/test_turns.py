"""Restarts and targets made at once, against the same attempts made one by one."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks import turns
from raybench.kernels.attacks.apgd import apgd, apgd_targeted
from raybench.kernels.attacks.common import AttackResult
from raybench.kernels.attacks.pgd import pgd
from raybench.kernels.attacks.turns import Attempts, in_turn, new_losses, new_result, stages

STEPS = 6
EPS = 0.03
FIELDS = ("images", "found", "found_at", "found_queries", "queries", "gradients", "losses")


def stepped(images: Tensor) -> Tensor:
    """Answer class 1 on one side of a plane, else 0, with gradients of zero.

    Attacks stay where they began, so that about one start in six, by luck alone, is a success.
    """
    slopes = torch.randn(48, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    beyond = ((images.double() - 0.5).flatten(1) * slopes).sum(1) > 0.55 * EPS * slopes.norm()
    flat = 0.0 * images.double().flatten(1).sum(1, keepdim=True)
    heights = torch.tensor([1.0, 0.0, -1.0, -2.0, -3.0, -4.0], dtype=torch.float64)
    return flat + heights + 2 * beyond[:, None] * torch.tensor([0, 1, 0, 0, 0, 0])


def material(count: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.full((count, 3, 4, 4), 0.5)
    return images, torch.zeros(count, dtype=torch.int64), torch.arange(500, 500 + count)


def scripted(script: list[list[int | None]], heights: Tensor, steps: int = STEPS):
    """Return an attempt that succeeds at image b in place p at iteration ``script[b][p]``.

    Its loss rises to ``heights[b, p]``, and its images hold 10 * b + p.
    """

    def attempt(attempts: Attempts) -> AttackResult:
        pairs = [(int(b), p) for b in attempts.rows for p in attempts.places]
        marks = torch.tensor([10.0 * b + p for b, p in pairs]).view(-1, 1, 1, 1)
        result = new_result(marks)
        losses = new_losses(marks, steps + 1)
        index = torch.arange(len(pairs))
        for at in range(steps + 1):
            if not len(index):
                break
            rows = [pairs[i] for i in index.tolist()]
            won = torch.tensor([script[b][p] == at for b, p in rows])
            result.queries[index] += 1
            losses[index, at] = torch.stack([heights[b, p] for b, p in rows]) * at / steps
            result.found[index[won]] = True
            result.found_at[index[won]] = at
            result.found_queries[index[won]] = at + 1
            index = index[~attempts.leaving(index, won)]
        result.gradients.copy_(result.queries)
        return AttackResult(
            **{name: getattr(result, name) for name in (*FIELDS[:-1], "zero_gradient")},
            losses=losses,
        )

    return attempt


def run(script: list[list[int | None]], heights: Tensor) -> AttackResult:
    images = torch.zeros(len(script), 1, 1, 1)
    return in_turn(new_result(images), stages(scripted(script, heights), images, len(script[0])))


def test_what_comes_of_scripted_attempts():
    script = [
        [2, 0, 0, 0],  # the first attempt is made alone
        [None, 5, 3, None],  # the earliest of those made at once
        [None, 4, 4, 4],  # of equals, the first in place
        [None, None, None, None],  # the highest loss
    ]
    heights = torch.ones(4, 4, dtype=torch.float64)
    heights[3] = torch.tensor([0.5, 0.25, 2.0, 2.0])
    result = run(script, heights)
    assert result.images.flatten().tolist() == [0, 12, 21, 32]
    assert result.found.tolist() == [True, True, True, False]
    first = STEPS + 1
    assert result.found_at.tolist() == [2, first + 3, first + 4, -1]
    assert result.found_queries.tolist() == [3, first + 3 * 4, first + 3 * 5, -1]
    assert result.queries.tolist() == [3, first + 3 * 4, first + 3 * 5, 4 * first]
    assert result.gradients.tolist() == result.queries.tolist()
    assert result.losses is not None
    assert result.losses.shape == (4, 2 * first)
    assert result.losses[3, [first - 1, -1]].tolist() == [0.5, 2.0]


def test_an_attempt_that_only_gets_worse_changes_nothing():
    heights = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    assert run([[None, None, None]], heights).images.item() == 0


@pytest.mark.parametrize("pixels", [1, 2**20])
def test_targets_at_once_are_the_attempts_one_by_one(pixels: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(turns._PIXELS, "cpu", pixels)
    images, labels, keys = material()
    settings = {"norm": "linf", "eps": EPS, "steps": STEPS}
    found = apgd_targeted(stepped, images, labels, keys=keys, num_targets=5, **settings)
    # One target more each time: an image's verdict and best loss say what each target came to.
    singles = [
        apgd_targeted(stepped, images, labels, keys=keys, num_targets=count, **settings)
        for count in range(1, 6)
    ]
    assert found.found.any()
    assert not found.found.all()
    for one, more in pairwise(singles):
        assert (more.found >= one.found).all()
        stood = ~more.found
        assert (more.losses[stood].amax(1) >= one.losses[stood].amax(1)).all()
    stood = ~found.found
    assert (found.queries[stood] == 1 + 5 * (STEPS + 1)).all()
    late = found.found & (found.found_at > STEPS)
    assert late.any()
    passes = found.found_at[late] - STEPS
    assert torch.equal(found.found_queries[late], 1 + (STEPS + 1) + 4 * passes)
    assert torch.equal(found.queries[late], found.found_queries[late])


@pytest.mark.parametrize("attack", ["pgd", "apgd", "apgd-l1"])
def test_restarts_at_once_depend_on_no_neighbour(attack: str, monkeypatch: pytest.MonkeyPatch):
    images, labels, keys = material()

    def attacked(rows: slice) -> AttackResult:
        own = (stepped, images[rows], labels[rows])
        shared = {"keys": keys[rows], "restarts": 4, "steps": STEPS}
        if attack == "pgd":
            return pgd(*own, norm="linf", eps=EPS, step_size=0.01, **shared)
        return apgd(*own, **shared, **({"norm": "linf", "eps": EPS} if attack == "apgd" else
                                       {"norm": "l1", "eps": 0.5}))  # fmt: skip

    whole = attacked(slice(None))
    assert (whole.found_at > STEPS).any()
    for pixels in (1, 2**20):
        monkeypatch.setitem(turns._PIXELS, "cpu", pixels)
        for size in (1, 5):
            parts = [attacked(slice(at, at + size)) for at in range(0, len(images), size)]
            for name in FIELDS:
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(joined, getattr(whole, name)), (name, size)


def test_no_pass_is_larger_than_the_first_or_suits_the_device(monkeypatch: pytest.MonkeyPatch):
    images, labels, keys = material()
    sizes: list[int] = []

    def scores(some: Tensor) -> Tensor:
        sizes.append(len(some))
        return stepped(some)

    settings = {"norm": "linf", "eps": EPS, "steps": 2, "num_targets": 5}
    monkeypatch.setitem(turns._PIXELS, "cpu", 1)
    apgd_targeted(scores, images, labels, keys=keys, **settings)
    assert max(sizes) == len(images)
    assert sizes.count(len(images)) > 4, "the attempts at several images share a pass"
    monkeypatch.setitem(turns._PIXELS, "cpu", 2**20)
    found = apgd_targeted(scores, images, labels, keys=keys, **settings)
    assert max(sizes) == 4 * int((found.queries > 1 + 3).sum())
