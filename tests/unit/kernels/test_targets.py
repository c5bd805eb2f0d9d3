"""Responses at several temperatures in one pass."""

import math

import torch

from raybench.kernels.targets import TEMPERATURES, prob_at, prob_pred


def test_one_pass_over_temperatures_equals_a_softmax_at_each() -> None:
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(2)) * 20
    found = prob_at(scores, 3, TEMPERATURES)
    for index, factor in enumerate(TEMPERATURES):
        torch.testing.assert_close(
            found[:, index], prob_pred(scores.double() * factor, 3), rtol=1e-12, atol=1e-300
        )


def test_log_probabilities_of_zero_are_no_trouble() -> None:
    scores = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0], [0.2, 0.1]], dtype=torch.float64)
    found = prob_at(scores, 0, (0.5, 2.0))
    assert found[:2].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert abs(float(found[2, 1]) - 1 / (1 + math.exp(-0.2))) < 1e-15
