"""``jobs/bench.py``: its figures follow from each other, and it says what it measured."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "bench.py"


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_job", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_job"] = module
    spec.loader.exec_module(module)
    return module


def figures(job: ModuleType, out: Path, *flags: str) -> dict[str, Any]:
    arguments = ["--images", "1", "--samples", "64", "--batch-size", "16", "--out", str(out)]
    threads = torch.get_num_threads()
    try:
        assert job.main([*arguments, *flags]) == 0
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads((out / "bench-device.json").read_text())
    return found


def test_the_figures_fit_together(
    job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(job, tmp_path)
    assert found["net"] == "cnn3"
    assert found["batch_size"] == 16
    flops, peak = found["gflop_per_image"] * 1e9, found["matrix_peak_tflops"] * 1e12
    rate = found["forward_images_per_s"]
    assert found["forward_share_of_peak"] == pytest.approx(flops * rate / peak)
    assert found["scoring_share_of_peak"] == pytest.approx(flops * 64 / found["scoring_s"] / peak)
    assert found["lime_over_forward"] == pytest.approx(found["scoring_s"] * rate / 64)
    assert "score_change" not in found
    assert f"| device | {found['device']} |" in capsys.readouterr().out


def test_operations_are_those_of_the_network(job: ModuleType, tmp_path: Path) -> None:
    wanted = 0
    sides = {}

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal wanted
        if isinstance(layer, nn.Conv2d):
            wanted += 2 * output[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            wanted += 2 * layer.weight.numel()
        sides[type(layer).__name__] = inputs

    net = job.build("cnn3", (3, 32, 32), 10).eval()
    for layer in net.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    assert "Conv2d" in sides
    assert figures(job, tmp_path)["gflop_per_image"] == pytest.approx(wanted / 1e9)


def test_bfloat16_says_how_far_it_moves_the_score(job: ModuleType, tmp_path: Path) -> None:
    change = figures(job, tmp_path, "--precision", "bfloat16")["score_change"]
    assert change != 0
    assert abs(change) < 0.05


def test_an_unknown_network_is_refused(
    job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        job.main(["--net", "resnet19", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--net resnet19" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
