#!/usr/bin/env python3
"""How near scoring comes to what the device can do: forward passes and LIME against matrix peak.

On this machine, or on a worker of a Ray cluster (``--gpus 1``, for ``ray job submit``): the peak of
a large matrix product, bare forward passes, and whole images scored under the grid reading, all in
one run on one device. Prints a Markdown table and writes it with all figures as JSON.

    python jobs/bench.py                                      # this machine: small network on a CPU
    python jobs/bench.py --gpus 1 --net resnet50 --precision bfloat16 --images 100
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raybench.core.errors import InputError
from raybench.core.types import Access, Batch, ModelInfo
from raybench.core.work import Resources
from raybench.evaluations.lime import LimeEvaluation
from raybench.models.speed import speed_up
from raybench.models.torch_model import TorchModel
from raybench.models.zoo_nets import build
from raybench.runners.worker import choose_batch_size

ROUNDS = 3
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        net: name of a torchvision network at 224x224, or cnn3 at 32x32; random weights.
        images: how many are scored.
        samples: k.
        precision: of the network.
        compiled: whether it is compiled.
        exact: whether the plain way is taken.
        batch_size: 0 takes what scoring would.
    """

    net: str
    images: int
    samples: int
    precision: str
    compiled: bool
    exact: bool
    batch_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, 32, 32) if self.net == "cnn3" else (3, 224, 224)


def network(settings: Settings) -> nn.Module:
    """Return the network, with random weights: what it says does not change what it costs."""
    torch.manual_seed(0)
    if settings.net == "cnn3":
        return build("cnn3", settings.shape, 10)
    module: nn.Module = torchvision.models.get_model(settings.net, weights=None)
    return module


def model_of(settings: Settings, device: str, precision: str) -> TorchModel:
    module = network(settings).eval()
    with torch.no_grad():
        classes = module(torch.zeros(1, *settings.shape)).shape[1]
    dtype = PRECISIONS[precision]
    info = ModelInfo(
        spec=f"bench:{settings.net}",
        name=settings.net,
        access=Access.LOGITS,
        input_shape=settings.shape,
        num_classes=classes,
        fingerprint="0" * 64,
    )
    model = TorchModel(module.to(dtype), info, device=device, precision=dtype)
    if not settings.exact:
        speed_up(model, compiled=settings.compiled)
    return model


def measure(settings: Settings) -> dict[str, object]:
    """Return the figures of this process's device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    model = model_of(settings, device, settings.precision)
    size = settings.batch_size or choose_batch_size(settings.shape, device)
    size = min(size, settings.samples)
    copies = torch.rand(size, *settings.shape, device=device)
    counter = FlopCounterMode(display=False)
    # Counted on the plain network: a compiled one hides its products.
    with counter, torch.no_grad():
        network(settings).eval()(torch.zeros(1, *settings.shape))
    flops = float(counter.get_total_flops())
    peak = matrix_peak(device, PRECISIONS[settings.precision])
    with torch.inference_mode():
        forward_s = seconds(lambda: model.forward(copies), device) / size
    evaluation = LimeEvaluation(
        reading="grid", samples=settings.samples, cells=7, exact=settings.exact
    ).resolved(settings.shape)
    batch = pictures(settings)
    scored = seconds(lambda: evaluation(model, batch, seed=0, batch_size=size), device)
    queries = settings.images * settings.samples
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "torch": torch.__version__,
        **asdict(settings),
        "batch_size": size,
        "gflop_per_image": flops / 1e9,
        "matrix_peak_tflops": peak / 1e12,
        "forward_images_per_s": 1 / forward_s,
        "forward_share_of_peak": flops / forward_s / peak,
        "scoring_s": scored,
        "scoring_images_per_s": settings.images / scored,
        "scoring_share_of_peak": flops * queries / scored / peak,
        "lime_over_forward": scored / (queries * forward_s),
    }
    if device == "cuda":
        found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if settings.precision != "float32":
        found["score_change"] = score_change(settings, model, evaluation, batch, device, size)
    return found


def score_change(
    settings: Settings,
    model: TorchModel,
    evaluation: LimeEvaluation,
    batch: Batch,
    device: str,
    size: int,
) -> float:
    """Return how far the mean score lies from that of the network in float32, as a share of it."""
    single = model_of(settings, device, "float32")
    few = replace(batch, ids=batch.ids[:8], sources=batch.sources[:8], images=batch.images[:8])
    one, other = (
        statistics.fmean(evaluation(each, few, seed=0, batch_size=size).column("score").to_pylist())
        for each in (single, model)
    )
    return other / one - 1


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of large square matrices of `dtype`."""
    side = 8192 if device == "cuda" else 1024
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, device)


def seconds(action: Callable[[], object], device: str) -> float:
    """Return the median wall seconds of `action`, the device's work included, after one try."""
    taken = []
    for turn in range(ROUNDS + 1):
        begun = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn:
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def pictures(settings: Settings) -> Batch:
    """Return smooth coloured waves, one an image."""
    channels, height, width = settings.shape
    rows = torch.linspace(0, 6, height)[:, None]
    columns = torch.linspace(0, 6, width)[None, :]
    found: list[Tensor] = []
    for index in range(settings.images):
        waves = [
            (rows * (1 + channel) + index).sin() * (columns + channel * index).cos()
            for channel in range(channels)
        ]
        found.append(torch.stack(waves) / 2 + 0.5)
    names = tuple(f"wave-{index}" for index in range(settings.images))
    return Batch(names, names, torch.stack(found))


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, one thread"


def on_ray(settings: Settings, gpus: float, address: str | None) -> dict[str, object]:
    """Return the figures of a worker of a Ray cluster that reserves `gpus` GPUs."""
    import ray

    from raybench.runners.ray_session import ray_session

    with ray_session(Resources(address=address)):
        if ray.cluster_resources().get("GPU", 0) < gpus:  # type: ignore[no-untyped-call]
            raise InputError(f"--gpus {gpus:g}: the cluster has no worker with as many GPUs now")
        task = ray.remote(measure).options(num_gpus=gpus, num_cpus=1)
        found: dict[str, object] = ray.get(task.remote(settings), timeout=3600)
        return found


def as_markdown(found: dict[str, object]) -> str:
    lines = ["| measure | value |", "|---|---:|"]
    for name, value in found.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="cnn3", help="cnn3, or a network of torchvision's")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="float32")
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--gpus", type=float, default=0.0, help="measure on a worker with so many")
    parser.add_argument("--address", help="Ray cluster, where --gpus is given")
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = vars(parser.parse_args(arguments))
    gpus, address, out = given.pop("gpus"), given.pop("address"), given.pop("out")
    settings = Settings(**given)
    if settings.net != "cnn3" and settings.net not in torchvision.models.list_models():
        parser.error(f"--net {settings.net}: cnn3, or one of torchvision.models.list_models()")
    if settings.images < 1 or settings.samples < 64:
        parser.error("--images must be at least 1, --samples at least 64")
    try:
        found = on_ray(settings, gpus, address) if gpus else measure(settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(as_markdown(found))
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench-device.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
