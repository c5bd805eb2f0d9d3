#!/usr/bin/env python3
"""Which reading of LIME, if any, orders networks as their robust accuracy does?

Scores every checkpoint of a folder under many readings and compares the order of each score with
the robust accuracies that the checkpoints' README.json files state ("measured": "pgd40_EPS").
Protocol: readings are compared on MNIST, the choice is confirmed on CIFAR-10, and every reading
tried is in the table. Scores see images and answers only; labels and gradients are in the stated
accuracies alone. Interrupted, it goes on where it stopped; the table shows what is complete.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raybench.cli import invoke, run_job
from raybench.config import ScoreConfig, make_config
from raybench.core.errors import InputError, StoreError
from raybench.core.results import ScoreTable
from raybench.kernels.draws import stream
from raybench.metrics.correlation import agreement
from raybench.reports.summary import load_tables

READINGS = (
    "grid",
    "flip-radius",
    "grid?fill=0",
    "grid?target=margin_pred",
    "coarse-gauss?target=margin_pred&sigma=0.1",
    "pixel-gauss?target=margin_pred&sigma=0.05",
    "pixel-gauss?target=prob_pred&sigma=0.25",
    "grid?fill=blur",
    "grid?target=prob_all",
    "grid?target=onehot",
    "grid?design=hadamard&samples=1024",
    "superpixel",
    "superpixel-sum",
    "superpixel-pixel",
    "superpixel?segmentation=slic&count=49",
)
SCORES = ("score", "corrected", "matched", "normalised", "confidence")


@dataclass(frozen=True, slots=True)
class Study:
    """One dataset's part: its name, spec, and the keys of the stated robust accuracies."""

    name: str
    data: str
    accuracies: tuple[str, ...]


def measured(checkpoints: Path, name: str) -> dict[str, dict[str, float]]:
    """Return what each checkpoint of the dataset `name` states of itself, by folder name."""
    found = {}
    for path in sorted(checkpoints.glob("*/README.json")):
        facts = json.loads(path.read_text())
        if facts["dataset"] == name:
            found[path.parent.name] = facts["measured"]
    return found


def lines_of(table: ScoreTable, study: Study, facts: dict[str, dict[str, float]]) -> list[str]:
    """Return the Markdown rows of one reading: each score against each stated accuracy."""
    rows = [row for row in table.rows if row.status == "complete" and row.model.name in facts]
    lines = []
    for score in SCORES:
        # The flip radius has a row of its own: in other tables it would stand for another reading.
        if score == "normalised" and any(row.normalised_by != row.reading for row in rows):
            continue
        values = [getattr(row, score) for row in rows]
        if len(rows) < 3 or any(value is None for value in values):
            continue
        cells = []
        for key in study.accuracies:
            truth = np.array([facts[row.model.name][key] for row in rows])
            found = agreement(np.array(values), truth, stream(0, "study", key))
            right = found.pairs - found.concordant
            cells += [f"{found.spearman:+.2f}", f"{found.spearman_p:.3f}", f"{right}/{found.pairs}"]
        images = max(row.n for row in rows)
        lines.append(
            f"| `{table.reading}` | {score} | {len(rows)} | {images} | {' | '.join(cells)} |"
        )
    return lines


def report(out: Path, studies: list[Study], checkpoints: Path) -> str:
    """Return the study's tables as Markdown, from whatever is complete."""
    parts = []
    for study in studies:
        facts = measured(checkpoints, study.name)
        try:
            own = load_tables(out / study.name, rank_by="score", merge=False)
        except StoreError:
            continue
        heads = [f"{key}: Spearman | p | pairs right" for key in study.accuracies]
        head = f"| reading | score | nets | images | {' | '.join(heads)} |"
        rule = "|---|---|---|---|" + "---|---|---|" * len(heads)
        body = [line for table in own for line in lines_of(table, study, facts)]
        parts.append("\n".join([f"### {study.name}", "", head, rule, *body]))
    return "\n\n".join(parts) + "\n"


def study(
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints.")],
    data: Annotated[Path, typer.Option(help="Folder with mnist/ and cifar10/.")],
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("results/study"),
    table: Annotated[Path, typer.Option(help="Markdown file.")] = Path("results/study.md"),
    n: Annotated[int, typer.Option(help="Images for each network.")] = 40,
    dataset: Annotated[list[str] | None, typer.Option(help="mnist or cifar10; both.")] = None,
    reading: Annotated[list[str] | None, typer.Option(help="Readings; all.")] = None,
    runner: Annotated[str, typer.Option(help="ray or local.")] = "ray",
    only_table: Annotated[bool, typer.Option(help="Score nothing.")] = False,
) -> int:
    """Run the study and write its table."""
    known = [
        Study("mnist", f"mnist?root={data / 'mnist'}", ("pgd40_0.10", "pgd40_0.30")),
        Study(
            "cifar10",
            f"npz:{data / 'cifar10' / 'test-first1000.npz'}",
            ("pgd40_2/255", "pgd40_8/255"),
        ),
    ]
    studies = [one for one in known if not dataset or one.name in dataset]
    if not studies:
        raise InputError(f"--dataset: expected mnist or cifar10, found {dataset}")
    code = 0
    for one in studies:
        models = [
            f"torchscript:{checkpoints / name / 'model.torchscript.pt'}"
            for name in measured(checkpoints, one.name)
        ]
        for text in () if only_table else reading or READINGS:
            options: dict[str, Any] = {
                "models": models,
                "data": one.data,
                "n": n,
                "reading": [text],
                "out": str(out / one.name),
                "shard_size": 20,
                "runner": runner,
            }
            code = max(code, run_job(make_config(ScoreConfig, options), quiet=True))
    text = report(out, studies, checkpoints)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(text)
    print(text)
    return code


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=__doc__)(study)
    sys.exit(invoke(app))
