"""Score until decided: images in growing batches, until all neighbours are told apart or tied.

    rounds = Rounds(plan, alpha=0.05, margin=0.02, rank_by="normalised", say=print)
    tasks = rounds.tasks(manifests, Outcome())      # run these, then ask again; none: it is over
    rounds.finish(manifests, outcome)

The measurement stays that of all n images (n is part of its key), of which a run computes the first
shards: a plain run afterwards computes the others, and a sequential one goes on from what is there.

The order of the selection must be random (sample_seed), for its first images stand for the rest.
Verdicts come from confidence sequences that hold at every number of images at once, so looking
after each batch costs nothing. The error is shared by all pairs of models (Bonferroni), because
which of them are neighbours is only known afterwards. A pair is compared on the images that both
models have, the first m of the selection. Its sequence is about that pair and m alone, so a model
whose neighbours are decided may rest while others go on, and no verdict loses its guarantee.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from raybench.config import ScoreConfig
from raybench.core.decisions import Decisions, PairDecision, model_id
from raybench.core.errors import InputError, RunError
from raybench.core.keys import digest, slug
from raybench.core.plan import Evaluation, Plan
from raybench.core.spec import parse
from raybench.core.types import DatasetInfo
from raybench.core.work import Outcome, Task
from raybench.metrics.sequences import START, UNDECIDED, paired_ends, verdict
from raybench.reports.images import image_scores
from raybench.reports.stored import distinct_names, queries_made
from raybench.sinks.mirror import push
from raybench.sinks.parts import write_atomically
from raybench.sinks.store import Manifest, Stop, load_rows, save_manifest

__all__ = ["Rounds", "looks", "refuse", "rounds_of"]

FIRST = 32
"""Images of the first look; the asymptotic sequence begins later, at its `START`."""

_GROWTH = 1.25  # each look has so many times the images of the one before
_FLIP_RADIUS = "flip-radius"


def refuse(config: ScoreConfig, dataset: DatasetInfo) -> list[str]:
    """Return what keeps `config` from a sequential run over `dataset`: sentences for the user."""
    if not config.until_decided or parse(dataset.spec).get("sample_seed") is not None:
        return []
    mark = "&" if "?" in config.data else "?"
    return [
        f"until_decided judges by the first images, and those of {config.data} are in source "
        "order, which may go by class or difficulty; have them shuffled: "
        f"--data '{config.data}{mark}sample_seed=0'"
    ]


def looks(n: int, shard_size: int, first: int) -> tuple[int, ...]:
    """Return the numbers of images, rising to `n`, at which a run looks: whole shards."""
    found = [-(-first // shard_size) * shard_size]
    while found[-1] < n:
        grown = math.ceil(found[-1] * _GROWTH / shard_size) * shard_size
        found.append(max(grown, found[-1] + shard_size))
    return (*(count for count in found if count < n), n)


def rounds_of(plan: Plan, config: ScoreConfig, say: Callable[[str], None]) -> "Rounds | None":
    """Return the rounds of a run until decided; None where `config` asks for all images.

    Raises:
        InputError: fewer than two models are left to compare.
    """
    if not config.until_decided:
        return None
    rounds = Rounds(
        plan=plan, alpha=config.alpha, margin=config.margin, rank_by=config.rank_by, say=say
    )
    if len(rounds.groups) < 2:
        raise InputError("until_decided compares models, and only one is left; score it without")
    return rounds


@dataclass(slots=True, kw_only=True)
class Rounds:
    """The policy of a sequential run: which shards come next, and what they decided.

    Attributes:
        plan: measurements of several models under one or more readings, of one selection.
        alpha: error rate of all verdicts together.
        margin: largest difference that is a tie, in the unit of the column.
        rank_by: "normalised" or "score".
        say: told of each look.
        groups: model -> the indices of its measurements, that of the deciding reading first.
    """

    plan: Plan
    alpha: float
    margin: float
    rank_by: str
    say: Callable[[str], None]
    groups: dict[str, list[int]] = field(init=False)
    _decisive: Evaluation = field(init=False)
    _names: dict[str, str] = field(init=False)
    _values: dict[str, np.ndarray] = field(init=False)
    _images: dict[str, int] = field(init=False)
    _compared: dict[tuple[str, str, int], PairDecision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._decisive = _decisive(self.plan, self.rank_by)
        self.groups = {}
        for index, measurement in enumerate(self.plan.measurements):
            indices = self.groups.setdefault(model_id(measurement.identity()["model"]), [])
            decides = measurement.evaluation.canonical() == self._decisive.canonical()
            indices.insert(0 if decides else len(indices), index)
        deciding = [self.plan.measurements[indices[0]] for indices in self.groups.values()]
        names = distinct_names([measurement.describe() for measurement in deciding])
        self._names = dict(zip(self.groups, names, strict=True))
        self._values = {model: np.empty(0) for model in self.groups}
        self._images = dict.fromkeys(self.groups, 0)

    @property
    def bounded(self) -> bool:
        """Whether the numbers compared lie in [0, 1]."""
        return self._decisive.family == "radius"

    @property
    def column(self) -> str:
        """What is compared."""
        logarithm = self.rank_by == "normalised" and not self.bounded
        return "log normalised" if logarithm else self.rank_by

    @property
    def _n(self) -> int:
        return self.plan.measurements[0].dataset.size

    @property
    def _pair_alpha(self) -> float:
        count = len(self.groups)
        return self.alpha / max(1, count * (count - 1) // 2)

    def tasks(self, manifests: Sequence[Manifest], outcome: Outcome) -> list[Task]:
        """Return the shards of the next batch, all models' in one go; empty when it is over.

        Args:
            manifests: of the plan's measurements, with all parts that are committed.
            outcome: of the run so far; a model with a failed shard is not compared any further.

        Raises:
            RunError: a model has none of the numbers that tables rank by.
            StoreError: a part is damaged.
        """
        for model, indices in self.groups.items():
            self._read(model, manifests[indices[0]])
        failed = self._failed(outcome)
        wanted = self._wanted(failed)
        found = []
        for model, indices in self.groups.items():
            if model in failed:
                continue
            for index in indices:
                manifest = manifests[index]
                resident = self.plan.measurements[index].model.fingerprint
                found += [
                    Task(index, shard.index, resident, manifest.shard_size)
                    for shard in _first(manifest, wanted[model]).missing
                ]
        # By shard, so that models advance together and an interrupted run can be decided best.
        return sorted(found, key=lambda task: (task.shard, task.measurement))

    def finish(self, manifests: Sequence[Manifest], outcome: Outcome) -> Decisions:
        """Record what was decided, and mark each measurement with the images it is complete by.

        A model with a failed shard stays unmarked, and so incomplete.
        """
        failed = self._failed(outcome)
        ranked = self._ranked(failed)
        decisions = self._decisions(ranked, manifests)
        record = Path("sequences") / (
            f"{slug(self.plan.measurements[0].dataset.name)}-"
            f"{digest([m.key for m in self.plan.measurements])[:16]}.json"
        )
        content = json.dumps(decisions.as_json(), indent=1, allow_nan=False)
        write_atomically(Path(self.plan.out) / record, content.encode())
        push(Path(self.plan.out) / record)  # before the manifests, which name it
        for model, indices in self.groups.items():
            for index in indices:
                stop = None
                if model not in failed:
                    stop = Stop(
                        images=self._images[model],
                        of=self._n,
                        queries_of=self._fixed_queries(index, manifests[index]),
                        record=str(record),
                    )
                folder = Path(self.plan.out) / self.plan.measurements[index].folder
                save_manifest(folder, replace(manifests[index], stop=stop))
        return decisions

    def _read(self, model: str, manifest: Manifest) -> None:
        """Take in the images of `model` that follow those already known, without a gap."""
        start = self._images[model]
        starts = itertools.accumulate((shard.rows for shard in manifest.shards), initial=0)
        ahead = [shard for at, shard in zip(starts, manifest.shards, strict=False) if at >= start]
        new = tuple(itertools.takewhile(lambda shard: shard.file in manifest.parts, ahead))
        if not new:
            return
        folder = Path(self.plan.out) / self.plan.measurements[self.groups[model][0]].folder
        columns = ("sample_id", "status", "error", "predicted", self.rank_by)
        rows = load_rows(folder, replace(manifest, shards=new, stop=None), columns)
        images = image_scores(rows)
        values = images.columns[self.rank_by]
        if self.column == "log normalised":
            logs = images.normalised(logarithm=True)
            values = np.full(len(images.ids), np.nan) if logs is None else logs
        if images.scored and np.isnan(values[images.ok]).all():
            raise RunError(
                f"{self._names[model]} has no {self.rank_by} score under "
                f"{self._decisive.canonical()}; rank by another score (--rank-by score)"
            )
        self._values[model] = np.concatenate([self._values[model], values])
        self._images[model] = start + len(values)

    def _wanted(self, failed: set[str]) -> dict[str, int]:
        """Return how many images each model shall have next: no fewer than it has."""
        levels = self._levels()
        wanted = dict(self._images)
        behind = [m for m in self.groups if m not in failed and wanted[m] < levels[0]]
        if behind:
            return wanted | dict.fromkeys(behind, levels[0])
        ranked = self._ranked(failed)
        open_pairs = self._open(ranked)
        for pair in open_pairs:
            have = [self._images[model] for model in pair]
            # The one that rested catches up first: that may be enough.
            goal = max(have) if have[0] != have[1] else _next(levels, have[0])
            for model in pair:
                wanted[model] = max(wanted[model], goal)
        self._tell(ranked, open_pairs)
        return wanted

    def _tell(self, ranked: Sequence[str], open_pairs: Sequence[tuple[str, str]]) -> None:
        pairs = max(0, len(ranked) - 1)
        named = ", ".join(f"{self._names[a]} / {self._names[b]}" for a, b in open_pairs[:3])
        more = f" and {len(open_pairs) - 3} more" if len(open_pairs) > 3 else ""
        most = max(self._images.values())
        self.say(
            f"after {most:,} of {self._n:,} images {pairs - len(open_pairs)} of {pairs} "
            f"neighbours are decided" + (f"; open: {named}{more}" if open_pairs else "")
        )

    def _open(self, ranked: Sequence[str]) -> list[tuple[str, str]]:
        """Return the neighbours that more images could help."""
        found = []
        for pair in itertools.pairwise(ranked):
            decision = self._compare(*pair)
            have = [self._images[model] for model in pair]
            # Means over unlike numbers of images may order two models against their verdict.
            turned = decision.lower != pair[0] and have[0] != have[1]
            if decision.verdict == UNDECIDED or turned:
                found.append(pair)
        return found

    def _ranked(self, failed: set[str]) -> list[str]:
        """Return the models by mean over their images, as the table ranks them."""
        known = {
            model: float(np.nanmean(values))
            for model, values in self._values.items()
            if model not in failed and not np.isnan(values).all()
        }
        return sorted(known, key=lambda model: (known[model], self._names[model]))

    def _compare(self, first: str, second: str) -> PairDecision:
        """Return the verdict on two models, over the images that both have."""
        common = min(self._images[first], self._images[second])
        key = (first, second, common)
        if key not in self._compared:
            self._compared[key] = self._compare_anew(first, second, common)
        return self._compared[key]

    def _compare_anew(self, first: str, second: str, common: int) -> PairDecision:
        one, other = (self._values[model][:common] for model in (first, second))
        counts = [count for count in self._levels() if count < common] + [common]
        ends = paired_ends(one, other, counts, alpha=self._pair_alpha, bounded=self.bounded)
        found, decided_at, sign = UNDECIDED, None, 1.0
        for count, low, high in zip(counts, ends.low, ends.high, strict=True):
            found = verdict(float(low), float(high), self.margin)
            if found != UNDECIDED:
                decided_at, sign = count, -1.0 if high < 0 else 1.0
                break
        differences = other - one
        known = differences[~np.isnan(differences)]
        order = (first, second) if sign > 0 else (second, first)
        low, high = (ends.low, ends.high) if sign > 0 else (-ends.high, -ends.low)
        return PairDecision(
            lower=order[0],
            higher=order[1],
            verdict=found,
            difference=sign * float(known.mean()) if len(known) else 0.0,
            images=common,
            decided_at=decided_at,
            path=tuple(
                (int(count), _finite(a), _finite(b))
                for count, a, b in zip(counts, low, high, strict=True)
            ),
        )

    def _decisions(self, ranked: Sequence[str], manifests: Sequence[Manifest]) -> Decisions:
        found = [self._compare(*pair) for pair in itertools.pairwise(ranked)]
        pairs = tuple(
            replace(pair, lower=self._names[pair.lower], higher=self._names[pair.higher])
            for pair in found
        )
        count = len(self.groups)
        samples = [int(parse(m["evaluation"]).get("samples") or 0) for m in _facts(manifests)]
        return Decisions(
            evaluation=self._decisive.canonical(),
            column=self.column,
            method="betting" if self.bounded else "asymptotic",
            alpha=self.alpha,
            pairs_covered=count * (count - 1) // 2,
            margin=self.margin,
            decided=all(pair.verdict != UNDECIDED for pair in pairs),
            fixed_n=self._n,
            queries_spent=sum(map(queries_made, manifests, samples)),
            queries_fixed_n=sum(
                self._fixed_queries(index, one) for index, one in enumerate(manifests)
            ),
            models={model: (self._names[model], self._images[model]) for model in self.groups},
            pairs=pairs,
        )

    def _failed(self, outcome: Outcome) -> set[str]:
        failed = {task.measurement for task in (*outcome.failures, *outcome.spent)}
        return {model for model, indices in self.groups.items() if failed & set(indices)}

    def _fixed_queries(self, index: int, manifest: Manifest) -> int:
        """Return the queries of all images, shard by shard: one that is not full may ask more."""
        evaluation = self.plan.measurements[index].evaluation
        return sum(evaluation.queries(shard.rows) for shard in manifest.shards)

    def _levels(self) -> tuple[int, ...]:
        return looks(self._n, self.plan.shard_size, FIRST if self.bounded else START)


def _decisive(plan: Plan, rank_by: str) -> Evaluation:
    """Return the reading whose numbers rank the table of the first reading, as `summarise` does."""
    readings = {m.evaluation.canonical(): m.evaluation for m in plan.measurements}
    first = next(iter(readings.values()))
    flips = [one for one in readings.values() if one.family == "radius"]
    if rank_by != "normalised" or first.family == "radius" or not flips:
        return first
    return max(flips, key=lambda one: one.queries(1))


def _first(manifest: Manifest, images: int) -> Manifest:
    """Return the manifest with only the shards of the first `images`."""
    stop = Stop(images=images, of=images, queries_of=0, record="")
    return replace(manifest, shards=replace(manifest, stop=stop).asked)


def _next(levels: Sequence[int], images: int) -> int:
    return next((level for level in levels if level > images), images)


def _facts(manifests: Sequence[Manifest]) -> list[dict[str, str]]:
    return [manifest.measurement for manifest in manifests]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
