"""Labels kept beside the results, for clean accuracy alone: scores never see them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.core.keys import slug
from raybench.core.types import DatasetInfo
from raybench.metrics.intervals import wilson
from raybench.reports.images import ImageScores
from raybench.sinks.parts import write_atomically

__all__ = ["clean_accuracy", "labels_path", "save_labels", "stored_labels", "strange_labels"]


def labels_path(out: Path, dataset: DatasetInfo) -> Path:
    """Return where the labels of a selection are kept, for clean accuracy alone."""
    return out / "labels" / f"{slug(dataset.name)}-{dataset.fingerprint[:12]}.parquet"


def save_labels(out: Path, dataset: DatasetInfo, ids: Sequence[str], labels: np.ndarray) -> None:
    """Keep the labels [len(ids)] of a selection beside its results."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"sample_id": list(ids), "label": labels.astype(np.int64)}), sink)
    write_atomically(labels_path(out, dataset), sink.getvalue().to_pybytes())


def stored_labels(out: Path, dataset: DatasetInfo) -> dict[str, int]:
    """Return the labels kept for a selection by sample id; empty where there are none."""
    path = labels_path(out, dataset)
    if not path.exists():
        return {}
    table = pq.read_table(path)
    return dict(
        zip(table.column("sample_id").to_pylist(), table.column("label").to_pylist(), strict=True)
    )


def strange_labels(measurement: Mapping[str, Any]) -> str | None:
    """Return why the labels say nothing about this model, if its classes are not the dataset's."""
    known, classes = measurement["dataset"]["num_classes"], measurement["model"]["num_classes"]
    if known is None or known == classes:
        return None
    return (
        f"clean accuracy is withheld: the labels are of {known} classes, the model's answers of "
        f"{classes}"
    )


def clean_accuracy(
    images: ImageScores, truth: Mapping[str, int]
) -> tuple[float | None, float | None, float | None]:
    """Return the fraction right with its Wilson bounds, or Nones where no label is known."""
    pairs = [
        (predicted, truth[sample_id])
        for sample_id, predicted in images.predictions()
        if sample_id in truth
    ]
    if not pairs:
        return None, None, None
    right = sum(predicted == label for predicted, label in pairs)
    return right / len(pairs), *wilson(right, len(pairs))
