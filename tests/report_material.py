"""Small stored results for reports: three networks, one of them named to break a page."""

import warnings
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from score_material import Slow

from raybench.cli import main

EVIL = "<img src=x onerror=alert(1)>\"'&|`"
NAMES = ("plain", "plain-adv", EVIL)


def store_results(folder: Path) -> Path:
    """Score and attack three linear networks on 24 labelled images and return the output folder."""
    specs = []
    for seed, name in enumerate(NAMES):
        path = folder / f"net{seed}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, not gone
            torch.jit.script(Slow(seed, 0).eval()).save(str(path))
        specs.append(f"torchscript:{path}?shape=1x8x8&classes=3&name={quote(name, safe='')}")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(24, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=rng.integers(0, 3, size=24))
    out = folder / "out"
    shared = ["--data", f"npz:{folder / 'data.npz'}", "--out", str(out), "--runner", "local"]
    shared += ["--tracking-uri", "http://127.0.0.1:9"]  # nobody there: MLflow is not the subject
    score = ["score", *specs, *shared, "--samples", "64", "--quiet"]
    assert main(score) == 0
    attack = ["attack", *specs, *shared, "--attack", "fgsm,square?queries=20", "--quiet"]
    assert main([*attack, "--eps", "0.02,0.1"]) == 0
    return out
