"""What is to be measured: measurements, their shards, and the keys that name every result.

A measurement is (model, dataset selection, evaluation, seed) in canonical form. Its key names its
folder and its parts, so that a changed setting can never mix with old results and a repeated one
always finds them. Shards are cut by the plan from the dataset's order, never by the number of
workers.
"""

from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from raybench.core.errors import InputError
from raybench.core.keys import digest, slug
from raybench.core.types import Access, Batch, DatasetInfo, Model, ModelInfo, Shard

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["SCHEMA_VERSION", "Evaluation", "Measurement", "Plan", "cut_shards", "part_name"]

# Raised whenever rows computed by an older raybench must not be mixed with new ones.
SCHEMA_VERSION = 1


class Evaluation(Protocol):
    """One way to examine a model: a frozen dataclass whose fields are its settings."""

    @property
    def family(self) -> str:
        """The name of the dataset of rows this belongs to, such as ``lime``."""
        ...

    @property
    def requires(self) -> Access:
        """The lowest access level it can work with."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether its batches must carry labels. Scoring never sees any."""
        ...

    def canonical(self) -> str:
        """Return the spec string that names these settings completely."""
        ...

    def queries(self, images: int) -> int:
        """Return how many model queries `images` images will take."""
        ...

    def schema(self) -> "pa.Schema":
        """Return the schema of its rows."""
        ...

    def __call__(
        self, model: Model, batch: Batch, *, seed: int, batch_size: int
    ) -> "pa.RecordBatch":
        """Return one row for each sample of `batch`, failures included, in its order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One model, one selection of images, one evaluation, one seed.

    `labels` is a digest of the labels where the evaluation needs them, else empty: other labels
    are another measurement.
    """

    model: ModelInfo
    dataset: DatasetInfo
    evaluation: Evaluation
    seed: int
    labels: str = ""

    def identity(self) -> dict[str, Any]:
        """Return the facts that make results comparable bit for bit, as JSON values."""
        facts: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "model": {
                "name": self.model.name,
                "fingerprint": self.model.fingerprint,
                "access": self.model.access.name.lower(),
            },
            "dataset": {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint},
            "evaluation": self.evaluation.canonical(),
            "seed": self.seed,
        }
        return facts | ({"labels": self.labels} if self.labels else {})

    @property
    def key(self) -> str:
        """SHA-256 of `identity`, 64 hex characters."""
        return digest(self.identity())

    @property
    def folder(self) -> str:
        """Folder of its parts below the output folder: hive keys dataset, model, measurement.

        Each evaluation is a dataset of its own, because its rows have a schema of their own.
        """
        dataset = f"dataset={slug(self.dataset.name)}-{self.dataset.fingerprint[:12]}"
        model = f"model={slug(self.model.name)}-{self.model.fingerprint[:12]}"
        evaluation = self.evaluation.canonical()
        kind = f"{slug(evaluation.partition('?')[0])}-{digest(evaluation)[:8]}"
        rows = PurePosixPath("rows") / kind / dataset / model
        return str(rows / f"measurement={self.key[:16]}")

    def describe(self) -> dict[str, Any]:
        """Return everything known of it as JSON values: what manifests and part footers hold."""
        model = asdict(self.model)
        model["access"] = self.model.access.name.lower()
        model["details"] = dict(self.model.details)
        return {
            **self.identity(),
            "model": model,
            "dataset": asdict(self.dataset),
            "key": self.key,
            "family": self.evaluation.family,
        }


def cut_shards(ids: tuple[str, ...], size: int) -> tuple[Shard, ...]:
    """Return `ids` cut in order into shards of `size` ids; the last may be smaller.

    Raises:
        InputError: a size below 1.
    """
    if size < 1:
        raise InputError(f"shard size must be at least 1, found {size}")
    return tuple(
        Shard(index, ids[start : start + size])
        for index, start in enumerate(range(0, len(ids), size))
    )


def part_name(measurement_key: str, shard: Shard) -> str:
    """Return the file name of a shard's part: its index and a digest of all that decides it."""
    content = digest([measurement_key, shard.index, list(shard.ids)])
    return f"part-{shard.index:06d}-{content[:16]}.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's work: every measurement is over the same selection of images.

    Attributes:
        out: output folder (absolute path).
        measurements: what to compute.
        shard_size: images in a shard, where a task names no other size.
        batch_size: model queries in one forward call; 0 chooses by image size. It changes no
            result beyond float32 rounding and is no part of any key.
        cpu_threads: torch threads of each worker.
        device: "auto", "cpu" or "cuda".
        exact: take the plain way through networks and regressions; the fast one differs from it by
            rounding alone.
        compiled: compile networks with `torch.compile`.
        store: where `out` is the mirror of an object store, its address, which workers write to;
            else empty.
    """

    out: str
    measurements: tuple[Measurement, ...]
    shard_size: int
    batch_size: int = 0
    cpu_threads: int = 1
    device: str = "auto"
    exact: bool = False
    compiled: bool = False
    store: str = ""
