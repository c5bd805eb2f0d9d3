"""Models from files and factories: what is loaded, what is refused and how it is said."""

import importlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raybench.core import catalog
from raybench.core.catalog import load_model
from raybench.core.errors import InputError, SpecError
from raybench.core.types import Access
from raybench.models.check import check_outputs

SOURCE = '''
import torch
from torch import nn
from raybench.core.types import Access, ModelInfo

def make():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )

def rgb():
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def soft():
    return nn.Sequential(make(), nn.Softmax(1))

def number():
    return 3

def broken():
    raise KeyError("no such thing")

class Remote:
    """A raybench Model that knows labels alone."""
    device = "cpu"
    info = ModelInfo(
        spec="x", name="remote", access=Access.LABELS, input_shape=(1, 8, 8), num_classes=10,
        fingerprint="a" * 64,
    )
    def labels(self, images):
        return torch.zeros(len(images), dtype=torch.int64)

value = 5
'''


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an importable module of factories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", os.getcwd())])
    (tmp_path / "toynets.py").write_text(SOURCE)
    monkeypatch.delitem(sys.modules, "toynets", raising=False)
    yield tmp_path
    sys.modules.pop("toynets", None)


def factory_net() -> nn.Module:
    scope: dict = {}
    exec(SOURCE, scope)
    return scope["make"]().eval()


def test_python_factory_in_the_working_directory(work: Path, images: torch.Tensor) -> None:
    before = list(sys.path)
    model = load_model("python:toynets:make?shape=1x8x8")
    assert sys.path == before
    assert torch.equal(model.logits(images), factory_net()(images))
    info = model.info
    assert (info.input_shape, info.num_classes, info.access) == ((1, 8, 8), 10, Access.INTERNALS)
    assert info.spec == "python:toynets:make?shape=1x8x8"
    assert dict(info.details)["parameters"] == "2610"
    assert check_outputs(model, images) == []


@pytest.mark.parametrize(
    ("factory", "shape"), [("rgb", (3, 0, 0)), ("mlp", (1, 28, 28))]
)  # fmt: skip
def test_shape_is_found_from_the_first_layer(
    work: Path, factory: str, shape: tuple[int, int, int]
) -> None:
    model = load_model(f"python:toynets:{factory}")
    assert model.info.input_shape == shape
    assert dict(model.info.details)["input_shape"] == "found by trial, not declared"


@pytest.mark.parametrize(
    ("suffix", "wrapper", "prefix"),
    [
        ("safetensors", None, ""),
        ("pt", None, ""),
        ("pth", None, "module."),
        ("pt", "state_dict", "module."),
        ("pt", "model", "_orig_mod."),
    ],
)
def test_weights_from_files_of_every_wrapping(
    work: Path, images: torch.Tensor, suffix: str, wrapper: str | None, prefix: str
) -> None:
    net = factory_net()
    with torch.no_grad():
        net[3].bias += 1
    state = {prefix + name: value for name, value in net.state_dict().items()}
    if suffix == "safetensors":
        save_file(state, work / "w.safetensors")
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, work / f"w.{suffix}")
    model = load_model(f"file:w.{suffix}?arch=toynets:make&shape=1x8x8")
    assert torch.equal(model.logits(images), net(images))
    twin = load_model("python:toynets:make?shape=1x8x8")
    assert model.info.fingerprint != twin.info.fingerprint


def test_the_same_weights_have_one_fingerprint_in_any_format(work: Path) -> None:
    state = factory_net().state_dict()
    save_file(state, work / "a.safetensors")
    torch.save({"state_dict": state}, work / "b.pt")
    prints = {
        load_model(f"{spec}&shape=1x8x8").info.fingerprint
        for spec in (
            "file:a.safetensors?arch=toynets:make",
            "file:b.pt?arch=toynets:make",
            "python:toynets:make?name=x",
        )
    }
    assert len(prints) == 1


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_that_needs_code_is_refused_and_never_run(work: Path, protocol: str) -> None:
    saved = {"state_dict": factory_net().state_dict(), "bomb": Bomb()}
    if protocol == "torch":
        torch.save(saved, work / "evil.pt")
    else:
        (work / "evil.pt").write_bytes(pickle.dumps(saved))
    with pytest.raises(SpecError, match=r"evil\.pt is refused.*would run code.*safetensors"):
        load_model("file:evil.pt?arch=toynets:make&shape=1x8x8")
    assert not (work / "exploded").exists()


def test_a_whole_module_pickle_is_refused_by_name(work: Path) -> None:
    torch.save(factory_net(), work / "whole.pt")
    with pytest.raises(SpecError, match=r"refused.*Sequential"):
        load_model("file:whole.pt?arch=toynets:make")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("w.pt", b"not torch at all", "refused|damaged"),
        ("w.pt", b"", "damaged"),
        ("w.safetensors", b"12345678garbage", "not a readable safetensors"),
        ("w.npz", b"PK", r"must end in \.safetensors"),
    ],
)
def test_damaged_files_are_named(work: Path, name: str, content: bytes, text: str) -> None:
    (work / name).write_bytes(content)
    with pytest.raises(SpecError, match=text):
        load_model(f"file:{name}?arch=toynets:make")


def test_weights_that_do_not_fit_are_listed(work: Path) -> None:
    state = factory_net().state_dict()
    state["3.weight"] = torch.zeros(10, 3)
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    torch.save(state, work / "w.pt")
    with pytest.raises(
        SpecError,
        match=r"missing 1: 0\.bias; unexpected 1: extra; misshapen 1: 3\.weight \(10, 3\) for",
    ):
        load_model("file:w.pt?arch=toynets:make")


def test_a_checkpoint_without_weights_lists_its_keys(work: Path) -> None:
    torch.save({"epoch": 3, "optimiser": {}}, work / "w.pt")
    with pytest.raises(SpecError, match=r"holds no state dictionary.*found epoch, optimiser"):
        load_model("file:w.pt?arch=toynets:make")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("file:absent.pt?arch=toynets:make", "there is no file absent.pt"),
        ("file:toynets.py", "name what builds it with arch="),
        ("file:toynets.py?arch=toynets", "expected pkg.module:factory"),
        ("file:toynets.py?arch=toynets:number", "returned a int, expected a torch.nn.Module"),
        ("python:toynets:number", "returned a int"),
        ("python:toynets:broken", "failed with KeyError: 'no such thing'"),
        ("python:toynets:mak", "toynets has no 'mak'; did you mean make"),
        ("python:toynets:value", "is a int, expected a factory"),
        ("python:toynet:make", "'toynet' cannot be imported"),
        (
            "python:toynets:make",
            r"cannot be found out from the network \(1x224x224.*multiplied.*256",
        ),
        ("python:toynets:make?shape=1x9x9", "fails on two images of shape 1x9x9"),
        ("python:toynets:make?shape=1x8x8&classes=7", "classes=7 was declared.*returns 10"),
        ("python:toynets:make?shape=2x8x8", "expected 1 .grey. or 3 .RGB."),
        ("python:toynets:make?shape=1x8x8&mean=0.5", "mean and std go together"),
        ("python:toynets:make?shape=1x8x8&mean=0.5,1&std=1", "mean has 2 values"),
        ("python:toynets:make?shape=1x8x8&mean=1,1,1&std=1,1,1", "need 1 or 1 values"),
        ("python:toynets:make?shape=1x8x8&mean=0&std=0", "expected numbers above 0"),
        ("python:toynets:make?shape=1x8x8&mean=nan&std=1", "expected finite numbers"),
        ("python:toynets:make?acess=labels", "no option is named 'acess'; did you mean access"),
        ("python:toynets:make?access=all", "expected one of labels"),
        ("python:toynets:soft?shape=1x8x8&output=probabilities&access=logits", "access=logits is"),
        ("python:toynets:Remote?shape=1x8x8", "shape cannot be set on a ready raybench Model"),
        ("python:toynets:Remote?access=logits", "access=logits is above what this model offers"),
        ("torchscript:toynets.py", "not a readable TorchScript archive"),
        ("exported:toynets.py", "not a readable torch.export program"),
    ],
)
def test_mistakes_are_named(work: Path, spec: str, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        load_model(spec)
    assert spec.partition("?")[0] in str(caught.value)


def test_options_normalise_lower_and_name(work: Path, images: torch.Tensor) -> None:
    model = load_model(
        "python:toynets:make?shape=1x8x8&mean=0.5&std=0.25&access=scores&name=mine&classes=10"
    )
    plain = load_model("python:toynets:make?shape=1x8x8")
    assert (model.info.name, model.info.access) == ("mine", Access.SCORES)
    assert model.info.normalisation == "mean 0.5 std 0.25"
    assert plain.info.normalisation == "none"
    assert model.info.fingerprint != plain.info.fingerprint
    expected = factory_net()((images - 0.5) / 0.25).double().softmax(1)
    torch.testing.assert_close(model.probabilities(images), expected)
    with pytest.raises(InputError, match="needs access level logits"):
        model.logits(images)


def test_probability_networks_are_declared(work: Path, images: torch.Tensor) -> None:
    model = load_model("python:toynets:soft?shape=1x8x8&output=probabilities")
    assert model.info.access == Access.SCORES
    torch.testing.assert_close(
        model.probabilities(images), factory_net()(images).double().softmax(1)
    )
    assert check_outputs(model, images) == []


def test_a_ready_model_is_taken_as_it_is(work: Path, images: torch.Tensor) -> None:
    model = load_model("python:toynets:Remote?name=far")
    assert (model.info.name, model.info.access) == ("far", Access.LABELS)
    assert model.info.spec == "python:toynets:Remote?name=far"
    assert model.info.fingerprint == "a" * 64
    assert model.labels(images).tolist() == [0] * 5
    assert check_outputs(model, images) == []
    with pytest.raises(InputError, match="needs access level scores"):
        model.probabilities(images)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archive(work: Path, images: torch.Tensor) -> None:
    net = factory_net()
    torch.jit.trace(net, images).save(str(work / "net.pt"))
    model = load_model("torchscript:net.pt?shape=1x8x8")
    assert torch.equal(model.logits(images), net(images))
    assert (model.info.name, model.info.access) == ("net", Access.GRADIENTS)
    wanted = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.logits(wanted).sum(), wanted)
    assert gradient.abs().sum() > 0
    normalised = load_model("torchscript:net.pt?shape=1x8x8&mean=0.5&std=0.5")
    assert normalised.info.fingerprint != model.info.fingerprint
    (work / "copy").mkdir()
    (work / "copy" / "model.pt").write_bytes((work / "net.pt").read_bytes())
    copy = load_model("torchscript:copy/model.pt?shape=1x8x8")
    assert (copy.info.name, copy.info.fingerprint) == ("copy", model.info.fingerprint)


def export(net: nn.Module, path: Path, images: torch.Tensor, *, dynamic: bool) -> None:
    sizes = ({0: torch.export.Dim("N")},) if dynamic else None
    torch.export.save(torch.export.export(net, (images,), dynamic_shapes=sizes), path)


def test_exported_program(work: Path, images: torch.Tensor) -> None:
    net = factory_net()
    export(net, work / "net.pt2", images, dynamic=True)
    model = load_model("exported:net.pt2")
    assert model.info.input_shape == (1, 8, 8)
    assert model.info.access == Access.GRADIENTS
    for count in (1, 2, 5):
        torch.testing.assert_close(model.logits(images[:count]), net(images[:count]))
    wanted = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.logits(wanted).sum(), wanted)
    assert gradient.abs().sum() > 0
    assert check_outputs(model, images) == []


def test_exported_with_a_fixed_batch_is_refused_with_the_mend(
    work: Path, images: torch.Tensor
) -> None:
    export(factory_net(), work / "net.pt2", images, dynamic=False)
    with pytest.raises(
        SpecError, match="batches of exactly 5; export it again with dynamic_shapes"
    ):
        load_model("exported:net.pt2")


def test_a_third_party_scheme_comes_from_an_installed_entry_point(
    work: Path, monkeypatch: pytest.MonkeyPatch, images: torch.Tensor
) -> None:
    site = work / "site"
    info = site / "raybench_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raybench-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[raybench.models]\ntoy = toyscheme:load\nfile = no:no\n"
    )
    (site / "toyscheme.py").write_text(
        "import torch\n"
        "from raybench.core.types import Access\n"
        "from raybench.models import options\n"
        "from raybench.models.wrap import Facts, wrap\n"
        "def load(spec, *, device):\n"
        "    torch.manual_seed(int(spec.rest))\n"
        "    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "    facts = Facts(access=Access.LOGITS, shape=(1, 8, 8))\n"
        "    return wrap(net, spec, options.read(spec), facts, device=device)\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setitem(sys.modules, "toyscheme", None)
    monkeypatch.delitem(sys.modules, "toyscheme")
    importlib.invalidate_caches()
    model = load_model("toy:3?access=scores")
    assert model.info.access == Access.SCORES
    assert model.probabilities(images).shape == (5, 10)
    assert "toy" in catalog.model_schemes()
    assert catalog.model_schemes()["file"] is catalog.MODELS["file"]
    with pytest.raises(SpecError, match="no model scheme is named 'toyy'; did you mean toy"):
        load_model("toyy:3")


def test_numpy_values_beside_the_weights_are_refused_not_run(work: Path) -> None:
    torch.save({"state_dict": factory_net().state_dict(), "best": np.float64(3.0)}, work / "w.pt")
    with pytest.raises(SpecError, match=r"refused.*numpy"):
        load_model("file:w.pt?arch=toynets:make")
