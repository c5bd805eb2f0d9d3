"""What `raybench plan` says of workers, queries, and models that fail in the pilot."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from score_material import Material, make_material
from torch import nn

from raybench.cli import main
from raybench.config import ScoreConfig
from raybench.evaluations.radius import RadiusEvaluation
from raybench.forecast import Forecast, forecast
from raybench.job import build_job


class Fussy(nn.Module):
    """Answers the few images of the check at loading, and refuses larger batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 3) * torch.arange(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[0] > 16:
            raise RuntimeError("too many images at once")
        return images.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"), images=11)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave torch's threads as they were: the pilot computes in this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan(material: Material, out: Path, cores: int = 4, **options: object) -> Forecast:
    settings: dict = {
        "models": material.models[:1], "data": material.data, "out": out, "reading": ("grid",),
        "samples": 64, "shard_size": 2, **options,
    }  # fmt: skip
    config = ScoreConfig(**settings)
    return forecast(build_job(config, lambda text: None), config, cores, lambda text: None)


@pytest.mark.parametrize(
    ("options", "cores", "actors"),
    [
        ({}, 4, 4),
        ({"runner": "local"}, 4, 1),
        ({"runner": "local", "actors": 3}, 4, 1),
        ({"actors": 3}, 4, 3),
        ({"cpus_per_actor": 2}, 5, 2),
        ({"cpus_per_actor": 8}, 4, 1),
        ({"gpus_per_actor": 1.0}, 8, 2),
        ({"gpus_per_actor": 0.1}, 64, 20),
        ({"gpus_per_actor": 0.25, "cpus_per_actor": 2}, 8, 4),
        ({"gpus_per_actor": 2.0}, 8, 1),
    ],
)
def test_workers_are_those_that_the_run_would_have(
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    cores: int,
    actors: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    report = plan(material, tmp_path, cores, n=1, **options)
    assert report.actors == actors
    assert report.failures == ()


def test_queries_left_are_what_the_shards_will_take(material: Material, tmp_path: Path) -> None:
    readings = ("grid", "flip-radius?samples=64")
    report = plan(material, tmp_path, runner="local", reading=readings)
    # Eleven images in shards of two: two shards are the pilot's, the last holds one image.
    assert [row.shards_done for row in report.rows] == [2, 2]
    radius = RadiusEvaluation(samples=64)
    assert [row.queries_left for row in report.rows] == [
        7 * 64,
        3 * radius.queries(2) + radius.queries(1),
    ]
    assert radius.queries(2) + radius.queries(1) > radius.queries(3)
    assert [row.samples for row in report.rows] == [64, 64]


def test_a_model_that_fails_in_the_pilot_is_named_and_the_others_go_on(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fussy.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, not gone
        torch.jit.script(Fussy().eval()).save(str(path))
    models = (f"torchscript:{path}?shape=1x8x8&classes=3", material.models[0])
    arguments = [
        "plan", *models, "--data", material.data, "--samples", "64", "--shard-size", "2",
        "--reading", "grid", "--out", str(tmp_path / "out"), "--runner", "local", "--quiet",
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 3
    answer = capsys.readouterr()
    report = json.loads(answer.out)
    assert {(model, shard) for model, shard, _ in report["failures"]} == {
        ("fussy", 0),
        ("fussy", 3),
    }
    assert "failed: fussy shard 0: " in answer.err
    assert "too many images at once" in answer.err
    assert [row["shards_done"] for row in report["rows"]] == [0, 2]
    assert report["rows"][0]["seconds_left"] is report["seconds_left"] is None
    assert report["rows"][1]["size"]["pilot"] == 4
    assert main(arguments) == 3
    assert "fussy" in capsys.readouterr().out
