"""Configurations for Ray's cluster launcher (``ray up``) on AWS and Google Cloud.

Run from the repository's root: the code that is copied to the nodes is named relative to it. The
token comes from ~/.ray/auth_token of the machine that runs ``ray up``.
"""

from typing import Any

from cluster.values import Values

__all__ = ["COPIED", "VENV", "aws", "gcp"]

Config = dict[str, Any]

COPIED = (
    "raybench",
    "jobs",
    "cluster",
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "LICENSE",
)
"""What of the repository goes to the nodes."""

APP = "~/raybench"
VENV = "~/raybench-venv"
TOKEN = "~/.ray/auth_token"
_UV = "~/.raybench-uv/bin/uv"


def aws(values: Values) -> Config:
    """Return the configuration for AWS: spot workers, own security group, instance tokens."""
    settings = values.aws
    common: Config = {
        "ImageId": settings.image,
        # Ray makes a group that lets anyone try port 22 where none is named.
        "SecurityGroupIds": [settings.security_group],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
    }
    worker: Config = {
        "InstanceType": settings.worker_type,
        **common,
        "BlockDeviceMappings": _disk(values.workers.scratch_gb),
        "InstanceMarketOptions": {"MarketType": "spot"},
    }
    if settings.worker_profile:
        worker["IamInstanceProfile"] = {"Arn": settings.worker_profile}
    head: Config = {
        "InstanceType": settings.head_type,
        **common,
        "BlockDeviceMappings": _disk(values.head.scratch_gb),
    }
    provider = {
        "type": "aws",
        "region": settings.region,
        "availability_zone": settings.zones,
        "cache_stopped_nodes": False,
    }
    return _config(values, provider, head, worker, settings.shared, "aws")


def gcp(values: Values) -> Config:
    """Return the configuration for Google Cloud: spot workers in a subnetwork of their own."""
    settings = values.gcp
    # Named for both kinds of node, or Ray takes the default network and its open port 22.
    network = {
        "subnetwork": settings.subnetwork,
        "accessConfigs": [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}],
    }

    def node(machine: str, disk_gb: int) -> Config:
        image = {"diskSizeGb": _disk_gb(disk_gb), "sourceImage": settings.image}
        return {
            "machineType": machine,
            "disks": [
                {
                    "boot": True,
                    "autoDelete": True,
                    "type": "PERSISTENT",
                    "initializeParams": image,
                }
            ],
            "networkInterfaces": [network],
        }

    worker = node(settings.worker_type, values.workers.scratch_gb) | {
        "scheduling": {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
        },
        "metadata": {"items": [{"key": "install-nvidia-driver", "value": "True"}]},
    }
    if settings.worker_account:
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        worker["serviceAccounts"] = [{"email": settings.worker_account, "scopes": scopes}]
    provider = {
        "type": "gcp",
        "project_id": settings.project,
        "region": settings.region,
        "availability_zone": settings.zone,
    }
    head = node(settings.head_type, values.head.scratch_gb)
    return _config(values, provider, head, worker, settings.shared, "gcp")


def _config(
    values: Values, provider: Config, head: Config, worker: Config, shared: str, cloud: str
) -> Config:
    workers = values.workers
    return {
        "cluster_name": values.name,
        "max_workers": workers.max,
        "upscaling_speed": float(workers.max),
        "idle_timeout_minutes": workers.idle_minutes,
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": head},
            "worker": {
                "min_workers": 0,
                "max_workers": workers.max,
                "resources": {"CPU": workers.cpus, "GPU": workers.gpus},
                "node_config": worker,
            },
        },
        "head_node_type": "head",
        "file_mounts": {f"{APP}/{path}": path for path in COPIED} | {TOKEN: TOKEN},
        "rsync_exclude": ["__pycache__"],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": _setup(values, shared),
        "head_setup_commands": [
            f"{_install()} --only-binary :all: --requirement {APP}/cluster/locks/{cloud}.txt"
        ],
        "worker_setup_commands": [],
        "head_start_ray_commands": _start(
            values,
            "ray start --head --port=6379 --object-manager-port=8076 --num-cpus=0 --num-gpus=0"
            " --autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1",
        ),
        "worker_start_ray_commands": _start(
            values, "ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076"
        ),
    }


def _setup(values: Values, shared: str) -> list[str]:
    """Return the commands that every new node runs; each may be run again."""
    root = values.root
    mount = [
        f"sudo mkdir -p {root} && (mountpoint -q {root} ||"
        f" sudo mount -t nfs -o nfsvers=4.1,hard {shared} {root})",
        f'sudo install -d -o "$USER" {root}/data {root}/results',
    ]
    return [
        f"chmod 700 ~/.ray && chmod 600 {TOKEN}",
        "sudo apt-get -qq update && sudo apt-get -qq install -y python3-venv nfs-common",
        *(mount if values.needs_root else []),
        f"test -x {_UV} || (python3 -m venv ~/.raybench-uv && ~/.raybench-uv/bin/pip install"
        f" --quiet --require-hashes -r {APP}/cluster/locks/uv.txt)",
        f"test -x {VENV}/bin/python || {_UV} venv --quiet --python 3.11 {VENV}",
        f"cd {APP} && {_install()} --only-binary :all: --requirement pyproject.toml"
        " --constraint requirements.lock",
        f"{_UV} pip install --quiet --python {VENV}/bin/python --no-deps --no-build-isolation"
        f" --editable {APP}",
        "grep -qs raybench-venv ~/.bashrc ||"
        """ echo 'export PATH="$HOME/raybench-venv/bin:$PATH"' >> ~/.bashrc""",
    ]


def _install() -> str:
    return f"{_UV} pip install --quiet --python {VENV}/bin/python --require-hashes"


def _start(values: Values, command: str) -> list[str]:
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "$HOME/.ray/auth_token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(values.workers.grace_s - 5),
        **values.caches(values.root),
    }
    exports = " ".join(f"{name}={value}" for name, value in env.items())
    return [
        f"source {VENV}/bin/activate; ray stop",
        f"source {VENV}/bin/activate; export {exports}; ulimit -n 65536; {command}",
    ]


def _disk(scratch_gb: int) -> list[Config]:
    ebs = {"VolumeSize": _disk_gb(scratch_gb), "VolumeType": "gp3", "Encrypted": True}
    return [{"DeviceName": "/dev/sda1", "Ebs": ebs}]


def _disk_gb(scratch_gb: int) -> int:
    """Return the size of a boot disk: the system and its driver, the environment, scratch."""
    return 100 + scratch_gb
