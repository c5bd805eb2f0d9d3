"""Checking stored parts against their manifests, and computing the damaged ones again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raybench.config import AttackConfig, ScoreConfig, make_config
from raybench.core.errors import InputError, RunError, StoreError
from raybench.driver import Display, ScoreRun, execute
from raybench.job import build_job
from raybench.publish_all import sync
from raybench.signals import StopFlag
from raybench.sinks.mirror import prune
from raybench.sinks.mlflow import TrackingUnavailable
from raybench.sinks.store import (
    Finding,
    Manifest,
    describe_folder,
    find_folders,
    read_manifest,
    save_manifest,
    verify,
)

__all__ = ["Verdict", "repair", "verify_all"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measurement's folder: its manifest, what is damaged, how many shards are missing.

    `manifest` is None where it cannot be read; `problem` then says why.
    """

    folder: Path
    manifest: Manifest | None
    findings: tuple[Finding, ...] = ()
    problem: str | None = None

    @property
    def sound(self) -> bool:
        """Whether it is complete and undamaged."""
        return not self.findings and self.manifest is not None and self.manifest.complete

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        shards, missing = (0, ()) if self.manifest is None else _counts(self.manifest)
        return {
            "folder": str(self.folder),
            "shards": shards,
            "missing": list(missing),
            "damaged": {finding.file: finding.problem for finding in self.findings},
            "problem": self.problem,
        }

    def as_text(self) -> str:
        """Return it as lines for people."""
        if self.manifest is None:
            return f"{self.folder}: {self.problem}"
        shards, missing = _counts(self.manifest)
        head = f"{self.folder}: {shards - len(missing)} of {shards} shards"
        lines = [f"{head}, {len(self.findings)} damaged"]
        lines += [f"  shard {one.shard} ({one.file}): {one.problem}" for one in self.findings]
        return "\n".join(lines)


def _counts(manifest: Manifest) -> tuple[int, tuple[int, ...]]:
    return len(manifest.asked), tuple(shard.index for shard in manifest.owed)


def verify_all(out: Path) -> list[Verdict]:
    """Return the verdict on every measurement below `out`; every part is read whole.

    Raises:
        InputError: `out` holds no results.
    """
    folders = find_folders(out)
    if not folders:
        raise InputError(f"{out} holds no results; expected a folder that raybench score wrote")
    verdicts = []
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except StoreError as error:
            verdicts.append(Verdict(folder, None, problem=str(error)))
            continue
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

    A manifest that cannot be read is made anew from what the parts' footers say.

    Raises:
        RunError: the model or the data are no longer what they were, so that other shards would be
            mixed with new ones.
    """
    runs = []
    for verdict in verdicts:
        if verdict.sound:
            continue
        try:
            facts = describe_folder(verdict.folder)
        except StoreError as error:
            say(f"{error}; give the command that wrote it once more")
            continue
        attacked = facts["family"] == "attack"
        config = make_config(
            AttackConfig if attacked else ScoreConfig,
            {
                "models": [facts["model"]["spec"]],
                "data": facts["dataset"]["spec"],
                "n": facts["dataset"]["size"],
                "attack" if attacked else "reading": [facts["evaluation"]],
                "seed": facts["seed"],
                "out": str(out),
                "tracking_uri": tracking_uri,
                "runner": runner,
                **({} if verdict.manifest is None else {"shard_size": verdict.manifest.shard_size}),
            },
            str(verdict.folder),
        )
        job = build_job(config, say)
        if job.plan.measurements[0].key != facts["key"]:
            raise RunError(
                f"{verdict.folder}: {facts['model']['spec']} or {facts['dataset']['spec']} has "
                "changed since these shards were scored; score again instead of repairing"
            )
        _strike_out(verdict)
        # One model alone compares nothing: its table goes on by the baseline of the stored runs.
        runs.append(execute(job, config, display, flag, compares=False))
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
    """Take damaged parts off the disk and out of the manifest, so that a run sees them missing.

    Parts of another cut are left to the run, which keeps the cut that most rows are there of.
    """
    if verdict.manifest is None:
        return
    files = {shard.file for shard in verdict.manifest.shards}
    damaged = {finding.file for finding in verdict.findings} & files
    for file in damaged:
        (verdict.folder / file).unlink(missing_ok=True)
    prune(verdict.folder, frozenset(damaged))
    parts = {name: part for name, part in verdict.manifest.parts.items() if name not in damaged}
    save_manifest(verdict.folder, replace(verdict.manifest, parts=parts))
