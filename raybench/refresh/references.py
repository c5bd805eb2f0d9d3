"""Published values, marked comparable or not, and RobustBench's ``model_info`` files.

A ``model_info`` file is one model under one threat: JSON with ``dataset``, ``eps``, ``clean_acc``,
``autoattack_acc`` (or ``external``, a lower accuracy that a better attack found) in percent, as
text or numbers; its folder names the threat, the file the model
(https://github.com/RobustBench/robustbench, model_info).

A value is comparable when everything that decides it is the same: images (all of them: another
number of images is another sample), threat, attacks or reading. What a source does not say is not
taken to be the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from raybench.core.errors import InputError
from raybench.core.spec import parse
from raybench.refresh.file import ReferenceLine
from raybench.refresh.state import Reference

__all__ = [
    "ROBUSTBENCH_IMAGES",
    "ModelInfoFile",
    "Published",
    "Standard",
    "published",
    "read_model_info",
    "references",
]

# How many images RobustBench measures on: its README, "default evaluation".
ROBUSTBENCH_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
_AUTOATTACK = ("autoattack",)
_NORMS = frozenset({"linf", "l2", "l1", "l0"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A value that somebody published, before it is set against ours.

    Attributes:
        model, dataset: names; the dataset's is that of the leaderboard file.
        threat: text such as ``linf 8/255``, or None.
        metric, value: accuracies as fractions.
        source: URL or text.
        n: images it was measured on; None where that is not known.
        attacks: how; empty where that is not known.
        reading: of a brittle-score.
        caveat: why it is not to be compared whatever agrees, or "".
    """

    model: str
    dataset: str
    threat: str | None
    metric: str
    value: float
    source: str
    n: int | None = None
    attacks: tuple[str, ...] = ()
    reading: str | None = None
    caveat: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """How this leaderboard measures a dataset, which references are held against.

    Attributes:
        key: of its `Selection`.
        name: in the leaderboard file.
        data: what others call the images (``cifar10``).
        n: number of images.
        attacks: canonical attack specs by threat (``linf 8/255``).
        readings: canonical readings.
    """

    key: str
    name: str
    data: str
    n: int
    attacks: Mapping[str, Sequence[str]]
    readings: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfoFile:
    """One ``model_info`` file: where it lies, the model and threat it is of, and its content."""

    path: Path
    model: str
    threat: str
    content: Mapping[str, Any]


def read_model_info(path: Path) -> list[ModelInfoFile]:
    """Return the ``model_info`` in a file, or below a folder, sorted.

    Raises:
        InputError: nothing is there, or a file is no ``model_info``.
    """
    paths = [path] if path.is_file() else sorted(path.rglob("*.json"))
    if not paths:
        raise InputError(f"model_info {path} holds no JSON file")
    found, problems = [], []
    for one in paths:
        try:
            content = json.loads(one.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{one} cannot be read as JSON: {error}")
            continue
        if not isinstance(content, dict) or "dataset" not in content:
            problems.append(
                f"{one} is no model_info: expected a mapping with dataset, clean_acc ..."
            )
            continue
        found.append(
            ModelInfoFile(path=one, model=one.stem, threat=_threat(one, content), content=content)
        )
    if problems:
        raise InputError("\n  ".join(problems))
    return found


def _threat(path: Path, content: Mapping[str, Any]) -> str:
    """Return the threat as text: the folder is its norm, ``eps`` its size."""
    norm = path.parent.name.lower().partition("-")[0]
    eps = str(content.get("eps", "")).strip()
    if norm not in _NORMS:
        return path.parent.name if "corruptions_acc" in content or not eps else f"? {eps}"
    return f"{norm} {eps}" if eps else path.parent.name


def published(line: ReferenceLine, standards: Sequence[Standard]) -> list[Published]:
    """Return the values of one line of the leaderboard file.

    Of a ``model_info`` folder only what is about a dataset of the leaderboard is taken.

    Raises:
        InputError: a ``model_info`` that cannot be read, or a number that is none.
    """
    if line.model_info is None:
        assert line.model is not None
        assert line.dataset is not None
        assert line.metric is not None
        assert line.value is not None
        assert line.source is not None
        return [
            Published(
                model=line.model,
                dataset=line.dataset,
                threat=None if line.threat is None else str(line.threat),
                metric=line.metric,
                value=line.value,
                source=line.source,
                n=line.n,
                attacks=line.attacks,
                reading=line.reading,
            )
        ]
    values = []
    for info in read_model_info(line.model_info):
        for standard in standards:
            asked = line.dataset == standard.name if line.dataset else True
            if asked and info.content["dataset"] == standard.data:
                values += _of_model_info(info, standard.name)
    return values


def _of_model_info(info: ModelInfoFile, dataset: str) -> list[Published]:
    content = info.content
    source = str(content.get("link") or f"RobustBench model_info, {info.path.name}")
    common: dict[str, Any] = {
        "model": info.model,
        "dataset": dataset,
        "source": source,
        "n": ROBUSTBENCH_IMAGES.get(str(content["dataset"])),
    }
    values = (
        []
        if "clean_acc" not in content
        else [
            Published(
                threat=None, metric="clean_accuracy", value=_share(info, "clean_acc"), **common
            )
        ]
    )
    if "corruptions_acc" in content:
        return [
            *values,
            Published(
                threat="corruptions",
                metric="robust_accuracy",
                value=_share(info, "corruptions_acc"),
                caveat="accuracy under common corruptions is no accuracy under attack",
                **common,
            ),
        ]
    caveat = "RobustBench marks it unreliable" if content.get("unreliable") is True else ""
    if "autoattack_acc" in content:
        values.append(
            Published(
                threat=info.threat,
                metric="robust_accuracy",
                value=_share(info, "autoattack_acc"),
                attacks=_AUTOATTACK,
                caveat=caveat,
                **common,
            )
        )
    if "external" in content:
        values.append(
            Published(
                threat=info.threat,
                metric="robust_accuracy",
                value=_share(info, "external"),
                caveat=caveat or "found by attacks that model_info does not name",
                **common,
            )
        )
    return values


def _share(info: ModelInfoFile, name: str) -> float:
    raw = info.content[name]
    try:
        value = float(str(raw)) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{info.path}: {name} is {raw!r}, expected a percentage from 0 to 100")
    return round(value, 10)


def references(
    values: Sequence[Published], standards: Sequence[Standard], models: Mapping[str, Sequence[str]]
) -> tuple[Reference, ...]:
    """Return `values` marked comparable or not, those about models that are listed.

    Args:
        values: what was published.
        standards: how the leaderboard measures.
        models: names listed, by the dataset's name in the file.
    """
    by_name = {standard.name: standard for standard in standards}
    found = []
    for one in values:
        standard = by_name[one.dataset]
        if one.model not in models.get(one.dataset, ()):
            continue
        differing = _differing(one, standard)
        same = f"the same {standard.n:,} images"
        if one.metric != "clean_accuracy":
            same += " and " + ("reading" if one.metric == "brittle_score" else "attacks")
        found.append(
            Reference(
                model=one.model,
                dataset=standard.key,
                threat=one.threat,
                metric=one.metric,
                value=one.value,
                source=one.source,
                comparable=not differing,
                why="; ".join(differing) or same,
            )
        )
    return tuple(found)


def _differing(one: Published, standard: Standard) -> list[str]:
    reasons = [one.caveat] if one.caveat else []
    if one.n is None:
        reasons.append(f"the number of images is not stated; {standard.n:,} here")
    elif one.n != standard.n:
        reasons.append(f"{one.n:,} images there, {standard.n:,} here")
    if one.metric == "robust_accuracy":
        reasons += _other_attacks(one, standard)
    if one.metric == "brittle_score":
        if one.reading is None:
            reasons.append("its reading of LIME is not stated")
        elif one.reading not in standard.readings:
            reasons.append(f"its reading {one.reading} is not measured here")
    return reasons


def _other_attacks(one: Published, standard: Standard) -> list[str]:
    if one.caveat and not one.attacks:
        return []
    mine = next((t for t in standard.attacks if _same_threat(t, one.threat)), None)
    if mine is None:
        measured = ", ".join(standard.attacks) or "no attack"
        return [f"within {one.threat} there; {measured} here"]
    specs = standard.attacks[mine]
    used = {parse(spec).scheme for spec in specs}
    if not one.attacks:
        return ["its attacks are not stated"]
    theirs = {parse(attack).scheme for attack in one.attacks}
    plain = all(parse(spec).get("version") in (None, "standard") for spec in specs)
    if theirs != used or not plain:
        return [f"by {', '.join(sorted(theirs))} there, {', '.join(sorted(used))} here"]
    return []


def _same_threat(mine: str, theirs: str | None) -> bool:
    norm, _, eps = (theirs or "").partition(" ")
    own_norm, _, own = mine.partition(" ")
    try:
        return norm == own_norm and Fraction(eps) == Fraction(own)
    except (ValueError, ZeroDivisionError):
        return False
