#!/usr/bin/env python3
"""Write the files that start raybench on a cluster, all from one values file.

    python cluster/render.py                        cluster/values.yaml into cluster/rendered/
    python cluster/render.py --check                fail where cluster/rendered/ is out of date
    python cluster/render.py --values my.yaml --out my-cluster

What is rendered is checked (`cluster/lint.py`) before a byte is written.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import kubernetes, launcher
from cluster.container import containerfile
from cluster.lint import problems
from cluster.slurm import sbatch
from cluster.values import Values, ValuesError, load_values

__all__ = ["main", "render"]

HERE = Path(__file__).resolve().parent
NOTE = "Rendered by cluster/render.py from cluster/values.yaml: change that, not this."


def render(values: Values) -> dict[str, str]:
    """Return the text of every file, by its path below the output folder."""
    jobs = {"aws": values.root, "gcp": values.root, "slurm": values.slurm.root}
    return {
        "Containerfile": containerfile(values, NOTE),
        "kubernetes/base.yaml": _yaml(*kubernetes.base(values)),
        "kubernetes/raycluster.yaml": _yaml(kubernetes.ray_cluster(values)),
        "kubernetes/rayjob.yaml": _yaml(kubernetes.ray_job(values)),
        "aws/cluster.yaml": _yaml(launcher.aws(values)),
        "gcp/cluster.yaml": _yaml(launcher.gcp(values)),
        "slurm/raybench.sbatch": sbatch(values, NOTE),
        **{f"{place}/job.yaml": _yaml(values.job_file(root)) for place, root in jobs.items()},
    }


def _yaml(*documents: Any) -> str:
    text = yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=98, allow_unicode=True)
    return f"# {NOTE}\n{text}"


class _Plain(yaml.SafeDumper):
    """Writes equal parts out in full (launchers differ in what they make of anchors)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _literal(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _literal)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (out of date) or 2 (bad input)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--values", type=Path, default=HERE / "values.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "rendered")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where outdated")
    options = parser.parse_args(arguments)
    try:
        files = render(load_values(options.values))
    except ValuesError as error:
        print(error, file=sys.stderr)
        return 2
    found = problems(files)
    if found:
        print("\n".join(found), file=sys.stderr)
        return 2
    if options.check:
        return _check(files, options.out)
    for name, text in files.items():
        path = options.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


def _check(files: dict[str, str], out: Path) -> int:
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    stale = sorted(there - set(files))
    old = sorted(
        name
        for name, text in files.items()
        if name not in there or (out / name).read_text(encoding="utf-8") != text
    )
    for name in old:
        print(f"{out / name} is out of date: run python cluster/render.py", file=sys.stderr)
    for name in stale:
        print(f"{out / name} is rendered from nothing: remove it", file=sys.stderr)
    return 1 if old or stale else 0


if __name__ == "__main__":
    sys.exit(main())
