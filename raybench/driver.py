"""The driver: runs a job, keeps its manifests, publishes what is complete.

Parquet is the record. The driver holds counts and receipts, never rows: what it publishes it reads
back from the parts, so that a score printed, logged or shown later is the same number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from raybench.book import Book
from raybench.config import RunConfig, ScoreConfig
from raybench.core.errors import InputError, Interrupted
from raybench.core.mirrors import shown
from raybench.core.plan import Measurement, Plan
from raybench.core.results import ScoreTable
from raybench.core.robustness import AttackTable
from raybench.core.types import DatasetInfo, ModelInfo
from raybench.core.work import Event, Outcome, Resources, Task
from raybench.costs import cost_notes, spent_models
from raybench.heartbeat import Heartbeat, heartbeat, started
from raybench.job import Job, library_versions, merge_plans, result_folders
from raybench.logs import LoggedDisplay, logging_is_on
from raybench.publish import Published, publish_scores
from raybench.publish_attacks import publish_attacks
from raybench.reports.summary import summarise
from raybench.reports.truth import labels_path, save_labels
from raybench.runners.inprocess import run_in_process
from raybench.runners.worker import WorkerFactory
from raybench.sequential import Rounds, rounds_of
from raybench.signals import StopFlag, catch_signals
from raybench.sinks.cuts import open_manifest
from raybench.sinks.headlines import run_name, run_params
from raybench.sinks.logs import log_fields
from raybench.sinks.mirror import push, reports_sent, store_of
from raybench.sinks.mlflow import Tracker, TrackingUnavailable, open_tracker
from raybench.sinks.store import Manifest, save_manifest
from raybench.sinks.tracking import chosen_uri

__all__ = [
    "Computed",
    "Display",
    "Means",
    "ScoreRun",
    "compute",
    "execute",
    "experiment_name",
    "open_manifests",
    "start_run",
]

T = TypeVar("T")

_MLFLOW_STAYS = (
    "MLflow: no server is named, and its own database cannot be in an object store: the runs are "
    "in {out}/mlflow.db on this machine. --tracking-uri or MLFLOW_TRACKING_URI names a server; "
    "'raybench sync {uri}' pushes them there later"
)


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


class Means(Protocol):
    """What a run may take; every configuration says it."""

    @property
    def runner(self) -> str:
        """Ray, or local: in this process."""
        ...

    @property
    def resume(self) -> bool:
        """Whether to keep what is already computed."""
        ...

    @property
    def tracking_uri(self) -> str | None:
        """Where MLflow keeps its runs; None is a database in the output folder."""
        ...

    def resources(self) -> Resources:
        """Return the resources of the run."""
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
        spent: (model, shards left, error) of every model whose query budget is spent.
    """

    out: Path
    tables: tuple[ScoreTable | AttackTable, ...]
    failures: tuple[tuple[str, int, str], ...]
    gave_up: str | None
    files: tuple[Path, ...]
    tracking_uri: str | None
    computed: int
    spent: tuple[tuple[str, int, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """0 when every model has its score under every reading or attack, else 3.

        4 when a query budget is spent: the same command with a larger one goes on.
        """
        if self.spent:
            return 4
        whole = all(row.status == "complete" for table in self.tables for row in table.rows)
        return 0 if whole and not self.failures and not self.gave_up else 3


def open_manifests(
    job: Job,
    *,
    resume: bool,
    say: Callable[[str], None],
    compares: bool = True,
    whole: bool = False,
    run: str = "",
) -> list[Manifest]:
    """Return the manifest of each measurement, brought in line with the disk and saved.

    Args:
        job: the work.
        resume: keep what is computed; otherwise the parts of these measurements are removed.
        say: told of every surprise on disk.
        compares: the job's models are compared, and its baseline is what later tables go by.
            Otherwise what is stored of that stays, as when one model is repaired.
        whole: every image is asked for; otherwise what a sequential run stopped at stays.
        run: when the run began; by default it begins now.
    """
    manifests = []
    environment, run = library_versions(), run or started()
    for measurement, folder in zip(job.plan.measurements, result_folders(job), strict=True):
        manifest, notes = open_manifest(
            folder, measurement, job.dataset.ids, job.plan.shard_size, resume=resume
        )
        manifest = replace(manifest, environment=environment)
        if compares:
            manifest = replace(manifest, baseline=job.baseline, twins=job.twins, run=run)
        if whole:
            manifest = replace(manifest, stop=None)
        for note in notes:
            say(f"{measurement.model.name}: {note}")
        save_manifest(folder, manifest)
        manifests.append(manifest)
    return manifests


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a run over one or several jobs achieved, before anything is published.

    Attributes:
        plan: the measurements of all jobs, job after job.
        outcome: receipts and failures of its tasks.
        trackers: where MLflow has the runs of each job; None where it has not.
    """

    plan: Plan
    outcome: Outcome
    trackers: tuple[Tracker | None, ...]

    @property
    def failures(self) -> tuple[tuple[str, int, str], ...]:
        """(model, shard index, last error) of every shard that could not be scored."""
        return tuple(
            (self.plan.measurements[task.measurement].model.name, task.shard, error)
            for task, error in sorted(self.outcome.failures.items())
        )

    @property
    def spent(self) -> tuple[tuple[str, int, str], ...]:
        """(model, shards left, error) of every model whose query budget is spent."""
        return spent_models(self.plan, self.outcome)


def execute(
    job: Job, config: RunConfig, display: Display, flag: StopFlag, *, compares: bool = True
) -> ScoreRun:
    """Compute what is missing of `job`, then publish every complete measurement.

    `compares` is for `open_manifests`.

    Raises:
        Interrupted: the run was asked to stop; committed shards stay, MLflow runs are KILLED.
        RunError: no worker could be made at all.
    """
    experiment = config.experiment or experiment_name(job.dataset.info)
    publish = partial(_publish, job, config)
    rounds = rounds_of(job.plan, config, display.note) if isinstance(config, ScoreConfig) else None
    return compute(
        (job,), config, display, flag, publish, (experiment,), compares=compares, rounds=rounds
    )


def compute(
    jobs: Sequence[Job],
    means: Means,
    display: Display,
    flag: StopFlag,
    publish: Callable[[Computed], T],
    experiments: Sequence[str],
    *,
    compares: bool = True,
    rounds: Rounds | None = None,
) -> T:
    """Compute what is missing of all `jobs` in one run, and return what `publish` makes of it.

    Workers take the next shard of any job, so none is idle while work is left.

    Args:
        jobs: the work, all into one output folder.
        means: what it may take.
        display: shows it.
        flag: asks it to stop.
        publish: called once everything is stored.
        experiments: the MLflow experiment of each job.
        compares: for `open_manifests`.
        rounds: chooses the shards of a sequential run; None computes all that are missing.

    Raises:
        Interrupted: as for `execute`.
        RunError: no worker could be made at all.
    """
    plan, run = merge_plans(jobs), started()
    out = Path(plan.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {out} cannot be made: {error}") from error
    log = LoggedDisplay(display, plan, run)
    keys = [measurement.key for measurement in plan.measurements]
    try:
        with log_fields(run=run), heartbeat(out, run, keys) as beat:
            done = _compute(
                jobs, plan, means, log, flag, publish, experiments, compares, rounds, run, beat
            )
    except Interrupted as error:
        log.over("interrupted", str(error))
        raise
    except BaseException as error:
        log.over("failed", f"{type(error).__name__}: {error}")
        raise
    log.over("finished")
    return done


def _compute(
    jobs: Sequence[Job],
    plan: Plan,
    means: Means,
    display: LoggedDisplay,
    flag: StopFlag,
    publish: Callable[[Computed], T],
    experiments: Sequence[str],
    compares: bool,
    rounds: Rounds | None,
    run: str,
    beat: Heartbeat,
) -> T:
    out = Path(plan.out)
    trackers: list[Tracker | None] = []
    book: Book | None = None
    # Signals are caught throughout: while shards run they set a flag, which the runner heeds after
    # it has put its actors away; before and after, where seconds pass in MLflow, they raise.
    try:
        with catch_signals(flag, at_once=True):
            opened = [
                open_manifests(
                    job,
                    resume=means.resume,
                    say=display.note,
                    compares=compares,
                    whole=compares and rounds is None,
                    run=run,
                )
                for job in jobs
            ]
            manifests = [manifest for several in opened for manifest in several]
            for job in jobs:
                _keep_labels(job)
            if store_of(out) is not None and chosen_uri(means.tracking_uri) is None:
                display.note(_MLFLOW_STAYS.format(out=out, uri=shown(out)))
            trackers.extend(_open_tracker(means, name, out, display.note) for name in experiments)
            tasks = (
                rounds.tasks(manifests, Outcome()) if rounds else _missing_tasks(plan, manifests)
            )
            owners = [
                tracker
                for job, tracker in zip(jobs, trackers, strict=True)
                for _ in job.plan.measurements
            ]
            book = Book(plan, manifests, owners)
            display.trackers = owners
            for job, tracker in zip(jobs, trackers, strict=True):
                if tracker is not None and tasks:
                    _start_runs(tracker, job)
            _begin(display, plan, manifests)
        listen = _listener(display, book, beat)
        stop = partial(_stopped, plan, book, trackers)
        more = partial(_next_round, rounds, book, display) if rounds else None
        factory = WorkerFactory(plan, log_run=run if logging_is_on() else "")
        outcome = _run(means, factory, tasks, listen, flag, stop, more) if tasks else Outcome()
        if flag.code is not None:
            raise Interrupted(flag.code)
        with catch_signals(flag, at_once=True):
            for note in book.settle():
                display.note(note)
            book.close(outcome)
            if rounds is not None and outcome.gave_up is None:
                rounds.finish(book.manifests, outcome)
            display.end()
            for note in cost_notes(plan, outcome):
                display.note(note)
            with reports_sent(out, display.note):
                return publish(Computed(plan=plan, outcome=outcome, trackers=tuple(trackers)))
    except (Interrupted, KeyboardInterrupt) as error:
        _stopped(plan, book, trackers)
        display.end()
        if isinstance(error, Interrupted):
            raise
        raise Interrupted(130) from error
    except Exception as error:
        display.end()
        for tracker in filter(None, trackers):
            tracker.abandon(f"{type(error).__name__}: {error}")
        raise


def _stopped(plan: Plan, book: Book | None, trackers: Sequence[Tracker | None]) -> None:
    """Put manifests and MLflow in order when the run must end; a second call does nothing more."""
    # Manifests first: MLflow may be slow, and the grace time of a job is seconds.
    if book is not None:
        book.save()
    for tracker in filter(None, trackers):
        tracker.kill([measurement.key for measurement in plan.measurements])


def _begin(display: Display, plan: Plan, manifests: Sequence[Manifest]) -> None:
    shards = [len(manifest.shards) for manifest in manifests]
    done = [len(manifest.parts) for manifest in manifests]
    display.begin(plan.measurements, shards, done)


def _listener(display: Display, book: Book, beat: Heartbeat) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        display.event(event)
        beat.hear(event)
        book.hear(event)

    return listen


def _run(
    means: Means,
    factory: WorkerFactory,
    tasks: Sequence[Task],
    listen: Callable[[Event], None],
    flag: StopFlag,
    stopped: Callable[[], None],
    more: Callable[[Outcome], Sequence[Task]] | None,
) -> Outcome:
    resources = means.resources()
    if means.runner == "local":
        with catch_signals(flag):
            return run_in_process(factory, tasks, resources, listener=listen, stop=flag, more=more)
    # Importing Ray takes seconds, which a run with nothing left to do should not pay.
    from raybench.runners.ray import ray_session, run_on_ray
    from raybench.runners.ray_metrics import Meter

    # Entered before Ray starts, so that its end is covered too; Ray leaves the handler as it was.
    with catch_signals(flag), ray_session(resources):
        meter = Meter([(m.model.name, m.evaluation.canonical()) for m in factory.plan.measurements])

        def both(event: Event) -> None:
            listen(event)
            meter(event)

        try:
            return run_on_ray(factory, tasks, resources, listener=both, stop=flag, more=more)
        except Interrupted:
            stopped()  # now: leaving Ray takes seconds that a stopped job may not have
            raise


def _next_round(rounds: Rounds, book: Book, display: Display, outcome: Outcome) -> list[Task]:
    for note in book.settle():
        display.note(note)
    return rounds.tasks(book.manifests, outcome)


def _missing_tasks(plan: Plan, manifests: Sequence[Manifest]) -> list[Task]:
    return [
        Task(index, shard.index, measurement.model.fingerprint, manifest.shard_size)
        for index, (measurement, manifest) in enumerate(
            zip(plan.measurements, manifests, strict=True)
        )
        for shard in manifest.owed
    ]


def _keep_labels(job: Job) -> None:
    """Keep labels beside the results; scoring never sees them, the table's accuracy column does."""
    info = job.dataset.info
    if info.has_labels:
        labels = job.dataset.labels(job.dataset.ids)
        if labels is not None:
            save_labels(Path(job.plan.out), info, job.dataset.ids, labels)
            push(labels_path(Path(job.plan.out), info))


def _open_tracker(
    means: Means, experiment: str, out: Path, say: Callable[[str], None]
) -> Tracker | None:
    try:
        return open_tracker(means.tracking_uri, out, experiment, warn=say)
    except TrackingUnavailable as error:
        say(str(error))
        return None


def experiment_name(dataset: DatasetInfo) -> str:
    """Return the experiment of a dataset, which all its scores and attacks share."""
    return dataset.name


def start_run(
    tracker: Tracker, key: str, model: ModelInfo, dataset: DatasetInfo, evaluation: str, seed: int
) -> None:
    """Open or take up a run; its params are what makes it itself, as columns people can sort by."""
    tracker.start(
        key,
        model=model,
        dataset=dataset,
        reading=evaluation,
        params=run_params(model.name, dataset.name, dataset.size, seed, evaluation),
        name=run_name(model.name, evaluation),
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


def _publish(job: Job, config: RunConfig, found: Computed) -> ScoreRun:
    outcome, tracker = found.outcome, found.trackers[0]
    computed = len(outcome.receipts)
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
    reachable = tracker is not None and tracker.unavailable is None
    return ScoreRun(
        out=out,
        tables=published.tables,
        failures=found.failures,
        spent=found.spent,
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
            partial = row.status == "incomplete"
            tracker.fail(row.key, row.error or row.status, partial=partial)
