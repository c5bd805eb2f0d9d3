"""Published values beside ours: what compares, and what may not."""

from dataclasses import replace

import pytest

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackScore, AttackTable, RobustScore
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.report_published import Line, published_lines, published_tables
from raybench.report_tables import ImageTables

CIFAR = DatasetInfo(
    spec="cifar10?root=/data",
    name="cifar10",
    shape=(3, 32, 32),
    num_classes=10,
    size=10_000,
    has_labels=True,
    fingerprint="d" * 64,
)


def model(name: str) -> ModelInfo:
    return ModelInfo(
        spec=f"robustbench:cifar10/Linf/{name}",
        name=name,
        access=Access.GRADIENTS,
        input_shape=(3, 32, 32),
        num_classes=10,
        fingerprint=name.ljust(64, "0")[:64],
    )


def scores(dataset: DatasetInfo, *names: str) -> ScoreTable:
    rows = [
        ModelScore(
            model=model(name),
            reading="grid",
            key=name,
            folder=name,
            status="complete",
            score=0.1 * place,
            clean_accuracy=0.9,
            rank=place,
            n=dataset.size,
        )
        for place, name in enumerate(names, start=1)
    ]
    return ScoreTable(
        dataset=dataset, reading="grid", seed=0, samples=1000, baseline=None, rows=rows
    )


def attacks(dataset: DatasetInfo, name: str, spec: str, eps: str = "8/255") -> AttackTable:
    info = model(name)
    attack = AttackScore(model=info, reading=spec, key="k", folder="f", status="complete")
    row = RobustScore(
        model=info,
        status="complete",
        robust_accuracy=0.41,
        robust_low=0.40,
        robust_high=0.42,
        clean_accuracy=0.84,
        attacks=[attack],
    )
    return AttackTable(
        dataset=dataset,
        threat=f"linf {eps}",
        norm="linf",
        eps=eps,
        targeted=None,
        seed=0,
        rows=[row],
    )


def lines(dataset: DatasetInfo, name: str, *tables: AttackTable) -> dict[str, Line]:
    found = published_lines(ImageTables(scores=[scores(dataset, name)], attacks=list(tables)), None)
    return {line.metric: line for line in found}


AUTOATTACK = "autoattack?eps=8/255&norm=linf&version=standard"
DING = "Ding2020MMA"


def test_autoattack_on_the_whole_test_set_compares() -> None:
    found = lines(CIFAR, DING, attacks(CIFAR, DING, AUTOATTACK))
    robust = found["robust_accuracy"]
    assert (robust.published, robust.ours) == (0.4144, 0.41)
    assert robust.comparable
    assert robust.difference == pytest.approx(-0.0044)
    assert found["clean_accuracy"].comparable


def test_a_brittle_score_never_compares() -> None:
    line = lines(CIFAR, DING)["brittle_score"]
    assert (line.published, line.ours) == (0.5984, 0.1)
    assert (line.comparable, line.difference) == (False, None)
    assert "does not say how it reads LIME" in line.why


@pytest.mark.parametrize(
    ("dataset", "table", "why"),
    [
        (CIFAR, ("pgd?eps=8/255&norm=linf", "8/255"), "autoattack there, pgd here"),
        (CIFAR, (AUTOATTACK, "2/255"), "not measured here within linf 8/255"),
        (replace(CIFAR, size=400), (AUTOATTACK, "8/255"), "10,000 images there, 400 here"),
    ],
)
def test_other_attacks_budgets_and_images_do_not(
    dataset: DatasetInfo, table: tuple[str, str], why: str
) -> None:
    line = lines(dataset, DING, attacks(dataset, DING, *table))["robust_accuracy"]
    assert not line.comparable
    assert why in line.why
    assert line.difference is None


def test_another_budget_is_no_value_of_ours() -> None:
    line = lines(CIFAR, DING, attacks(CIFAR, DING, AUTOATTACK, "2/255"))["robust_accuracy"]
    assert line.ours is None


def test_two_published_values_are_both_shown() -> None:
    rebuffi = "Rebuffi2021Fixing_70_16_cutmix_extra"
    tables = ImageTables(
        scores=[scores(CIFAR, rebuffi)], attacks=[attacks(CIFAR, rebuffi, AUTOATTACK)]
    )
    found = [x for x in published_lines(tables, None) if x.metric == "robust_accuracy"]
    assert [(line.published, line.comparable) for line in found] == [
        (0.6658, True),
        (0.6656, False),
    ]
    assert "MultiTargeted" in found[1].why


def test_training_images_and_unknown_models_have_no_published_values() -> None:
    train = replace(CIFAR, spec="cifar10?root=/data&split=train")
    assert lines(train, DING) == {}
    assert lines(CIFAR, "Somebody2030") == {}


def test_scores_are_set_against_published_accuracies() -> None:
    """The paper's own figures: score over the accuracy that RobustBench states."""
    names = ("Standard", "Ding2020MMA", "Engstrom2019Robustness")
    table = scores(CIFAR, *names)
    found = published_lines(ImageTables(scores=[table], attacks=[]), None)
    (within,) = published_tables(table, found)
    assert within.threat == "linf 8/255 (published values)"
    assert within.eps == "8/255"
    stated = {row.model.name: row.robust_accuracy for row in within.rows}
    assert stated == dict(zip(names, (0.0, 0.4144, 0.4925), strict=True))
