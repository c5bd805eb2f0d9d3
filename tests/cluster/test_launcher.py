"""The launcher's configurations by Ray's own checks, and what they start."""

import copy
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cluster.launcher import aws, gcp
from cluster.render import render
from cluster.values import Values

CLOUDS = {"aws": aws, "gcp": gcp}

Change = Callable[[dict[str, Any]], Values]


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready = prepare_config(copy.deepcopy(config))
    validate_config(ready)
    return dict(ready)


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(cloud: str, values: Values) -> dict[str, Any]:
    return dict(yaml.safe_load(render(values)[f"{cloud}/cluster.yaml"]))


def test_ray_accepts_it_and_none_of_its_own_defaults_are_left(config: dict[str, Any]) -> None:
    ready = prepared(config)
    assert set(ready["available_node_types"]) == {"head", "worker"}
    worker = ready["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    head = ready["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0}
    # Ray's defaults install a nightly wheel and open the dashboard.
    text = str(ready)
    assert "3.0.0.dev0" not in text
    assert "0.0.0.0" not in text
    assert ready["head_start_ray_commands"] == config["head_start_ray_commands"]


def test_rays_check_would_notice(config: dict[str, Any]) -> None:
    from jsonschema import ValidationError

    config["head_start_commands"] = config.pop("head_start_ray_commands")
    with pytest.raises(ValidationError, match="head_start_commands"):
        prepared(config)


def test_every_command_is_shell(config: dict[str, Any]) -> None:
    fields = [field for field in config if field.endswith("_commands")]
    commands = [command for field in fields for command in config[field]]
    assert len(commands) > 10
    for command in commands:
        done = subprocess.run(
            ["bash", "-n", "-c", command], capture_output=True, text=True, timeout=10, check=False
        )
        assert done.returncode == 0, (command, done.stderr)


def test_installs_come_from_locks_with_hashes(cloud: str, config: dict[str, Any]) -> None:
    setup = config["setup_commands"] + config["head_setup_commands"]
    installs = [command for command in setup if "pip install" in command]
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or "--no-deps" in command
    assert any("--constraint requirements.lock" in command for command in installs)
    assert f"cluster/locks/{cloud}.txt" in config["head_setup_commands"][0]


def test_the_token_goes_to_every_node_and_stays_private(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"][0]
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = config[field][-1]
        assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in start


def test_workers_are_spot_machines_and_the_head_is_not(values: Values) -> None:
    files = render(values)
    nodes = {
        cloud: yaml.safe_load(files[f"{cloud}/cluster.yaml"])["available_node_types"]
        for cloud in CLOUDS
    }
    worker = nodes["aws"]["worker"]["node_config"]
    assert worker["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["aws"]["head"]["node_config"]
    scheduling = nodes["gcp"]["worker"]["node_config"]["scheduling"]
    assert scheduling["provisioningModel"] == "SPOT"
    assert "scheduling" not in nodes["gcp"]["head"]["node_config"]


def test_data_in_a_bucket_needs_a_profile(change: Change) -> None:
    arn = "arn:aws:iam::123456789012:instance-profile/data"
    with_profile = aws(change({"aws.worker_profile": arn}))
    worker = with_profile["available_node_types"]["worker"]["node_config"]
    assert worker["IamInstanceProfile"] == {"Arn": arn}
    prepared(with_profile)


def test_results_in_a_bucket_take_no_shared_folder(change: Change) -> None:
    remote = {"job.out": "gs://bucket/results", "job.data": "imagenet:gs://bucket/val"}
    account = "raybench@my-project.iam.gserviceaccount.com"
    changed = change(remote | {"gcp.worker_account": account})
    for config in (aws(changed), gcp(changed)):
        assert not any("mount" in command for command in config["setup_commands"])
        for field in ("head_start_ray_commands", "worker_start_ray_commands"):
            assert "RAYBENCH_CACHE=/tmp/raybench-cache " in config[field][-1]
        prepared(config)
    worker = gcp(changed)["available_node_types"]["worker"]["node_config"]
    assert worker["serviceAccounts"][0]["email"] == account
    # Images in the shared folder still need it.
    mixed = aws(change({"job.out": "s3://bucket/results"}))
    assert any("mount -t nfs" in command for command in mixed["setup_commands"])
