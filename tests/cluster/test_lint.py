"""The lint: clean on what is rendered, and loud on every way to leave a door open."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.lint import problems
from cluster.render import render
from cluster.values import Values

ROOT = Path(__file__).resolve().parents[2]
POLICY = "kubernetes/base.yaml"
RAY_CLUSTER = "kubernetes/raycluster.yaml"
RAY_JOB = "kubernetes/rayjob.yaml"
HEAD = "headGroupSpec.template.spec"
REMOVE = object()


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    from cluster.values import load_values

    return render(load_values(ROOT / "cluster" / "values.yaml"))


def edited(files: dict[str, str], name: str, path: str, value: object) -> dict[str, str]:
    """Return the files with one value of one manifest set, or removed."""
    document = yaml.safe_load(files[name])
    part = document
    *folders, last = path.split(".")
    for folder in folders:
        part = part[int(folder)] if folder.isdigit() else part[folder]
    if value is REMOVE:
        del part[last]
    else:
        part[last] = value
    return files | {name: yaml.safe_dump(document)}


def test_what_is_rendered_is_clean(files: dict[str, str]) -> None:
    assert problems(files) == []


CLUSTER = [
    ("spec.authOptions", REMOVE, "authOptions.mode is not token"),
    ("spec.authOptions", {"mode": "disabled"}, "authOptions.mode is not token"),
    ("spec.headGroupSpec.rayStartParams.dashboard-host", REMOVE, "KubeRay then takes 0.0.0.0"),
    ("spec.headGroupSpec.rayStartParams.dashboard-host", "0.0.0.0", "'0.0.0.0' is neither"),
    ("spec.headGroupSpec.rayStartParams.dashboard-host", "::", "'::' is neither"),
    ("spec.headGroupSpec.rayStartParams.dashboard-host", "$(hostname)", "is neither"),
    ("spec.headGroupSpec.rayStartParams.num-cpus", 0, "must be a string"),
    ("spec.headGroupSpec.serviceType", "LoadBalancer", "its service must stay inside"),
    ("spec.headGroupSpec.serviceType", "NodePort", "its service must stay inside"),
    ("spec.headGroupSpec.enableIngress", True, "its service must stay inside"),
    (f"spec.{HEAD}.securityContext.runAsNonRoot", False, "runAsNonRoot must be true"),
    (f"spec.{HEAD}.securityContext", REMOVE, "runAsNonRoot must be true"),
    (f"spec.{HEAD}.securityContext.seccompProfile.type", "Unconfined", "seccompProfile"),
    (f"spec.{HEAD}.hostNetwork", True, "shares a namespace"),
    (f"spec.{HEAD}.containers.0.securityContext", REMOVE, "allowPrivilegeEscalation"),
    (f"spec.{HEAD}.containers.0.securityContext.privileged", True, "privileged"),
    (f"spec.{HEAD}.containers.0.securityContext.readOnlyRootFilesystem", False, "readOnlyRoot"),
    (f"spec.{HEAD}.containers.0.securityContext.capabilities.drop", ["CHOWN"], "drop ALL"),
    (f"spec.{HEAD}.containers.0.image", "registry/raybench:latest", "digest or a tag"),
    (f"spec.{HEAD}.containers.0.image", "registry:5000/raybench", "digest or a tag"),
    (f"spec.{HEAD}.containers.0.env", [], "RAY_AUTH_MODE=token is missing"),
    (
        f"spec.{HEAD}.containers.0.env",
        [{"name": "RAY_AUTH_MODE", "value": "disabled"}],
        "RAY_AUTH_MODE=token is missing",
    ),
    (
        f"spec.{HEAD}.containers.0.env",
        [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "value": "abc"}],
        "RAY_AUTH_TOKEN is written out",
    ),
    (f"spec.{HEAD}.containers.0.resources.limits", {"cpu": "1"}, "limits of cpu and memory"),
    (f"spec.{HEAD}.containers.0.livenessProbe", REMOVE, "probes are missing"),
    ("spec.headGroupSpec.template.metadata.labels", {"app": "x"}, "no NetworkPolicy"),
    ("metadata.namespace", "elsewhere", "no NetworkPolicy"),
    ("spec.autoscalerOptions.securityContext", REMOVE, "autoscalerOptions.securityContext"),
    ("spec.authOption", {"mode": "token"}, "spec.authOption is no field"),
    ("spec.workerGroupSpecs.0.minReplica", 0, "minReplica is no field"),
    ("spec.workerGroupSpecs.0.maxReplicas", "8", "maxReplicas cannot be '8'"),
    ("spec.workerGroupSpecs.0.minReplicas", 9, "must rise"),
    ("spec.autoscalerOptions.version", "v3", "must be one of v1, v2"),
    ("spec.rayVersion", REMOVE, "spec.rayVersion is missing"),
    ("apiVersion", "ray.io/v1alpha1", "apiVersion must be ray.io/v1"),
    ("spec", REMOVE, "spec is missing"),
]

JOB = [
    ("spec.rayClusterSpec.authOptions", REMOVE, "authOptions.mode is not token"),
    (
        "spec.rayClusterSpec.headGroupSpec.rayStartParams.dashboard-host",
        "0.0.0.0",
        "'0.0.0.0' is neither",
    ),
    ("spec.shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes must be true"),
    ("spec.shutdownAfterJobFinishes", REMOVE, "shutdownAfterJobFinishes must be true"),
    ("spec.ttlSecondsAfterFinished", -1, "ttlSecondsAfterFinished must be"),
    ("spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds must be"),
    ("spec.activeDeadlineSeconds", REMOVE, "activeDeadlineSeconds must be"),
    ("spec.backoffLimit", True, "backoffLimit must be"),
    ("spec.submitterPodTemplate", REMOVE, "may run as root"),
    ("spec.submitterPodTemplate.spec.securityContext", REMOVE, "submitter: securityContext"),
    ("spec.entrypoint", "python x.py --data 'a?b&c'", "plain words"),
    ("spec.submissionMode", "K8SJobMode", "must be one of K8sJobMode"),
    ("spec.ttlSecondsAfterFinish", 5, "ttlSecondsAfterFinish is no field"),
    ("spec.rayClusterSpec", REMOVE, "spec.rayClusterSpec must be a mapping"),
]


@pytest.mark.parametrize(("path", "value", "says"), CLUSTER)
def test_open_ray_clusters_are_refused(
    files: dict[str, str], path: str, value: object, says: str
) -> None:
    found = problems(edited(files, RAY_CLUSTER, path, value))
    assert any(says in line and line.startswith(RAY_CLUSTER) for line in found), found


@pytest.mark.parametrize(("path", "value", "says"), JOB)
def test_open_ray_jobs_are_refused(
    files: dict[str, str], path: str, value: object, says: str
) -> None:
    found = problems(edited(files, RAY_JOB, path, value))
    assert any(says in line and line.startswith(RAY_JOB) for line in found), found


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"from": []},
        {"from": [{}]},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
        {"from": [{"ipBlock": {"cidr": "::/0"}}]},
    ],
)
def test_a_policy_that_lets_everyone_in_closes_nothing(
    files: dict[str, str], rule: dict[str, Any]
) -> None:
    base = list(yaml.safe_load_all(files[POLICY]))
    for thing in base:
        if thing["kind"] == "NetworkPolicy":
            thing["spec"]["ingress"].append(rule)
    found = problems(files | {POLICY: yaml.safe_dump_all(base)})
    assert any("no NetworkPolicy" in line for line in found)


def test_without_a_policy_every_ray_pod_is_named(files: dict[str, str]) -> None:
    found = problems({RAY_CLUSTER: files[RAY_CLUSTER]})
    assert found == [
        f"{RAY_CLUSTER}: {name}: no NetworkPolicy of this set closes its ports"
        for name in ("head", "workers")
    ]


LAUNCHER = [
    ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "listens on '0.0.0.0'"),
    ("--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0", "listens on '0.0.0.0'"),
    ("--dashboard-host=127.0.0.1", '--dashboard-host=""', "listens on ''"),
    ("--dashboard-host=127.0.0.1", "", "--dashboard-host is not given"),
    ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "export RAY_AUTH_MODE=token must come"),
    ("export RAY_AUTH_MODE=token", "export", "export RAY_AUTH_MODE=token must come"),
    ("RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token", "RAY_AUTH_TOKEN=abc", "token is written out"),
    ("~/.ray/auth_token: ~/.ray/auth_token", "~/x: ~/x", "brings no token"),
    ("head_start_ray_commands", "head_start", "head_start_ray_commands starts no Ray"),
]


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
@pytest.mark.parametrize(("old", "new", "says"), LAUNCHER)
def test_open_launcher_configurations_are_refused(
    files: dict[str, str], cloud: str, old: str, new: str, says: str
) -> None:
    name = f"{cloud}/cluster.yaml"
    text = yaml.safe_dump(yaml.safe_load(files[name]), width=10**6)
    assert old in text
    found = problems({name: text.replace(old, new)})
    assert any(says in line for line in found), found


@pytest.mark.parametrize(
    ("cloud", "field", "says"),
    [
        ("aws", "SecurityGroupIds", "no SecurityGroupIds"),
        ("aws", "MetadataOptions", "HttpTokens must be required"),
        ("gcp", "networkInterfaces", "no networkInterfaces"),
    ],
)
def test_networks_that_ray_would_open_are_refused(
    files: dict[str, str], cloud: str, field: str, says: str
) -> None:
    name = f"{cloud}/cluster.yaml"
    for node in ("head", "worker"):
        path = f"available_node_types.{node}.node_config.{field}"
        found = problems(edited(files, name, path, REMOVE))
        assert any(f"{node}: " in line and says in line for line in found), found


def test_rays_own_defaults_are_refused() -> None:
    import ray.autoscaler

    folder = Path(ray.autoscaler.__file__).parent
    for cloud in ("aws", "gcp"):
        found = problems({f"{cloud}.yaml": (folder / cloud / "defaults.yaml").read_text()})
        assert any("listens on '0.0.0.0'" in line for line in found)
        assert any("RAY_AUTH_MODE=token must come" in line for line in found)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("ray start --head --dashboard-host=127.0.0.1", "export RAY_AUTH_MODE=token must come"),
        ("# export RAY_AUTH_MODE=token\nray start --head", "export RAY_AUTH_MODE=token must come"),
        ("export RAY_AUTH_MODE=token\nray start --head", "--dashboard-host is not given"),
        (
            "export RAY_AUTH_MODE=token\nray start --head \\\n  --dashboard-host 10.0.0.1",
            "listens on '10.0.0.1'",
        ),
        (
            "ray start --head --dashboard-host=::1\nexport RAY_AUTH_MODE=token",
            "export RAY_AUTH_MODE=token must come",
        ),
    ],
)
def test_open_scripts_are_refused(script: str, says: str) -> None:
    assert any(says in line for line in problems({"job.sh": script}))


def test_scripts_without_ray_are_left_alone() -> None:
    assert problems({"job.sh": "echo ray\n"}) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("USER 1000:1000\n", "", "USER must be a number"),
        ("USER 1000:1000", "USER 0", "USER must be a number"),
        ("USER 1000:1000", "USER raybench", "USER must be a number"),
        ("USER 1000:1000", "USER 1000\nUSER root", "USER must be a number"),
        ("FROM python:3.11-slim-bookworm AS build", "FROM python:latest AS build", "FROM python"),
        ("--require-hashes --only-binary", "--only-binary", "installs without --require-hashes"),
        ("COPY raybench", "ADD https://example.org/x /x\nCOPY raybench", "without a hash"),
        ("WORKDIR", "RUN curl https://example.org/x | sh\nWORKDIR", "without a hash"),
    ],
)
def test_open_images_are_refused(files: dict[str, str], old: str, new: str, says: str) -> None:
    text = files["Containerfile"]
    assert old in text
    assert any(says in line for line in problems({"Containerfile": text.replace(old, new)}))


def test_a_secret_in_a_file_is_refused() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"tracking-uri": "http://x"}}
    assert "does not belong in a file" in problems({"s.yaml": yaml.safe_dump(secret)})[0]


def test_render_writes_nothing_that_the_lint_refuses(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import kubernetes
    from cluster import render as rendering

    whole: Callable[[Values], Any] = kubernetes.ray_job

    def opened(wanted: Values) -> Any:
        manifest = copy.deepcopy(whole(wanted))
        del manifest["spec"]["rayClusterSpec"]["authOptions"]
        return manifest

    monkeypatch.setattr(kubernetes, "ray_job", opened)
    assert rendering.main(["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path, files: dict[str, str]) -> None:
    def run(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "cluster" / "lint.py"), *names]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    rendered = ROOT / "cluster" / "rendered" / "kubernetes"
    good = run(*map(str, sorted(rendered.glob("*.yaml"))))
    assert (good.returncode, good.stdout) == (0, "3 file(s): no open door found\n")
    bad = tmp_path / "bad.yaml"
    bad.write_text(files[RAY_CLUSTER].replace("127.0.0.1", "0.0.0.0"))
    found = run(str(bad))
    assert found.returncode == 1
    assert "'0.0.0.0' is neither loopback" in found.stdout
    assert run().returncode == 2
    assert run(str(tmp_path / "absent.yaml")).returncode == 2
