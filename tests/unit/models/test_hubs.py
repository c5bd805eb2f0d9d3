"""torchvision and timm, with weights that are made here: nothing is fetched."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raybench.core.catalog import load_model
from raybench.core.errors import SpecError
from raybench.core.types import Access
from raybench.models import hubs

with hubs._calm():
    import timm
    import torchvision


def tiny(classes: int = 10) -> torch.nn.Module:
    torch.manual_seed(0)
    with hubs._calm():
        return torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes).eval()


def small(classes: int = 10) -> torch.nn.Module:
    torch.manual_seed(0)
    with hubs._calm():
        return timm.create_model("test_vit", num_classes=classes).eval()


def test_torchvision_with_weights_of_your_own(tmp_path: Path) -> None:
    net = tiny()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    model = load_model(
        f"torchvision:shufflenet_v2_x0_5?checkpoint={tmp_path}/w.safetensors&classes=10"
        "&mean=0.5&std=0.25"
    )
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.logits(images), net((images - 0.5) / 0.25))
    assert (model.info.access, model.info.input_shape) == (Access.INTERNALS, (3, 0, 0))


def test_torchvision_published_weights_bring_size_and_normalisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = tiny(1000)
    url = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(net.state_dict(), path)
    asked = []
    monkeypatch.setattr(hubs, "fetch_published", lambda url, spec: asked.append(url) or path)
    model = load_model("torchvision:shufflenet_v2_x0_5")
    assert asked == [url]
    assert model.info.input_shape == (3, 224, 224)
    assert model.info.normalisation == "mean 0.485,0.456,0.406 std 0.229,0.224,0.225"
    details = dict(model.info.details)
    assert details["weights"] == "IMAGENET1K_V1"
    assert details["preprocess"] == "resize 256, crop 224"
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(model.logits(images), net((images - mean) / std))


def test_published_weights_are_held_to_the_hash_in_their_name() -> None:
    url = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(tiny(1000).state_dict(), path)
    with pytest.raises(SpecError, match=r"expected f707e7126e\.\.\.: it is damaged"):
        load_model("torchvision:shufflenet_v2_x0_5")


def test_timm_with_weights_of_your_own(tmp_path: Path) -> None:
    net = small()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pt")
    model = load_model(f"timm:test_vit?checkpoint={tmp_path}/w.pt&classes=10")
    config = timm.get_pretrained_cfg("test_vit")
    assert model.info.input_shape == tuple(config.input_size)
    mean = torch.tensor(config.mean).view(3, 1, 1)
    std = torch.tensor(config.std).view(3, 1, 1)
    images = torch.rand(1, *config.input_size)
    torch.testing.assert_close(model.logits(images), net((images - mean) / std))


def test_timm_published_weights_go_through_timms_own_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = small(1000)
    monkeypatch.setattr(hubs, "_hugging_face_state", lambda config, spec: dict(net.state_dict()))
    model = load_model("timm:test_vit.r160_in1k")
    images = torch.rand(1, 3, 160, 160)
    plain = torch.equal(model.logits(images), net(images))
    assert not plain  # normalised inside
    mean = torch.tensor(timm.get_pretrained_cfg("test_vit").mean).view(3, 1, 1)
    std = torch.tensor(timm.get_pretrained_cfg("test_vit").std).view(3, 1, 1)
    torch.testing.assert_close(model.logits(images), net((images - mean) / std))
    assert dict(model.info.details)["source"] == "huggingface.co/timm/test_vit.r160_in1k"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("torchvision:resnet5", "no classification model named 'resnet5'; did you mean resnet50"),
        ("torchvision:resnet50?weights=IMAGENET1K_V3", "did you mean IMAGENET1K_V2"),
        ("torchvision:resnet18?weights=DEFAULT&checkpoint=x.pt", "exclude each other"),
        ("torchvision:shufflenet_v2_x0_5?checkpoint=absent.pt", "there is no file absent.pt"),
        ("timm:resnet1", "timm has no model named 'resnet1'; did you mean"),
        ("timm:test_vit?checkpoint=absent.pt", "there is no file absent.pt"),
        ("timm:test_vit?weights=x", "no option is named 'weights'"),
    ],
)
def test_mistakes_are_named(spec: str, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        load_model(spec)
    assert len(str(caught.value)) < 3000


def test_hugging_face_out_of_reach_gives_the_manual_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_args: object, **_named: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(SpecError, match=r"huggingface\.co/timm/test_vit.*give checkpoint=path"):
        load_model("timm:test_vit.r160_in1k")
