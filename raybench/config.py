"""The one configuration of a job: from flags, a YAML file, or Python, validated alike."""

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raybench.core.catalog import SUITES
from raybench.core.errors import InputError, near_miss
from raybench.core.mirrors import local_name
from raybench.core.spec import parse
from raybench.core.work import Resources

__all__ = [
    "AttackConfig",
    "RunConfig",
    "ScoreConfig",
    "load_config",
    "make_config",
    "results_folder",
]

# The paper's fill and output on grid cells, which exist at every image size, and the flip radius,
# which normalises; jobs/study_readings.py is how to check the choice.
DEFAULT_READINGS = ("grid", "flip-radius")


class RunConfig(BaseModel):
    """What every run takes: models, images, where results go, and with what means.

    Frozen; unknown keys are refused.

    The field descriptions are the help texts of the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    models: tuple[str, ...] = Field(min_length=1, description="Model specs, scheme:rest?option=v.")
    data: str = Field(description="Dataset spec, for example digits or imagenet:/data/val.")
    n: int = Field(1000, ge=1, description="Number of images (all where there are fewer).")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw.")
    out: Path = Field(
        Path("results"), description="Output folder, or s3://bucket/prefix or gs://bucket/prefix."
    )
    tracking_uri: str | None = Field(
        None,
        description="MLflow tracking URI; by default MLFLOW_TRACKING_URI, else a sqlite store in "
        "the output folder.",
    )
    experiment: str | None = Field(None, description="MLflow experiment; by default the dataset.")
    actors: Literal["auto"] | int = Field("auto", description="Worker processes, or auto.")
    cpus_per_actor: int = Field(1, ge=1, description="Cores (and torch threads) of each worker.")
    gpus_per_actor: float = Field(0.0, ge=0, description="GPUs of each worker; fractions share.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run.")
    exact: bool = Field(
        False,
        description="Take the plain, slower way through models and regressions: the fast one "
        "differs by rounding alone.",
    )
    compile: bool = Field(
        False,
        description="Compile each model with torch.compile first: up to a minute a model, for "
        "large ones on GPUs.",
    )
    shard_size: int = Field(16, ge=1, le=4096, description="Images in one shard.")
    batch_size: int = Field(0, ge=0, description="Queries in one forward call; 0 chooses.")
    max_attempts: int = Field(3, ge=1, description="Tries for each shard.")
    no_progress_s: float = Field(
        3600.0, gt=0, description="Seconds without a finished shard after which a run gives up."
    )
    grace_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a worker has left when it is told to end (SIGTERM).",
    )
    log: str | None = Field(
        None,
        min_length=1,
        description="Append what happens to this file, a JSON object a line; - is stderr. Workers "
        "then log to Ray's logs, too.",
    )
    address: str | None = Field(
        None, description="Ray cluster to join (HOST:PORT), or local; by default RAY_ADDRESS."
    )
    resume: bool = Field(True, description="Keep what is already computed.")
    skip_missing: bool = Field(False, description="Leave out models that cannot be had, saying so.")
    runner: Literal["ray", "local"] = Field("ray", description="ray, or local: in this process.")

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: object, info: ValidationInfo) -> object:
        """YAML's true is 1 to pydantic and its 10.0 is 10; neither is what anyone means by them."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if wanted in (int, int | None) and isinstance(value, bool | float):
            raise ValueError("expected a whole number")
        if wanted is float and isinstance(value, bool):
            raise ValueError("expected a number")
        return value

    @field_validator("actors", mode="before")
    @classmethod
    def _positive(cls, value: object) -> object:
        whole = int(value) if isinstance(value, str) and value.isdigit() else value
        if whole != "auto" and (type(whole) is not int or whole < 1):
            raise ValueError("expected auto or a number from 1 up")
        return whole

    @field_validator("models", mode="before")
    @classmethod
    def _one_model_is_a_list(cls, value: object) -> object:
        return _as_list(value)

    @field_validator("models")
    @classmethod
    def _model_specs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_specs(value)

    @field_validator("data")
    @classmethod
    def _spec(cls, value: str) -> str:
        parse(value)
        return value

    @model_validator(mode="after")
    def _one_way(self) -> "RunConfig":
        if self.exact and self.compile:
            raise ValueError("exact takes the plain way, which is not compiled: give one of them")
        return self

    @field_validator("out", mode="before")
    @classmethod
    def _place(cls, value: object) -> object:
        return results_folder(value)

    def resources(self) -> Resources:
        """Return the resources of the run."""
        return Resources(
            actors=None if self.actors == "auto" else int(self.actors),
            cpus_per_actor=self.cpus_per_actor,
            gpus_per_actor=self.gpus_per_actor,
            max_attempts=self.max_attempts,
            no_progress_s=self.no_progress_s,
            grace_s=self.grace_s,
            address=self.address,
        )


class ScoreConfig(RunConfig):
    """A scoring job: how LIME is read, and what tables compare."""

    samples: int = Field(1000, ge=2, description="Model queries for each image (k of the paper).")
    reading: tuple[str, ...] = Field(
        DEFAULT_READINGS, min_length=1, description="Reading of LIME; may be repeated."
    )
    baseline: str | None = Field(
        None, description="Name of the standard model of Eq. 3; by default the first model."
    )
    rank_by: Literal["normalised", "score", "matched"] = Field(
        "normalised", description="What tables rank by: normalised, score or matched."
    )
    ci_width: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="For plan: half-width of the 95 % interval wanted, as a share of the score.",
    )

    until_decided: bool = Field(
        False,
        description="Score images in growing batches until every two neighbours in the ranking "
        "are separated, or tied at --margin; n is the most.",
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="For until-decided: chance that any of its verdicts is wrong.",
    )
    margin: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="For until-decided: difference up to which two models tie, in the unit of what "
        "tables rank by (0 to 1 for the flip radius); 0 never calls a tie.",
    )

    @field_validator("reading", mode="before")
    @classmethod
    def _one_reading_is_a_list(cls, value: object) -> object:
        return _as_list(value)

    @field_validator("reading")
    @classmethod
    def _reading_specs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_specs(value)

    @model_validator(mode="after")
    def _sequential(self) -> "ScoreConfig":
        if not self.until_decided:
            unused = sorted({"alpha", "margin"} & self.model_fields_set)
            if unused:
                raise ValueError(f"{', '.join(unused)}: only until_decided takes it")
        elif self.rank_by == "matched":
            raise ValueError(
                "until_decided cannot rank by matched, which rescales every image's score by all "
                "the others; rank by normalised or score"
            )
        elif len(self.models) < 2:
            raise ValueError("until_decided compares models: give at least two")
        return self


class AttackConfig(RunConfig):
    """An attack job: which attacks, within which budgets."""

    attack: tuple[str, ...] = Field(
        (), description="Attack specs such as pgd?steps=100; with commas, or repeated."
    )
    suite: str | None = Field(None, description=f"A named list of attacks: {', '.join(SUITES)}.")
    norm: Literal["linf", "l2", "l1"] | None = Field(
        None, description="Norm of the budget: linf, l2 or l1; by default the attack's own."
    )
    eps: tuple[str, ...] = Field(
        (), description="Budget in pixel units, such as 8/255; repeated for a security curve."
    )
    targeted: str | None = Field(
        None, description="Aim at a class: next, least-likely, or its number."
    )
    steps: int | None = Field(None, ge=1, description="Iterations of the attacks that take steps.")
    step_size: str | None = Field(None, description="Their step size, such as 2/255.")
    restarts: int | None = Field(None, ge=1, description="Random restarts of those that take them.")
    keep_images: bool = Field(False, description="Keep the attacked images in the rows (8 bits).")
    shard_size: int = Field(64, ge=1, le=4096, description="Images in one shard.")

    @field_validator("attack", "eps", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Commas part entries, as people type them on a command line."""
        items = _as_list(value)
        if not isinstance(items, list | tuple):
            return value
        return tuple(piece for item in items for piece in str(item).split(",") if piece)

    @field_validator("norm", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("attack")
    @classmethod
    def _attack_specs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct_specs(value)

    @field_validator("suite")
    @classmethod
    def _known_suite(cls, value: str | None) -> str | None:
        if value is not None and value not in SUITES:
            raise ValueError(f"no suite is named {value!r}{near_miss(value, SUITES)}")
        return value

    @model_validator(mode="after")
    def _something_to_do(self) -> "AttackConfig":
        if not self.attack and self.suite is None:
            raise ValueError("no attack is named: give --attack, such as --attack pgd, or --suite")
        return self

    def attacks(self) -> tuple[str, ...]:
        """Return every attack spec asked for, those of the suite first."""
        return tuple(dict.fromkeys((*SUITES.get(self.suite or "", ()), *self.attack)))


def results_folder(value: object) -> object:
    """Return the local folder of results: an address of an object store becomes its mirror.

    Raises:
        InputError: an address that cannot be one of results.
    """
    return local_name(value) if isinstance(value, str | Path) else value


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _distinct_specs(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        parse(text)
    if len(set(value)) < len(value):
        raise ValueError("the same entry is given twice")
    return value


_Config = TypeVar("_Config", bound=RunConfig)


def make_config(kind: type[_Config], values: dict[str, Any], source: str = "options") -> _Config:
    """Return the validated configuration of `values`, of a `kind` of job.

    Raises:
        InputError: every mistake at once, each with its field's path and what is accepted.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(problem), kind) for problem in error.errors()]
        raise InputError(f"{source}:\n  " + "\n  ".join(lines)) from error


def load_config(
    kind: type[_Config],
    path: Path,
    overrides: dict[str, Any],
    defaults: dict[str, Any] | None = None,
) -> _Config:
    """Return the configuration in a YAML file: `overrides` (flags given) over it over `defaults`.

    Raises:
        InputError: the file is absent, no YAML mapping, or holds a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: expected a mapping of option names, found {type(values).__name__}"
        )
    return make_config(kind, (defaults or {}) | values | overrides, str(path))


def _explain(problem: dict[str, Any], kind: type[RunConfig]) -> str:
    path = ".".join(str(piece) for piece in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: no such option{near_miss(path, kind.model_fields)}"
    if problem["type"] == "missing":
        return f"{path}: must be given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not path:
        return message
    return f"{path}: {message}, found {problem['input']!r}"
