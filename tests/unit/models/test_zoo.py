"""The built-in six: trained the same again, cached by content, damaged files trained anew."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from raybench.core.catalog import load_model
from raybench.core.errors import InputError, SpecError
from raybench.core.types import Access
from raybench.kernels.attacks.pgd import pgd
from raybench.models import zoo
from raybench.models.cache import exclusive, write_whole
from raybench.models.training import Training, default_epochs, keyed_seed, train
from raybench.models.zoo_nets import build

pytestmark = pytest.mark.usefixtures("digits")

LAYERS = {
    "mlp2": ["flatten", "fc1", "relu1", "fc2"],
    "cnn3": ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc"],
    "cnn5": [
        "conv1", "relu1", "conv2", "relu2", "pool1", "conv3", "relu3", "conv4", "relu4", "pool2",
        "flatten", "fc",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 33, 30)])
def test_networks_fit_every_shape_and_name_their_layers(name: str, shape: tuple) -> None:
    network = build(name, shape, 7)
    assert [each for each, _ in network.named_children()] == LAYERS[name]
    assert network(torch.zeros(2, *shape)).shape == (2, 7)


def test_the_mlp_for_mnist_is_784_256_10() -> None:
    assert [tuple(p.shape) for p in build("mlp2", (1, 28, 28), 10).parameters()] == [
        (256, 784), (256,), (10, 256), (10,),
    ]  # fmt: skip


def test_images_too_small_to_pool_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4x4, found 3x8"):
        build("cnn3", (1, 3, 8), 10)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_each_of_the_six_trains_loads_and_answers(name: str, cache: Path) -> None:
    model = load_model(f"zoo:{name}?n=64&epochs=1")
    info = model.info
    assert (info.name, info.access, info.input_shape) == (name, Access.INTERNALS, (1, 8, 8))
    assert info.num_classes == 10
    details = dict(info.details)
    assert details["trained_on"] == "digits?n=64&split=train"
    assert ('"eps": "8/255"' in details["training"]) == name.endswith("-adv")
    assert 0 < float(details["train_loss"]) < 5
    layers = LAYERS[name.removesuffix("-adv")]
    assert list(model.activations(torch.rand(2, 1, 8, 8), layers)) == layers
    (file,) = (cache / "zoo").glob("*.safetensors")
    assert file.name.startswith(f"{name}-")


def test_digits_are_learnt_and_adversarial_training_helps(digits: Callable) -> None:
    held_out = digits("digits?split=test&n=300")
    images, labels = held_out.images, torch.from_numpy(held_out.targets)
    robust = {}
    for name in ("mlp2", "mlp2-adv"):
        model = load_model(f"zoo:{name}?epochs=12&eps=0.1" if "adv" in name else f"zoo:{name}")
        assert (model.labels(images) == labels).double().mean() > 0.9
        found = pgd(
            model.logits, images, labels, keys=torch.arange(len(labels)), norm="linf", eps=0.1,
            step_size=0.025, steps=10, random_start=False,
        )  # fmt: skip
        robust[name] = float((model.labels(found.images) == labels).double().mean())
    assert robust["mlp2-adv"] > robust["mlp2"] + 0.1


def test_the_same_training_gives_the_same_bits_and_another_seed_others(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = "zoo:cnn3-adv?n=64&epochs=2"
    first = load_model(spec).info.fingerprint
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "other"))
    torch.manual_seed(99)
    torch.rand(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert load_model(spec).info.fingerprint == first
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert load_model(f"{spec}&train_seed=1").info.fingerprint != first


def test_a_second_load_reads_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raybench.models.zoo")
    first = load_model("zoo:mlp2?n=64&epochs=2")
    assert "training mlp2 on digits (64 images, 2 epochs)" in caplog.text
    assert "epoch 2/2: loss" in caplog.text
    caplog.clear()
    second = load_model("zoo:mlp2?n=64&epochs=2&access=scores&name=mine")
    assert caplog.text == ""
    assert second.info.fingerprint == first.info.fingerprint
    assert second.info.details == first.info.details
    assert (second.info.name, second.info.access) == ("mine", Access.SCORES)


@pytest.mark.parametrize("change", ["n=65", "epochs=3", "lr=0.01", "batch=16", "train_seed=1"])
def test_every_setting_is_part_of_the_key(change: str, cache: Path) -> None:
    load_model("zoo:mlp2?n=64&epochs=1")
    name = change.partition("=")[0]
    rest = "&".join(o for o in ("n=64", "epochs=1") if not o.startswith(f"{name}="))
    load_model(f"zoo:mlp2?{rest}&{change}")
    assert len(list((cache / "zoo").glob("*.safetensors"))) == 2


def test_eps_is_part_of_the_key_as_an_exact_fraction(cache: Path) -> None:
    load_model("zoo:mlp2-adv?n=32&epochs=1")
    load_model("zoo:mlp2-adv?n=32&epochs=1&eps=16/510")
    assert len(list((cache / "zoo").glob("*.safetensors"))) == 1
    load_model("zoo:mlp2-adv?n=32&epochs=1&eps=0.1")
    assert len(list((cache / "zoo").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped", "empty"])
def test_a_damaged_cache_is_found_and_trained_again(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = "zoo:mlp2?n=64&epochs=1"
    first = load_model(spec).info.fingerprint
    (file,) = (cache / "zoo").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(
        {
            "truncated": whole[:-100],
            "garbage": b"garbage" * 100,
            "flipped": whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:],
            "empty": b"",
        }[damage]
    )
    assert load_model(spec).info.fingerprint == first
    assert caplog.text.count("trained again") == 1
    caplog.clear()
    assert load_model(spec).info.fingerprint == first
    assert caplog.text == ""
    with safe_open(file, framework="pt") as stream:
        assert stream.metadata()["train_loss"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("zoo:cnn4", "the zoo has no 'cnn4'; did you mean cnn5 or cnn3"),
        ("zoo", "the zoo has no ''"),
        ("zoo:mlp2?eps=8/255", "did you mean mlp2-adv"),
        ("zoo:mlp2-adv?eps=8/0", "expected a fraction such as 8/255"),
        ("zoo:mlp2-adv?eps=2", "above 0 and at most 1"),
        ("zoo:mlp2?epochs=0", "whole number of at least 1"),
        ("zoo:mlp2?lr=0", "lr must be above 0"),
        ("zoo:mlp2?lr=fast", "expected numbers"),
        ("zoo:mlp2?train_seed=-1", "whole number of at least 0"),
        ("zoo:mlp2?mean=0.5&std=1", "no option is named 'mean'"),
        ("zoo:mlp2?data=unlabelled", "unlabelled has no labels to train on"),
        ("zoo:mlp2?n=32&epochs=3&lr=1e30", "diverged"),
    ],
)
def test_mistakes_are_named(spec: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_model(spec)


def test_small_sets_get_about_two_thousand_steps_and_large_ones_ten_epochs() -> None:
    assert default_epochs(1000, 32) == 62  # 62 * 32 steps
    assert default_epochs(60_000, 32) == 10
    assert default_epochs(10_000, 32) == 10
    assert default_epochs(9_999, 32) == 10
    assert default_epochs(40, 32) == 1000


def test_the_last_smaller_batch_counts() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    images = torch.rand(5, 1, 2, 2)
    labels = torch.tensor([0, 1, 0, 1, 0])
    before = torch.nn.functional.cross_entropy(network(images), labels)
    settings = Training(epochs=1, batch=5, lr=1e-9)
    loss, _ = train(network, images, labels, settings)
    assert loss == pytest.approx(float(before.detach()), abs=1e-5)
    loss, accuracy = train(network, images, labels, Training(epochs=1, batch=2, lr=1e-9))
    assert loss == pytest.approx(float(before.detach()), abs=1e-5)
    assert accuracy in {k / 5 for k in range(6)}


def test_keyed_seeds_are_fixed_and_apart() -> None:
    seeds = {keyed_seed(a, b) for a in range(20) for b in ("order", "start")}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert keyed_seed(0, "order", 0) == keyed_seed(0, "order", 0)


def test_of_several_at_once_one_makes_the_file(tmp_path: Path) -> None:
    path, made = tmp_path / "file", []
    together = threading.Barrier(4)

    def make() -> None:
        together.wait()
        with exclusive(path):
            if not path.exists():
                made.append(threading.get_ident())
                time.sleep(0.05)
                write_whole(path, lambda part: part.write_text("whole"))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1
    assert path.read_text() == "whole"


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_whole(path, fail)
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["file"]
    assert path.read_text() == "old"


def test_a_cache_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set RAYBENCH_CACHE"):
        load_model("zoo:mlp2?n=32&epochs=1")


def test_unknown_names_are_spec_errors() -> None:
    with pytest.raises(SpecError):
        load_model("zoo:resnet")
