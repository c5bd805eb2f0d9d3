"""The driver: runs a job, keeps its manifests, publishes what is complete.

Parquet is the record. The driver holds counts and receipts, never rows: what it publishes it reads
back from the parts, so that a score printed, logged or shown later is the same number.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from raybench.config import AttackConfig, RunConfig, ScoreConfig
from raybench.core.errors import InputError, Interrupted
from raybench.core.plan import Measurement, Plan
from raybench.core.results import ScoreTable
from raybench.core.robustness import AttackTable
from raybench.core.spec import parse
from raybench.core.types import DatasetInfo, ModelInfo
from raybench.core.work import Event, Outcome, Receipt, Task
from raybench.job import Job, library_versions, result_folders
from raybench.publish import Published, publish_scores
from raybench.publish_attacks import publish_attacks
from raybench.reports.summary import summarise
from raybench.reports.truth import save_labels
from raybench.runners.inprocess import run_in_process
from raybench.runners.worker import WorkerFactory
from raybench.signals import StopFlag, catch_signals
from raybench.sinks.cuts import open_manifest
from raybench.sinks.mlflow import Tracker, TrackingUnavailable, open_tracker
from raybench.sinks.store import Manifest, save_manifest, with_receipts

__all__ = ["Display", "ScoreRun", "execute", "experiment_name", "open_manifests", "start_run"]

_MANIFEST_EVERY_S = 5.0


class Display(Protocol):
    """What a front end shows of a run; every method returns quickly."""

    def begin(
        self, measurements: Sequence[Measurement], shards: Sequence[int], done: Sequence[int]
    ) -> None:
        """Show a run: how many shards each measurement has, and how many of them are there."""
        ...

    def event(self, event: Event) -> None:
        """Show one event of the runner."""
        ...

    def note(self, text: str) -> None:
        """Show a sentence."""
        ...

    def end(self) -> None:
        """The run is over; what follows is results."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRun:
    """What a run achieved.

    Attributes:
        out: output folder.
        tables: one ranked table for each reading, or for each budget of an attack.
        failures: (model, shard index, last error) of every shard that could not be scored.
        gave_up: why the run ended early, or None.
        files: reports written.
        tracking_uri: where MLflow has the runs (credentials removed), or None where it has not.
        computed: shards computed by this run; 0 when everything was there.
    """

    out: Path
    tables: tuple[ScoreTable | AttackTable, ...]
    failures: tuple[tuple[str, int, str], ...]
    gave_up: str | None
    files: tuple[Path, ...]
    tracking_uri: str | None
    computed: int

    @property
    def exit_code(self) -> int:
        """0 when every model has its score under every reading or attack, else 3."""
        whole = all(row.status == "complete" for table in self.tables for row in table.rows)
        return 0 if whole and not self.failures and not self.gave_up else 3


def open_manifests(
    job: Job, *, resume: bool, say: Callable[[str], None], compares: bool = True
) -> list[Manifest]:
    """Return the manifest of each measurement, brought in line with the disk and saved.

    Args:
        job: the work.
        resume: keep what is computed; otherwise the parts of these measurements are removed.
        say: told of every surprise on disk.
        compares: the job's models are compared, and its baseline is what later tables go by.
            Otherwise what is stored of that stays, as when one model is repaired.
    """
    manifests = []
    environment, run = library_versions(), datetime.now(UTC).isoformat(timespec="microseconds")
    for measurement, folder in zip(job.plan.measurements, result_folders(job), strict=True):
        manifest, notes = open_manifest(
            folder, measurement, job.dataset.ids, job.plan.shard_size, resume=resume
        )
        manifest = replace(manifest, environment=environment)
        if compares:
            manifest = replace(manifest, baseline=job.baseline, twins=job.twins, run=run)
        for note in notes:
            say(f"{measurement.model.name}: {note}")
        save_manifest(folder, manifest)
        manifests.append(manifest)
    return manifests


def execute(
    job: Job, config: RunConfig, display: Display, flag: StopFlag, *, compares: bool = True
) -> ScoreRun:
    """Compute what is missing of `job`, then publish every complete measurement.

    `compares` is for `open_manifests`.

    Raises:
        Interrupted: the run was asked to stop; committed shards stay, MLflow runs are KILLED.
        RunError: no worker could be made at all.
    """
    out = Path(job.plan.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {out} cannot be made: {error}") from error
    tracker: Tracker | None = None
    book: _Book | None = None
    # Signals are caught throughout: while shards run they set a flag, which the runner heeds after
    # it has put its actors away; before and after, where seconds pass in MLflow, they raise.
    try:
        with catch_signals(flag, at_once=True):
            manifests = open_manifests(
                job, resume=config.resume, say=display.note, compares=compares
            )
            _keep_labels(job)
            tracker = _open_tracker(config, job.dataset.info, out, display.note)
            tasks = _missing_tasks(job.plan, manifests)
            book = _Book(job, manifests, tracker)
            _begin(display, job, manifests)
            if tracker is not None and tasks:
                _start_runs(tracker, job)
        listen = _listener(display, book)
        stop = partial(_stopped, job, book, tracker)
        outcome = _run(config, job, tasks, listen, flag, stop) if tasks else Outcome()
        if flag.code is not None:
            raise Interrupted(flag.code)
        with catch_signals(flag, at_once=True):
            book.close(outcome)
            display.end()
            return _publish(job, config, outcome, tracker, computed=len(outcome.receipts))
    except (Interrupted, KeyboardInterrupt) as error:
        _stopped(job, book, tracker)
        display.end()
        if isinstance(error, Interrupted):
            raise
        raise Interrupted(130) from error
    except Exception as error:
        display.end()
        if tracker is not None:
            tracker.abandon(f"{type(error).__name__}: {error}")
        raise


def _stopped(job: Job, book: "_Book | None", tracker: Tracker | None) -> None:
    """Put manifests and MLflow in order when the run must end; a second call does nothing more."""
    # Manifests first: MLflow may be slow, and the grace time of a job is seconds.
    if book is not None:
        book.save()
    if tracker is not None:
        tracker.kill([measurement.key for measurement in job.plan.measurements])


def _begin(display: Display, job: Job, manifests: Sequence[Manifest]) -> None:
    shards = [len(manifest.shards) for manifest in manifests]
    done = [len(manifest.parts) for manifest in manifests]
    display.begin(job.plan.measurements, shards, done)


def _listener(display: Display, book: "_Book") -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        display.event(event)
        if event.receipt is not None:
            book.enter(event.receipt)

    return listen


def _run(
    config: RunConfig,
    job: Job,
    tasks: Sequence[Task],
    listen: Callable[[Event], None],
    flag: StopFlag,
    stopped: Callable[[], None],
) -> Outcome:
    factory = WorkerFactory(job.plan)
    resources = config.resources()
    if config.runner == "local":
        with catch_signals(flag):
            return run_in_process(factory, tasks, resources, listener=listen, stop=flag)
    # Importing Ray takes seconds, which a run with nothing left to do should not pay.
    from raybench.runners.ray import ray_session, run_on_ray

    # Entered before Ray starts, so that its end is covered too; Ray leaves the handler as it was.
    with catch_signals(flag), ray_session(resources):
        try:
            return run_on_ray(factory, tasks, resources, listener=listen, stop=flag)
        except Interrupted:
            stopped()  # now: leaving Ray takes seconds that a stopped job may not have
            raise


def _missing_tasks(plan: Plan, manifests: Sequence[Manifest]) -> list[Task]:
    return [
        Task(index, shard.index, measurement.model.fingerprint, manifest.shard_size)
        for index, (measurement, manifest) in enumerate(
            zip(plan.measurements, manifests, strict=True)
        )
        for shard in manifest.missing
    ]


@dataclass(slots=True)
class _Book:
    """The manifests of a run, kept in line with its receipts and saved every few seconds."""

    job: Job
    manifests: list[Manifest]
    tracker: Tracker | None
    _new: dict[int, list[Receipt]] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)

    def enter(self, receipt: Receipt) -> None:
        index = receipt.task.measurement
        self._new.setdefault(index, []).append(receipt)
        if time.monotonic() - self._saved > _MANIFEST_EVERY_S:
            self.save()

    def save(self) -> None:
        folders = result_folders(self.job)
        for index, receipts in self._new.items():
            manifest = with_receipts(self.manifests[index], receipts)
            self.manifests[index] = manifest
            save_manifest(folders[index], manifest)
            self._step(index, manifest)
        self._new.clear()
        self._saved = time.monotonic()

    def _step(self, index: int, manifest: Manifest) -> None:
        if self.tracker is None:
            return
        parts = manifest.parts.values()
        metrics = {
            "images_done": float(sum(part["rows"] for part in parts)),
            "images_unscored": float(sum(part["errors"] for part in parts)),
            "queries_done": float(sum(part["queries"] or 0 for part in parts)),
        }
        self.tracker.step(self.job.plan.measurements[index].key, len(manifest.parts), metrics)

    def close(self, outcome: Outcome) -> None:
        self.save()
        for index, folder in enumerate(result_folders(self.job)):
            failures = {
                str(task.shard): error
                for task, error in outcome.failures.items()
                if task.measurement == index
            }
            if failures != self.manifests[index].failures:
                self.manifests[index] = replace(self.manifests[index], failures=failures)
                save_manifest(folder, self.manifests[index])


def _keep_labels(job: Job) -> None:
    """Keep labels beside the results; scoring never sees them, the table's accuracy column does."""
    info = job.dataset.info
    if info.has_labels:
        labels = job.dataset.labels(job.dataset.ids)
        if labels is not None:
            save_labels(Path(job.plan.out), info, job.dataset.ids, labels)


def _open_tracker(
    config: RunConfig, dataset: DatasetInfo, out: Path, say: Callable[[str], None]
) -> Tracker | None:
    try:
        return open_tracker(
            config.tracking_uri,
            out,
            config.experiment
            or experiment_name(dataset, "attack" if isinstance(config, AttackConfig) else "lime"),
            warn=say,
        )
    except TrackingUnavailable as error:
        say(str(error))
        return None


def experiment_name(dataset: DatasetInfo, family: str) -> str:
    """Return the experiment of a dataset: scores and attacks have metrics of their own."""
    return f"{dataset.name}-{'attack' if family == 'attack' else 'lime'}"


def start_run(
    tracker: Tracker, key: str, model: ModelInfo, dataset: DatasetInfo, evaluation: str, seed: int
) -> None:
    """Open or take up a run; its params are what makes it itself, as columns people can sort by."""
    reading = parse(evaluation)
    tracker.start(
        key,
        model=model,
        dataset=dataset,
        reading=evaluation,
        params={
            "model": model.name,
            "dataset": dataset.name,
            "n": dataset.size,
            "seed": seed,
            "reading": reading.scheme,
            **dict(reading.options),
        },
        name=f"{model.name} · {reading.scheme}",
    )


def _start_runs(tracker: Tracker, job: Job) -> None:
    for measurement in job.plan.measurements:
        evaluation = measurement.evaluation.canonical()
        start_run(
            tracker,
            measurement.key,
            measurement.model,
            measurement.dataset,
            evaluation,
            measurement.seed,
        )


def _publish(
    job: Job, config: RunConfig, outcome: Outcome, tracker: Tracker | None, computed: int
) -> ScoreRun:
    out, folders = Path(job.plan.out), result_folders(job)
    if isinstance(config, ScoreConfig):
        tables = summarise(out, folders, baseline=config.baseline, rank_by=config.rank_by)
        published = publish_scores(out, tables, job.dataset)
    else:
        published = publish_attacks(out, folders)
    if tracker is not None:
        if not computed:
            _start_runs(tracker, job)
        _finish_runs(tracker, published)
    failures = tuple(
        (job.plan.measurements[task.measurement].model.name, task.shard, error)
        for task, error in sorted(outcome.failures.items())
    )
    reachable = tracker is not None and tracker.unavailable is None
    return ScoreRun(
        out=out,
        tables=published.tables,
        failures=failures,
        gave_up=outcome.gave_up,
        files=published.files,
        tracking_uri=tracker.uri if tracker is not None and reachable else None,
        computed=computed,
    )


def _finish_runs(tracker: Tracker, published: Published) -> None:
    for row, files in published.rows:
        if row.status == "complete":
            tracker.finish(row, files)
        else:
            tracker.fail(row.key, row.error or row.status)
