"""What MLflow shows of a measurement: names that tell runs apart, params that Compare can use."""

import pytest

from raybench.core.types import DatasetInfo
from raybench.driver import experiment_name
from raybench.sinks.headlines import run_name, run_params


@pytest.mark.parametrize(
    ("evaluation", "name"),
    [
        ("grid?cells=4&fill=mean&samples=1000&target=prob_pred", "m · grid · mean, prob_pred"),
        (
            "superpixel?fill=0.0&samples=9&segmentation=slic&target=onehot",
            "m · superpixel · 0.0, onehot, slic",
        ),
        ("flip-radius?samples=1000", "m · flip-radius"),
        ("pgd?eps=8/255&norm=linf&steps=20", "m · pgd · linf 8/255"),
        ("pgd?eps=0.1&norm=l2&targeted=next", "m · pgd · l2 0.1, next"),
        ("deepfool?norm=l2&steps=50", "m · deepfool"),
    ],
)
def test_run_names_tell_readings_and_budgets_apart(evaluation: str, name: str) -> None:
    assert run_name("m", evaluation) == name


def opened_on(runs: list[dict[str, str]]) -> list[str]:
    """Return the params that MLflow's Compare page opens on: differing ones, the first three."""
    names = {name for run in runs for name in run}
    differing = [name for name in names if len({run.get(name) for run in runs}) > 1]
    return sorted(differing)[:3]


def params(model: str, evaluation: str) -> dict[str, str]:
    return {k: str(v) for k, v in run_params(model, "digits", 400, 0, evaluation).items()}


GRID = "grid?cells=4&fill=mean&samples=1000&target=prob_pred"
RADIUS = "flip-radius?samples=1000"
PGD = "pgd?eps={}&loss=ce&norm=linf&restarts=1&step_size=0.025&steps=20"
SQUARE = "square?eps={}&norm=linf&p=0.8&queries=300&restarts=1"


def test_compare_opens_on_model_and_reading() -> None:
    scores = [params(model, reading) for model in ("a", "b") for reading in (GRID, RADIUS)]
    assert opened_on(scores) == ["model", "reading", "target"]
    attacks = [
        params(model, attack.format(eps))
        for model in ("a", "b")
        for attack in (PGD, SQUARE)
        for eps in ("0.1", "0.2")
    ]
    assert opened_on(attacks) == ["eps", "model", "reading"]
    assert opened_on(scores + attacks) == ["eps", "model", "reading"]
    one = [params(model, GRID) for model in ("a", "b")]
    assert opened_on(one) == ["model"]


def test_params_name_everything_that_makes_a_measurement() -> None:
    found = params("a", PGD.format("0.1"))
    assert found["eps"] == "0.1"
    assert found["with.steps"] == "20"
    assert params("a", GRID)["samples"] == "1000"


def test_one_experiment_holds_all_of_a_dataset() -> None:
    info = DatasetInfo(
        spec="digits?n=4",
        name="digits",
        shape=(1, 8, 8),
        num_classes=10,
        size=4,
        has_labels=True,
        fingerprint="f" * 64,
    )
    assert experiment_name(info) == "digits"
