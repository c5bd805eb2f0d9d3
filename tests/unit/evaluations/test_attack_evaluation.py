"""Every attack through the one evaluation: contract, access, verdicts that trust no kernel."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import linear, toy_batch, toy_model

import raybench.kernels.attacks as folder
from raybench.core.errors import AccessError, InputError, SpecError
from raybench.core.types import Access, Failure
from raybench.evaluations import attack as module
from raybench.evaluations.attack import AttackEvaluation
from raybench.evaluations.attack_spec import parse_attack
from raybench.evaluations.attack_table import ATTACKS, fraction_text
from raybench.kernels.attacks.common import AttackResult

SHAPE = (1, 8, 8)
# Small settings for the slow ones: what is tested here is the contract, not the strength.
SMALL = {
    "square": "queries=60",
    "noise": "tries=5",
    "carlini-l2": "steps=60&search_steps=3",
    "carlini-linf": "steps=10",
    "carlini-l0": "steps=6",
    "lbfgs": "max_iter=20",
    "nes": "queries=200",
    "spsa": "queries=400",
    "hopskipjump": "queries=200",
    "finite-differences": "steps=4&coordinates=16",
    "apgd-t": "steps=10&num_targets=3",
    "apgd-ce": "steps=10",
    "apgd-dlr": "steps=10",
    "fab": "steps=10",
    "fab-t": "steps=10&num_targets=3",
    "pgd": "steps=8",
}


def make(name: str, **changes) -> AttackEvaluation:
    kind = ATTACKS[name]
    options = {"norm": None, "eps": "0.1", "targeted": None, "shape": SHAPE, "classes": 4}
    if kind.targeted == "only":
        options["targeted"] = "next"
    if kind.norms == ("l0",):
        options["eps"] = "20"
    text = f"{name}?{SMALL[name]}" if name in SMALL else name
    return parse_attack(text, **(options | changes))


def model_and_batch(access: Access = Access.GRADIENTS, count: int = 4, seed: int = 0):
    model = toy_model(linear(classes=4, scale=0.3), classes=4, access=access)
    batch = toy_batch(count, seed=seed)
    labels = model.function(batch.images).argmax(1)
    return model, replace(batch, labels=labels)


def run(evaluation: AttackEvaluation, model, batch, seed: int = 0) -> list[dict]:
    return evaluation(model, batch, seed=seed, batch_size=8).to_pylist()


def test_every_kernel_file_is_in_the_table_and_every_line_resolves() -> None:
    helpers = {"__init__", "common", "apgd_schedule", "estimators", "fab_step", "turns"}
    stems = {path.stem for path in Path(folder.__file__).parent.glob("*.py")} - helpers
    named = {kind.kernel.partition(":")[0] for kind in ATTACKS.values()}
    assert stems == named
    for kind in ATTACKS.values():
        assert "spec 0" in (kind.resolve().__doc__ or ""), kind.kernel


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "autoattack"])
def test_every_attack_keeps_the_contract(name: str) -> None:
    kind = ATTACKS[name]
    model, batch = model_and_batch(kind.requires)
    before = model.calls
    evaluation = make(name)
    rows = run(evaluation, model, batch)
    assert [row["status"] for row in rows] == ["ok"] * 4
    # The queries in the rows are those that the model was asked.
    asked = model.calls - before
    assert sum(row["queries"] for row in rows) == asked
    for row in rows:
        assert not row["out_of_budget"]
        assert (row["gradients"] > 0) == (kind.requires >= Access.GRADIENTS)
        if row["success"]:
            goal = row["target"] if row["target"] is not None else None
            assert row["adversarial"] == goal if goal is not None else row["label"]
            assert row[evaluation.norm] <= float(evaluation.eps or 1e9) * (1 + 1e-5) + 1e-6
    again = run(evaluation, model, batch)
    assert again == rows
    assert (
        parse_attack(evaluation.canonical(), norm=None, eps=None, shape=SHAPE, classes=4)
        == evaluation
    )


@pytest.mark.parametrize("name", ["pgd", "square", "hopskipjump", "autoattack"])
def test_an_attack_is_refused_one_level_lower(name: str) -> None:
    kind = ATTACKS[name]
    if kind.requires == Access.LABELS:
        assert kind.requires == min(Access)
        return
    model, batch = model_and_batch(Access(kind.requires - 1))
    # The plan refuses first; the model refuses again, or gives no gradient to be used in silence.
    if kind.requires == Access.SCORES:
        with pytest.raises(AccessError):
            model.probabilities(batch.images)
    assert make(name).requires > model.info.access


@pytest.mark.parametrize("name", ["pgd", "square", "apgd-ce", "nes"])
def test_rows_do_not_depend_on_who_else_is_in_the_shard(name: str) -> None:
    model, batch = model_and_batch(count=5)
    together = run(make(name), model, batch)
    for index in range(5):
        alone = replace(
            batch,
            ids=batch.ids[index : index + 1],
            sources=batch.sources[index : index + 1],
            images=batch.images[index : index + 1],
            labels=batch.labels[index : index + 1],
        )
        row = run(make(name), model, alone)[0]
        for key, value in row.items():
            if isinstance(value, float):
                assert together[index][key] == pytest.approx(value, abs=1e-5), key
            elif key != "losses":
                assert together[index][key] == value, key


def test_wrong_images_are_not_attacked_and_not_robust() -> None:
    model, batch = model_and_batch()
    wrong = batch.labels.clone()
    wrong[1] = (wrong[1] + 1) % 4
    rows = run(make("pgd"), model, replace(batch, labels=wrong))
    assert [row["already_wrong"] for row in rows] == [False, True, False, False]
    assert rows[1]["queries"] == 1
    assert rows[1]["linf"] == 0.0
    assert not rows[1]["success"]


def test_targets_are_as_asked_and_an_images_own_class_is_no_target() -> None:
    model, batch = model_and_batch()
    rows = run(make("pgd", targeted="next"), model, batch)
    assert [row["target"] for row in rows] == [(int(y) + 1) % 4 for y in batch.labels]
    least = model.function(batch.images).argmin(1)
    rows = run(make("pgd", targeted="least-likely"), model, batch)
    assert [row["target"] for row in rows] == least.tolist()
    own = str(int(batch.labels[0]))
    rows = run(make("pgd", targeted=own), model, batch)
    assert rows[0]["status"] == "error"
    assert "own label" in rows[0]["error"]


def test_unreadable_images_are_error_rows() -> None:
    model, batch = model_and_batch()
    rows = run(make("fgsm"), model, replace(batch, failures=(Failure("x", "x.png", "broken"),)))
    assert rows[-1]["status"] == "error"
    assert rows[-1]["sample_id"] == "x"
    assert rows[-1]["success"] is None


def cheat(images, labels, **changes):
    count = len(images)
    zeros = torch.zeros(count, dtype=torch.int64)
    facts = {
        "images": images,
        "found": torch.ones(count, dtype=torch.bool),
        "found_at": zeros,
        "found_queries": zeros,
        "queries": zeros,
        "gradients": zeros,
        "zero_gradient": torch.zeros(count, dtype=torch.bool),
    }
    return AttackResult(**(facts | changes))


@pytest.mark.parametrize("how", ["claims", "budget", "range", "nan"])
def test_no_kernel_is_believed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_and_batch()

    def kernel(scores, images, labels, **_):
        made = {
            "claims": images,
            "budget": 1 - images,
            "range": images + 0.05 + (images.amax() - images),
            "nan": torch.full_like(images, torch.nan),
        }[how]
        return cheat(made, labels)

    kind = replace(ATTACKS["fgsm"], kernel="fgsm:fgsm")
    monkeypatch.setattr(type(kind), "resolve", lambda self: kernel)
    rows = module.AttackEvaluation.__call__(
        make("fgsm"), model, batch, seed=0, batch_size=8
    ).to_pylist()
    assert not any(row["success"] for row in rows)
    assert all(row["out_of_budget"] == (how != "claims") for row in rows)
    assert all(np.isfinite(row["linf"]) for row in rows)


def test_rounding_to_eight_bits_is_judged_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # The class flips above 0.4: 0.401 rounds down to 102/255 = 0.4, which does not flip.
    def scores(images):
        value = images.flatten(1)[:, 0]
        return torch.stack([torch.full_like(value, 0.0), value - 0.4005], 1)

    model = toy_model(scores, classes=2, access=Access.GRADIENTS)
    batch = replace(toy_batch(1), labels=torch.tensor([0]))
    batch = replace(batch, images=torch.full_like(batch.images, 0.39))
    monkeypatch.setattr(
        type(ATTACKS["fgsm"]),
        "resolve",
        lambda self: lambda s, images, labels, **_: cheat(torch.full_like(images, 0.401), labels),
    )
    row = run(make("fgsm", classes=2), model, batch)[0]
    assert row["success"]
    assert not row["success_u8"]


def test_images_are_kept_on_request() -> None:
    model, batch = model_and_batch()
    rows = run(make("fgsm", keep_images=True), model, batch)
    kept = np.array(rows[0]["image"], dtype=np.uint8).reshape(SHAPE)
    difference = np.abs(kept / 255 - batch.images[0].numpy()).max()
    assert difference == pytest.approx(0.1, abs=1 / 255)


def test_budgets_have_one_spelling() -> None:
    assert fraction_text("8/255") == fraction_text("16/510") == "8/255"
    assert fraction_text("0.30") == fraction_text("3/10") == "0.3"
    assert fraction_text("0.2") == "0.2"
    assert fraction_text("1/3") == "85/255"
    assert fraction_text("1/7") == "1/7"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("pdg", {}, "did you mean pgd"),
        ("pgd", {"eps": None}, "needs a budget"),
        ("pgd", {"eps": "0"}, "a budget of 0 changes no image"),
        ("pgd", {"eps": "8"}, "did you mean 8/255"),
        ("pgd", {"eps": "-1"}, "above 0"),
        ("pgd", {"eps": "8/0"}, "expected a number or a fraction"),
        ("pgd", {"norm": "l1"}, "norm must be linf or l2, found l1"),
        ("pgd?step=3", {}, "no option is named 'step'"),
        ("pgd?steps=0", {}, "at least 1"),
        ("pgd?loss=hinge", {}, "expected ce, margin or dlr"),
        ("pgd", {"targeted": "7"}, "classes 0 to 3"),
        ("pgd", {"targeted": "nearest"}, "next, least-likely"),
        ("jsma", {"eps": None}, "is targeted only"),
        ("jsma", {"targeted": "next", "eps": "8/255"}, "counts pixels"),
        ("deepfool", {"targeted": "next"}, "has no targeted form"),
    ],
)
def test_mistakes_are_named(text: str, options: dict, message: str) -> None:
    given = {"norm": None, "eps": "0.1", "shape": SHAPE, "classes": 4, "targeted": None} | options
    with pytest.raises((InputError, SpecError), match=message):
        parse_attack(text, **given)


def test_a_targeted_walk_begins_at_an_example_of_the_wanted_class() -> None:
    model, batch = model_and_batch(Access.LABELS, count=6)
    classes = model.labels(batch.images)
    asked: list[int] = []

    def examples(label: int) -> torch.Tensor:
        asked.append(label)
        return batch.images[classes == label]

    walk = make("hopskipjump", targeted="next", eps=None)
    batch = replace(batch, labels=classes, examples=examples)
    rows = run(walk, model, batch)
    assert asked == sorted({int(label + 1) % 4 for label in classes})
    for row, label in zip(rows, classes.tolist(), strict=True):
        wanted = (label + 1) % 4
        known = int((classes == wanted).sum())
        assert row["target"] == wanted
        # Without an example of the class there is nowhere to begin, and nothing is claimed.
        assert row["success"] == (known > 0)
        assert row["adversarial"] == (wanted if known else label)
        if known:
            assert known < row["queries"] <= 200 + known + 3
    assert any(row["success"] for row in rows)

    # Examples that the model takes for something else are no place to begin.
    mislabelled = replace(batch, examples=lambda label: batch.images[classes != label])
    assert not any(row["success"] for row in run(walk, model, mislabelled))
