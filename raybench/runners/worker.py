"""The worker: one process's model, and the one function that turns a task into a committed part.

Every runner calls this; nothing here knows which. Images are read here, on the machine that needs
them, and rows leave as a file: neither passes through the driver.
"""

import contextlib
import ctypes
import logging
import os
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch

from raybench.core.catalog import load_model, open_dataset
from raybench.core.errors import RunError, StoreError
from raybench.core.plan import Measurement, Plan, cut_shards, part_name
from raybench.core.types import Dataset, Model, Shard
from raybench.core.work import Receipt, Task
from raybench.runners.stopwatch import TimedModel
from raybench.sinks.logs import log_fields, log_process
from raybench.sinks.parts import PartInfo, commit_part, inspect_part
from raybench.sinks.remote import find_part, open_store, put_part

__all__ = ["ShardWorker", "WorkerFactory", "choose_batch_size"]

_EXAMPLES = 8
_LOG = logging.getLogger("raybench.worker")


@dataclass(frozen=True, slots=True)
class WorkerFactory:
    """Makes the worker of a plan in whatever process calls it; small and picklable.

    Given `log_run`, the id of the run, its processes log what they do (`log_process`).
    """

    plan: Plan
    folder: str = field(default_factory=os.getcwd)
    log_run: str = ""

    def __call__(self) -> "ShardWorker":
        """Return a worker with nothing loaded yet.

        It works in the folder the run was started in, where that exists on its machine: specs may
        hold relative paths, and a cluster's processes start wherever the cluster was started.
        """
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        torch.set_num_threads(self.plan.cpu_threads)
        _keep_freed_memory()
        if self.log_run:
            log_process(run=self.log_run)
        return ShardWorker(self.plan)


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed activation buffers instead of giving them back after every batch.

    Faulting them in again took 15 to 37 % of a CPU worker's time (``make bench``: the whole kernel
    over bare forward passes went from 1.7 to 1.05). Costs up to 512 MiB of idle heap. Elsewhere
    than on glibc there is no such call, and nothing is done.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**29)
        mallopt(mmap_threshold, 2**25)


def choose_batch_size(shape: tuple[int, int, int], device: str) -> int:
    """Return how many perturbed copies to ask about in one forward call.

    A fixed function of image size and device kind, so that repeated runs ask in the same batches
    and agree to the bit. The CPU figure keeps the activations of small networks in cache (128 to
    250 copies of 28x28 were fastest on the development machine); GPUs want more work at once.
    """
    pixels = shape[0] * shape[1] * shape[2]
    budget = 2**27 if device.startswith("cuda") else 2**21
    return max(8, min(1024 if device.startswith("cuda") else 128, budget // pixels))


@dataclass(slots=True)
class ShardWorker:
    """Holds one model at a time and scores shards with it."""

    plan: Plan
    _resident: tuple[str, Model] | None = None
    _datasets: dict[str, Dataset] = field(default_factory=dict)
    _shards: dict[tuple[str, int], tuple[Shard, ...]] = field(default_factory=dict)
    _known: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, task: Task) -> Receipt:
        """Return the receipt of `task`; at once, with no query, where its part is already there.

        Raises:
            RunError: the model or the data are not those that were planned.
        """
        measurement = self.plan.measurements[task.measurement]
        with log_fields(
            model=measurement.model.name,
            evaluation=measurement.evaluation.canonical(),
            measurement=measurement.key[:16],
            shard=task.shard,
            pid=os.getpid(),
        ):
            try:
                receipt = self._compute(task, measurement)
            except Exception:
                _LOG.exception("shard-raised")
                raise
            facts = {"seconds": round(receipt.seconds, 6), "file": receipt.file}
            _LOG.info("shard-computed", extra={"facts": facts})
        return receipt

    def _compute(self, task: Task, measurement: Measurement) -> Receipt:
        dataset = self._dataset(measurement)
        shard = self._cut(dataset, task.shard_size or self.plan.shard_size)[task.shard]
        name = part_name(measurement.key, shard)
        found = self._stored(measurement, name)
        if found is not None:
            return _receipt(task, found, queries=0, seconds=0.0)
        started = time.monotonic()
        model = self._model(measurement)
        batch = dataset.read(shard.ids)
        if measurement.evaluation.needs_labels:
            examples = partial(self._examples, dataset)
            batch = replace(batch, labels=_labels(dataset, batch.ids), examples=examples)
        paid_before = getattr(model, "paid", None)
        batch_size = self.plan.batch_size or choose_batch_size(
            measurement.dataset.shape, model.device
        )
        timed = TimedModel(model)
        rows = measurement.evaluation(timed, batch, seed=measurement.seed, batch_size=batch_size)
        metadata = {"measurement": measurement.describe(), "shard": shard.index}
        part = self._commit(measurement, name, _in_order(rows, shard.ids), metadata)
        return _receipt(
            task,
            part,
            queries=_queries(measurement, rows, len(batch.ids)),
            seconds=time.monotonic() - started,
            paid=None if paid_before is None else getattr(model, "paid", 0) - paid_before,
            model_seconds=timed.seconds,
        )

    def _stored(self, measurement: Measurement, name: str) -> PartInfo | None:
        """Return the part of that name, where it is there and sound; a damaged file is removed.

        In an object store there is no folder of this machine's to look at: the store is asked.
        """
        if self.plan.store:
            return find_part(open_store(self.plan.store), f"{measurement.folder}/{name}")
        path = Path(self.plan.out) / measurement.folder / name
        try:
            return inspect_part(path)
        except StoreError:
            path.unlink(missing_ok=True)
            return None

    def _commit(
        self,
        measurement: Measurement,
        name: str,
        rows: pa.RecordBatch,
        metadata: dict[str, object],
    ) -> PartInfo:
        if self.plan.store:
            store = open_store(self.plan.store)
            return put_part(store, f"{measurement.folder}/{name}", rows, metadata)
        return commit_part(Path(self.plan.out) / measurement.folder, name, rows, metadata)

    def _model(self, measurement: Measurement) -> Model:
        wanted = measurement.model
        if self._resident is None or self._resident[0] != wanted.spec:
            # Drop the old model first: two may not fit the device.
            self._resident = None
            device = self.plan.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            model = load_model(
                wanted.spec,
                device=device,
                fast=not self.plan.exact,
                compiled=self.plan.compiled,
            )
            if model.info.fingerprint != wanted.fingerprint:
                raise RunError(
                    f"{wanted.spec} has changed since the run was planned (fingerprint "
                    f"{model.info.fingerprint[:12]}, planned {wanted.fingerprint[:12]})"
                )
            self._resident = (wanted.spec, model)
        return self._resident[1]

    def _dataset(self, measurement: Measurement) -> Dataset:
        wanted = measurement.dataset
        if wanted.spec not in self._datasets:
            dataset = open_dataset(wanted.spec)
            if dataset.info.fingerprint != wanted.fingerprint:
                raise RunError(
                    f"{wanted.spec} has changed since the run was planned, or process "
                    f"{os.getpid()} sees other files"
                )
            self._datasets[wanted.spec] = dataset
        return self._datasets[wanted.spec]

    def _examples(self, dataset: Dataset, label: int) -> torch.Tensor:
        """Return the first images [E, C, H, W] of the selection that have `label`."""
        spec = dataset.info.spec
        if spec not in self._known:
            self._known[spec] = _labels(dataset, tuple(dataset.ids))
        rows = (self._known[spec] == label).nonzero()[:_EXAMPLES, 0]
        return dataset.read([dataset.ids[row] for row in rows.tolist()]).images

    def _cut(self, dataset: Dataset, size: int) -> tuple[Shard, ...]:
        key = (dataset.info.spec, size)
        if key not in self._shards:
            self._shards[key] = cut_shards(tuple(dataset.ids), size)
        return self._shards[key]


def _in_order(rows: pa.RecordBatch, ids: tuple[str, ...]) -> pa.RecordBatch:
    found = {
        sample_id: index for index, sample_id in enumerate(rows.column("sample_id").to_pylist())
    }
    assert sorted(found) == sorted(ids), "an evaluation must return one row for each sample"
    return rows.take(pa.array([found[sample_id] for sample_id in ids], type=pa.int64()))


def _labels(dataset: Dataset, ids: tuple[str, ...]) -> torch.Tensor:
    found = dataset.labels(ids)
    if found is None:
        raise RunError(f"{dataset.info.spec} has lost its labels since the run was planned")
    return torch.from_numpy(found.astype("int64"))


def _queries(measurement: Measurement, rows: pa.RecordBatch, images: int) -> int:
    """Return the queries made: counted by the rows, where an evaluation counts, else as planned."""
    if "queries" in rows.schema.names:
        return sum(count or 0 for count in rows.column("queries").to_pylist())
    return measurement.evaluation.queries(images)


def _receipt(
    task: Task,
    part: PartInfo,
    *,
    queries: int,
    seconds: float,
    paid: int | None = None,
    model_seconds: float = 0.0,
) -> Receipt:
    return Receipt(
        task=task,
        file=part.file,
        sha256=part.sha256,
        size=part.size,
        rows=part.rows,
        errors=part.errors,
        queries=queries,
        seconds=seconds,
        paid=paid,
        model_seconds=model_seconds,
    )
