"""One local Ray cluster for the whole test session, both runners behind one fixture, shortcuts."""

from collections.abc import Iterator

import pytest
from shortcuts import copy_databases, draw_nothing, shared_folder

from raybench.core.work import Resources, Runner
from raybench.runners.inprocess import run_in_process


# Not for the session: a process of pytest-xdist goes on to tests of what figures look like.
@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs in this process draw nothing and copy their database; those in another do neither."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        copy_databases(patch, shared_folder(tmp_path_factory, "mlflow"))
        yield


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
