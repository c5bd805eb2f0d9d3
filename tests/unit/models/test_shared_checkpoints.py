"""Real third-party networks: two formats agree, and the accuracy their README states comes out."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch

from raybench.core.catalog import load_model
from raybench.core.types import Access
from raybench.models.check import check_outputs

MNIST = ["mnist-advertorch-pgd", "mnist-wongkolter-0.3", "mnist-eran-6x100-nat"]


@pytest.fixture(scope="module")
def mnist(shared: Path) -> tuple[torch.Tensor, torch.Tensor]:
    folder = shared / "data" / "mnist"
    pixels = bytearray(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:])
    labels = bytearray(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:])
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 1, 28, 28)[:500]
    return images.float() / 255, torch.frombuffer(labels, dtype=torch.uint8)[:500].long()


@pytest.mark.parametrize("name", MNIST)
def test_stated_clean_accuracy_comes_out(name: str, shared: Path, mnist) -> None:
    folder = shared / "checkpoints" / name
    model = load_model(f"torchscript:{folder}/model.torchscript.pt")
    images, labels = mnist
    stated = json.loads((folder / "README.json").read_text())["measured"]
    assert stated["n"] == 500
    right = (model.labels(images) == labels).double().mean()
    assert float(right) == pytest.approx(stated["clean"], abs=0.002)
    assert (model.info.name, model.info.input_shape) == (name, (1, 28, 28))
    assert check_outputs(model, images[:8]) == []


# The loader beside the checkpoints leaves arch.json open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", [*MNIST, "cifar10-resnet2b-adv", "cifar10-akamaster-resnet20"])
def test_torchscript_and_safetensors_agree(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist
) -> None:
    folder = shared / "checkpoints" / name
    monkeypatch.syspath_prepend(str(shared / "checkpoints"))
    (tmp_path / "sharednet.py").write_text(
        "import load_checkpoint\n"
        f"def whole(): return load_checkpoint.load_net({str(folder)!r})\n"
        "def empty():\n"
        "    import json, pathlib\n"
        f"    text = pathlib.Path({str(folder / 'arch.json')!r}).read_text()\n"
        "    return load_checkpoint.GraphNet(json.loads(text)['nodes'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("sharednet", "load_checkpoint"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    shape = "1x28x28" if name.startswith("mnist") else "3x32x32"
    script = load_model(f"torchscript:{folder}/model.torchscript.pt?shape={shape}")
    factory = load_model(f"python:sharednet:whole?shape={shape}")
    file = load_model(f"file:{folder}/weights.safetensors?arch=sharednet:empty&shape={shape}")
    size = tuple(map(int, shape.split("x")))
    images = mnist[0][:16] if size[0] == 1 else torch.rand(16, *size)
    expected = script.logits(images)
    for model in (factory, file):
        torch.testing.assert_close(model.logits(images), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.labels(images), script.labels(images))
    assert script.info.access == Access.GRADIENTS
    assert factory.info.access == Access.INTERNALS
    assert file.info.fingerprint == factory.info.fingerprint
