"""The fields of KubeRay's RayCluster and RayJob (ray.io/v1) that it knows as of version 1.6.

The API server drops what the installed definitions do not know, so that a misspelt field, such as
``authOption``, changes nothing and says nothing. The whole definitions are over a megabyte, nearly
all of it pod templates, which the tests check with Kubernetes' own schemas.
"""

from collections.abc import Iterator
from typing import Any

__all__ = ["unknown_fields"]

_TOP = {"apiVersion", "kind", "metadata", "spec"}
_JOB = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "clusterSelector": dict,
    "deletionStrategy": dict,
    "entrypoint": str,
    "entrypointNumCpus": (int, float),
    "entrypointNumGpus": (int, float),
    "entrypointResources": str,
    "jobId": str,
    "managedBy": str,
    "metadata": dict,
    "rayClusterSpec": dict,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "submissionMode": str,
    "submitterConfig": dict,
    "submitterPodTemplate": dict,
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
_CLUSTER = {
    "authOptions": dict,
    "autoscalerOptions": dict,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": dict,
    "headServiceAnnotations": dict,
    "managedBy": str,
    "rayVersion": str,
    "suspend": bool,
    "upgradeStrategy": dict,
    "workerGroupSpecs": list,
}
_HEAD = {
    "enableIngress": bool,
    "headService": dict,
    "labels": dict,
    "rayStartParams": dict,
    "resources": dict,
    "serviceType": str,
    "template": dict,
}
_WORKERS = {
    "groupName": str,
    "idleTimeoutSeconds": int,
    "labels": dict,
    "maxReplicas": int,
    "minReplicas": int,
    "numOfHosts": int,
    "rayStartParams": dict,
    "replicas": int,
    "resources": dict,
    "scaleStrategy": dict,
    "suspend": bool,
    "template": dict,
}
_SCALER = {
    "env": list,
    "envFrom": list,
    "idleTimeoutSeconds": int,
    "image": str,
    "imagePullPolicy": str,
    "resources": dict,
    "securityContext": dict,
    "upscalingMode": str,
    "version": str,
    "volumeMounts": list,
}
_AUTH = {"mode": str, "secretName": str, "enableK8sTokenAuth": bool}
_CHOICES = {
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "mode": ("token", "disabled"),
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
    "version": ("v1", "v2"),
}

_Fields = dict[str, Any]


def unknown_fields(kind: str, document: Any) -> Iterator[str]:
    """Yield what KubeRay does not know or cannot read in a RayCluster or RayJob."""
    if document.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion must be ray.io/v1, found {document.get('apiVersion')!r}"
    for name in set(document) - _TOP:
        yield f"{name} is no field of a {kind}"
    spec = document.get("spec")
    if not isinstance(spec, dict):
        yield "spec is missing"
        return
    path = "spec"
    if kind == "RayJob":
        yield from _fields(path, spec, _JOB)
        spec, path = spec.get("rayClusterSpec"), "spec.rayClusterSpec"
    yield from _fields(path, spec, _CLUSTER, "headGroupSpec", "rayVersion")
    if not isinstance(spec, dict):
        return
    for name, fields in (("authOptions", _AUTH), ("autoscalerOptions", _SCALER)):
        if name in spec:
            yield from _fields(f"{path}.{name}", spec[name], fields)
    yield from _group(f"{path}.headGroupSpec", spec.get("headGroupSpec"), _HEAD)
    for index, group in enumerate(spec.get("workerGroupSpecs") or []):
        where = f"{path}.workerGroupSpecs[{index}]"
        yield from _group(where, group, _WORKERS, "groupName", "minReplicas", "maxReplicas")
        counts = [group.get(name) for name in ("minReplicas", "replicas", "maxReplicas")]
        if all(type(count) is int for count in counts) and sorted(counts) != counts:
            yield f"{where}: minReplicas, replicas, maxReplicas must rise, found {counts}"


def _group(path: str, group: Any, fields: _Fields, *required: str) -> Iterator[str]:
    yield from _fields(path, group, fields, "template", *required)
    params = group.get("rayStartParams") if isinstance(group, dict) else None
    for name, value in (params or {}).items():
        if not isinstance(value, str):
            yield f"{path}.rayStartParams.{name} must be a string, found {value!r}"


def _fields(path: str, found: Any, known: _Fields, *required: str) -> Iterator[str]:
    if not isinstance(found, dict):
        yield f"{path} must be a mapping, found {type(found).__name__}"
        return
    for name in required:
        if name not in found:
            yield f"{path}.{name} is missing"
    for name, value in found.items():
        if name not in known:
            yield f"{path}.{name} is no field that KubeRay knows"
        elif not isinstance(value, known[name]) or (known[name] is int and type(value) is bool):
            yield f"{path}.{name} cannot be {value!r}"
        elif name in _CHOICES and value not in _CHOICES[name]:
            yield f"{path}.{name} must be one of {', '.join(_CHOICES[name])}, found {value!r}"
