"""One local Ray cluster for the whole test session, and both runners behind one fixture."""

from collections.abc import Iterator

import pytest

from raybench.core.work import Resources, Runner
from raybench.runners.inprocess import run_in_process


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    from raybench.runners.ray import ray_session

    with ray_session(Resources(address="local")):
        yield


@pytest.fixture(params=["inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "inprocess":
        return run_in_process
    request.getfixturevalue("cluster")
    from raybench.runners.ray import run_on_ray

    return run_on_ray
