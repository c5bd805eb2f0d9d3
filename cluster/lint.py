#!/usr/bin/env python3
"""Find open doors in files that start Ray: manifests, launcher configurations, scripts, images.

    python cluster/lint.py cluster/rendered/kubernetes/*.yaml     # all files of one set together

Refused are: Ray without token authentication, a dashboard on all interfaces, Ray pods that no
network policy closes, pods that may gain privileges, a cloud network that Ray would open itself,
an image that is not pinned or runs as root, and fields that KubeRay does not know (the API server
drops those silently).
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import kuberay

__all__ = ["main", "problems"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POD_ADDRESS = "$POD_IP"
"""What a pod has besides loopback; it needs a network policy."""

_EVERYONE = re.compile(r"0\.0\.0\.0/0|(?<![0-9a-f:])::/0")
_HOST = re.compile(r"--dashboard-host[= ]\"?([^\s\";]*)")
_NUMERIC_USER = re.compile(r"[1-9]\d*(:\d+)?")


def problems(files: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a set of files that are used together, each with its file.

    Args:
        files: text by file name. Manifests are known by their kind, launcher configurations by
            their start commands, the rest by its name (Containerfile) or as shell scripts.
    """
    documents = {name: _documents(name, text) for name, text in files.items()}
    policies = [
        found
        for parsed in documents.values()
        for found in parsed or ()
        if isinstance(found, dict) and found.get("kind") == "NetworkPolicy"
    ]
    found: list[str] = []
    for name, text in files.items():
        found += [
            f"{name}: {problem}" for problem in _of_file(name, text, documents[name], policies)
        ]
    return found


def _documents(name: str, text: str) -> list[Any] | None:
    """Return the YAML documents of a file, or None where it is not YAML by its name."""
    if not name.endswith((".yaml", ".yml")):
        return None
    return list(yaml.safe_load_all(text))


def _of_file(
    name: str, text: str, documents: list[Any] | None, policies: list[Any]
) -> Iterator[str]:
    if documents is None:
        image = name.rpartition("/")[2].startswith(("Containerfile", "Dockerfile"))
        yield from _container(text) if image else _commands(text, "script")
        return
    for document in documents:
        if not isinstance(document, dict):
            continue
        kind = document.get("kind")
        if kind in ("RayCluster", "RayJob"):
            yield from _ray(kind, document, policies)
        elif "head_start_ray_commands" in document or "available_node_types" in document:
            yield from _launcher(document)
        elif kind == "Secret":
            yield "a Secret with its contents does not belong in a file: kubectl create secret"


def _ray(kind: str, document: Any, policies: list[Any]) -> Iterator[str]:
    yield from kuberay.unknown_fields(kind, document)
    spec = document.get("spec") or {}
    if kind == "RayJob":
        yield from _lifecycle(spec)
        template = spec.get("submitterPodTemplate")
        if not template:
            yield "spec.submitterPodTemplate is missing: the operator's own may run as root"
        else:
            yield from _pod("submitter", template)
        spec = spec.get("rayClusterSpec") or {}
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode is not token: anyone who reaches Ray runs code in it"
    scaler = (spec.get("autoscalerOptions") or {}).get("securityContext") or {}
    if spec.get("enableInTreeAutoscaling") and scaler.get("allowPrivilegeEscalation") is not False:
        yield "autoscalerOptions.securityContext: allowPrivilegeEscalation must be false"
    head = spec.get("headGroupSpec") or {}
    groups = [("head", head)] + [
        (str(group.get("groupName")), group) for group in spec.get("workerGroupSpecs") or []
    ]
    host = (head.get("rayStartParams") or {}).get("dashboard-host")
    if host is None:
        yield "head: dashboard-host is not set, and KubeRay then takes 0.0.0.0"
    elif host not in (*LOOPBACK, POD_ADDRESS):
        yield f"head: dashboard-host {host!r} is neither loopback nor {POD_ADDRESS}"
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "head: its service must stay inside (ClusterIP, no ingress)"
    for name, group in groups:
        template = group.get("template") or {}
        yield from _pod(name, template, ray=True)
        if not any(_closes(policy, document, template) for policy in policies):
            yield f"{name}: no NetworkPolicy of this set closes its ports"


def _lifecycle(spec: Any) -> Iterator[str]:
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield "spec.shutdownAfterJobFinishes must be true, or the cluster is paid for ever"
    wanted = {"ttlSecondsAfterFinished": 0, "activeDeadlineSeconds": 1, "backoffLimit": 0}
    for field, least in wanted.items():
        value = spec.get(field)
        if type(value) is not int or value < least:
            yield f"spec.{field} must be a whole number from {least} up, found {value!r}"
    if not isinstance(spec.get("entrypoint"), str) or re.search(r"[^\w./ =:-]", spec["entrypoint"]):
        yield "spec.entrypoint must be plain words: the operator puts it into a shell unquoted"


def _pod(name: str, template: Any, *, ray: bool = False) -> Iterator[str]:
    spec = template.get("spec") or {}
    user = spec.get("securityContext") or {}
    if user.get("runAsNonRoot") is not True:
        yield f"{name}: securityContext.runAsNonRoot must be true"
    if (user.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield f"{name}: securityContext.seccompProfile.type must be RuntimeDefault"
    if spec.get("hostNetwork") or spec.get("hostPID") or spec.get("hostIPC"):
        yield f"{name}: shares a namespace of its node"
    for container in spec.get("containers") or []:
        label = f"{name}/{container.get('name')}"
        context = container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{label}: allowPrivilegeEscalation must be false, privileged absent"
        if (context.get("capabilities") or {}).get("drop") != ["ALL"]:
            yield f"{label}: capabilities must drop ALL"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{label}: readOnlyRootFilesystem must be true"
        if not _pinned(str(container.get("image", ""))):
            yield f"{label}: image {container.get('image')!r} needs a digest or a tag, not latest"
        env = {str(item.get("name")): item for item in container.get("env") or []}
        if env.get("RAY_AUTH_MODE", {}).get("value") != "token":
            yield f"{label}: RAY_AUTH_MODE=token is missing from its environment"
        for secret in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"):
            if "value" in env.get(secret, {}):
                yield f"{label}: {secret} is written out; take it from a Secret"
        limits = (container.get("resources") or {}).get("limits") or {}
        if not {"cpu", "memory"} <= set(limits):
            yield f"{label}: limits of cpu and memory are missing"
        if ray and not {"livenessProbe", "readinessProbe"} <= set(container):
            yield f"{label}: probes are missing"


def _closes(policy: Any, document: Any, template: Any) -> bool:
    """Say whether a policy selects the pods of `template` and lets in less than everyone."""
    spec = policy.get("spec") or {}
    namespaces = [thing.get("metadata", {}).get("namespace") for thing in (policy, document)]
    wanted = (spec.get("podSelector") or {}).get("matchLabels") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    selected = all(labels.get(key) == value for key, value in wanted.items())
    rules = spec.get("ingress") or []
    peers = [peer for rule in rules for peer in rule.get("from") or [{}]]
    open_to_all = any(not peer or _EVERYONE.search(str(peer)) for peer in peers)
    inbound = "Ingress" in (spec.get("policyTypes") or ["Ingress"])
    return namespaces[0] == namespaces[1] and selected and inbound and not open_to_all


def _launcher(config: Any) -> Iterator[str]:
    if _EVERYONE.search(str(config)):
        yield "lets in every address (0.0.0.0/0 or ::/0)"
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(field) or []
        if not any("ray start" in command for command in commands):
            yield f"{field} starts no Ray: the launcher's default has an open dashboard"
        for command in commands:
            yield from _commands(command, field)
    if not any(str(path).endswith("/auth_token") for path in config.get("file_mounts") or {}):
        yield "file_mounts brings no token (~/.ray/auth_token) to the nodes"
    provider = (config.get("provider") or {}).get("type")
    for name, node in (config.get("available_node_types") or {}).items():
        settings = node.get("node_config") or {}
        if provider == "aws" and not settings.get("SecurityGroupIds"):
            yield f"{name}: no SecurityGroupIds, and Ray's own group lets anyone try port 22"
        if provider == "aws" and (settings.get("MetadataOptions") or {}).get("HttpTokens") != (
            "required"
        ):
            yield f"{name}: MetadataOptions.HttpTokens must be required"
        if provider == "gcp" and not settings.get("networkInterfaces"):
            yield f"{name}: no networkInterfaces, and the default network lets anyone try port 22"


def _commands(text: str, where: str) -> Iterator[str]:
    """Check shell text that starts Ray; text that does not is left alone."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    code = "\n".join(lines).replace("\\\n", " ")
    if "ray start" not in code:
        return
    before = code.partition("ray start")[0]
    if not re.search(r"export [^\n;]*\bRAY_AUTH_MODE=token\b", before):
        yield f"{where}: export RAY_AUTH_MODE=token must come before ray start"
    if re.search(r"\bRAY_AUTH_TOKEN=[^\s\"';$]", code):
        yield f"{where}: the token is written out; name its file in RAY_AUTH_TOKEN_PATH"
    hosts = _HOST.findall(code)
    if "--head" in code and not hosts:
        yield f"{where}: --dashboard-host is not given to the head"
    for host in hosts:
        if host not in LOOPBACK:
            yield f"{where}: the dashboard listens on {host!r}, not on loopback"


def _container(text: str) -> Iterator[str]:
    code = re.sub(r"(?m)^\s*#.*$", "", text).replace("\\\n", " ")
    users = re.findall(r"(?m)^USER\s+(\S+)", code)
    if not users or not _NUMERIC_USER.fullmatch(users[-1]):
        yield f"USER must be a number other than 0 at the end, found {users[-1:] or 'none'}"
    for image in re.findall(r"(?m)^FROM\s+(\S+)", code):
        if not _pinned(image):
            yield f"FROM {image} needs a digest or a tag, not latest"
    for install in re.findall(r"pip install [^&|;\n]*", code):
        if "--require-hashes" not in install and "--no-deps" not in install:
            yield f"installs without --require-hashes: {' '.join(install.split())}"
    if re.search(r"(?m)^ADD\s+https?:|\b(curl|wget)\b", code):
        yield "fetches a file without a hash"


def _pinned(image: str) -> bool:
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return True
    tag = image.rpartition("/")[2].partition(":")[2]
    return tag not in ("", "latest")


def main(arguments: list[str] | None = None) -> int:
    """Check the files named; return 1 where something is wrong, 2 where a file cannot be read."""
    paths = sys.argv[1:] if arguments is None else arguments
    if not paths or any(path.startswith("-") for path in paths):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        found = problems({path: Path(path).read_text(encoding="utf-8") for path in paths})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        return 2
    print("\n".join(found) if found else f"{len(paths)} file(s): no open door found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
