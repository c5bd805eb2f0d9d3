"""MLflow as a view of the results: one flat run per measurement, found again by its key.

    tracker = open_tracker(None, Path("results"), "digits")
    tracker.start(key, model=model, dataset=dataset, reading="grid", params={"seed": 0})
    tracker.step(key, 3, {"images_done": 96})
    tracker.finish(row, [Path("results/scores.csv")])

Only the driver calls it. Parquet is the record; a server that goes away costs one warning, and
everything logged here can be pushed again from the stored results.
"""

import functools
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias

from raybench.core.errors import RaybenchError, StoreError
from raybench.core.results import ModelScore
from raybench.core.robustness import AttackScore
from raybench.core.types import DatasetInfo, ModelInfo
from raybench.sinks.headlines import ATTACK_METRICS, FINAL_METRICS, final_values, headline
from raybench.sinks.tracking import (
    PROBE_S,
    Thinned,
    TrackingUnavailable,
    calm,
    chosen_uri,
    probe,
    reason,
    redact,
    source_commit,
    ui_command,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

__all__ = [
    "ATTACK_METRICS",
    "FINAL_METRICS",
    "Tracker",
    "TrackingUnavailable",
    "open_tracker",
    "redact",
    "ui_command",
]

_METRIC_NAME = re.compile(r"[\w./ :-]{1,250}")
_TAG_LENGTH = 5000  # the length that every MLflow store promises to keep
_FLUSH_S = 2.0
_MOST_POINTS = 1000  # of one metric of one run: a day has 17,000 times five seconds
_MOST_METRICS = 900  # of one call; MLflow takes 1,000
_PROGRESS = "raybench.progress"
_WENT = "raybench.run"
# Honoured by MLflow unless its page was last used for agents, which is its default since 3.17; so
# the description, which stands on top of every view, says first where the runs are.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_ABOUT = (
    "Runs: choose *Model training* (top left), then *Runs*; tick the runs and press *Compare*. "
    "One run for each model under each reading of LIME or attack. Scores: lower = less brittle "
    "under the reading named; robust accuracies: upper bounds within the budget named. The record "
    "are the Parquet files."
)

_P = ParamSpec("_P")
_Method: TypeAlias = Callable[Concatenate["Tracker", _P], None]


def open_tracker(
    uri: str | None,
    out: Path,
    experiment: str,
    *,
    warn: Callable[[str], None] | None = None,
) -> "Tracker":
    """Return a tracker that writes to `experiment`, created if it is missing.

    Args:
        uri: MLflow tracking URI (http, https, or a database); None is ``MLFLOW_TRACKING_URI``, and
            without that ``<out>/mlflow.db``, created and migrated before this returns, with
            artifacts in ``<out>/mlartifacts``.
        out: the output folder.
        experiment: name of the MLflow experiment.
        warn: gets the one sentence said when the server goes away later; default is the log.

    Raises:
        InputError: a URI that MLflow 3 cannot use, so that retrying cannot help.
        TrackingUnavailable: no usable answer within seconds (MLflow's own retries take minutes).
    """
    local = out.resolve()
    uri = chosen_uri(uri)
    store = f"sqlite:///{(local / 'mlflow.db').as_posix()}" if uri is None else uri
    # MLflow reports usage to its makers over the network unless told otherwise; what a user
    # evaluates is private, and the demo promises no network. A user's own setting wins.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        artifacts = probe(store, local)
        with calm(timeout_s=int(PROBE_S), retries=0), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # SQLAlchemy's, about MLflow
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=store)
            experiment_id = _experiment(client, experiment, artifacts)
    except RaybenchError:
        raise
    except Exception as error:  # the stores raise their drivers' own errors
        raise TrackingUnavailable(
            f"MLflow at {redact(store)} cannot be used: {reason(error)}; scores are kept in "
            f"Parquet, and 'raybench sync {out}' pushes them later"
        ) from error
    say = warn or logging.getLogger(__name__).warning
    return Tracker(client, experiment_id, redact(store), out, say)


def _experiment(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """Return the id of the experiment called `name`, made if need be."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            about = {"mlflow.note.content": _ABOUT}
            return client.create_experiment(name, artifact_location=artifacts, tags=_KIND | about)
        except MlflowException:
            # Another driver may have made it since we looked; anything else shows again here.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingUnavailable(
            f"the MLflow experiment {name!r} was deleted; bring it back with 'mlflow experiments "
            f"restore --experiment-id {found.experiment_id}' or choose another --experiment"
        )
    return str(found.experiment_id)


def _guarded(timeout_s: int, retries: int) -> Callable[[_Method[_P]], _Method[_P]]:
    """Return a decorator: the method does nothing once the server is away, and never raises for it.

    Errors of our own (a changed param, a non-finite number) pass: they are not the server's.
    """

    def decorate(method: _Method[_P]) -> _Method[_P]:
        @functools.wraps(method)
        def call(tracker: "Tracker", /, *args: _P.args, **kwargs: _P.kwargs) -> None:
            if tracker.unavailable is not None:
                return
            try:
                with calm(timeout_s=timeout_s, retries=retries):
                    method(tracker, *args, **kwargs)
            except (RaybenchError, AssertionError):
                raise
            except Exception as error:  # noqa: BLE001 - stores raise their drivers' own errors
                tracker.give_up(reason(error))

        return call

    return decorate


class Tracker:
    """Runs of one experiment. `unavailable` is the reason nothing is logged any more, else None."""

    def __init__(
        self,
        client: "MlflowClient",
        experiment_id: str,
        uri: str,
        out: Path,
        warn: Callable[[str], None],
    ) -> None:
        self.uri = uri
        self.unavailable: str | None = None
        self._client = client
        self._experiment = experiment_id
        self._out = out
        self._warn = warn
        self._runs: dict[str, str] = {}
        self._history: dict[str, dict[str, Thinned[Metric]]] = {}
        self._progress: dict[str, str] = {}
        self._went: dict[str, str] = {}
        self._flushed = time.monotonic()

    def give_up(self, why: str) -> None:
        """Stop logging for good and say so once."""
        self.unavailable = why
        self._warn(
            f"MLflow at {self.uri} went away ({why}); scoring goes on and results stay in "
            f"Parquet: 'raybench sync {self._out}' pushes them later"
        )

    @_guarded(timeout_s=10, retries=1)
    def start(
        self,
        key: str,
        *,
        model: ModelInfo,
        dataset: DatasetInfo,
        reading: str,
        params: Mapping[str, object],
        tags: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        """Open the run of measurement `key`, or take up the one that exists (refresh, resume).

        Args:
            key: digest of the measurement.
            model: the model; becomes tags.
            dataset: the images; becomes tags and the run's dataset input.
            reading: canonical reading spec.
            params: the identity of the measurement and nothing else: MLflow sets params once.
            tags: further tags; may change at every refresh.
            name: run name; default ``<model> · <reading>``.

        Raises:
            StoreError: the run holds other params, so it is not this measurement's.
        """
        name = name or f"{model.name} · {reading}"
        run = self._find(key) or self._client.create_run(
            self._experiment, tags={"raybench.key": key}, run_name=name
        )
        run_id = run.info.run_id
        wanted = {param: redact(str(value)) for param, value in params.items()}
        for param, value in wanted.items():
            if run.data.params.get(param, value) != value:
                raise StoreError(
                    f"MLflow run {run_id} ({name}) records {param}={run.data.params[param]!r}, "
                    f"refused {value!r}: params are the identity of a measurement, so a changed "
                    "option needs a new key"
                )
        facts = {
            **(tags or {}),
            "raybench.access": model.access.name.lower(),
            "raybench.model_fingerprint": model.fingerprint,
            "raybench.data_fingerprint": dataset.fingerprint,
            "raybench.reading": reading,
            "raybench.status": "running",
            "mlflow.source.name": "raybench",
            "mlflow.note.content": f"{name} on {dataset.name}: not finished.",
        }
        commit = source_commit()
        if commit is not None:
            facts["mlflow.source.git.commit"] = commit
        missing = {param: wanted[param] for param in wanted if param not in run.data.params}
        self._runs[key] = run_id
        self._client.update_run(run_id, status="RUNNING", name=name)
        self._log(run_id, tags=facts, params=missing)
        self._client.log_inputs(run_id, datasets=[_dataset_input(dataset)])
        if "raybench.error" in run.data.tags:
            self._client.delete_tag(run_id, "raybench.error")

    @_guarded(timeout_s=5, retries=0)
    def step(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record progress of a started run at `step`, shown as a tag every two seconds at most.

        As metrics it follows when the run has finished: those logged first are what MLflow's
        Compare page opens on, and that must be the score. Names must not be among `FINAL_METRICS`,
        whose only value is the published one.

        Raises:
            StoreError: a value that is not finite.
        """
        assert key in self._runs, f"step before start: {key}"
        _check_not_final(metrics)
        self._keep(key, _metrics(metrics, step))
        self._progress[key] = _listed(metrics)
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self._flush()

    @_guarded(timeout_s=5, retries=0)
    def record(self, key: str, step: int, metrics: Mapping[str, float]) -> None:
        """Keep further metrics of a started run at `step`, which follow when it has finished.

        How a run goes is no progress of the measurement: the tag does not show it. One that fails
        gets it as the tag ``raybench.run``, with the latest values.

        Raises:
            StoreError: a value that is not finite.
        """
        assert key in self._runs, f"record before start: {key}"
        _check_not_final(metrics)
        self._keep(key, _metrics(metrics, step))
        self._went[key] = _listed(metrics)

    def run_id(self, key: str) -> str | None:
        """Return MLflow's id of the open run of measurement `key`; None where there is none."""
        return self._runs.get(key)

    @_guarded(timeout_s=10, retries=1)
    def finish(self, row: ModelScore | AttackScore, artifacts: Sequence[Path] = ()) -> None:
        """Publish a complete `row` and close its run; `artifacts` replace those of the same name.

        A metric that is None now but was published by an earlier refresh cannot be taken back in
        MLflow; the tag ``raybench.withdrawn`` names it.

        Raises:
            StoreError: a value that is not finite, which MLflow would store as 1.8e308.
        """
        assert row.status == "complete", f"only complete rows are published, found {row.status}"
        assert row.key in self._runs, f"finish before start: {row.key}"
        values = final_values(row)
        given = {name: float(value) for name, value in values.items() if value is not None}
        final = _metrics(given, 0)
        run_id = self._runs[row.key]
        run = self._client.get_run(run_id).data
        known = run.metrics
        withdrawn = sorted(name for name in values if name in known and name not in given)
        tags = {
            "raybench.status": "complete",
            "raybench.withdrawn": ", ".join(withdrawn) or "none",
            "mlflow.note.content": headline(row),
        }
        if isinstance(row, ModelScore):
            tags["raybench.baseline"] = row.baseline or "none"
            tags["raybench.warnings"] = " ".join(row.warnings) or "none"
            # Of a sequential run: at how many images the model's place was decided.
            tags["raybench.decided"] = (
                "none" if row.fixed_n is None else f"{row.n + row.unscored} of {row.fixed_n} images"
            )
        # A refresh that changes nothing adds no second point to the metric's history.
        self._log(run_id, metrics=[m for m in final if known.get(m.key) != m.value], tags=tags)
        kept = self._history.pop(row.key, {})
        history = [point for points in kept.values() for point in points.all()]
        self._went.pop(row.key, None)
        for first in range(0, len(history), _MOST_METRICS):
            self._log(run_id, metrics=history[first : first + _MOST_METRICS])
        if self._progress.pop(row.key, None) is not None or _PROGRESS in run.tags:
            self._client.set_tag(run_id, _PROGRESS, "complete")
        for path in artifacts:
            self._client.log_artifact(run_id, str(path))
        self._client.set_terminated(run_id, "FINISHED")
        del self._runs[row.key]

    @_guarded(timeout_s=5, retries=0)
    def fail(self, key: str, error: str, *, partial: bool = False) -> None:
        """Close the run of `key` as FAILED, with the error as a tag; KILLED where it can go on.

        `partial`: nothing went wrong with what is there, and a later run completes it.
        """
        assert key in self._runs, f"fail before start: {key}"
        self._flush()
        self._log(
            self._runs[key],
            tags={
                "raybench.status": "partial" if partial else "failed",
                "raybench.error": error,
                "mlflow.note.content": f"{'Partial' if partial else 'Failed'}: {error}",
                **({_WENT: self._went.pop(key)} if key in self._went else {}),
            },
        )
        self._client.set_terminated(self._runs.pop(key), "KILLED" if partial else "FAILED")
        self._history.pop(key, None)

    @_guarded(timeout_s=1, retries=0)
    def kill(self, keys: Iterable[str]) -> None:
        """Close the started runs among `keys` as KILLED; a later `start` takes them up again.

        Quick, since ``ray job stop`` leaves three seconds: states first, how far it came last.
        """
        started = [key for key in keys if key in self._runs]
        for key in started:
            self._client.set_terminated(self._runs[key], "KILLED")
        for key in started:
            self._client.set_tag(self._runs[key], "raybench.status", "killed")
        self._flush()
        for key in started:
            del self._runs[key]
            self._history.pop(key, None)
            self._went.pop(key, None)

    def abandon(self, error: str) -> None:
        """Close every run that is still open as FAILED: the job itself failed with `error`."""
        for key in list(self._runs):
            self.fail(key, error)

    def _find(self, key: str) -> "Run | None":
        """Return the oldest live run tagged `key`, or None."""
        found = self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.`raybench.key` = '{key}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        return found[0] if found else None

    def _keep(self, key: str, metrics: "Iterable[Metric]") -> None:
        """Keep points until the run has finished, fewer and fewer of them as it goes on."""
        history = self._history.setdefault(key, {})
        for metric in metrics:
            history.setdefault(metric.key, Thinned(_MOST_POINTS)).add(metric)

    def _flush(self) -> None:
        """Show how far every run has come that came further."""
        self._flushed = time.monotonic()
        while self._progress:
            key, text = self._progress.popitem()
            if key in self._runs:
                self._client.set_tag(self._runs[key], _PROGRESS, text)

    def _log(
        self,
        run_id: str,
        *,
        metrics: "Sequence[Metric]" = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(name, value) for name, value in (params or {}).items()],
            tags=[RunTag(name, _short(redact(value))) for name, value in (tags or {}).items()],
        )


def _short(text: str) -> str:
    """Return `text`, its end replaced by an ellipsis where a tag could not hold it."""
    return text if len(text) <= _TAG_LENGTH else text[: _TAG_LENGTH - 1] + "…"


def _check_not_final(metrics: Mapping[str, float]) -> None:
    # MLflow shows the value of the latest step: a metric has one meaning, or the last one wins.
    final = set(metrics) & {*FINAL_METRICS, *ATTACK_METRICS}
    assert not final, f"published at the end only: {final}"


def _listed(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,.6g}" for name, value in metrics.items())


def _metrics(values: Mapping[str, float], step: int) -> "list[Metric]":
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for name, value in values.items():
        assert _METRIC_NAME.fullmatch(name), f"MLflow refuses the metric name {name!r}"
        if not math.isfinite(value):
            raise StoreError(
                f"metric {name} is {value}: only finite numbers are published (MLflow would store "
                "1.8e308); the stored rows of this measurement are damaged, see 'raybench verify'"
            )
    return [Metric(name, float(value), now, step) for name, value in values.items()]


def _dataset_input(dataset: DatasetInfo) -> Any:
    """Return the MLflow entity of `dataset`; equal names and digests are one input in a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=dataset.name,
        digest=dataset.fingerprint[:36],  # the longest digest MLflow takes
        source_type="raybench",
        source=json.dumps({"spec": redact(dataset.spec)}),
        schema=json.dumps({"shape": dataset.shape, "num_classes": dataset.num_classes}),
        profile=json.dumps({"images": dataset.size, "has_labels": dataset.has_labels}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "scoring")])
