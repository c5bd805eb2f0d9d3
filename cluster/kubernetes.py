"""Manifests for KubeRay: what both kinds share, a RayCluster to look at, a RayJob to leave alone.

    base(values)          namespace, volume for results on disk, the job's options, network policy
    ray_cluster(values)   stays until deleted; jobs are sent to it
    ray_job(values)       makes its own cluster, runs one job, takes the cluster down

The operator adds the token to every Ray container (`authOptions`). RAY_AUTH_MODE is set here as
well: an operator too old to know `authOptions` drops it silently, and Ray then refuses to start
for want of a token instead of starting with an open door.
"""

from typing import Any

import yaml

from cluster.container import APP, HOME
from cluster.values import Values

__all__ = ["AGENT_PORT", "DASHBOARD_PORT", "Manifest", "base", "labels", "ray_cluster", "ray_job"]

Manifest = dict[str, Any]

DASHBOARD_PORT = 8265
AGENT_PORT = 52365
"""Answers health checks without a token, on the pod's address."""

JOB_FILE = "/etc/raybench/job.yaml"
_GCS_PORT = 6379


def labels(values: Values, component: str) -> dict[str, str]:
    """Return the labels of a pod; the network policy selects by them."""
    return {
        "app.kubernetes.io/name": "raybench",
        "app.kubernetes.io/instance": values.name,
        "app.kubernetes.io/component": component,
    }


def base(values: Values) -> list[Manifest]:
    """Return what has to exist before either kind of cluster."""
    settings = values.kubernetes
    meta = {"namespace": settings.namespace, "labels": labels(values, "base")}
    claim: Manifest = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{settings.results_gb}Gi"}},
    }
    if settings.storage_class:
        claim["storageClassName"] = settings.storage_class
    job = yaml.safe_dump(values.job_file(values.root), sort_keys=False)
    results: list[Manifest] = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": _results(values), **meta},
            "spec": claim,
        }
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": settings.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        },
        *([] if values.out_is_remote else results),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{values.name}-job", **meta},
            "data": {"job.yaml": job},
        },
        _network_policy(values, meta),
    ]


def ray_cluster(values: Values) -> Manifest:
    """Return a RayCluster; its dashboard is on the head's loopback, which port-forward reaches."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": values.name, "namespace": values.kubernetes.namespace},
        "spec": _cluster_spec(values, dashboard_host="127.0.0.1"),
    }


def ray_job(values: Values) -> Manifest:
    """Return a RayJob that runs the job once, with retries that resume.

    The operator reads the job's state from the dashboard, so that one cannot be on loopback here.
    It listens on the pod's address, and the network policy lets in the operator and the submitter.
    """
    settings = values.kubernetes
    submitter = {
        "name": "ray-job-submitter",
        "image": values.image.reference,
        "env": _env({"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "HOME": "/tmp"}),
        "resources": _resources(cpu="500m", memory="1Gi"),
        "securityContext": _no_privileges(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": f"{values.name}-job", "namespace": settings.namespace},
        "spec": {
            "entrypoint": f"{APP}/cluster/run.sh {values.job.script} {JOB_FILE}",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": settings.ttl_s,
            "activeDeadlineSeconds": settings.deadline_s,
            "backoffLimit": settings.retries,
            "submitterConfig": {"backoffLimit": 2},
            "submitterPodTemplate": {
                "metadata": {"labels": labels(values, "submitter")},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "securityContext": _pod_user(values),
                    "containers": [submitter],
                    "volumes": [_scratch("tmp", 1)],
                },
            },
            "rayClusterSpec": _cluster_spec(values, dashboard_host="$POD_IP"),
        },
    }


def _cluster_spec(values: Values, *, dashboard_host: str) -> Manifest:
    return {
        "rayVersion": values.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": values.workers.idle_minutes * 60,
            "upscalingMode": "Default",
            "resources": _resources(cpu="500m", memory="1Gi"),
            "securityContext": _no_privileges(),
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {
                "num-cpus": "0",
                "num-gpus": "0",
                "dashboard-host": dashboard_host,
                "dashboard-port": str(DASHBOARD_PORT),
                "dashboard-agent-listen-port": str(AGENT_PORT),
            },
            "template": _head(values),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": 0,
                "minReplicas": 0,
                "maxReplicas": values.workers.max,
                "rayStartParams": {"dashboard-agent-listen-port": str(AGENT_PORT)},
                "template": _worker(values),
            }
        ],
    }


def _head(values: Values) -> Manifest:
    head = values.head
    env = _env(_ray_env(values)) + _pod_ip() + _mlflow_env(values)
    container = _ray_container(values, "ray-head", env, head.cpus, head.memory_gb)
    container["ports"] = [
        {"name": "gcs-server", "containerPort": _GCS_PORT},
        {"name": "dashboard", "containerPort": DASHBOARD_PORT},
    ]
    container["volumeMounts"].append(
        {"name": "job", "mountPath": JOB_FILE.rpartition("/")[0], "readOnly": True}
    )
    spec = _pod_spec(values, container, head.scratch_gb)
    spec["volumes"].append({"name": "job", "configMap": {"name": f"{values.name}-job"}})
    return {"metadata": {"labels": labels(values, "ray-node")}, "spec": spec}


def _worker(values: Values) -> Manifest:
    workers = values.workers
    env = _env(_ray_env(values)) + _pod_ip()
    container = _ray_container(values, "ray-worker", env, workers.cpus, workers.memory_gb)
    if workers.gpus:
        # Nothing but the limit counts for a GPU; requests must equal it.
        for kind in ("requests", "limits"):
            container["resources"][kind]["nvidia.com/gpu"] = str(workers.gpus)
    spec = _pod_spec(values, container, workers.scratch_gb)
    spec["automountServiceAccountToken"] = False
    spec["terminationGracePeriodSeconds"] = workers.grace_s
    spec["tolerations"] = values.kubernetes.tolerations
    if values.kubernetes.node_selector:
        spec["nodeSelector"] = values.kubernetes.node_selector
    return {"metadata": {"labels": labels(values, "ray-node")}, "spec": spec}


def _ray_container(
    values: Values, name: str, env: list[Manifest], cpus: int, memory_gb: int
) -> Manifest:
    probe = {"httpGet": {"path": "/api/healthz", "port": AGENT_PORT}, "timeoutSeconds": 5}
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "home", "mountPath": HOME},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if not values.out_is_remote:
        mounts.append({"name": "results", "mountPath": f"{values.root}/results"})
    if values.kubernetes.data_claim:
        mounts.append({"name": "data", "mountPath": f"{values.root}/data", "readOnly": True})
    secret = values.kubernetes.store_secret
    return {
        "name": name,
        "image": values.image.reference,
        "imagePullPolicy": "IfNotPresent",
        "env": env,
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        "resources": _resources(cpu=str(cpus), memory=f"{memory_gb}Gi"),
        "securityContext": _no_privileges(),
        # Ray's processes import for a minute on a cold node before they answer.
        "startupProbe": probe | {"periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": probe | {"periodSeconds": 10, "failureThreshold": 6},
        "livenessProbe": probe | {"periodSeconds": 20, "failureThreshold": 6},
        "volumeMounts": mounts,
    }


def _pod_spec(values: Values, container: Manifest, scratch_gb: int) -> Manifest:
    memory_gb = values.head.memory_gb if container["name"] == "ray-head" else 0
    memory_gb = memory_gb or values.workers.memory_gb
    volumes: list[Manifest] = [
        _scratch("tmp", scratch_gb),
        _scratch("home", 1),
        # Ray's object store; a third of the memory is what Ray takes for it by itself.
        {
            "name": "shared-memory",
            "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, memory_gb // 3)}Gi"},
        },
    ]
    if not values.out_is_remote:
        volumes.append(
            {"name": "results", "persistentVolumeClaim": {"claimName": _results(values)}}
        )
    if values.kubernetes.data_claim:
        claim = {"claimName": values.kubernetes.data_claim, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    account = values.kubernetes.service_account
    return {
        "restartPolicy": "Never",  # the autoscaler replaces pods
        **({"serviceAccountName": account} if account else {}),
        "securityContext": _pod_user(values),
        "containers": [container],
        "volumes": volumes,
    }


def _ray_env(values: Values) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(values.workers.grace_s - 5),
        "MPLCONFIGDIR": "/tmp/matplotlib",
        **values.caches(values.root),
    }


def _mlflow_env(values: Values) -> list[Manifest]:
    """Only the head's: the driver alone talks to MLflow."""
    if not values.mlflow_secret:
        return []
    keys = {
        "MLFLOW_TRACKING_URI": ("tracking-uri", False),
        "MLFLOW_TRACKING_USERNAME": ("username", True),
        "MLFLOW_TRACKING_PASSWORD": ("password", True),
    }
    return [
        {
            "name": name,
            "valueFrom": {
                "secretKeyRef": {"name": values.mlflow_secret, "key": key, "optional": optional}
            },
        }
        for name, (key, optional) in keys.items()
    ]


def _network_policy(values: Values, meta: Manifest) -> Manifest:
    """Close every port of the Ray pods but to one another, the operator and the submitter.

    The control, object and metrics ports listen on all interfaces, whatever the dashboard does.
    """
    settings = values.kubernetes
    nodes = labels(values, "ray-node")
    operator = {"kubernetes.io/metadata.name": settings.operator_namespace}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{values.name}-closed", **meta},
        "spec": {
            "podSelector": {"matchLabels": nodes},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": nodes}}]},
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": operator}},
                        {"podSelector": {"matchLabels": labels(values, "submitter")}},
                    ],
                    "ports": [{"protocol": "TCP", "port": DASHBOARD_PORT}],
                },
            ],
        },
    }


def _results(values: Values) -> str:
    return f"{values.name}-results"


def _pod_user(values: Values) -> Manifest:
    uid = values.image.uid
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _no_privileges() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _resources(*, cpu: str, memory: str) -> Manifest:
    return {kind: {"cpu": cpu, "memory": memory} for kind in ("requests", "limits")}


def _scratch(name: str, size_gb: int) -> Manifest:
    return {"name": name, "emptyDir": {"sizeLimit": f"{size_gb}Gi"}}


def _env(values: dict[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _pod_ip() -> list[Manifest]:
    return [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
