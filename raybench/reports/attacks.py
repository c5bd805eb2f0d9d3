"""From stored rows of attacks to tables of robust accuracy: no model and no images needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raybench.core.errors import StoreError
from raybench.core.robustness import AttackScore, AttackTable, RobustScore
from raybench.core.spec import Spec, parse
from raybench.metrics.intervals import wilson
from raybench.metrics.proportions import mcnemar
from raybench.reports.stored import dataset_info, distinct_names, model_info, worker_speed
from raybench.sinks.store import Manifest, load_rows, read_manifest

__all__ = ["AttackRows", "attack_tables", "read_attacks"]

_SAME = 0.05


@dataclass(frozen=True, slots=True)
class AttackRows:
    """One measurement: its folder and manifest, and its rows, or why there are none."""

    folder: Path
    manifest: Manifest
    rows: pa.Table | None
    problem: str | None

    @property
    def spec(self) -> Spec:
        """The attack, budget included."""
        return parse(self.manifest.measurement["evaluation"])

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint and access level: what tells models apart."""
        model = self.manifest.measurement["model"]
        return f"{model['fingerprint']} {model['access']} {model['name']}"

    def flag(self, name: str) -> np.ndarray:
        """Return a bool column [N]; False where an image was not judged."""
        assert self.rows is not None
        column = self.rows.column(name).fill_null(False)
        return np.array(column.to_pylist(), dtype=bool)

    def number(self, name: str) -> np.ndarray:
        """Return a numeric column [N] float64; NaN where an image was not judged."""
        assert self.rows is not None
        values = self.rows.column(name).cast(pa.float64()).to_pylist()
        return np.array(values, dtype=np.float64)

    @property
    def judged(self) -> np.ndarray:
        """Which images were judged [N] bool."""
        assert self.rows is not None
        found: np.ndarray = self.rows.column("status").to_numpy() == "ok"
        return found

    @property
    def right(self) -> np.ndarray:
        """Which images the model classifies right [N] bool."""
        found: np.ndarray = self.judged & ~self.flag("already_wrong")
        return found

    def standing(self, success: str = "success") -> np.ndarray:
        """Return which images are right and stay right [N] bool."""
        found: np.ndarray = self.right & ~self.flag(success)
        return found


def read_attacks(folders: Sequence[Path]) -> list[AttackRows]:
    """Return the measurements of `folders`, damaged and incomplete ones with their problem."""
    found = []
    for folder in folders:
        manifest = read_manifest(folder)
        try:
            found.append(AttackRows(folder, manifest, load_rows(folder, manifest), None))
        except StoreError as error:
            found.append(AttackRows(folder, manifest, None, str(error)))
    return found


def attack_tables(out: Path, members: Sequence[AttackRows]) -> list[AttackTable]:
    """Return one table for each (images, labels, budget, target, seed) among `members`.

    Within a table an image is robust for a model where none of the model's attacks changed it.
    """
    groups: dict[tuple[Any, ...], list[AttackRows]] = {}
    for member in members:
        facts = member.manifest.measurement
        budget = (member.spec.get("norm"), member.spec.get("eps"), member.spec.get("targeted"))
        key = (facts["dataset"]["fingerprint"], facts.get("labels"), facts["seed"], *budget)
        groups.setdefault(key, []).append(member)
    return [_table(out, group) for group in groups.values()]


def _table(out: Path, members: list[AttackRows]) -> AttackTable:
    facts, spec = members[0].manifest.measurement, members[0].spec
    by_model: dict[str, list[AttackRows]] = {}
    for member in members:
        by_model.setdefault(member.fingerprint, []).append(member)
    names = distinct_names([group[0].manifest.measurement for group in by_model.values()])
    standing: dict[str, np.ndarray] = {}
    rows = []
    for name, group in zip(names, by_model.values(), strict=True):
        row, worst = _model_row(out, name, group)
        rows.append(row)
        if worst is not None:
            standing[name] = worst
    rows = _ranked(rows, standing)
    norm, eps, targeted = spec.get("norm") or "", spec.get("eps"), spec.get("targeted")
    threat = f"{norm} {eps}" if eps else f"{norm} (no budget)"
    return AttackTable(
        dataset=dataset_info(facts),
        threat=threat + (f", targeted {targeted}" if targeted else ""),
        norm=norm,
        eps=eps,
        targeted=targeted,
        seed=facts["seed"],
        rows=rows,
    )


def _model_row(
    out: Path, name: str, group: list[AttackRows]
) -> tuple[RobustScore, np.ndarray | None]:
    """Return a model's row and which images withstand every attack [N] bool, if all are there."""
    info = replace(model_info(group[0].manifest.measurement), name=name)
    attacks = [_attack(out, replace(info), member) for member in group]
    status = "complete"
    if any(attack.status != "complete" for attack in attacks):
        failed = any(attack.status == "failed" for attack in attacks)
        status = "failed" if failed else "incomplete"
        return RobustScore(model=info, status=status, attacks=attacks), None
    judged = np.logical_and.reduce([member.judged for member in group])
    if not judged.any():
        return RobustScore(model=info, status="failed", attacks=attacks), None
    worst = np.logical_and.reduce([member.standing() for member in group])[judged]
    right = group[0].right[judged]
    count = len(worst)
    robust_low, robust_high = wilson(int(worst.sum()), count)
    clean_low, clean_high = wilson(int(right.sum()), count)
    shared: dict[str, Any] = {
        "robust_accuracy": float(worst.mean()),
        "robust_low": robust_low,
        "robust_high": robust_high,
        "clean_accuracy": float(right.mean()),
        "clean_low": clean_low,
        "clean_high": clean_high,
    }
    row = RobustScore(
        model=info,
        status=status,
        n=count,
        attacks=[replace(attack, **shared) for attack in attacks],
        warnings=_warnings(group, attacks),
        **shared,
    )
    standing = np.zeros(len(judged), dtype=bool)
    standing[judged] = worst
    return row, standing


def _attack(out: Path, info: Any, member: AttackRows) -> AttackScore:
    facts = member.manifest.measurement
    head: dict[str, Any] = {
        "model": info,
        "reading": facts["evaluation"],
        "key": facts["key"],
        "folder": str(member.folder.relative_to(out)),
    }
    if member.rows is None:
        failed = next(iter(member.manifest.failures.values()), None)
        status = "failed" if member.manifest.failures else "incomplete"
        error = failed or member.manifest.partial or member.problem
        return AttackScore(**head, status=status, error=error)
    judged, right = member.judged, member.right
    count = int(judged.sum())
    if count == 0:
        first = member.rows.column("error")[0].as_py()
        reason = f"no image could be judged: {first}"
        return AttackScore(**head, status="failed", unscored=len(judged), error=reason)
    success = right & member.flag("success")
    standing = member.standing()
    low, high = wilson(int(standing.sum()), count)
    attacked = int(right.sum())
    rate_low, rate_high = wilson(int(success.sum()), attacked) if attacked else (None, None)
    queries = member.number("queries")
    return AttackScore(
        **head,
        status="complete",
        accuracy=float(standing[judged].mean()),
        accuracy_low=low,
        accuracy_high=high,
        accuracy_u8=float(member.standing("success_u8")[judged].mean()),
        success_rate=float(success.sum() / attacked) if attacked else None,
        success_low=rate_low,
        success_high=rate_high,
        attacked=attacked,
        n=count,
        unscored=len(judged) - count,
        median_l0=_median(member.number("l0"), success),
        median_l2=_median(member.number("l2"), success),
        median_linf=_median(member.number("linf"), success),
        queries=int(np.nansum(queries)),
        gradients=int(np.nansum(member.number("gradients"))),
        median_queries=_median(member.number("found_queries"), success),
        images_per_second=worker_speed(member.manifest),
        zero_gradients=int(member.flag("zero_gradient").sum()),
        out_of_budget=int(member.flag("out_of_budget").sum()),
    )


def _median(values: np.ndarray, where: np.ndarray) -> float | None:
    return float(np.median(values[where])) if where.any() else None


def _warnings(group: Sequence[AttackRows], attacks: Sequence[AttackScore]) -> tuple[str, ...]:
    """Return what should make a reader doubt a robust accuracy (spec 00 sections 0.4 and 0.8)."""
    warnings = []
    for member, attack in zip(group, attacks, strict=True):
        name = member.spec.scheme
        if attack.unscored:
            total = attack.unscored + attack.n
            warnings.append(f"{name}: {attack.unscored} of {total} images could not be judged")
        if attack.zero_gradients:
            warnings.append(
                f"{name}: the gradient was zero throughout for {attack.zero_gradients} of "
                f"{attack.attacked} images: gradient masking; believe an attack without gradients"
            )
        if attack.out_of_budget:
            warnings.append(f"{name}: {attack.out_of_budget} results broke the budget, not counted")
    gradient = [a for m, a in zip(group, attacks, strict=True) if _has_gradients(m, a)]
    blind = [a for m, a in zip(group, attacks, strict=True) if not _has_gradients(m, a)]
    if gradient and blind:
        best = min(a.accuracy for a in gradient if a.accuracy is not None)
        other = min(a.accuracy for a in blind if a.accuracy is not None)
        if best - other > 0.002:
            warnings.append(
                f"an attack without gradients beats those with them by {100 * (best - other):.1f} "
                "points: a sign of gradient masking"
            )
    return tuple(warnings)


def _has_gradients(member: AttackRows, attack: AttackScore) -> bool:
    return attack.gradients > 0 or attack.attacked == 0


def _ranked(rows: list[RobustScore], standing: Mapping[str, np.ndarray]) -> list[RobustScore]:
    def order(row: RobustScore) -> tuple[bool, float, str]:
        return row.robust_accuracy is None, -(row.robust_accuracy or 0.0), row.model.name

    ranked = []
    for place, row in enumerate(sorted(rows, key=order), start=1):
        name = row.model.name
        if name not in standing:
            ranked.append(row)
            continue
        tied = tuple(
            other
            for other, column in standing.items()
            if other != name and mcnemar(standing[name], column) >= _SAME
        )
        ranked.append(replace(row, rank=place, tied=tied))
    return ranked
