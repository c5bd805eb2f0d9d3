"""Faster forms of a network: the same answers, or the network as it was."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raybench.core.catalog import load_model
from raybench.core.errors import InputError, SpecError
from raybench.core.types import Access, ModelInfo
from raybench.models.speed import speed_up
from raybench.models.torch_model import TorchModel, limit
from raybench.models.zoo_nets import build

SHAPE = (3, 16, 16)


def model_of(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> TorchModel:
    info = ModelInfo(
        spec="python:tests:net",
        name="net",
        access=Access.INTERNALS,
        input_shape=shape,
        num_classes=10,
        fingerprint="0" * 64,
    )
    return TorchModel(module, info)


class Viewing(nn.Module):
    """A network that takes its activations' memory layout for granted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).view(len(images), -1))


class Strided(Viewing):
    """A network whose answers depend on its weights' memory layout."""

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(images).flatten(1))
        return scores + float(self.conv.weight.stride(1))


def layout(model: TorchModel) -> bool:
    """Whether every convolution's weights are stored channels last."""
    convolutions = [m for m in model.module.modules() if isinstance(m, nn.Conv2d)]
    return all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)


def test_a_network_of_convolutions_is_stored_channels_last_and_answers_as_before() -> None:
    torch.manual_seed(0)
    model = model_of(build("cnn3", SHAPE, 10))
    images = torch.rand(5, *SHAPE, requires_grad=True)
    before = model.logits(images)
    (slope,) = torch.autograd.grad(before.sum(), images)
    assert speed_up(limit(model, Access.LABELS)) == ("channels_last",)
    assert layout(model)
    after = model.logits(images)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    (again,) = torch.autograd.grad(after.sum(), images)
    torch.testing.assert_close(again, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Viewing, Strided])
def test_a_network_that_does_not_bear_it_is_left_as_it_was(kind: type[nn.Module]) -> None:
    model = model_of(kind())
    images = torch.rand(5, *SHAPE)
    before = model.logits(images)
    assert speed_up(model) == ()
    assert torch.equal(model.logits(images), before)


def test_a_network_without_convolutions_and_programs_are_left_alone(tmp_path: Path) -> None:
    assert speed_up(model_of(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))) == ()
    program = torch.export.export(Viewing().eval(), (torch.zeros(2, *SHAPE),)).module()
    freed = nn.Sequential(program)
    freed.eval = lambda: freed  # type: ignore[method-assign]
    assert speed_up(model_of(freed)) == ()


def test_layers_keep_their_names_and_activations_when_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: nn.Sequential(module))
    model = model_of(Viewing())
    images = torch.rand(2, *SHAPE)
    before = model.activations(images, ["conv"])["conv"]
    assert speed_up(model, compiled=True) == ("compiled",)
    torch.testing.assert_close(model.activations(images, ["conv"])["conv"], before)
    assert model.logits(images).shape == (2, 10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_answers_as_before() -> None:
    model = model_of(build("cnn3", SHAPE, 10))
    images = torch.rand(2, *SHAPE)
    before = model.logits(images)
    assert speed_up(model, compiled=True) == ("channels_last", "compiled")
    torch.testing.assert_close(model.logits(images), before, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        raise RuntimeError("no compiler\n was found")

    monkeypatch.setattr(torch, "compile", broken)
    model = model_of(build("cnn3", SHAPE, 10))
    plain = model.module
    with pytest.raises(
        InputError, match=r"cannot be compiled here .*no compiler was found.*without"
    ):
        speed_up(model, compiled=True)
    assert model.module is plain


def test_a_compiled_network_that_answers_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = build("cnn3", SHAPE, 10).eval()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: other)
    with pytest.raises(InputError, match="answers otherwise"):
        speed_up(model_of(build("cnn3", SHAPE, 10)), compiled=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated; files of it will be about
        torch.jit.save(torch.jit.script(build("cnn3", SHAPE, 10).eval()), str(path))
    return f"torchscript:{path}?shape=3x16x16"


def test_half_precision_is_another_model_with_near_answers(checkpoint: str) -> None:
    single, half = load_model(checkpoint), load_model(f"{checkpoint}&precision=bfloat16")
    assert (single.info.name, half.info.name) == ("net", "net-bf16")
    assert single.info.fingerprint != half.info.fingerprint
    images = torch.rand(20, *SHAPE)
    one, other = single.logits(images), half.logits(images)
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    # bfloat16 keeps 8 bits of each number.
    assert float((one - other).abs().max()) < 0.02 * float(one.abs().max())


def test_a_precision_that_is_not_known_is_refused(checkpoint: str) -> None:
    with pytest.raises(SpecError, match="float32 or bfloat16"):
        load_model(f"{checkpoint}&precision=float16")
