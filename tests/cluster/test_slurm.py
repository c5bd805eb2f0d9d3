"""The Slurm script run in earnest, with stand-ins for Slurm, Ray and the driver on the PATH."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.render import render
from cluster.values import Values

ROOT = Path(__file__).resolve().parents[2]

Change = Callable[[dict[str, Any]], Values]

# The script looks again every second, which nothing here depends on.
SLEEP = f"""
[ "$1" != 1 ] || set -- 0.1
exec {shutil.which("sleep")} "$@"
"""

SRUN = """
echo "srun $*" >> "$LOG"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""

SCONTROL = """
echo "scontrol $*" >> "$LOG"
case "$2" in
  hostnames) printf '%s\\n' $FAKE_NODES ;;
  job) echo "JobId=$3 JobName=x"; echo "   JobState=$FAKE_STATE Reason=None" ;;
esac
"""

RAY = """
trap 'echo "ray stopped" >> "$LOG"; exit 0' TERM
folder="$(stat -c %a "$(dirname "$RAY_AUTH_TOKEN_PATH")")"
echo "ray $* | $RAY_AUTH_MODE $folder $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$LOG"
echo "token $(cat "$RAY_AUTH_TOKEN_PATH")" >> "$LOG"
[ "$FAKE_HEAD" != dead ] || { echo "out of luck" >&2; exit 1; }
[ "$FAKE_HEAD" != up ] || echo "Ray runtime started."
while true; do sleep 0.05; done
"""

PYTHON = f"""
if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi
until [ "$(grep -c ^token "$LOG")" -ge "$(wc -w <<< "$FAKE_NODES")" ]; do sleep 0.02; done
echo "driver $* | $RAY_AUTH_MODE ${{MLFLOW_TRACKING_URI:-}}" >> "$LOG"
trap 'echo "driver stopped" >> "$LOG"; sleep 0.2; exit 143' TERM
if [ "$FAKE_DRIVER" = slow ]; then while true; do sleep 0.05; done; fi
exit "$FAKE_DRIVER"
"""


def command(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


class Site:
    """A folder that stands in for a cluster's shared file system."""

    def __init__(self, folder: Path, change: Change, **changes: Any) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.venv, self.root = folder / "venv", folder / "scratch"
        self.root.mkdir()
        (folder / "checkout").symlink_to(ROOT)
        for name, body in (("srun", SRUN), ("scontrol", SCONTROL), ("sleep", SLEEP)):
            command(folder / "bin" / name, body)
        for name, body in (("ray", RAY), ("python", PYTHON)):
            command(self.venv / "bin" / name, body)
        (self.venv / "bin" / "activate").write_text(f'PATH="{self.venv}/bin:$PATH"\n')
        places = {"root": self.root, "checkout": folder / "checkout", "venv": self.venv}
        settings = {f"slurm.{name}": str(path) for name, path in places.items()}
        self.values = change(settings | changes)
        self.script = folder / "raybench.sbatch"
        self.script.write_text(render(self.values)["slurm/raybench.sbatch"])
        self.env = {
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "LOG": str(self.log),
            "SLURM_JOB_ID": "81234",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "FAKE_NODES": "n1 n2 n3",
            "FAKE_STATE": "RUNNING",
            "FAKE_HEAD": "up",
            "FAKE_DRIVER": "0",
        }

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.script), *arguments],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **env: str) -> tuple[int, str]:
        return self.finish(self.start(*arguments, **env))

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, output

    def logged(self, start: str = "") -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(start)]

    def wait_for(self, start: str) -> None:
        deadline = time.monotonic() + 20
        while not self.logged(start):
            assert time.monotonic() < deadline, self.logged()
            time.sleep(0.02)

    def tidy(self) -> bool:
        """Whether the token is gone, with everything that was started."""
        return not list((self.root / ".raybench").glob("*")) and len(
            self.logged("ray stopped")
        ) == (len(self.logged("ray start")))


@pytest.fixture
def site(tmp_path: Path, change: Change) -> Site:
    return Site(tmp_path, change)


def test_the_script_is_shell(values: Values, tmp_path: Path) -> None:
    script = tmp_path / "raybench.sbatch"
    script.write_text(render(values)["slurm/raybench.sbatch"])
    for path in (script, ROOT / "cluster" / "run.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
        checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
        if checker:
            subprocess.run([checker, str(path)], check=True, timeout=60)


def test_directives_come_before_the_first_command(values: Values) -> None:
    lines = render(values)["slurm/raybench.sbatch"].splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first for line in directives)
    assert "#SBATCH --requeue" in directives
    assert "#SBATCH --signal=B:TERM@120" in directives
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)


def test_one_head_the_other_nodes_and_the_job(site: Site) -> None:
    code, output = site.run("--fresh")
    assert code == 0, output
    head, *others = sorted(site.logged("srun"))  # the workers start side by side
    for line, node in zip((head, *others), ("n1", "n2", "n3"), strict=True):
        assert line.startswith(f"srun --nodes=1 --ntasks=1 --nodelist={node} ray start ")
    assert "ray start --block --num-cpus=8 --num-gpus=1 " in head
    assert " --head --port=22468 " in head
    assert "--dashboard-host=127.0.0.1" in head
    assert all(line.endswith("--address=n1:22468") for line in others)
    (driver,) = site.logged("driver")
    assert driver == (
        f"driver {site.folder}/checkout/jobs/score_imagenet.py --config {site.folder}/checkout/"
        "cluster/rendered/slurm/job.yaml --address n1:22468 --fresh | token "
    )
    assert site.tidy()
    assert not site.logged("scontrol requeue")


def test_the_token_is_private_shared_and_new_each_time(site: Site) -> None:
    tokens = []
    for _ in range(2):
        site.log.unlink(missing_ok=True)
        assert site.run()[0] == 0
        for line in site.logged("ray start"):
            assert line.endswith("| token 700 600")
        seen = set(site.logged("token "))
        assert len(seen) == 1
        tokens += seen
        assert site.tidy()
    assert tokens[0] != tokens[1]
    assert all(re.fullmatch(r"token [0-9a-f]{64}", token) for token in tokens)


def test_the_drivers_code_is_the_jobs_and_a_failed_job_is_not_requeued(site: Site) -> None:
    code, output = site.run(FAKE_DRIVER="3")
    assert (code, site.logged("scontrol requeue")) == (3, []), output
    assert site.tidy()


def test_a_notice_stops_the_driver_and_requeues(site: Site) -> None:
    process = site.start(FAKE_DRIVER="slow")
    site.wait_for("driver")
    process.send_signal(signal.SIGTERM)
    code, output = site.finish(process)
    assert code == 143, output
    assert site.logged("driver stopped")
    assert site.logged("scontrol requeue") == ["scontrol requeue 81234"]
    assert site.tidy()
    # Nothing is requeued before everything is put in order.
    assert site.logged()[-1] == "scontrol requeue 81234"


def test_two_notices_are_one(site: Site) -> None:
    process = site.start(FAKE_DRIVER="slow")
    site.wait_for("driver")
    process.send_signal(signal.SIGTERM)
    site.wait_for("driver stopped")
    process.send_signal(signal.SIGTERM)
    code, output = site.finish(process)
    assert code == 143, output
    assert len(site.logged("scontrol requeue")) == 1


@pytest.mark.parametrize(
    "env", [{"FAKE_STATE": "CANCELLED"}, {"FAKE_STATE": "PREEMPTED"}, {"SLURM_RESTART_COUNT": "20"}]
)
def test_cancelled_and_worn_out_jobs_stay_down(site: Site, env: dict[str, str]) -> None:
    process = site.start(FAKE_DRIVER="slow", **env)
    site.wait_for("driver")
    process.send_signal(signal.SIGTERM)
    code, _ = site.finish(process)
    assert (code, site.logged("scontrol requeue")) == (143, [])
    assert site.tidy()


def test_a_notice_before_the_head_is_up_starts_no_driver(site: Site) -> None:
    process = site.start(FAKE_HEAD="slow")
    site.wait_for("ray start")
    process.send_signal(signal.SIGTERM)
    code, output = site.finish(process)
    assert code == 143, output
    assert not site.logged("driver")
    assert site.logged("scontrol requeue")
    assert site.tidy()


def test_a_head_that_does_not_start_is_tried_again_and_named(site: Site) -> None:
    code, output = site.run(FAKE_HEAD="dead")
    assert code == 2
    assert "the head did not start on n1:22468" in output
    assert output.count("out of luck") == 3
    assert len(site.logged("srun")) == 3
    assert not site.logged("driver")
    assert not list((site.root / ".raybench").glob("*"))


def test_a_head_that_starts_at_the_second_try_will_do(site: Site) -> None:
    first = '[ "$(grep -c "^ray start" "$LOG")" -gt 1 ] || exit 1\n'
    command(site.venv / "bin" / "ray", RAY.replace("[ ", f"{first}[ ", 1))
    code, output = site.run()
    assert code == 0, output


def test_a_head_that_dies_under_the_job_is_named(site: Site) -> None:
    command(site.venv / "bin" / "ray", RAY.replace("while true", "sleep 0.6; exit 1; while true"))
    command(site.venv / "bin" / "python", PYTHON.replace('exit "$FAKE', 'sleep 1.2; exit "$FAKE'))
    code, output = site.run(FAKE_DRIVER="1", FAKE_NODES="n1")
    assert (code, "the head on n1 ended before the job did" in output) == (1, True), output


def test_a_worker_whose_ray_ends_gets_it_again_twice(site: Site) -> None:
    fall = '[[ "$*" == *--head* ]] || { sleep 0.1; exit 1; }\nwhile true'
    command(site.venv / "bin" / "ray", RAY.replace("while true", fall))
    command(site.venv / "bin" / "python", PYTHON.replace('exit "$FAKE', 'sleep 2; exit "$FAKE'))
    code, output = site.run(FAKE_NODES="n1 n2")
    assert code == 0, output
    assert len([line for line in site.logged("srun") if "--nodelist=n2" in line]) == 3


def test_one_node_is_enough(site: Site) -> None:
    code, output = site.run(FAKE_NODES="n1")
    assert code == 0, output
    assert len(site.logged("srun")) == 1


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"SLURM_JOB_ID": ""}, "submit this file with sbatch"),
        ({"FAKE_NODES": ""}, "names no nodes"),
    ],
)
def test_what_is_missing_is_named(site: Site, env: dict[str, str], says: str) -> None:
    code, output = site.run(**env)
    assert (code, says in output) == (2, True), output


@pytest.mark.parametrize("gone", ["venv", "checkout"])
def test_a_missing_folder_is_named(site: Site, gone: str) -> None:
    (site.folder / gone).rename(site.folder / "moved")
    code, output = site.run()
    assert (code, f"{site.folder}/{gone}" in output) == (2, True), output


def test_mlflow_is_told_from_a_file_that_only_its_owner_reads(site: Site) -> None:
    secrets = site.folder / ".raybench.env"
    secrets.write_text("MLFLOW_TRACKING_URI=http://127.0.0.1:5000\n")
    secrets.chmod(0o644)
    code, output = site.run()
    assert (code, "chmod 600" in output) == (2, True), output
    assert not site.logged("driver")
    secrets.chmod(0o600)
    code, output = site.run()
    assert code == 0, output
    (driver,) = site.logged("driver")
    assert "job.yaml --tracking-uri http://127.0.0.1:5000 --address" in driver
