"""The datasets of a leaderboard file, opened, with the evaluations that its lines ask for there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybench.config import DEFAULT_READINGS
from raybench.core.catalog import SUITES, open_dataset
from raybench.core.errors import InputError, SpecError, near_miss
from raybench.core.keys import digest, slug
from raybench.core.plan import Evaluation
from raybench.core.spec import Spec, parse
from raybench.core.types import Dataset
from raybench.evaluations.attack import AttackEvaluation
from raybench.evaluations.attack_spec import parse_attack
from raybench.evaluations.attack_table import ATTACKS
from raybench.evaluations.readings import READINGS, parse_reading
from raybench.fit import check_segments, known_labels, no_labels
from raybench.refresh.file import DatasetLine, EvaluationLine, LeaderboardFile, Threat
from raybench.refresh.references import ROBUSTBENCH_IMAGES, Standard
from raybench.refresh.state import Selection

__all__ = ["Opened", "open_datasets"]

_SUITE_OPTIONS = frozenset({"norm", "eps", "targeted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A dataset of the leaderboard, and all that is measured on it.

    Attributes:
        line: as the file has it.
        dataset: the selection.
        labels: [N], or None where there are none.
        readings: scores.
        attacks: by threat (``linf 8/255``): what one robust accuracy is made of.
    """

    line: DatasetLine
    dataset: Dataset
    labels: np.ndarray | None
    readings: tuple[Evaluation, ...]
    attacks: Mapping[str, tuple[Evaluation, ...]]

    @property
    def selection(self) -> Selection:
        """What the state says of it."""
        info = self.dataset.info
        threat = None if self.line.threat is None else str(self.line.threat)
        if threat is None and len(self.attacks) == 1:
            [threat] = self.attacks
        return Selection(
            key=f"{slug(self.line.name)}-{info.fingerprint[:12]}",
            spec=info.spec,
            name=self.line.name,
            n=info.size,
            threat=threat,
            fingerprint=info.fingerprint,
        )

    @property
    def standard(self) -> Standard:
        """What references are held against."""
        return Standard(
            key=self.selection.key,
            name=self.line.name,
            data=self.published_name,
            n=self.dataset.info.size,
            attacks={
                threat: [attack.canonical() for attack in attacks]
                for threat, attacks in self.attacks.items()
            },
            readings=[reading.canonical() for reading in self.readings],
        )

    @property
    def published_name(self) -> str:
        """What others call these images: RobustBench's name, else the leaderboard file's."""
        own = self.dataset.info.name
        return own if own in ROBUSTBENCH_IMAGES else self.line.name

    def protocol(self, seed: int) -> dict[str, Any]:
        """Return what rows must share to be ranked together."""
        every = (*self.readings, *(one for several in self.attacks.values() for one in several))
        labels = self.labels if self.attacks else None
        return {
            "selection": self.dataset.info.fingerprint,
            "labels": "" if labels is None else digest(labels.tolist()),
            "seed": seed,
            "evaluations": sorted(evaluation.canonical() for evaluation in every),
        }


def open_datasets(file: LeaderboardFile) -> list[Opened]:
    """Return the datasets of `file`, every evaluation checked against their images.

    Raises:
        InputError: all mistakes, each with its line.
    """
    problems: list[str] = []
    opened = []
    for index, line in enumerate(file.datasets):
        try:
            opened.append(_open(line, file, problems))
        except InputError as error:
            problems.append(f"datasets.{index} ({line.name}): {error}")
    if problems:
        raise InputError("\n  ".join(dict.fromkeys(problems)))
    return opened


def _open(line: DatasetLine, file: LeaderboardFile, problems: list[str]) -> Opened:
    spec = parse(line.spec)
    dataset = open_dataset(spec if line.n is None else spec.with_options(n=line.n))
    readings: dict[str, Evaluation] = {}
    attacks: dict[str, dict[str, Evaluation]] = {}
    for index, wanted in enumerate(file.evaluations):
        if wanted.datasets is not None and line.name not in wanted.datasets:
            continue
        try:
            for evaluation in _evaluations(wanted, line, dataset, file.samples):
                if isinstance(evaluation, AttackEvaluation):
                    group = attacks.setdefault(_threat(evaluation), {})
                    group[evaluation.canonical()] = evaluation
                else:
                    check_segments(evaluation, dataset, file.seed)
                    readings[evaluation.canonical()] = evaluation
        except InputError as error:
            problems.append(f"evaluations.{index} on {line.name}: {error}")
    labels = known_labels(dataset)
    if attacks and labels is None:
        problems.append(no_labels(dataset))
    return Opened(
        line=line,
        dataset=dataset,
        labels=labels,
        readings=tuple(readings.values()),
        attacks={threat: tuple(group.values()) for threat, group in attacks.items()},
    )


def _threat(attack: AttackEvaluation) -> str:
    budget = f"{attack.norm} {attack.eps}" if attack.eps else f"{attack.norm} (no budget)"
    return budget + (f", targeted {attack.targeted}" if attack.targeted else "")


def _evaluations(
    wanted: EvaluationLine, line: DatasetLine, dataset: Dataset, samples: int
) -> Sequence[Evaluation]:
    """Return what one line stands for on one dataset.

    Raises:
        InputError: an unknown name or option, settings that the images cannot have, or an attack
            outside of the dataset's threat.
    """
    spec = parse(wanted.spec)
    shape = dataset.info.shape
    if spec.scheme == "lime":
        reading = Spec(spec.rest or DEFAULT_READINGS[0], "", spec.options)
        return [parse_reading(reading.canonical(), samples=samples, shape=shape)]
    if spec.scheme == "suite":
        strange = sorted({name for name, _ in spec.options} - _SUITE_OPTIONS)
        if strange:
            raise SpecError(
                f"{spec}: no option is named {strange[0]!r}{near_miss(strange[0], _SUITE_OPTIONS)}"
            )
        members = [parse(member) for member in SUITES[spec.rest]]
        own = dict(spec.options)
        return [
            _attack(member.with_options(**own).canonical(), line.threat, dataset)
            for member in members
        ]
    if spec.scheme == "attack":
        return [_attack(Spec(spec.rest, "", spec.options).canonical(), line.threat, dataset)]
    if spec.scheme in READINGS:
        return [parse_reading(wanted.spec, samples=samples, shape=shape)]
    if spec.scheme in ATTACKS:
        return [_attack(wanted.spec, line.threat, dataset)]
    known = (*READINGS, *ATTACKS, "suite", "lime", "attack")
    raise SpecError(f"no reading or attack is named {spec.scheme!r}{near_miss(spec.scheme, known)}")


def _attack(text: str, threat: Threat | None, dataset: Dataset) -> AttackEvaluation:
    attack = parse_attack(
        text,
        norm=None if threat is None else threat.norm,
        eps=None if threat is None else threat.eps,
        shape=dataset.info.shape,
        classes=dataset.info.num_classes,
    )
    if threat is not None and not threat.same(attack.norm, attack.eps):
        raise InputError(
            f"{text} is within {_threat(attack)}, but this dataset is ranked within {threat}: rows "
            "of two threats do not mix. Leave out norm and eps, or list the images a second time, "
            "under another name, with that threat"
        )
    return attack
