"""Does a score tell robust accuracy? Scores and attacks of the same models, side by side.

Tables are joined where they are of one dataset and share at least three models (by fingerprint).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raybench.core.keys import digest, slug
from raybench.core.results import ScoreTable
from raybench.core.robustness import AttackTable
from raybench.metrics.correlation import Agreement
from raybench.reports.agreement_figures import AgreementPoint, agreement_of, fig4_agreement

__all__ = ["SCORE_LABELS", "Joined", "agreement_text", "join_tables", "write_agreements"]

_LEAST = 3
SCORE_LABELS = {
    "score": "brittle-score",
    "normalised": "normalised score",
    "matched": "brittle-score at equal mean confidence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """One score of several models against their robust accuracy under one threat.

    Attributes:
        scores, attacks: the tables joined.
        field: which score: "score", "normalised" or "matched".
        points: a point for each model, its intervals included.
        found: the correlations with their permutation p-values.
    """

    scores: ScoreTable
    attacks: AttackTable
    field: str
    points: tuple[AgreementPoint, ...]
    found: Agreement


def join_tables(
    score_tables: Sequence[ScoreTable], attack_tables: Sequence[AttackTable]
) -> list[Joined]:
    """Return every score joined with every untargeted robust accuracy of the same dataset."""
    joined = []
    for scores in score_tables:
        for attacks in attack_tables:
            if scores.dataset.name != attacks.dataset.name or attacks.targeted or not attacks.eps:
                continue
            for field in SCORE_LABELS:
                points = _points(scores, attacks, field)
                values = np.array([point.score for point in points])
                truth = np.array([point.robust_accuracy for point in points])
                if len(points) < _LEAST or np.ptp(values) == 0 or np.ptp(truth) == 0:
                    continue
                joined.append(
                    Joined(
                        scores=scores,
                        attacks=attacks,
                        field=field,
                        points=points,
                        found=agreement_of(points),
                    )
                )
    return joined


def _points(scores: ScoreTable, attacks: AttackTable, field: str) -> tuple[AgreementPoint, ...]:
    robust = {row.model.fingerprint: row for row in attacks.rows if row.status == "complete"}
    points = []
    for row in scores.rows:
        other, value = robust.get(row.model.fingerprint), getattr(row, field)
        if other is None or value is None or other.robust_accuracy is None:
            continue
        intervals = {
            "score": (row.ci_low, row.ci_high),
            "normalised": (row.normalised_low, row.normalised_high),
        }
        low, high = intervals.get(field, (None, None))
        points.append(
            AgreementPoint(
                model=row.model.name,
                score=value,
                ci_low=low,
                ci_high=high,
                robust_accuracy=other.robust_accuracy,
                robust_low=other.robust_low,
                robust_high=other.robust_high,
            )
        )
    return tuple(points)


def agreement_text(joined: Sequence[Joined]) -> str:
    """Return the correlations as lines for people; empty where nothing could be joined."""
    if not joined:
        return ""
    lines = ["score against robust accuracy (lower score = less brittle: wanted is -1)"]
    for one in joined:
        found = one.found
        how = "exact" if found.exact else "sampled"
        lines.append(
            f"{one.scores.dataset.name} · {one.scores.reading} · {SCORE_LABELS[one.field]} against "
            f"{one.attacks.threat}: Pearson {found.pearson:+.2f} (p {found.pearson_p:.3f}), "
            f"Spearman {found.spearman:+.2f} (p {found.spearman_p:.3f}), "
            f"Kendall {found.kendall:+.2f} (p {found.kendall_p:.3f}); {found.models} models, "
            f"{how} permutation p-values"
        )
    return "\n".join(lines) + "\n"


def write_agreements(out: Path, joined: Sequence[Joined]) -> list[Path]:
    """Draw fig4 for each join, beside the other reports, and return the paths."""
    files = []
    for one in joined:
        key = digest([one.scores.dataset.fingerprint, one.scores.reading, one.scores.seed])
        name = f"{slug(one.scores.dataset.name)}-agreement-{key[:8]}"
        stem = f"fig4-{one.field}-{slug(one.attacks.threat)}"
        files += fig4_agreement(
            one.points,
            out / "reports" / name / stem,
            score_label=f"{SCORE_LABELS[one.field]}, {one.scores.reading}",
            accuracy_label=f"robust accuracy within {one.attacks.threat}",
        )
    return files
