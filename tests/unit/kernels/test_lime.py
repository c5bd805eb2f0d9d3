"""T1, T2, T4 and T5 of spec 01 on kernels, and parity with the lime package (T6)."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raybench.kernels.compose import compose, constant_fill, segment_mean_fill
from raybench.kernels.draws import bits
from raybench.kernels.lime import bernoulli_masks, explain, perturbed_scores, proximity
from raybench.kernels.segments import grid_segments, quickshift_segments
from raybench.kernels.targets import logit_pred, margin_pred, prob_pred


def masks_of(sample: str, samples: int, segments: int) -> Tensor:
    return bernoulli_masks(bits(0, "masks", sample, (samples, segments)))


def test_constant_model_has_zero_weights_exactly() -> None:
    masks = masks_of("a", 200, 9)
    responses = prob_pred(torch.tensor([[0.3, 1.7]]).expand(200, 2), 1)
    fit = explain(masks, responses[:, None])
    assert float(fit.weights.abs().sum()) == 0.0


def test_additive_model_gives_its_coefficients_as_the_penalty_vanishes() -> None:
    image = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(3))
    segments = grid_segments(12, 12, 3)
    coefficients = torch.linspace(-1, 1, 9, dtype=torch.float64)
    masks = masks_of("a", 400, 9)
    copies = compose(image, constant_fill(image, 0.0), segments, masks)
    # Each kept segment contributes a_j, read off the composed image itself.
    kept = torch.stack([copies[:, 0, segments == j].abs().sum(1) > 0 for j in range(9)], dim=1).to(
        torch.float64
    )
    responses = (0.3 + kept @ coefficients)[:, None]
    exact = explain(masks, responses, alpha=1e-10)
    torch.testing.assert_close(exact.weights[:, 0], coefficients, atol=1e-8, rtol=0)


def test_weights_equal_the_closed_form_in_numpy() -> None:
    masks = masks_of("closed form", 300, 16)
    z = masks.numpy().astype(np.float64)
    y = np.sin(z @ np.arange(16)) / 3
    share = z.sum(1) / 16
    pi = np.sqrt(np.exp(-((1 - np.sqrt(share)) ** 2) / 0.25**2))
    design = np.hstack([z, np.ones((300, 1))])
    penalty = np.diag([1.0] * 16 + [0.0])  # the intercept is not penalised
    solution = np.linalg.solve(design.T @ (pi[:, None] * design) + penalty, design.T @ (pi * y))
    fit = explain(masks, torch.from_numpy(y)[:, None])
    np.testing.assert_allclose(fit.weights[:, 0], solution[:16], atol=1e-8)
    assert float(fit.intercept) == pytest.approx(solution[16], abs=1e-8)


def test_proximity_of_hand_made_masks() -> None:
    masks = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    expected = [1.0, math.sqrt(math.exp(-(0.5**2) / 0.0625)), math.sqrt(math.exp(-1 / 0.0625))]
    torch.testing.assert_close(proximity(masks), torch.tensor(expected, dtype=torch.float64))


def test_row_zero_is_the_original_image_bit_for_bit() -> None:
    image = torch.rand(3, 9, 10, generator=torch.Generator().manual_seed(0))
    segments = grid_segments(9, 10, 4)
    masks = masks_of("a", 10, 16)
    copies = compose(image, segment_mean_fill(image, segments), segments, masks)
    assert torch.equal(copies[0], image)
    for j in range(16):
        inside = segments == j
        for row in range(10):
            if masks[row, j]:
                assert torch.equal(copies[row][:, inside], image[:, inside])
            else:
                mean = image[:, inside].to(torch.float64).mean(1).to(torch.float32)
                got = copies[row][:, inside]
                torch.testing.assert_close(got, mean[:, None].expand_as(got), atol=1e-7, rtol=0)


def test_batches_never_change_what_a_row_sees() -> None:
    image = torch.rand(1, 8, 8)
    segments = grid_segments(8, 8, 8)
    masks = masks_of("a", 100, 64)
    weight = torch.randn(64, 3, dtype=torch.float64)

    def scores(images: Tensor) -> Tensor:
        return images.flatten(1).to(torch.float64) @ weight

    fill = segment_mean_fill(image, segments)
    whole = perturbed_scores(scores, image, fill, segments, masks, batch=100)
    for batch in (1, 7, 64):
        part = perturbed_scores(scores, image, fill, segments, masks, batch=batch)
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)


def test_batch_that_does_not_fit_is_halved() -> None:
    image, segments, masks = torch.rand(1, 8, 8), grid_segments(8, 8, 2), masks_of("a", 50, 4)
    sizes: list[int] = []

    def scores(images: Tensor) -> Tensor:
        if len(images) > 12:
            raise torch.OutOfMemoryError("does not fit")
        sizes.append(len(images))
        return images.flatten(1)[:, :2]

    got = perturbed_scores(scores, image, image * 0, segments, masks, batch=50)
    assert got.shape == (50, 2)
    assert max(sizes) == 12
    assert sum(sizes) == 50


def test_memory_that_one_copy_exceeds_is_an_error() -> None:
    def scores(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("never fits")

    image = torch.rand(1, 8, 8)
    with pytest.raises(torch.OutOfMemoryError):
        perturbed_scores(scores, image, image, grid_segments(8, 8, 2), masks_of("a", 4, 4), batch=4)


def test_targets_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    e = np.exp([1.0, 2.0, 4.0])
    assert float(prob_pred(scores, 2)[0]) == pytest.approx(e[2] / e.sum())
    assert margin_pred(scores, 2).tolist() == [2.0, 0.0]
    assert margin_pred(scores, 0).tolist() == [-3.0, 0.0]
    assert logit_pred(scores, 1).tolist() == [2.0, 0.0]
    # Log-probabilities give the same margins and probabilities as the logits they come from.
    logs = scores.to(torch.float64).log_softmax(-1)
    torch.testing.assert_close(margin_pred(logs, 1), margin_pred(scores, 1))
    torch.testing.assert_close(prob_pred(logs, 1), prob_pred(scores, 1))


@pytest.mark.parametrize(("height", "width", "cells"), [(28, 28, 7), (32, 32, 8), (9, 14, 4)])
def test_grid_cells_are_connected_boxes_of_nearly_equal_size(
    height: int, width: int, cells: int
) -> None:
    segments = grid_segments(height, width, cells)
    counts = torch.bincount(segments.flatten(), minlength=cells * cells)
    assert len(counts) == cells * cells
    low = (height // cells) * (width // cells)
    high = -(-height // cells) * -(-width // cells)
    assert low <= int(counts.min())
    assert int(counts.max()) <= high
    for j in range(cells * cells):
        rows, columns = torch.where(segments == j)
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert int(box) == int(counts[j])


def test_grid_finer_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.\.8 for 8x8 images, found 9"):
        grid_segments(8, 8, 9)


def test_grid_flips_with_the_image() -> None:
    """T4: a pixel-preserving flip of image and masks leaves the weights where they belong."""
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(5))
    weight = torch.randn(64, 2, generator=torch.Generator().manual_seed(6))
    segments = grid_segments(8, 8, 4)
    masks = masks_of("flip", 200, 16)

    def weights(image: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
        fill = segment_mean_fill(image, segments)
        scores = perturbed_scores(
            lambda x: x.flatten(1) @ weight, image, fill, segments, masks, batch=50
        )
        return explain(masks, prob_pred(scores, 1)[:, None]).weights[:, 0]

    plain = weights(image, weight, masks)
    flipped_masks = masks.reshape(-1, 4, 4).flip(2).reshape(-1, 16)
    flipped_weight = weight.reshape(8, 8, 2).flip(1).reshape(64, 2)
    flipped = weights(image.flip(2), flipped_weight, flipped_masks)
    torch.testing.assert_close(flipped.reshape(4, 4).flip(1).reshape(16), plain, atol=1e-6, rtol=0)


def test_quickshift_is_dense_and_seeded() -> None:
    image = torch.zeros(1, 16, 16)
    image[:, 4:12, 4:12] = 1.0
    first = quickshift_segments(image, 1.0, rng=3)
    assert torch.equal(first, quickshift_segments(image, 1.0, rng=3))
    assert first.unique().tolist() == list(range(int(first.max()) + 1))
    # The square and its ground never share a segment.
    assert not set(first[5:11, 5:11].flatten().tolist()) & set(first[0].tolist())


@pytest.mark.filterwarnings("ignore")
def test_weights_equal_the_lime_package_on_the_same_segments_and_masks() -> None:
    """T6: marcotcr/lime, given our segments and masks, finds our weights."""
    lime_image = pytest.importorskip("lime.lime_image")
    rng = np.random.default_rng(0)
    pixels = rng.random((16, 16, 3))
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    segments = grid_segments(16, 16, 4)
    masks = masks_of("lime", 300, 16)
    weight = torch.from_numpy(rng.normal(size=(768, 3)))

    def scores(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight / 10

    def classify(batch: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.asarray(batch)).permute(0, 3, 1, 2)
        return scores(tensor).softmax(-1).numpy()

    class SameMasks:
        """Hands lime the masks under test; its own draws come from a global generator."""

        def randint(self, low: int, high: int | None, size: int) -> np.ndarray:
            assert size == masks.numel()
            return masks.numpy().astype(int).ravel()

    explainer = lime_image.LimeImageExplainer(random_state=0)
    explainer.random_state = SameMasks()
    theirs = explainer.explain_instance(
        pixels,
        classify,
        labels=(0, 1, 2),
        top_labels=None,
        num_samples=300,
        batch_size=50,
        segmentation_fn=lambda _: segments.numpy(),
        random_seed=0,
    )
    ours = perturbed_scores(
        scores, image, segment_mean_fill(image, segments), segments, masks, batch=50
    )
    for label in range(3):
        fit = explain(masks, prob_pred(ours, label)[:, None])
        expected = dict(theirs.local_exp[label])
        found = {j: float(fit.weights[j, 0]) for j in range(16)}
        assert found == pytest.approx(expected, abs=1e-6)
        assert float(fit.intercept) == pytest.approx(theirs.intercept[label], abs=1e-6)
