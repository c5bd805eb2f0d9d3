"""The Slurm script: directives and settings from the values, then the steps in slurm_body.sh."""

from pathlib import Path

from cluster.values import Values

__all__ = ["sbatch"]

_BODY = Path(__file__).with_name("slurm_body.sh")
_START_S = 300
"""How long one try of the head may take: Ray imports for minutes from a busy file system."""


def sbatch(values: Values, note: str) -> str:
    """Return the text of the batch script."""
    workers, settings = values.workers, values.slurm
    directives = {
        "job-name": values.name,
        "partition": settings.partition,
        "nodes": workers.max,
        "ntasks-per-node": 1,
        "cpus-per-task": workers.cpus,
        "mem": f"{workers.memory_gb}G",
        "time": f"{settings.hours}:00:00",
        "signal": f"B:TERM@{settings.notice_s}",
        "output": f"{values.name}-%j.out",
        "open-mode": "append",
    }
    if settings.account:
        directives["account"] = settings.account
    if workers.gpus:
        directives["gpus-per-node"] = workers.gpus
    variables = {
        "ROOT": settings.root,
        "CHECKOUT": settings.checkout,
        "VENV": settings.venv,
        "SCRIPT": values.job.script,
        "JOB": f"{settings.checkout}/cluster/rendered/slurm/job.yaml",
        "CPUS": workers.cpus,
        "GPUS": workers.gpus,
        "REQUEUES": settings.requeues,
        "START_S": _START_S,
        # Steps end within the notice, the driver's own end left out.
        "GRACE_S": min(workers.grace_s, settings.notice_s // 2),
    }
    lines = ["#!/usr/bin/env bash", f"# {note}"]
    lines += [f"#SBATCH --{name}={value}" for name, value in directives.items()]
    lines += ["#SBATCH --requeue", "#SBATCH --no-kill", ""]
    lines += [f"{name}={value}" for name, value in variables.items()]
    return "\n".join(lines) + "\n" + _BODY.read_text(encoding="utf-8")
