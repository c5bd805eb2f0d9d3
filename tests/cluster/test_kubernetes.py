"""The manifests against Kubernetes' own schemas, strictly, and what they promise."""

from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.kubernetes import AGENT_PORT, DASHBOARD_PORT
from cluster.render import render
from cluster.values import Values

VERSION = "1.34"

Change = Callable[[dict[str, Any]], Values]

VARIANTS: dict[str, dict[str, Any]] = {
    "as committed": {},
    "cpu": {"workers.gpus": 0, "job.gpus_per_actor": 0, "mlflow_secret": ""},
    "no claim": {"kubernetes.data_claim": "", "job.data": "imagenet:s3://bucket/val"},
    "bucket": {
        "kubernetes.data_claim": "",
        "kubernetes.service_account": "raybench",
        "kubernetes.store_secret": "raybench-store",
        "job.data": "imagenet:s3://bucket/val",
        "job.out": "s3://bucket/results/imagenet?region=eu-west-1",
    },
    "digest": {
        "image.digest": "sha256:" + 64 * "a",
        "kubernetes.storage_class": "efs",
        "kubernetes.node_selector": {"pool": "gpu"},
        "kubernetes.tolerations": [],
    },
}


@pytest.fixture(params=VARIANTS)
def manifests(request: pytest.FixtureRequest, change: Change) -> dict[str, list[Any]]:
    files = render(change(VARIANTS[request.param]))
    return {
        name: list(yaml.safe_load_all(text))
        for name, text in files.items()
        if name.startswith("kubernetes/")
    }


def cluster_specs(manifests: dict[str, list[Any]]) -> Iterator[Any]:
    yield manifests["kubernetes/raycluster.yaml"][0]["spec"]
    yield manifests["kubernetes/rayjob.yaml"][0]["spec"]["rayClusterSpec"]


def pods(manifests: dict[str, list[Any]]) -> Iterator[Any]:
    """Every pod template as a Pod, with the containers that KubeRay makes of our options."""
    templates = [manifests["kubernetes/rayjob.yaml"][0]["spec"]["submitterPodTemplate"]]
    for spec in cluster_specs(manifests):
        templates.append(spec["headGroupSpec"]["template"])
        templates += [group["template"] for group in spec["workerGroupSpecs"]]
        options = spec["autoscalerOptions"]
        made = {"name": "autoscaler", "image": "x:1"}
        made |= {key: options[key] for key in ("resources", "securityContext", "volumeMounts")}
        head = spec["headGroupSpec"]["template"]
        grown = head["spec"] | {"containers": [*head["spec"]["containers"], made]}
        templates.append({"metadata": head["metadata"], "spec": grown})
    for template in templates:
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template["metadata"] | {"name": "pod"},
            "spec": template["spec"],
        }


def test_pods_and_what_they_need_fit_the_strict_schemas(manifests: dict[str, list[Any]]) -> None:
    found = list(pods(manifests))
    assert len(found) == 7
    for thing in (*found, *manifests["kubernetes/base.yaml"]):
        kubernetes_validate.validate(thing, VERSION, strict=True)


def test_the_strict_schemas_would_notice(manifests: dict[str, list[Any]]) -> None:
    pod = next(pods(manifests))
    pod["spec"]["containers"][0]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_volumes_and_mounts_fit_together(manifests: dict[str, list[Any]]) -> None:
    for pod in pods(manifests):
        volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
        assert len(set(volumes)) == len(volumes)
        for container in pod["spec"]["containers"]:
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= set(volumes)
            assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


def test_objects_that_are_referred_to_exist(manifests: dict[str, list[Any]]) -> None:
    base = {
        (thing["kind"], thing["metadata"]["name"]) for thing in manifests["kubernetes/base.yaml"]
    }
    ready_made = {"imagenet"}
    for pod in pods(manifests):
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in base
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert claim in ready_made or ("PersistentVolumeClaim", claim) in base


def test_results_in_a_bucket_take_no_volume_but_the_right_to_use_it(change: Change) -> None:
    files = render(change(VARIANTS["bucket"]))
    assert "PersistentVolumeClaim" not in files["kubernetes/base.yaml"]
    job = next(
        thing
        for thing in yaml.safe_load_all(files["kubernetes/base.yaml"])
        if thing["kind"] == "ConfigMap"
    )
    options = yaml.safe_load(job["data"]["job.yaml"])
    assert options["out"] == "s3://bucket/results/imagenet?region=eu-west-1"
    spec = yaml.safe_load(files["kubernetes/rayjob.yaml"])["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert "persistentVolumeClaim" not in str(pod)
        assert pod["serviceAccountName"] == "raybench"
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "raybench-store"}}]
        # Weights and the store's mirror are on scratch, which can be written.
        cache = {item["name"]: item.get("value") for item in container["env"]}["RAYBENCH_CACHE"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert str(cache).startswith("/tmp/")
        assert mounts["/tmp"] == "tmp"
        assert "/shared/results" not in mounts


def test_as_committed_results_are_on_a_volume_and_nobody_has_a_bucket(values: Values) -> None:
    files = render(values)
    assert "PersistentVolumeClaim" in files["kubernetes/base.yaml"]
    assert "serviceAccountName" not in files["kubernetes/rayjob.yaml"]
    assert "envFrom" not in files["kubernetes/rayjob.yaml"]


def test_head_works_not_and_workers_come_and_go(manifests: dict[str, list[Any]]) -> None:
    for spec in cluster_specs(manifests):
        params = spec["headGroupSpec"]["rayStartParams"]
        assert (params["num-cpus"], params["num-gpus"]) == ("0", "0")
        assert spec["enableInTreeAutoscaling"] is True
        (group,) = spec["workerGroupSpecs"]
        assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (0, 0, 8)
        assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 300


def test_spot_machines_are_tolerated(values: Values) -> None:
    text = render(values)["kubernetes/rayjob.yaml"]
    spec = yaml.safe_load(text)["spec"]["rayClusterSpec"]
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= {
        toleration["key"] for toleration in worker["tolerations"]
    }
    assert "tolerations" not in spec["headGroupSpec"]["template"]["spec"]
    # Ray hands its work back before Kubernetes kills it.
    env = {item["name"]: item.get("value") for item in worker["containers"][0]["env"]}
    drain = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0)
    assert 0 < drain < worker["terminationGracePeriodSeconds"]


def test_the_job_ends_whatever_happens(manifests: dict[str, list[Any]]) -> None:
    spec = manifests["kubernetes/rayjob.yaml"][0]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 600
    assert spec["activeDeadlineSeconds"] == 86400
    assert spec["backoffLimit"] == 2
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_mlflow_comes_from_a_secret_and_to_the_head_alone(values: Values) -> None:
    spec = yaml.safe_load(render(values)["kubernetes/rayjob.yaml"])["spec"]["rayClusterSpec"]
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    refs = {
        item["name"]: item["valueFrom"]["secretKeyRef"]
        for item in head["env"]
        if item["name"].startswith("MLFLOW")
    }
    assert set(refs) == {
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    }
    assert {ref["name"] for ref in refs.values()} == {"raybench-mlflow"}
    # A misspelt Secret stops the pod; a server without a login needs no user name.
    assert refs["MLFLOW_TRACKING_URI"]["optional"] is False
    assert refs["MLFLOW_TRACKING_USERNAME"]["optional"] is True
    assert "MLFLOW" not in str(worker)


def test_probes_ask_where_no_token_is_needed(manifests: dict[str, list[Any]]) -> None:
    for spec in cluster_specs(manifests):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert group["rayStartParams"]["dashboard-agent-listen-port"] == str(AGENT_PORT)
            container = group["template"]["spec"]["containers"][0]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": AGENT_PORT}


def test_the_policy_lets_in_the_cluster_the_operator_and_the_submitter(
    manifests: dict[str, list[Any]],
) -> None:
    policy = next(
        thing for thing in manifests["kubernetes/base.yaml"] if thing["kind"] == "NetworkPolicy"
    )
    among, outside = policy["spec"]["ingress"]
    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert among == {"from": [{"podSelector": {"matchLabels": selector}}]}
    assert outside["ports"] == [{"protocol": "TCP", "port": DASHBOARD_PORT}]
    submitter = manifests["kubernetes/rayjob.yaml"][0]["spec"]["submitterPodTemplate"]["metadata"]
    assert submitter["labels"] in [
        peer.get("podSelector", {}).get("matchLabels") for peer in outside["from"]
    ]
    # The submitter is no Ray node, or it would reach every port.
    assert any(submitter["labels"].get(key) != value for key, value in selector.items())
    for spec in cluster_specs(manifests):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert group["template"]["metadata"]["labels"] == selector
