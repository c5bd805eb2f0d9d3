"""The first-batch check finds each way in which a model can break its own declaration."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench.core.errors import OutputError
from raybench.core.types import Access, ModelInfo
from raybench.models.check import check_outputs
from raybench.models.torch_model import TorchModel, limit

INFO = ModelInfo(
    spec="python:nets:make",
    name="toy",
    access=Access.INTERNALS,
    input_shape=(1, 8, 8),
    num_classes=10,
    fingerprint="f" * 64,
)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def model(net: nn.Module, function, access: Access = Access.INTERNALS, output: str = "logits"):
    chain = nn.Sequential(net, Lambda(function))
    return TorchModel(chain, replace(INFO, access=access), output=output)


def test_an_honest_model_passes(net: nn.Module, images: torch.Tensor) -> None:
    for access in Access:
        assert check_outputs(limit(TorchModel(net, INFO), access), images) == []
    soft = model(net, lambda z: z.softmax(1), Access.SCORES, "probabilities")
    assert check_outputs(soft, images) == []


def spoil(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[0, 0] = value
        return z

    return change


@pytest.mark.parametrize("access", [Access.LABELS, Access.SCORES, Access.INTERNALS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_answers(
    net: nn.Module, images: torch.Tensor, bad: float, access: Access
) -> None:
    lowered = limit(model(net, spoil(bad)), access)
    with pytest.raises(OutputError, match="toy: 1 of 5 answers hold NaN or infinite"):
        check_outputs(lowered, images)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda z: z[:, :9], r"\[5, 9\]"),
        (lambda z: z[:1], r"\[1, 10\]"),
        (lambda z: z[:, :, None], r"\[5, 10, 1\]"),
    ],
)
def test_wrong_shapes(net: nn.Module, images: torch.Tensor, function, shape: str) -> None:
    with pytest.raises(OutputError, match=rf"shape {shape}, expected \[5, 10\]"):
        check_outputs(model(net, function), images)


@pytest.mark.parametrize("access", [Access.LABELS, Access.SCORES, Access.INTERNALS])
def test_probabilities_where_logits_were_declared(
    net: nn.Module, images: torch.Tensor, access: Access
) -> None:
    lowered = limit(model(net, lambda z: z.softmax(1)), access)
    with pytest.raises(OutputError, match="add output=probabilities"):
        check_outputs(lowered, images)


@pytest.mark.parametrize("function", [lambda z: z, lambda z: z.softmax(1) * 1.01])
def test_logits_where_probabilities_were_declared(
    net: nn.Module, images: torch.Tensor, function
) -> None:
    wrong = model(net, function, Access.SCORES, "probabilities")
    with pytest.raises(OutputError, match="use output=logits"):
        check_outputs(wrong, images)


def test_randomised_models_are_warned_about(net: nn.Module, images: torch.Tensor) -> None:
    noisy = model(net, lambda z: z + torch.randn_like(z))
    (warning,) = check_outputs(noisy, images)
    assert "randomised" in warning


def test_answers_that_depend_on_the_batch_are_warned_about(
    net: nn.Module, images: torch.Tensor
) -> None:
    (warning,) = check_outputs(model(net, lambda z: z - 3 * z.mean(0)), images)
    assert "depend on batching" in warning


class Labels:
    """A model that knows labels alone."""

    device = "cpu"
    info = replace(INFO, access=Access.LABELS)

    def __init__(self, *answers: torch.Tensor) -> None:
        self.answers = list(answers)

    def labels(self, images: torch.Tensor) -> torch.Tensor:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_label_models(images: torch.Tensor) -> None:
    right = torch.arange(5)
    assert check_outputs(Labels(right), images) == []
    assert "randomised" in check_outputs(Labels(right, right + 1), images)[0]
    for wrong in (right + 6, right - 1, right.float()):
        with pytest.raises(OutputError, match="labels must be int64 in 0 to 9"):
            check_outputs(Labels(wrong), images)
    with pytest.raises(OutputError, match=r"shape \[5, 1\], expected \[5\]"):
        check_outputs(Labels(right[:, None]), images)
