"""The one configuration of a scoring job: from flags, a YAML file, or Python, validated alike."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raybench.core.errors import InputError, near_miss
from raybench.core.spec import parse
from raybench.core.work import Resources

__all__ = ["ScoreConfig", "load_config", "make_config"]

# The paper's fill and output on grid cells, which exist at every image size, and the flip radius,
# which normalises; jobs/study_readings.py is how to check the choice.
DEFAULT_READINGS = ("grid", "flip-radius")


class ScoreConfig(BaseModel):
    """What to score, how, where to put it, and what it may take. Frozen; unknown keys are refused.

    The field descriptions are the help texts of the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    models: tuple[str, ...] = Field(min_length=1, description="Model specs, scheme:rest?option=v.")
    data: str = Field(description="Dataset spec, for example digits or imagenet:/data/val.")
    n: int = Field(1000, ge=1, description="Number of images (all where there are fewer).")
    samples: int = Field(1000, ge=2, description="Model queries for each image (k of the paper).")
    reading: tuple[str, ...] = Field(
        DEFAULT_READINGS, min_length=1, description="Reading of LIME; may be repeated."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw.")
    out: Path = Field(Path("results"), description="Output folder.")
    tracking_uri: str | None = Field(
        None, description="MLflow tracking URI; without it, a sqlite store in the output folder."
    )
    experiment: str | None = Field(None, description="MLflow experiment; by default the dataset.")
    baseline: str | None = Field(
        None, description="Name of the standard model of Eq. 3; by default the first model."
    )
    rank_by: Literal["normalised", "score", "matched"] = Field(
        "normalised", description="What tables rank by: normalised, score or matched."
    )
    actors: Literal["auto"] | int = Field("auto", description="Worker processes, or auto.")
    cpus_per_actor: int = Field(1, ge=1, description="Cores (and torch threads) of each worker.")
    gpus_per_actor: float = Field(0.0, ge=0, description="GPUs of each worker; fractions share.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where models run.")
    shard_size: int = Field(16, ge=1, le=4096, description="Images in one shard.")
    batch_size: int = Field(0, ge=0, description="Queries in one forward call; 0 chooses.")
    max_attempts: int = Field(3, ge=1, description="Tries for each shard.")
    no_progress_s: float = Field(
        3600.0, gt=0, description="Seconds without a finished shard after which a run gives up."
    )
    address: str | None = Field(
        None, description="Ray cluster to join (HOST:PORT), or local; by default RAY_ADDRESS."
    )
    resume: bool = Field(True, description="Keep what is already computed.")
    skip_missing: bool = Field(False, description="Leave out models that cannot be had, saying so.")
    runner: Literal["ray", "local"] = Field("ray", description="ray, or local: in this process.")

    @field_validator("actors", mode="before")
    @classmethod
    def _positive(cls, value: object) -> object:
        whole = int(value) if isinstance(value, str) and value.isdigit() else value
        if whole != "auto" and (type(whole) is not int or whole < 1):
            raise ValueError("expected auto or a number from 1 up")
        return whole

    @field_validator("models", "reading", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("models", "reading")
    @classmethod
    def _specs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse(text)
        if len(set(value)) < len(value):
            raise ValueError("the same entry is given twice")
        return value

    @field_validator("data")
    @classmethod
    def _spec(cls, value: str) -> str:
        parse(value)
        return value

    @field_validator("out")
    @classmethod
    def _local(cls, value: Path) -> Path:
        if ":/" in str(value):
            raise ValueError("expected a local folder (object stores hold data, not results)")
        return value

    def resources(self) -> Resources:
        """Return the resources of the run."""
        return Resources(
            actors=None if self.actors == "auto" else int(self.actors),
            cpus_per_actor=self.cpus_per_actor,
            gpus_per_actor=self.gpus_per_actor,
            max_attempts=self.max_attempts,
            no_progress_s=self.no_progress_s,
            address=self.address,
        )


def make_config(values: dict[str, Any], source: str = "options") -> ScoreConfig:
    """Return the validated configuration of `values`.

    Raises:
        InputError: every mistake at once, each with its field's path and what is accepted.
    """
    try:
        return ScoreConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise InputError(f"{source}:\n  " + "\n  ".join(lines)) from error


def load_config(
    path: Path, overrides: dict[str, Any], defaults: dict[str, Any] | None = None
) -> ScoreConfig:
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
    return make_config((defaults or {}) | values | overrides, str(path))


def _explain(problem: dict[str, Any]) -> str:
    path = ".".join(str(piece) for piece in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: no such option{near_miss(path, ScoreConfig.model_fields)}"
    if problem["type"] == "missing":
        return f"{path}: must be given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}, found {problem['input']!r}"
