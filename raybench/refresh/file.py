"""The leaderboard file: which models are ranked, on which images, by which evaluations.

::

    benchmark_version: "1"
    out: results/leaderboard
    datasets:
      - digits?n=200                       # a bare spec; its scheme is its name
      - {name: mnist, spec: "mnist?root=/data/mnist", n: 500, threat: linf 0.3}
    evaluations:
      - grid?samples=500                   # a reading, as in raybench score --reading
      - flip-radius?samples=500
      - {spec: "suite:fast", datasets: [mnist]}   # attacks, within the dataset's threat
      - {spec: "pgd?eps=8/255&steps=40", datasets: [digits]}
    models:
      - zoo:cnn3
      - {spec: "torchscript:/models/mnist-*/model.pt?shape=1x28x28", datasets: [mnist]}
    baseline: cnn3

The one spec syntax serves everything. Readings and attacks are named as everywhere else;
``lime:NAME`` and ``attack:NAME`` say which of both is meant (``lime`` alone is the first of the
package's default readings), ``suite:NAME?norm=...&eps=...`` is a named list of attacks.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from raybench.config import RunConfig, results_folder
from raybench.core.catalog import SUITES
from raybench.core.errors import InputError, near_miss
from raybench.core.spec import parse

__all__ = [
    "DatasetLine",
    "EvaluationLine",
    "LeaderboardFile",
    "ModelLine",
    "ReferenceLine",
    "Threat",
    "load_leaderboard",
]

_STRICT = ConfigDict(extra="forbid", frozen=True, validate_default=True)
_MEANS = frozenset(
    {
        "actors",
        "cpus_per_actor",
        "gpus_per_actor",
        "device",
        "shard_size",
        "batch_size",
        "max_attempts",
        "no_progress_s",
        "address",
        "runner",
    }
)
_NORMS = ("linf", "l2", "l1", "l0")


def _spec(value: str) -> str:
    parse(value)
    return value


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Threat(BaseModel):
    """A budget: ``linf 8/255``, or null for what has none."""

    model_config = _STRICT

    norm: Literal["linf", "l2", "l1", "l0"]
    eps: str

    @field_validator("eps", mode="before")
    @classmethod
    def _fraction(cls, value: object) -> object:
        text = str(value)
        try:
            number = Fraction(text)
        except (ValueError, ZeroDivisionError):
            raise ValueError("expected a number or a fraction such as 8/255") from None
        if number <= 0:
            raise ValueError("expected a budget above 0")
        return text

    def __str__(self) -> str:
        return f"{self.norm} {self.eps}"

    def same(self, norm: str | None, eps: str | None) -> bool:
        """Whether `norm` and `eps` are this budget, whatever their spelling."""
        return norm == self.norm and eps is not None and Fraction(eps) == Fraction(self.eps)


def read_threat(value: object) -> object:
    """Return the mapping that ``linf 8/255`` stands for."""
    if not isinstance(value, str):
        return value
    norm, _, eps = value.strip().partition(" ")
    if norm.lower() not in _NORMS or not eps.strip():
        raise ValueError(f"expected a norm ({', '.join(_NORMS)}) and a budget, as in linf 8/255")
    return {"norm": norm.lower(), "eps": eps.strip()}


class DatasetLine(BaseModel):
    """A selection of images, and the threat that attacks on it stay within."""

    model_config = _STRICT

    spec: str
    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    n: int | None = Field(None, ge=1)
    threat: Threat | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        value = {"spec": value} if isinstance(value, str) else value
        if isinstance(value, dict) and "name" not in value and isinstance(value.get("spec"), str):
            return value | {"name": parse(value["spec"]).scheme}
        return value

    @model_validator(mode="after")
    def _one_size(self) -> "DatasetLine":
        given = parse(self.spec).get("n")
        if given is not None and self.n is not None and given != str(self.n):
            raise ValueError(f"the spec selects n={given}, but n: {self.n} is also given")
        return self

    _check_spec = field_validator("spec")(_spec)
    _read_threat = field_validator("threat", mode="before")(read_threat)


class EvaluationLine(BaseModel):
    """A reading, an attack or a suite, on some of the datasets or (None) on all."""

    model_config = _STRICT

    spec: str
    datasets: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"spec": value} if isinstance(value, str) else value

    @field_validator("spec")
    @classmethod
    def _known(cls, value: str) -> str:
        spec = parse(value)
        if spec.scheme == "suite" and spec.rest not in SUITES:
            raise ValueError(f"no suite is named {spec.rest!r}{near_miss(spec.rest, SUITES)}")
        if spec.scheme == "attack" and not spec.rest:
            raise ValueError("name the attack, as in attack:pgd?eps=8/255")
        return value

    _read_datasets = field_validator("datasets", mode="before")(_names)


class ModelLine(BaseModel):
    """A model, or a pattern that stands for several.

    Attributes:
        spec: a model spec; ``*`` in a path, or in a name of RobustBench's or of the built-in
            networks, stands for all that there are.
        name: what tables call it; for a pattern with {stem} or {folder} in it.
        datasets: those it is measured on; None: all.
        files: what its factory reads, so that nothing is loaded while they are unchanged.
        info: facts for the exported entry (authors, link, venue, architecture ...).
    """

    model_config = _STRICT

    spec: str
    name: str | None = Field(None, min_length=1)
    datasets: tuple[str, ...] | None = None
    files: tuple[Path, ...] = ()
    info: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"spec": value} if isinstance(value, str) else value

    @field_validator("files")
    @classmethod
    def _there(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        missing = [str(path) for path in value if not path.is_file()]
        if missing:
            raise ValueError(f"there is no file {', '.join(missing)}")
        return value

    @model_validator(mode="after")
    def _named_once(self) -> "ModelLine":
        if self.name is not None and parse(self.spec).get("name") is not None:
            raise ValueError("the spec sets a name already; give one of both")
        return self

    _check_spec = field_validator("spec")(_spec)
    _read_datasets = field_validator("datasets", mode="before")(_names)
    _read_files = field_validator("files", mode="before")(_names)


class ReferenceLine(BaseModel):
    """A published value, or a file or folder of RobustBench's ``model_info`` that holds some.

    Values are fractions in [0, 1] for accuracies. `n`, `attacks` say how it was measured; what is
    not said counts as unknown, and makes the value not comparable.
    """

    model_config = _STRICT

    model_info: Path | None = None
    model: str | None = None
    dataset: str | None = None
    metric: Literal["robust_accuracy", "clean_accuracy", "brittle_score"] | None = None
    value: float | None = Field(None, allow_inf_nan=False)
    threat: Threat | None = None
    source: str | None = None
    n: int | None = Field(None, ge=1)
    attacks: tuple[str, ...] = ()
    reading: str | None = None

    _read_threat = field_validator("threat", mode="before")(read_threat)
    _read_attacks = field_validator("attacks", mode="before")(_names)

    @model_validator(mode="after")
    def _one_or_the_other(self) -> "ReferenceLine":
        if self.model_info is not None:
            beside = self.model_fields_set - {"model_info", "dataset"}
            if beside:
                raise ValueError(f"model_info stands alone; leave out {', '.join(sorted(beside))}")
            if not self.model_info.exists():
                raise ValueError(f"there is no file or folder {self.model_info}")
            return self
        wanted = ("model", "dataset", "metric", "value", "source")
        lacking = [name for name in wanted if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"{', '.join(lacking)} must be given (or model_info: a folder)")
        assert self.value is not None
        if self.metric != "brittle_score" and not 0 <= self.value <= 1:
            hint = f"; did you mean {self.value / 100:g}?" if 1 < self.value <= 100 else ""
            raise ValueError(
                f"{self.metric}: expected a fraction in [0, 1], found {self.value:g}{hint}"
            )
        if self.metric == "robust_accuracy" and self.threat is None:
            raise ValueError("robust_accuracy holds within a threat: give it, as in linf 8/255")
        return self


class LeaderboardFile(BaseModel):
    """A leaderboard; unknown keys are refused."""

    model_config = _STRICT

    benchmark_version: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    out: Path
    datasets: tuple[DatasetLine, ...] = Field(min_length=1)
    evaluations: tuple[EvaluationLine, ...] = Field(min_length=1)
    models: tuple[ModelLine, ...] = Field(min_length=1)
    baseline: str | dict[str, str] | None = None
    rank_by: Literal["normalised", "score", "matched"] = "normalised"
    reference: tuple[ReferenceLine, ...] = ()
    seed: int = Field(0, ge=0, lt=2**63)
    samples: int = Field(1000, ge=2)
    tracking_uri: str | None = None
    resources: dict[str, Any] = {}

    @field_validator("benchmark_version", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        # 1.10 is a number to YAML, and loses its zero: only whole numbers are taken unquoted.
        return str(value) if type(value) is int else value

    @field_validator("seed", "samples", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        if isinstance(value, bool | float):
            raise ValueError("expected a whole number")
        return value

    @field_validator("out", mode="before")
    @classmethod
    def _place(cls, value: object) -> object:
        return results_folder(value)

    @field_validator("resources")
    @classmethod
    def _run(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(value) - _MEANS)
        if unknown:
            raise ValueError(f"no such option: {unknown[0]}{near_miss(unknown[0], _MEANS)}")
        try:
            _means(value, None, Path("."))
        except ValidationError as error:
            wrong = [
                f"{one['loc'][0]}: {one['msg']}, found {one['input']!r}" for one in error.errors()
            ]
            raise ValueError("; ".join(wrong).replace("Value error, ", "")) from None
        return value

    @model_validator(mode="after")
    def _names_exist(self) -> "LeaderboardFile":
        names = [line.name for line in self.datasets]
        problems = [
            f"datasets: two are named {name}; give one of them another name"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        users: list[tuple[str, tuple[str, ...] | None]] = [
            (f"evaluations.{index}", line.datasets) for index, line in enumerate(self.evaluations)
        ]
        users += [(f"models.{index}", line.datasets) for index, line in enumerate(self.models)]
        users += [
            (f"reference.{index}", None if line.dataset is None else (line.dataset,))
            for index, line in enumerate(self.reference)
        ]
        if isinstance(self.baseline, dict):
            users.append(("baseline", tuple(self.baseline)))
        problems += [
            f"{place}: no dataset is named {name!r}{near_miss(name, names)}"
            for place, used in users
            for name in used or ()
            if name not in names
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    def means(self, **overrides: Any) -> RunConfig:
        """Return what the run may take; `overrides` (None: not given) go before the file's."""
        given = {name: value for name, value in overrides.items() if value is not None}
        return _means(self.resources | given, self.tracking_uri, self.out)


def _means(values: dict[str, Any], tracking_uri: str | None, out: Path) -> RunConfig:
    # Options are declared once, in RunConfig; its models and data are not used.
    head = {"models": ("zoo:mlp2",), "data": "digits", "tracking_uri": tracking_uri, "out": out}
    return RunConfig.model_validate(head | values)


def load_leaderboard(path: Path) -> LeaderboardFile:
    """Return the leaderboard that a YAML file describes.

    Raises:
        InputError: it cannot be read, or holds mistakes: all of them, each with its place.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # The one way in which specs and YAML disagree.
        hint = "; quote specs inside [ ] and { }" if "got '?'" in str(error) else ""
        raise InputError(f"{path} cannot be read as YAML: {error}{hint}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping with datasets, evaluations and models")
    try:
        return LeaderboardFile.model_validate(values)
    except ValidationError as error:
        # Of a list whose every item is wrong pydantic says besides that it is too short.
        told = [one for one in error.errors() if one["type"] != "too_short" or not one["input"]]
        lines = [_explain(dict(problem)) for problem in told]
        raise InputError(f"{path}:\n  " + "\n  ".join(lines)) from error


_KINDS: dict[str, type[BaseModel]] = {
    "datasets": DatasetLine,
    "evaluations": EvaluationLine,
    "models": ModelLine,
    "reference": ReferenceLine,
}


def _explain(problem: dict[str, Any]) -> str:
    place = [str(piece) for piece in problem["loc"]]
    path = ".".join(place)
    if problem["type"] == "extra_forbidden":
        kind = _KINDS.get(place[0], LeaderboardFile) if len(place) > 1 else LeaderboardFile
        return f"{path}: no such key{near_miss(place[-1], kind.model_fields)}"
    if problem["type"] == "missing":
        return f"{path}: must be given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not path:
        return message
    found = problem["input"]
    return f"{path}: {message}" + ("" if isinstance(found, dict) else f", found {found!r}")
