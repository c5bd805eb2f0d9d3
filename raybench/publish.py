"""Reports beside the results: tables as CSV, JSON and Markdown, figures as PNG and SVG."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raybench.core.catalog import open_dataset
from raybench.core.errors import RaybenchError
from raybench.core.keys import digest, slug
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackScore, AttackTable
from raybench.core.spec import parse
from raybench.core.types import Dataset
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.reports.disagreement_figures import fig5_disagreement
from raybench.reports.figures import Panel, fig1_scores, fig2_explanations
from raybench.reports.noise_figures import NoiseCurve, fig6_noise, shown_rows
from raybench.reports.sequence_figures import fig7_sequences
from raybench.reports.sparsity import explanation_sparsity, sparsity_json, sparsity_markdown
from raybench.reports.tables import as_json, as_markdown, write_csv
from raybench.sinks.parts import write_atomically
from raybench.sinks.store import load_rows, read_manifest

__all__ = [
    "Published",
    "explanation_panels",
    "publish_scores",
    "report_folder",
    "table_key",
    "write_reports",
]

_PANELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What stored results came to: ranked tables, their files, and each measurement's own.

    `rows` pairs the headline of every measurement with the files that belong to it.
    """

    tables: tuple[ScoreTable | AttackTable, ...]
    rows: tuple[tuple[ModelScore | AttackScore, tuple[Path, ...]], ...]
    files: tuple[Path, ...]


def publish_scores(out: Path, tables: Sequence[ScoreTable], dataset: Dataset | None) -> Published:
    """Write the reports of `tables` and return what there is; see `write_reports`."""
    files = write_reports(out, tables, dataset)
    return Published(
        tables=tuple(tables),
        rows=tuple((row, tuple(files[table_key(table)])) for table in tables for row in table.rows),
        files=tuple(path for paths in files.values() for path in paths),
    )


def table_key(table: ScoreTable) -> str:
    """Return the digest of what tells one table from another: images, reading, seed."""
    return digest([table.dataset.fingerprint, table.reading, table.seed])


def report_folder(out: Path, table: ScoreTable) -> Path:
    """Return the folder of one table's reports: dataset, reading, and a key of all that it is."""
    name = f"{slug(table.dataset.name)}-{parse(table.reading).scheme}-{table_key(table)[:8]}"
    return out / "reports" / name


def write_reports(
    out: Path, tables: Sequence[ScoreTable], dataset: Dataset | None
) -> dict[str, list[Path]]:
    """Write the reports of every table and return their paths by `table_key`.

    Args:
        out: output folder.
        tables: what to report.
        dataset: the images, for the explanations of fig2; None opens them by their spec, and leaves
            fig2 out where they are no longer there.
    """
    files: dict[str, list[Path]] = {}
    for table in tables:
        files[table_key(table)] = []
        if not table.shown:
            continue
        folder = report_folder(out, table)
        sparsity = explanation_sparsity(out, table)
        values = as_json(table) | {"sparsity": sparsity_json(sparsity)}
        content = json.dumps(values, indent=1, allow_nan=False)
        pages = [as_markdown(table), sparsity_markdown(table, sparsity)]
        write_atomically(folder / "scores.json", content.encode())
        write_atomically(folder / "scores.md", "\n".join(filter(None, pages)).encode())
        written = [folder / "scores.json", folder / "scores.md"]
        written.append(write_csv(table, folder / "scores.csv"))
        written += fig1_scores(table, folder / "fig1")
        written += _fig2(out, table, dataset, folder / "fig2")
        written += fig5_disagreement(table, folder / "fig5_disagreement")
        written += fig6_noise(_noise_curves(out, table), folder / "fig6_noise", table)
        written += fig7_sequences(table, folder / "fig7_sequences")
        files[table_key(table)] = written
    return files


def _pair(table: ScoreTable) -> tuple[ModelScore, ModelScore] | None:
    """Return the models of fig2: an adversarially trained one and its plain twin, else best, worst.

    The paper shows the 3-layer CNN, so that pair comes first where it is there.
    """
    rows = {row.model.name: row for row in table.rows if row.status == "complete"}
    twins = [name for name in rows if f"{name}-adv" in rows]
    if twins:
        name = "cnn3" if "cnn3" in twins else sorted(twins)[0]
        return rows[f"{name}-adv"], rows[name]
    ranked = sorted(rows.values(), key=lambda row: row.rank or 0)
    return (ranked[0], ranked[-1]) if len(ranked) > 1 else None


def _fig2(out: Path, table: ScoreTable, dataset: Dataset | None, stem: Path) -> list[Path]:
    pair = _pair(table)
    panels = explanation_panels(out, table, pair, dataset) if pair else []
    return fig2_explanations(panels, stem, reading=table.reading) if panels else []


def explanation_panels(
    out: Path, table: ScoreTable, rows: Sequence[ModelScore], dataset: Dataset | None = None
) -> list[Panel]:
    """Return the first images with the stored explanations of `rows`, complete ones of `table`.

    Empty where the images are no longer there, or the reading has no segments to show. `dataset`
    is for `write_reports`.
    """
    try:
        images = dataset or open_dataset(table.dataset.spec)
        if images.info.fingerprint != table.dataset.fingerprint:
            return []
        batch = images.read(images.ids[:_PANELS])
    except RaybenchError:
        return []  # the images have moved: everything else can still be shown
    reading = parse_reading(table.reading, samples=table.samples, shape=table.dataset.shape)
    if not isinstance(reading, LimeEvaluation) or reading.gaussian:
        return []  # nothing that a picture of segments could show
    columns = ("sample_id", "status", "weights", "predicted")
    stored = {
        row.model.name: {
            line["sample_id"]: line
            for line in load_rows(out / row.folder, read_manifest(out / row.folder), columns)
            .slice(0, _PANELS)
            .to_pylist()
        }
        for row in rows
    }
    panels = []
    for sample_id, image in zip(batch.ids, batch.images, strict=True):
        lines = {name: known.get(sample_id) for name, known in stored.items()}
        if any(line is None or line["status"] != "ok" for line in lines.values()):
            continue
        known = {name: line for name, line in lines.items() if line is not None}
        panels.append(
            Panel(
                id=sample_id,
                image=image.numpy(),
                segments=reading.segment(image, sample_id, table.seed).numpy(),
                weights={n: np.asarray(line["weights"], np.float32) for n, line in known.items()},
                predicted={name: int(line["predicted"]) for name, line in known.items()},
            )
        )
    return panels


def _noise_curves(out: Path, table: ScoreTable) -> list[NoiseCurve]:
    """Return what fig6 draws of each model it shows, read from the stored rows."""
    # A mask is scored by its area, its noise is known of the weights behind it: two units.
    known = parse(table.reading).scheme != "mask"
    curves = []
    for row in shown_rows(table):
        folder = out / row.folder
        scores = load_rows(folder, read_manifest(folder), ("score",)).column("score")
        curves.append(
            NoiseCurve(
                model=row.model.name,
                scores=scores.cast("float64").to_numpy(),
                noise_floor=row.noise_floor if known else None,
                corrected=row.corrected if known else None,
            )
        )
    return curves
