"""One set of values, all files: up to date, the same each time, none left behind by a change."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.pins import locked, locked_all
from cluster.render import main, render
from cluster.values import Values, ValuesError, load_values, make_values

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ("kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml")
LAUNCHERS = ("aws/cluster.yaml", "gcp/cluster.yaml")
JOBS = ("kubernetes/base.yaml", "aws/job.yaml", "gcp/job.yaml", "slurm/job.yaml")
SLURM = "slurm/raybench.sbatch"

Change = Callable[[dict[str, Any]], Values]


def test_the_committed_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_rendering_is_deterministic(values: Values) -> None:
    assert render(values) == render(values)


@pytest.mark.parametrize(
    ("path", "new", "old_text", "new_text", "files"),
    [
        ("workers.max", 23, None, "23", (*KUBERNETES, *LAUNCHERS, *JOBS, SLURM)),
        ("workers.cpus", 48, None, "48", (*KUBERNETES, *LAUNCHERS, SLURM)),
        ("job.samples", 4321, "samples: 1000", "4321", JOBS),
        ("job.out", "{root}/results/other", "/results/imagenet", "/results/other", JOBS),
        (
            "job.script",
            "jobs/score_cifar10.py",
            "score_imagenet",
            "score_cifar10",
            ("kubernetes/rayjob.yaml", SLURM),
        ),
        ("root", "/elsewhere", "/shared/", "/elsewhere/", (*KUBERNETES, *LAUNCHERS, *JOBS[:3])),
        ("slurm.root", "/lustre/x", "/scratch/raybench/results", "/lustre/x", (SLURM, JOBS[3])),
        ("image.tag", "7.8.9", "raybench:0.1.0", ":7.8.9", (*KUBERNETES, "Containerfile")),
        ("image.uid", 4711, None, "4711", (*KUBERNETES, "Containerfile")),
        ("name", "other", None, "other", (*KUBERNETES, *LAUNCHERS, SLURM)),
        ("workers.grace_s", 77, None, "72", (*KUBERNETES, *LAUNCHERS, *JOBS)),
    ],
)
def test_a_changed_value_changes_every_file_that_has_it(
    change: Change, path: str, new: object, old_text: str | None, new_text: str, files: list[str]
) -> None:
    before, after = render(change({})), render(change({path: new}))
    for name in files:
        assert after[name] != before[name], name
        assert new_text in after[name], name
        if old_text is not None:
            assert old_text not in after[name], name


def test_workers_have_one_shape_everywhere(change: Change) -> None:
    files = render(change({"workers.cpus": 20, "workers.gpus": 2, "workers.memory_gb": 77}))
    for name in KUBERNETES:
        spec = yaml.safe_load(files[name])["spec"]
        group = spec.get("rayClusterSpec", spec)["workerGroupSpecs"][0]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits == {"cpu": "20", "memory": "77Gi", "nvidia.com/gpu": "2"}
    for name in LAUNCHERS:
        worker = yaml.safe_load(files[name])["available_node_types"]["worker"]
        assert worker["resources"] == {"CPU": 20, "GPU": 2}
    for line in ("--cpus-per-task=20", "--gpus-per-node=2", "--mem=77G", "CPUS=20", "GPUS=2"):
        assert line in files[SLURM]


@pytest.mark.parametrize(
    ("changes", "actors"),
    [
        ({}, 8),
        ({"workers.gpus": 4, "workers.cpus": 64}, 32),
        ({"job.gpus_per_actor": 0.5}, 16),
        ({"workers.gpus": 4}, 16),  # 8 CPUs feed two actors of 4 each, whatever the GPUs
        ({"workers.gpus": 0, "job.gpus_per_actor": 0, "job.cpus_per_actor": 1}, 64),
    ],
)
def test_the_job_asks_for_as_many_actors_as_all_workers_hold(
    change: Change, changes: dict[str, Any], actors: int
) -> None:
    files = render(change(changes))
    assert yaml.safe_load(files["aws/job.yaml"])["actors"] == actors


def test_job_files_are_options_that_raybench_takes(values: Values) -> None:
    from raybench.config import ScoreConfig, load_config

    for place in ("aws", "gcp", "slurm"):
        path = ROOT / "cluster" / "rendered" / place / "job.yaml"
        config = load_config(ScoreConfig, path, {}, {"models": ("zoo:mlp2",)})
        assert config.actors == values.actors
        assert config.device == "cuda"


def test_job_files_with_a_bucket_are_options_that_raybench_takes(
    change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench.config import ScoreConfig, load_config
    from raybench.core.mirrors import address_of

    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "cache"))
    out = "s3://bucket/results/imagenet?endpoint_override=http://minio:9000"
    path = tmp_path / "job.yaml"
    path.write_text(render(change({"job.out": out}))["aws/job.yaml"])
    config = load_config(ScoreConfig, path, {}, {"models": ("zoo:mlp2",)})
    found = address_of(config.out)
    assert found is not None
    assert (found.short, found.endpoint) == ("s3://bucket/results/imagenet", "http://minio:9000")


def test_cpu_only_workers_ask_for_no_gpu(change: Change) -> None:
    files = render(change({"workers.gpus": 0, "job.gpus_per_actor": 0}))
    assert "nvidia.com/gpu:" not in "".join(files[name] for name in KUBERNETES)
    assert "--gpus-per-node" not in files[SLURM]
    assert yaml.safe_load(files["slurm/job.yaml"])["device"] == "cpu"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("name", "Ray Bench", "name: expected"),
        ("name", "x; rm -rf /", "name: expected"),
        ("slurm.partition", "gpu\n#SBATCH --uid=0", "slurm.partition: expected"),
        ("slurm.root", "/scratch/$(id)", "slurm.root: expected"),
        ("aws.shared", "fs:/ && curl x | sh #", "aws.shared: expected"),
        ("job.script", "../../bin/sh", "job.script: expected"),
        ("job.script", "jobs/absent.py", "there is no jobs/absent.py"),
        ("job.out", "/tmp/results", "job.out: expected"),
        ("job.out", "s4://bucket/x", "job.out: expected"),
        ("job.out", "s3://bucket/x; rm -rf /", "job.out: expected"),
        ("kubernetes.store_secret", "a b", "kubernetes.store_secret: expected"),
        ("job.n", "100", "job.n"),
        ("job.gpus_per_actor", 2, "does not fit on a worker with 1 GPU"),
        ("job.cpus_per_actor", 9, "does not fit on a worker with 8 CPU"),
        ("image.tag", "latest", "digest, or a tag other than latest"),
        ("image.base", "python", "base must name a version"),
        ("image.digest", "sha256:abc", "image.digest: expected"),
        ("workers.maximum", 3, "workers.maximum: there is no such value"),
        ("image.uid", 0, "image.uid"),
    ],
)
def test_bad_values_are_refused_by_name(
    change: Change, path: str, value: object, says: str
) -> None:
    with pytest.raises(ValuesError, match=re.escape(says)):
        change({path: value})


def test_all_mistakes_are_named_at_once(tree: dict[str, Any]) -> None:
    wrong = tree | {"root": "relative", "workers": tree["workers"] | {"max": 0}}
    del wrong["gcp"]
    with pytest.raises(ValuesError) as caught:
        make_values(wrong)
    for path in ("gcp: must be given", "root: expected", "workers.max"):
        assert path in str(caught.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("name: [")
    with pytest.raises(ValuesError, match=re.escape(str(path))):
        load_values(path)


def test_the_command_line_renders_elsewhere_and_finds_what_is_old(tmp_path: Path) -> None:
    script = str(ROOT / "cluster" / "render.py")

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, "--out", str(tmp_path / "out"), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert run("--check").returncode == 1
    assert run().returncode == 0
    assert run("--check").returncode == 0
    (tmp_path / "out" / SLURM).write_text("old")
    (tmp_path / "out" / "left.yaml").write_text("")
    checked = run("--check")
    assert checked.returncode == 1
    assert f"{SLURM} is out of date" in checked.stderr
    assert "left.yaml is rendered from nothing" in checked.stderr
    assert run("--values", str(tmp_path / "absent.yaml")).returncode == 2


def test_locks_agree_with_the_projects() -> None:
    main_lock = locked_all(ROOT / "requirements.lock")
    locks = ROOT / "cluster" / "locks"
    for name in ("aws", "gcp"):
        for package, version in locked_all(locks / f"{name}.txt").items():
            # botocore takes no python-dateutil 3 or later; only the head has it.
            if package in main_lock and package != "python-dateutil":
                assert version == main_lock[package], f"{name}: {package}"
    makefile = (ROOT / "Makefile").read_text()
    assert f"UV_VERSION := {locked('uv', locks / 'uv.txt')}\n" in makefile
    for name in KUBERNETES:
        text = (ROOT / "cluster" / "rendered" / name).read_text()
        assert f"rayVersion: {locked('ray', ROOT / 'requirements.lock')}\n" in text


def test_a_package_locked_twice_or_never_is_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("ray==1.0 \\\n    --hash=sha256:0\nray==2.0 ; python_version < '3'\n")
    for package in ("ray", "torch"):
        with pytest.raises(ValueError, match=package):
            locked(package, lock)


def test_raybench_does_not_import_the_folder() -> None:
    for path in (ROOT / "raybench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in getattr(node, "names", ())]
            modules.append(getattr(node, "module", None) or "")
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(name.split(".")[0] == "cluster" for name in modules), path


def test_every_path_that_the_image_and_the_nodes_copy_exists(values: Values) -> None:
    from cluster.launcher import COPIED

    text = render(values)["Containerfile"]
    copies = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    sources = [path for copied in copies for path in copied if not path.startswith(("/", "--"))]
    assert sources
    for path in (*sources, *COPIED):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", ["cluster/README.md", "SECURITY.md"])
def test_the_pages_name_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:cluster|jobs|tests)/[\w/.-]*\w", text))
    assert len(named) > 1
    missing = [path for path in named if not (ROOT / path.removesuffix(".")).exists()]
    assert not missing


def test_the_table_of_ports_is_what_the_script_computes() -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    script = (ROOT / "cluster" / "rendered" / SLURM).read_text()
    for in_script, in_text in (
        ("slot=$((SLURM_JOB_ID % 4000))", "JOBID % 4000"),
        ("port=$((20000 + 2 * slot))", "20000 + 2 x (JOBID % 4000)"),
        ('--dashboard-port="$((28000 + slot))"', "28000 + JOBID % 4000"),
    ):
        assert in_script in script
        assert in_text in text
