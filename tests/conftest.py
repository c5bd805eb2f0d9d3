"""Fixtures shared by every test, and the order in which slow ones use the time they have."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# What only slow tests can show: kills and lost nodes, then locked doors, then whole jobs.
FIRST = (
    *("test_many_kills", "test_drained_node", "test_added_node", "test_lost_node"),
    *("test_shut_doors", "test_doors", "test_score_on_ray", "test_http_jobs"),
    *("test_object_store", "test_ray_jobs", "test_attack_jobs"),
)
BEGUN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--within",
        type=float,
        metavar="SECONDS",
        help=f"begin no test later than that, and {FIRST[0]} and its like first",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--within") is not None:
        ranks = {name: rank for rank, name in enumerate(FIRST)}
        items.sort(key=lambda item: ranks.get(item.path.stem, len(FIRST)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    within = item.config.getoption("--within")
    if within is not None and time.monotonic() - BEGUN > within:
        pytest.skip(f"{within:g} s are over; make test-slow runs it")


@pytest.fixture(scope="session", autouse=True)
def own_tracking() -> Iterator[None]:
    """Runs of tests never reach the MLflow server of whoever starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and third-party checkpoints beside the checkout, where present."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("RAYBENCH_SHARED", default))
    if not (folder / "checkpoints").is_dir():
        pytest.skip(f"no test material at {folder.name}/ (set RAYBENCH_SHARED to its folder)")
    return folder
