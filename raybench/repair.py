"""Checking stored parts against their manifests, and computing the damaged ones again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from raybench.config import make_config
from raybench.core.errors import RunError, StoreError
from raybench.driver import Display, ScoreRun, execute, sync
from raybench.job import build_job
from raybench.signals import StopFlag
from raybench.sinks.mlflow import TrackingUnavailable
from raybench.sinks.store import (
    Finding,
    Manifest,
    find_manifests,
    read_manifest,
    save_manifest,
    verify,
)

__all__ = ["Verdict", "repair", "verify_all"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measurement's folder: its manifest, what is damaged, how many shards are missing."""

    folder: Path
    manifest: Manifest
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether it is complete and undamaged."""
        return not self.findings and self.manifest.complete


def verify_all(out: Path) -> list[Verdict]:
    """Return the verdict on every measurement below `out`; every part is read whole.

    Raises:
        StoreError: `out` holds no results.
    """
    folders = find_manifests(out)
    if not folders:
        raise StoreError(f"{out} holds no results; expected a folder that raybench score wrote")
    verdicts = []
    for folder in folders:
        manifest = read_manifest(folder)
        verdicts.append(Verdict(folder, manifest, tuple(verify(folder, manifest))))
    return verdicts


def repair(
    out: Path,
    verdicts: list[Verdict],
    display: Display,
    flag: StopFlag,
    say: Callable[[str], None],
    *,
    tracking_uri: str | None = None,
    runner: str = "ray",
) -> list[ScoreRun]:
    """Compute the damaged and missing shards of `verdicts` again, and nothing else.

    Raises:
        RunError: the model or the data are no longer what they were, so that other shards would be
            mixed with new ones.
    """
    runs = []
    for verdict in verdicts:
        if verdict.sound:
            continue
        _strike_out(verdict)
        facts = verdict.manifest.measurement
        config = make_config(
            {
                "models": [facts["model"]["spec"]],
                "data": facts["dataset"]["spec"],
                "n": facts["dataset"]["size"],
                "reading": [facts["evaluation"]],
                "seed": facts["seed"],
                "out": str(out),
                "shard_size": verdict.manifest.shard_size,
                "tracking_uri": tracking_uri,
                "runner": runner,
            },
            str(verdict.folder),
        )
        job = build_job(config, say)
        if job.plan.measurements[0].key != facts["key"]:
            raise RunError(
                f"{verdict.folder}: {facts['model']['spec']} or {facts['dataset']['spec']} has "
                "changed since these shards were scored; score again instead of repairing"
            )
        runs.append(execute(job, config, display, flag))
    if runs:
        # A repaired model alone is no comparison: everything stored is published again.
        try:
            sync(
                out,
                tracking_uri=tracking_uri,
                experiment=None,
                baseline=None,
                rank_by="normalised",
                say=say,
            )
        except TrackingUnavailable as error:
            say(str(error))
    return runs


def _strike_out(verdict: Verdict) -> None:
    """Take damaged parts off the disk and out of the manifest, so that a run sees them missing."""
    damaged = {finding.file for finding in verdict.findings}
    for file in damaged:
        (verdict.folder / file).unlink(missing_ok=True)
    parts = {name: part for name, part in verdict.manifest.parts.items() if name not in damaged}
    save_manifest(verdict.folder, replace(verdict.manifest, parts=parts))
