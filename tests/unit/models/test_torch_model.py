"""The torch adapter: access levels, numbers, hooks, lowering, and what identifies a network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from raybench.core.errors import AccessError, InputError, OutputError
from raybench.core.types import Access, Model, ModelInfo
from raybench.models.fingerprints import fingerprint_module
from raybench.models.torch_model import LimitedModel, TorchModel, limit, resolve_device, unlimited

INFO = ModelInfo(
    spec="python:nets:make?name=toy",
    name="toy",
    access=Access.INTERNALS,
    input_shape=(1, 8, 8),
    num_classes=10,
    fingerprint="f" * 64,
)

CALLS = {
    "labels": (Access.LABELS, lambda m, x: m.labels(x)),
    "probabilities": (Access.SCORES, lambda m, x: m.probabilities(x)),
    "logits": (Access.LOGITS, lambda m, x: m.logits(x)),
    "activations": (Access.INTERNALS, lambda m, x: m.activations(x, ["0"])),
}


@pytest.mark.parametrize("how", ["declared", "limited"])
@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("call", CALLS)
def test_every_method_answers_exactly_from_its_level_up(
    net: nn.Module, images: torch.Tensor, how: str, access: Access, call: str
) -> None:
    model: Model = TorchModel(net, replace(INFO, access=access if how == "declared" else 4))
    if how == "limited":
        model = limit(TorchModel(net, INFO), access)
    assert isinstance(model, Model)
    assert model.info.access == access
    needed, ask = CALLS[call]
    if access >= needed:
        ask(model, images)
    else:
        message = (
            f"toy: {call} needs access level {needed.name.lower()}, the model offers "
            f"{access.name.lower()}"
        )
        with pytest.raises(AccessError, match=message):
            ask(model, images)


def test_answers_are_those_of_the_network(net: nn.Module, images: torch.Tensor) -> None:
    model = TorchModel(net, INFO)
    expected = net(images)
    assert torch.equal(model.logits(images), expected)
    assert torch.equal(model.labels(images), expected.argmax(1))
    probabilities = model.probabilities(images)
    assert probabilities.dtype == torch.float64
    assert torch.equal(probabilities, expected.double().softmax(1))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("how", ["declared", "limited"])
def test_logits_are_differentiable_from_gradients_up_only(
    net: nn.Module, images: torch.Tensor, how: str
) -> None:
    for access in (Access.LOGITS, Access.GRADIENTS):
        model: Model = TorchModel(net, replace(INFO, access=access))
        if how == "limited":
            model = limit(TorchModel(net, INFO), access)
        wanted = images.clone().requires_grad_(True)
        logits = model.logits(wanted)
        assert logits.requires_grad == (access == Access.GRADIENTS)
    (gradient,) = torch.autograd.grad(logits.sum(), wanted)
    assert gradient.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in net.parameters())


def test_mean_and_std_act_on_pixels_inside(net: nn.Module, images: torch.Tensor) -> None:
    model = TorchModel(net, INFO, mean=(0.25,), std=(0.5,))
    torch.testing.assert_close(model.logits(images), net((images - 0.25) / 0.5))


def test_probabilities_are_taken_at_their_word_and_offer_scores_at_most(
    net: nn.Module, images: torch.Tensor
) -> None:
    soft = nn.Sequential(net, nn.Softmax(1))
    model = TorchModel(soft, replace(INFO, access=Access.SCORES), output="probabilities")
    assert torch.equal(model.probabilities(images), soft(images).double())
    assert torch.equal(model.labels(images), net(images).argmax(1))
    with pytest.raises(InputError, match="at most access level scores"):
        TorchModel(soft, INFO, output="probabilities")


def test_activations_are_the_outputs_of_the_named_layers(
    net: nn.Module, images: torch.Tensor
) -> None:
    model = TorchModel(net, INFO, mean=(0.1,), std=(1.0,))
    found = model.activations(images, ["1", "3"])
    assert list(found) == ["1", "3"]
    assert torch.equal(found["1"], net[:2](images - 0.1))
    assert torch.equal(found["3"], net(images - 0.1))
    assert not any(module._forward_hooks for module in net.modules())


def test_layers_that_cannot_be_read_are_explained(images: torch.Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.unused = nn.ReLU(), nn.ReLU()
            self.features = nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.features(self.relu(x)))

    model = TorchModel(Twice(), INFO)
    with pytest.raises(InputError, match="no layer is named 'feature'; did you mean features"):
        model.activations(images, ["feature"])
    with pytest.raises(InputError, match="'relu' runs 2 times"):
        model.activations(images, ["relu"])
    with pytest.raises(InputError, match="'unused' runs 0 times"):
        model.activations(images, ["unused"])


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 1, 8, 9),
        torch.rand(2, 3, 8, 8),
        torch.rand(1, 8, 8),
        torch.zeros(2, 1, 8, 8).int(),
    ],
)
def test_wrong_images_are_refused(net: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"takes float32 images \[N, 1, 8, 8\]"):
        TorchModel(net, INFO).labels(images)


def test_any_size_where_the_shape_says_so() -> None:
    pooled = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = TorchModel(pooled, replace(INFO, input_shape=(1, 0, 0)))
    assert model.labels(torch.rand(2, 1, 12, 9)).shape == (2,)


def test_a_network_that_returns_a_tuple_is_named(images: torch.Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(OutputError, match="returns a tuple"):
        TorchModel(Pair(), INFO).labels(images)


def test_limit_keeps_identity_records_itself_and_cannot_raise(net: nn.Module) -> None:
    model = TorchModel(net, INFO)
    lowered = limit(limit(model, Access.LOGITS), Access.LABELS)
    assert isinstance(lowered, LimitedModel)
    assert unlimited(lowered) is model
    assert lowered.info.spec == "python:nets:make?access=labels&name=toy"
    assert lowered.info.fingerprint == INFO.fingerprint
    assert limit(model, Access.INTERNALS) is model
    with pytest.raises(InputError, match=r"access=scores is above what the model offers \(labels"):
        limit(lowered, Access.SCORES)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match="device 'gpu' cannot be used here"):
        resolve_device("gpu")
    with pytest.raises(InputError, match="device 'cuda:63' cannot be used here"):
        resolve_device("cuda:63")


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.scale = scale
        self.register_buffer("offset", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1)) * self.scale + self.offset


class ScaledToo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.scale = 1.0
        self.register_buffer("offset", torch.zeros(2), persistent=False)

    def __repr__(self) -> str:
        return repr(Scaled())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1)) * self.scale - self.offset


def scaled(kind: type[nn.Module] = Scaled, **arguments: float) -> nn.Module:
    torch.manual_seed(0)
    return kind(**arguments)


def test_fingerprint_is_the_same_for_the_same_network() -> None:
    first = fingerprint_module(scaled())
    assert first == fingerprint_module(scaled().train())
    assert first == fingerprint_module(scaled().requires_grad_(False))
    assert len(first) == 64


def test_fingerprint_sees_weights_buffers_settings_code_and_extra() -> None:
    bumped, shifted, halved = scaled(), scaled(), scaled().half()
    with torch.no_grad():
        bumped.linear.weight[0, 0] += 1e-6
    shifted.offset += 1
    networks = [scaled(), bumped, shifted, halved, scaled(scale=2.0), scaled(ScaledToo)]
    prints = [fingerprint_module(network) for network in networks]
    prints.append(fingerprint_module(scaled(), "mean 0.5"))
    assert len(set(prints)) == len(prints)
