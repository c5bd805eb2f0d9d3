"""RobustBench specs against a local server that plays Google Drive."""

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raybench.core.errors import SpecError
from raybench.core.spec import parse
from raybench.core.types import Access
from raybench.models import robustbench

# A WRN-40-2 of 9 MB. Its real checkpoint lacks the constants mu and sigma, as does this one.
NAME = "cifar10/corruptions/Hendrycks2020AugMix_WRN"


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("exploded"),))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with robustbench._quiet():
        zoo = robustbench._import("robustbench.model_zoo").model_dicts
        (dataset,) = (value for key, value in zoo.items() if key.value == "cifar10")
        (threat,) = (value for key, value in dataset.items() if key.value == "corruptions")
        torch.manual_seed(0)
        return threat["Hendrycks2020AugMix_WRN"]["model"]().eval()


def saved(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def checkpoint(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"module.{name}": value
        for name, value in network.state_dict().items()
        if name not in ("mu", "sigma")
    }


@pytest.fixture
def load(server, tmp_path: Path) -> Callable[..., Any]:
    def ask(rest: str = NAME, body: bytes = b"", **fields: Any) -> Any:
        server.answer("/drive", body=body, **fields)
        spec = parse(f"robustbench:{rest}").with_options(model_dir=tmp_path / "zoo")
        return robustbench.load(spec, device="cpu", drive=f"{server.url}/drive")

    return ask


def test_a_model_is_fetched_cleaned_loaded_and_kept(
    load: Callable, network: torch.nn.Module, server, tmp_path: Path, capsys
) -> None:
    model = load(body=saved({"state_dict": checkpoint(network), "epoch": 3}))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.logits(images), network(images))
    info = model.info
    assert (info.name, info.access) == ("Hendrycks2020AugMix_WRN", Access.INTERNALS)
    assert (info.input_shape, info.num_classes) == ((3, 32, 32), 10)
    assert info.normalisation == "inside the RobustBench network"
    assert server.asked == ["/drive?id=1wy7gSRsUZzCzj8QhmTbcnwmES_2kkNph&export=download&confirm=t"]
    file = tmp_path / "zoo" / f"{NAME}.pt"
    assert file.exists()
    assert file.with_name(f"{file.name}.sha256").exists()
    again = load(body=b"not asked for")
    assert len(server.asked) == 1
    assert again.info.fingerprint == info.fingerprint
    assert capsys.readouterr().out == ""


def test_a_quota_page_gives_the_manual_steps(load: Callable, tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><html><head><title>Quota exceeded</title></head><body/></html>"
    with pytest.raises(SpecError) as caught:
        load(body=page, headers={"Content-Type": "text/html"})
    text = str(caught.value)
    file = tmp_path / "zoo" / f"{NAME}.pt"
    assert "HTML page titled 'Quota exceeded'" in text
    assert "https://drive.google.com/file/d/1wy7gSRsUZzCzj8QhmTbcnwmES_2kkNph/view" in text
    assert f"save it as {file}" in text
    assert not file.exists()


def test_a_truncated_body_leaves_nothing(
    load: Callable, network: torch.nn.Module, tmp_path: Path
) -> None:
    body = saved(checkpoint(network))
    with pytest.raises(SpecError, match="could not be downloaded"):
        load(body=body[:-1000], announced=len(body))
    files = [each.name for each in (tmp_path / "zoo").rglob("*") if each.is_file()]
    assert files == [".Hendrycks2020AugMix_WRN.pt.lock"]


def test_a_pickle_with_code_is_refused_and_never_run(
    load: Callable, network: torch.nn.Module, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="is refused: it is a pickle that holds more than tensors"):
        load(body=saved({"state_dict": checkpoint(network), "args": Evil()}))
    assert not (tmp_path / "exploded").exists()


def test_weights_that_would_stay_random_are_refused(
    load: Callable, network: torch.nn.Module
) -> None:
    state = checkpoint(network)
    del state["module.fc.weight"]
    with pytest.raises(SpecError, match=r"lacks 1 weights of its network: fc\.weight"):
        load(body=saved(state))


def test_weights_of_another_network_are_refused(load: Callable, network: torch.nn.Module) -> None:
    state = checkpoint(network) | {"module.fc.weight": torch.zeros(10, 3)}
    with pytest.raises(SpecError, match=r"does not fit its network: .*size mismatch for fc"):
        load(body=saved(state))
    with pytest.raises(SpecError, match=r"does not fit its network"):
        load(body=saved(state))


def test_a_file_that_changed_since_is_refused(
    load: Callable, network: torch.nn.Module, tmp_path: Path
) -> None:
    load(body=saved(checkpoint(network)))
    file = tmp_path / "zoo" / f"{NAME}.pt"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with pytest.raises(SpecError, match="damaged or was replaced"):
        load()


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ("cifar10/Linf/Engstrom2019Robustnes", "did you mean Engstrom2019Robustness"),
        ("cifar1/Linf/X", "no dataset 'cifar1'; did you mean cifar10"),
        ("cifar10/linf/X", "no threat 'linf' for cifar10; did you mean Linf"),
        ("cifar10", "expected robustbench:DATASET/THREAT/NAME"),
    ],
)
def test_unknown_names(load: Callable, rest: str, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        load(rest)


def test_unknown_options_and_normalisation_are_refused(load: Callable) -> None:
    with pytest.raises(SpecError, match="no option is named 'mean'"):
        robustbench.load(parse(f"robustbench:{NAME}?mean=1&std=1"), device="cpu")


def test_ensembles_fetch_one_file_for_each_member(load: Callable, server, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"Chen2020Adversarial\.pt_m0\.pt could not be downloaded"):
        load("cifar10/Linf/Chen2020Adversarial", status=503)
    assert server.asked[0].startswith("/drive?id=1HrG22y_A9F0hKHhh2cLLvKxsQTJTLE_y")


def test_imagenet_entries_say_how_images_are_cut(tmp_path: Path) -> None:
    find = partial(robustbench._find, folder=tmp_path, drive="")
    assert (
        find(parse("robustbench:imagenet/Linf/Wong2020Fast")).fields["preprocessing"] == "Crop288"
    )
    light = find(parse("robustbench:imagenet/Linf/Debenedetti2022Light_XCiT-S12"))
    assert robustbench._timm_preprocess(light) == "resize 224 (bicubic), crop 224"
    salman = find(parse("robustbench:imagenet/Linf/Salman2020Do_R18"))
    assert robustbench._timm_preprocess(salman) is None


def test_autoattack_is_found_under_the_name_that_robustbench_wants(network) -> None:
    assert sys.modules["autoattack"].__name__ in ("autoattack", "pyautoattack")
