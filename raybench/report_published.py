"""Values that others published, beside ours: what may be compared, and why the rest may not.

    lines = published_lines(tables, state)
    print(lines[0].published, lines[0].ours, lines[0].comparable, lines[0].why)

References come from a leaderboard file; those of the brittle-score paper's Table 1 and RobustBench
are known for every ``robustbench:`` model. Equality is never asserted.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from typing import Any

from raybench.core.errors import SpecError
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackTable, RobustScore
from raybench.core.spec import Spec, parse
from raybench.core.types import DatasetInfo, ModelInfo
from raybench.refresh.references import Published, Standard, references
from raybench.refresh.state import Reference, State
from raybench.report_tables import ImageTables

__all__ = ["PUBLISHED", "Line", "published_lines", "published_tables"]

PUBLISHED = " (published values)"
"""What stands behind a threat whose accuracies are others'."""

_EPS = {"cifar10": "8/255", "cifar100": "8/255", "imagenet": "4/255"}
_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_PAPER = "brittle-score paper, Table 1"
_ROBUSTBENCH = "RobustBench model_info"
_UNREAD = (
    "the paper does not say how it reads LIME (features, fill, output), so sizes differ; at most "
    "the order of models can be compared"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One published value beside ours.

    Attributes:
        model: name of the model.
        metric, threat: what was measured, within which budget.
        ours, low, high: our value with its 95 % interval; None where there is none.
        published, source: the other value and whose it is; accuracies are fractions.
        comparable, why: whether a difference would mean anything, and the reason.
    """

    model: str
    metric: str
    threat: str | None
    ours: float | None
    low: float | None
    high: float | None
    published: float
    source: str
    comparable: bool
    why: str

    @property
    def difference(self) -> float | None:
        """Ours less the published value; None where they cannot be compared."""
        return self.ours - self.published if self.comparable and self.ours is not None else None


def published_lines(tables: ImageTables, state: State | None) -> list[Line]:
    """Return every published value for the models of `tables`.

    Brittle-scores of ours come from the first table of scores. `state` is a leaderboard with
    references, or None.
    """
    lines = [
        _line(info.name, reference, tables)
        for info in tables.models
        for reference in _references(info, tables, state)
    ]
    return list(dict.fromkeys(lines))


def _references(info: ModelInfo, tables: ImageTables, state: State | None) -> Iterator[Reference]:
    stated = _stated(info, tables.dataset, state) if state else []
    yield from stated
    known = {(one.metric, one.threat, one.value) for one in stated}
    for reference in _built_in(info, tables):
        if (reference.metric, reference.threat, reference.value) not in known:
            yield reference


def _stated(info: ModelInfo, dataset: DatasetInfo, state: State) -> list[Reference]:
    """Return what a leaderboard's references say of a model, found by name or by spec."""
    keys = {one.key for one in state.datasets if one.fingerprint == dataset.fingerprint}
    keys |= {one.key for one in state.datasets if one.spec == dataset.spec}
    aliases = {info.name, info.spec} | {
        alias
        for entry in state.entries
        if entry.dataset in keys and entry.fingerprint == info.fingerprint
        for alias in (entry.name, entry.spec)
    }
    return [one for one in state.references if one.dataset in keys and one.model in aliases]


@functools.cache
def _table() -> dict[tuple[str, str], dict[str, Any]]:
    content = files("raybench.reports").joinpath("published.json").read_text("utf-8")
    return {(row["dataset"], row["name"]): row for row in json.loads(content)["rows"]}


def _built_in(info: ModelInfo, tables: ImageTables) -> Sequence[Reference]:
    """Return what the paper and RobustBench say of a model of RobustBench's zoo."""
    dataset = tables.dataset
    spec, images = _parsed(info.spec), _parsed(dataset.spec)
    if spec is None or images is None or spec.scheme != "robustbench":
        return []
    where, _, rest = spec.rest.partition("/")
    threat, _, model = rest.partition("/")
    row = _table().get((where, model))
    other = images.scheme != where or images.get("split") not in (None, "test", "val")
    if row is None or threat.casefold() != "linf" or other:
        return []
    budget, count = f"linf {_EPS[where]}", _IMAGES[where]
    common: dict[str, Any] = {"model": info.name, "dataset": dataset.name, "n": count}
    robust: dict[str, Any] = common | {"threat": budget, "metric": "robust_accuracy"}
    values = [
        Published(
            **common, threat=None, metric="brittle_score", value=row["brittle_score"],
            source=_PAPER, caveat=_UNREAD,
        ),
        Published(
            **common, threat=None, metric="clean_accuracy", value=row["clean"] / 100,
            source=_ROBUSTBENCH,
        ),
        Published(
            **robust, value=row["robustbench"] / 100, source=_ROBUSTBENCH,
            attacks=("autoattack",),
        ),
    ]  # fmt: skip
    if row["paper_robust"] != row["robustbench"]:
        doubtful = row["paper_robust"] / 100
        values.append(Published(**robust, value=doubtful, source=_PAPER, caveat=row["doubt"]))
    standard = Standard(
        key=dataset.fingerprint,
        name=dataset.name,
        data=where,
        n=dataset.size,
        attacks={table.threat: _suite(table, info) for table in tables.attacks},
        readings=[table.reading for table in tables.scores],
    )
    return references(values, [standard], {dataset.name: [info.name]})


def _suite(table: AttackTable, info: ModelInfo) -> list[str]:
    rows = [row for row in table.rows if row.model.fingerprint == info.fingerprint]
    return [attack.reading for row in rows for attack in row.attacks]


def _parsed(text: str) -> Spec | None:
    try:
        return parse(text)
    except SpecError:
        return None


def _same_budget(one: str, other: str | None) -> bool:
    """Return whether two threats, such as ``linf 8/255``, are one; 0.1 and 1/10 are."""
    return other is not None and _budget(one) == _budget(other)


def _budget(threat: str) -> tuple[str, Fraction | str]:
    norm, _, eps = threat.casefold().strip().partition(" ")
    try:
        return norm, Fraction(eps)
    except (ValueError, ZeroDivisionError):
        return norm, eps.strip()


def _line(name: str, reference: Reference, tables: ImageTables) -> Line:
    ours, low, high = _ours(name, reference, tables)
    comparable, why = reference.comparable, reference.why
    if ours is None:
        within = f" within {reference.threat}" if reference.threat else ""
        comparable, why = False, f"not measured here{within}"
    return Line(
        model=name,
        metric=reference.metric,
        threat=reference.threat,
        ours=ours,
        low=low,
        high=high,
        published=reference.value,
        source=reference.source,
        comparable=comparable,
        why=why,
    )


_Value = tuple[float | None, float | None, float | None]
_UNKNOWN: _Value = (None, None, None)


def _ours(name: str, reference: Reference, tables: ImageTables) -> _Value:
    score = _score_row(name, tables)
    if reference.metric == "brittle_score":
        return (score.score, score.ci_low, score.ci_high) if score else _UNKNOWN
    if reference.metric == "robust_accuracy":
        within = [one for one in tables.attacks if _same_budget(one.threat, reference.threat)]
        robust = _robust_row(name, within)
        if robust is None:
            return _UNKNOWN
        return robust.robust_accuracy, robust.robust_low, robust.robust_high
    found: ModelScore | RobustScore | None = score
    if score is None or score.clean_accuracy is None:
        found = _robust_row(name, tables.attacks)
    return (found.clean_accuracy, found.clean_low, found.clean_high) if found else _UNKNOWN


def _score_row(name: str, tables: ImageTables) -> ModelScore | None:
    first = tables.shown[:1] or tables.scores[:1]
    rows = [row for table in first for row in table.rows if row.status == "complete"]
    return next((row for row in rows if row.model.name == name), None)


def _robust_row(name: str, attacks: Sequence[AttackTable]) -> RobustScore | None:
    rows = [row for table in attacks for row in table.rows if row.status == "complete"]
    return next((row for row in rows if row.model.name == name), None)


def published_tables(table: ScoreTable, lines: Sequence[Line]) -> list[AttackTable]:
    """Return the published robust accuracies as tables, one for each budget, for correlations.

    That is what the paper's own figures set its score against. Of several sources for one model
    the first counts.
    """
    infos = {row.model.name: row.model for row in table.rows}
    budgets: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.metric == "robust_accuracy" and line.threat and line.model in infos:
            budgets.setdefault(line.threat, {}).setdefault(line.model, line)
    return [
        AttackTable(
            dataset=table.dataset,
            threat=threat + PUBLISHED,
            norm=threat.partition(" ")[0],
            eps=threat.partition(" ")[2] or threat,
            targeted=None,
            seed=table.seed,
            rows=[
                RobustScore(
                    model=infos[line.model], status="complete", robust_accuracy=line.published
                )
                for line in found.values()
            ],
        )
        for threat, found in budgets.items()
    ]
