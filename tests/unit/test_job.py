"""What a job refuses and settles before anything runs: sizes, segments, classes, numbers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybench.config import AttackConfig, ScoreConfig, make_config
from raybench.core.errors import InputError
from raybench.core.plan import Measurement
from raybench.job import Job, build_job

NETS = """
import torch
from torch import nn

def pooled(window):
    # As a mobile network made for one size: any other size gives another number of features,
    # except one that rounds to the same.
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, stride=4), nn.AvgPool2d(window, window), nn.Flatten(), nn.Linear(4, 10)
    )

def for_48():
    return pooled(12)  # 64 pixels give 16 // 12 = 1 too

def for_28():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.Flatten(), nn.Linear(196, 10))

class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Conv2d(1, 10, 3), kind

    def forward(self, x):
        scores = self.net(x).mean((2, 3))
        if self.kind == "tuple":
            return scores, x
        if self.kind == "flat":
            return scores[:, 0]
        if self.kind == "raises":
            raise KeyError("no such head")
        if self.kind == "noise":
            return scores + torch.randn_like(scores)
        return scores[:, :1] if self.kind == "single" else scores

def tuple_(): return Odd("tuple")
def flat(): return Odd("flat")
def raises(): return Odd("raises")
def single(): return Odd("single")
def noise(): return Odd("noise")
def plain(): return Odd("plain")
"""


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of networks and images of several sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "jobnets", raising=False)
    (tmp_path / "jobnets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    for name, shape in (("rgb48", (48, 48, 3)), ("grey28", (28, 28)), ("grey40", (40, 40))):
        pixels = rng.integers(0, 256, size=(6, *shape), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(6))
    yield tmp_path
    sys.modules.pop("jobnets", None)


def score_job(model: str, data: str, **more: Any) -> Job:
    values = {"models": (model,), "data": data, "runner": "local", "n": 6, "samples": 200} | more
    return build_job(make_config(ScoreConfig, {"reading": "grid?cells=4"} | values), lambda _: None)


def test_a_guessed_size_gives_way_to_that_of_the_images() -> None:
    job = score_job("python:jobnets:for_48", "npz:rgb48.npz")
    [measurement] = job.plan.measurements
    assert measurement.model.input_shape == (3, 48, 48)
    assert measurement.model.spec == "python:jobnets:for_48?shape=3x48x48"
    assert job.notes == (
        "jobnets:for_48: the input size was found by trial: 3x48x48, as the images have; say "
        "shape=3x48x48 to be sure",
    )
    declared = score_job("python:jobnets:for_48?shape=3x48x48", "npz:rgb48.npz")
    assert declared.notes == ()
    assert declared.plan.measurements[0].key == measurement.key


def test_a_size_that_was_declared_is_not_replaced() -> None:
    with pytest.raises(
        InputError, match=r"takes images of 3x64x64.*has 3x48x48: they differ in he"
    ):
        score_job("python:jobnets:for_48?shape=3x64x64", "npz:rgb48.npz")


def test_images_of_no_size_that_works_are_refused_with_those_that_do() -> None:
    assert score_job("python:jobnets:for_28", "npz:grey28.npz").notes == ()
    with pytest.raises(InputError, match=r"1x28x28 \(CxHxW, found by trial; shape= declares ano"):
        score_job("python:jobnets:for_28", "npz:grey40.npz")


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("tuple_", r"1x224x224 was the last tried: it returns a tuple, expected a tensor \[2, K\]"),
        ("flat", r"it returns \[2\], expected a tensor \[2, K\]"),
        ("raises", "'no such head'"),
        ("single", "the network returns 1 score"),
    ],
)
def test_a_network_that_fits_nothing_says_what_the_last_trial_gave(factory: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        score_job(f"python:jobnets:{factory}", "npz:grey28.npz")


def test_the_warning_of_the_first_batch_stays_with_the_model_and_out_of_the_key() -> None:
    job = score_job("python:jobnets:noise?shape=1x28x28", "npz:grey28.npz")
    [measurement] = job.plan.measurements
    details = dict(measurement.model.details)
    assert "the model is randomised" in details["warning"]
    assert job.notes == (f"jobnets:noise: {details['warning']}",)
    assert measurement.describe()["model"]["details"]["warning"] == details["warning"]
    steady = score_job("python:jobnets:plain?shape=1x28x28", "npz:grey28.npz")
    assert "warning" not in dict(steady.plan.measurements[0].model.details)
    bare = Measurement(
        model=steady.plan.measurements[0].model,
        dataset=measurement.dataset,
        evaluation=measurement.evaluation,
        seed=0,
    )
    assert bare.key == steady.plan.measurements[0].key


@pytest.mark.parametrize(
    ("reading", "text"),
    [
        ("superpixel?segmentation=slic&count=5000", r"count must lie in 1\.\.784 for images of 28"),
        ("coarse-gauss?sigma=inf", "sigma must be a finite number above 0, found inf"),
        ("pixel-gauss?sigma=nan", "sigma must be a finite number above 0, found nan"),
        ("superpixel?kernel_size=inf", "kernel_size must be a finite number of at least 1, found"),
        ("superpixel?kernel_size=0.5", "kernel_size must be a finite number of at least 1, found"),
        ("superpixel?kernel_size=99", "kernel_size must be at most 28"),
        ("grid?alpha=inf", "alpha must be a finite number above 0"),
        ("pixel-gauss?samples=2", r"samples must be in 3\.\.1000000, found 2"),
        ("superpixel?kernel_size=1&samples=8", r"8 samples cannot fit \d+ superpixels"),
        ("superpixel?kernel_size=1&samples=8&force=true", "8 samples cannot fit"),
    ],
)
def test_settings_that_no_shard_could_meet_are_refused_at_once(reading: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        score_job("python:jobnets:plain?shape=1x28x28", "npz:grey28.npz", reading=reading)


@pytest.mark.parametrize("kind", [ScoreConfig, AttackConfig])
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("n", True, "n: expected a whole number, found True"),
        ("n", 10.0, "n: expected a whole number, found 10.0"),
        ("seed", False, "seed: expected a whole number, found False"),
        ("batch_size", True, "batch_size: expected a whole number"),
        ("no_progress_s", True, "no_progress_s: expected a number, found True"),
        ("gpus_per_actor", True, "gpus_per_actor: expected a number, found True"),
    ],
)
def test_a_flag_is_no_number(kind: type, name: str, value: object, text: str) -> None:
    values = {"models": ("zoo:cnn3",), "data": "digits", name: value}
    if kind is AttackConfig:
        values["attack"] = "pgd"
    with pytest.raises(InputError, match=text):
        make_config(kind, values)


def test_numbers_as_the_command_line_gives_them_are_read() -> None:
    values = {"models": ("zoo:cnn3",), "data": "digits", "attack": "pgd"}
    config = make_config(AttackConfig, values | {"steps": "10", "n": "7", "gpus_per_actor": 1})
    assert (config.steps, config.n, config.gpus_per_actor) == (10, 7, 1.0)
    with pytest.raises(InputError, match="restarts: expected a whole number, found True"):
        make_config(AttackConfig, values | {"restarts": True})


def test_an_attack_refuses_labels_of_other_classes(work: Path) -> None:
    from PIL import Image

    for label in ("cat", "dog", "owl"):
        (work / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (48, 48), "red").save(work / "photos" / label / "1.png")
    config = make_config(
        AttackConfig,
        {
            "models": ("python:jobnets:for_48?shape=3x48x48",),
            "data": "imagenet:photos?preprocess=Res48",
            "attack": "fgsm",
            "eps": "0.1",
            "runner": "local",
        },
    )
    with pytest.raises(
        InputError, match=r"has 10 classes, but imagenet:photos.* has 3: its labels "
    ):
        build_job(config, lambda _: None)
