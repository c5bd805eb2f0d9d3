"""The values that all files are rendered from, checked.

    values = load_values(Path("cluster/values.yaml"))
    values.actors          # 8

Texts that reach a shell, a command line or a Kubernetes name are limited to characters that need
no quoting there, so that no value can become a command.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.pins import locked

__all__ = ["ROOT", "Values", "ValuesError", "load_values", "make_values"]

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""


class ValuesError(ValueError):
    """The values file cannot be used; the text names every mistake."""


Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@=,+-]*$")]
WordOrNone = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/@=,+-]*)?$")]
Absolute = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")]
Export = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*:/[A-Za-z0-9._/-]*$")]
Script = Annotated[str, Field(pattern=r"^jobs/[a-z0-9_]+\.py$")]
Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Out = Annotated[
    str,
    Field(
        pattern=r"^(\{root\}/[A-Za-z0-9._/-]+|(s3|gs)://[A-Za-z0-9._/-]+(\?[A-Za-z0-9._:/=&-]+)?)$"
    ),
]
Ami = Annotated[str, Field(pattern=r"^ami-[0-9a-f]+$")]
SecurityGroup = Annotated[str, Field(pattern=r"^sg-[0-9a-f]+$")]
Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class JobValues(_Part):
    """What is computed: options of ``raybench score`` by their names."""

    script: Script
    data: str = Field(min_length=1)
    out: Out
    n: Count
    samples: Annotated[int, Field(ge=2)]
    cpus_per_actor: Count
    gpus_per_actor: Annotated[float, Field(ge=0, strict=False)]


class WorkerValues(_Part):
    """The machines that compute: one shape, from none to `max` of them."""

    max: Count
    cpus: Count
    gpus: Annotated[int, Field(ge=0)]
    memory_gb: Annotated[int, Field(ge=2)]
    scratch_gb: Count
    idle_minutes: Count
    grace_s: Annotated[int, Field(ge=10)]


class HeadValues(_Part):
    """The machine that steers."""

    cpus: Count
    memory_gb: Annotated[int, Field(ge=4)]
    scratch_gb: Count


class ImageValues(_Part):
    """The container image, and what it is built from."""

    repository: Word
    tag: WordOrNone
    digest: Digest
    base: Word
    uid: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _pinned(self) -> "ImageValues":
        if not self.digest and self.tag in ("", "latest"):
            raise ValueError("give a digest, or a tag other than latest: nodes must agree")
        if self.base.endswith(":latest") or not re.search(r"[:@]", self.base):
            raise ValueError(f"base must name a version or a digest, found {self.base!r}")
        return self

    @property
    def reference(self) -> str:
        """The image as Kubernetes names it: by digest where there is one."""
        return (
            f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"
        )


class KubernetesValues(_Part):
    """What only Kubernetes needs."""

    namespace: Name
    operator_namespace: Name
    storage_class: WordOrNone
    results_gb: Count
    data_claim: WordOrNone
    service_account: WordOrNone = ""
    store_secret: WordOrNone = ""
    deadline_s: Count
    ttl_s: Annotated[int, Field(ge=0)]
    retries: Annotated[int, Field(ge=0)]
    node_selector: dict[str, str]
    tolerations: list[dict[str, str]]


class AwsValues(_Part):
    """What only AWS needs."""

    region: Word
    zones: Word
    image: Ami
    security_group: SecurityGroup
    head_type: Word
    worker_type: Word
    worker_profile: WordOrNone
    shared: Export


class GcpValues(_Part):
    """What only Google Cloud needs."""

    project: Word
    region: Word
    zone: Word
    image: Word
    subnetwork: Word
    head_type: Word
    worker_type: Word
    worker_account: WordOrNone = ""
    shared: Export


class SlurmValues(_Part):
    """What only Slurm needs."""

    root: Absolute
    checkout: Absolute
    venv: Absolute
    partition: Word
    account: WordOrNone
    hours: Count
    requeues: Annotated[int, Field(ge=0)]
    notice_s: Annotated[int, Field(ge=30)]


class Values(_Part):
    """Everything in values.yaml."""

    name: Name
    job: JobValues
    root: Absolute
    workers: WorkerValues
    head: HeadValues
    image: ImageValues
    mlflow_secret: WordOrNone
    kubernetes: KubernetesValues
    aws: AwsValues
    gcp: GcpValues
    slurm: SlurmValues

    @model_validator(mode="after")
    def _fits(self) -> "Values":
        if self.job.gpus_per_actor > self.workers.gpus:
            raise ValueError(
                f"job.gpus_per_actor {self.job.gpus_per_actor:g} does not fit on a worker with "
                f"{self.workers.gpus} GPU(s)"
            )
        if self.job.cpus_per_actor > self.workers.cpus:
            raise ValueError(
                f"job.cpus_per_actor {self.job.cpus_per_actor} does not fit on a worker with "
                f"{self.workers.cpus} CPU(s)"
            )
        if not (ROOT / self.job.script).is_file():
            raise ValueError(f"job.script: there is no {self.job.script} in the repository")
        return self

    @property
    def actors(self) -> int:
        """How many actors all workers hold together.

        A run that starts on an empty cluster cannot count them, so it has to be told.
        """
        each = self.workers.cpus // self.job.cpus_per_actor
        if self.job.gpus_per_actor:
            each = min(each, int(self.workers.gpus / self.job.gpus_per_actor + 1e-6))
        return self.workers.max * each

    @property
    def ray_version(self) -> str:
        """The version of Ray that the lock pins."""
        return locked("ray", ROOT / "requirements.lock")

    @property
    def out_is_remote(self) -> bool:
        """Whether results go to an object store, for which machines need no disk in common."""
        return not self.job.out.startswith("{root}/")

    @property
    def needs_root(self) -> bool:
        """Whether anything of the job is in the shared folder."""
        return not self.out_is_remote or "{root}" in self.job.data

    def caches(self, root: str) -> dict[str, str]:
        """Return where weights are kept: beside the results, so that they are fetched once.

        With results in an object store it is each machine's own scratch, the store's mirror too.
        """
        folder = "/tmp/raybench-cache" if self.out_is_remote else f"{root}/results/cache"
        return {
            "RAYBENCH_CACHE": folder,
            "TORCH_HOME": f"{folder}/torch",
            "HF_HOME": f"{folder}/huggingface",
        }

    def job_file(self, root: str) -> dict[str, Any]:
        """Return the options of the job where the shared folder is `root`."""
        return {
            "data": self.job.data.replace("{root}", root),
            "out": self.job.out.replace("{root}", root),
            "n": self.job.n,
            "samples": self.job.samples,
            "actors": self.actors,
            "cpus_per_actor": self.job.cpus_per_actor,
            "gpus_per_actor": self.job.gpus_per_actor,
            "device": "cuda" if self.job.gpus_per_actor else "cpu",
            # As long as Ray drains a node, which ends five seconds before the machine.
            "grace_s": self.workers.grace_s - 5,
        }


def make_values(tree: object, source: str = "values") -> Values:
    """Return the checked values of a parsed YAML `tree`.

    Raises:
        ValuesError: every mistake, each with its path and what was found.
    """
    try:
        return Values.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise ValuesError(f"{source}:\n  " + "\n  ".join(lines)) from error


def load_values(path: Path) -> Values:
    """Return the checked values in a YAML file.

    Raises:
        ValuesError: it cannot be read, or see `make_values`.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValuesError(f"{path} cannot be read as YAML: {error}") from error
    return make_values(tree, str(path))


def _explain(problem: dict[str, Any]) -> str:
    path = ".".join(map(str, problem["loc"])) or "values"
    if problem["type"] == "extra_forbidden":
        return f"{path}: there is no such value"
    if problem["type"] == "missing":
        return f"{path}: must be given"
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        return f"{path}: expected {problem['ctx']['pattern']}, found {problem['input']!r}"
    return (
        f"{path}: {str(problem['msg']).removeprefix('Value error, ')}, found {problem['input']!r}"
    )
