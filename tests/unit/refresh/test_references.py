"""Published values: read from model_info, held against ours, written again as entries."""

import json
from pathlib import Path

import pytest

from raybench.core.errors import InputError
from raybench.core.robustness import AttackScore, RobustScore
from raybench.core.types import Access, ModelInfo
from raybench.refresh.export import model_info_entry
from raybench.refresh.file import ReferenceLine
from raybench.refresh.references import Standard, published, read_model_info, references

# RobustBench's own figures of a real entry (model_info/cifar10/Linf/Engstrom2019Robustness.json).
ENGSTROM = {
    "link": "https://github.com/MadryLab/robustness",
    "name": "Robustness library",
    "authors": "Logan Engstrom, Andrew Ilyas, Shibani Santurkar, Dimitris Tsipras",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "GitHub,<br>Oct 2019",
    "architecture": "ResNet-50",
    "eps": "8/255",
    "clean_acc": "87.03",
    "reported": "53.29",
    "autoattack_acc": "49.25",
}
AUTOATTACK = "autoattack?eps=8/255&norm=linf&version=standard"


def standard(n: int = 10_000, attack: str = AUTOATTACK, threat: str = "linf 8/255") -> Standard:
    return Standard(
        key="cifar-1",
        name="cifar",
        data="cifar10",
        n=n,
        attacks={threat: [attack]},
        readings=["grid?samples=10"],
    )


def model_info(folder: Path, threat: str = "Linf", name: str = "Model", **changed: object) -> Path:
    path = folder / "model_info" / "cifar10" / threat / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ENGSTROM | changed))
    return path


def read(path: Path, against: Standard):
    values = published(ReferenceLine(model_info=path), [against])
    return references(values, [against], {"cifar": ["Model"]})


def test_model_info_becomes_fractions_with_their_source(tmp_path: Path) -> None:
    model_info(tmp_path)
    clean, robust = read(tmp_path / "model_info", standard())
    assert (clean.metric, clean.value, clean.threat) == ("clean_accuracy", 0.8703, None)
    assert (robust.metric, robust.value) == ("robust_accuracy", 0.4925)
    assert robust.threat == "linf 8/255"
    assert robust.source == ENGSTROM["link"]
    assert robust.dataset == "cifar-1"
    assert clean.comparable
    assert robust.comparable, robust.why


@pytest.mark.parametrize(
    ("ours", "part"),
    [
        (standard(n=100), "10,000 images there, 100 here"),
        (standard(attack="pgd?eps=8/255&norm=linf"), "by autoattack there, pgd here"),
        (standard(attack=AUTOATTACK.replace("standard", "rand")), "autoattack"),
        (standard(threat="linf 4/255"), "within linf 8/255 there; linf 4/255 here"),
        (standard(threat="l2 0.5"), "within linf 8/255 there; l2 0.5 here"),
    ],
)
def test_what_differs_makes_a_value_not_comparable(
    tmp_path: Path, ours: Standard, part: str
) -> None:
    robust = read(model_info(tmp_path), ours)[1]
    assert not robust.comparable
    assert part in robust.why


def test_fractions_are_compared_as_numbers(tmp_path: Path) -> None:
    path = model_info(tmp_path, threat="L2", eps="0.5")
    ours = standard(threat="l2 1/2", attack="autoattack?eps=1/2&norm=l2&version=standard")
    assert read(path, ours)[1].comparable


def test_unreliable_external_and_corruptions_are_told_apart(tmp_path: Path) -> None:
    path = model_info(tmp_path, unreliable=True, external="7.15")
    clean, robust, external = read(path, standard())
    assert clean.comparable
    assert "unreliable" in robust.why
    assert external.value == pytest.approx(0.0715)
    assert not external.comparable
    path = model_info(tmp_path, threat="corruptions", corruptions_acc=80.1)
    corrupted = read(path, standard())[1]
    assert corrupted.threat == "corruptions"
    assert "no accuracy under attack" in corrupted.why


def test_only_what_is_ranked_here_is_taken(tmp_path: Path) -> None:
    model_info(tmp_path, name="Other")
    model_info(tmp_path, dataset="cifar100")
    assert read(tmp_path / "model_info", standard()) == ()


@pytest.mark.parametrize("value", ["nan", "101", "many", -1])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="autoattack_acc"):
        read(model_info(tmp_path, autoattack_acc=value), standard())


def test_files_that_are_no_model_info_are_named_all(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"clean_acc": 3}')
    with pytest.raises(InputError) as caught:
        read_model_info(tmp_path)
    assert "a.json" in str(caught.value)
    assert "b.json is no model_info" in str(caught.value)
    with pytest.raises(InputError, match="holds no JSON"):
        read_model_info(tmp_path / "empty")


def inline(**more: object) -> ReferenceLine:
    facts: dict[str, object] = {
        "model": "Model",
        "dataset": "cifar",
        "metric": "brittle_score",
        "value": 0.6028,
        "source": "Table 1",
    }
    return ReferenceLine.model_validate(facts | more)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "not stated"),
        ({"n": 10_000}, "its reading of LIME is not stated"),
        ({"n": 10_000, "reading": "mask"}, "its reading mask is not measured here"),
        ({"n": 10_000, "reading": "grid?samples=10"}, ""),
    ],
)
def test_an_inline_value_is_comparable_if_all_that_decides_it_is_stated(
    more: dict[str, object], why: str
) -> None:
    [value] = references(
        published(inline(**more), [standard()]), [standard()], {"cifar": ["Model"]}
    )
    assert value.comparable == (not why)
    assert why in value.why


def robust_score(*attacks: str) -> RobustScore:
    info = ModelInfo(
        spec="s",
        name="Model",
        access=Access.LOGITS,
        input_shape=(3, 32, 32),
        num_classes=10,
        fingerprint="f",
    )
    return RobustScore(
        model=info,
        status="complete",
        robust_accuracy=0.4925,
        clean_accuracy=0.8703,
        n=10_000,
        attacks=[
            AttackScore(model=info, reading=attack, key="k", folder="f", status="complete")
            for attack in attacks
        ],
    )


def test_an_entry_is_what_robustbench_writes_and_reads_back(tmp_path: Path) -> None:
    entry = model_info_entry(robust_score(AUTOATTACK), "8/255", "cifar10", ENGSTROM)
    assert {name: entry[name] for name in ENGSTROM} == ENGSTROM
    path = tmp_path / "Linf" / "Model.json"
    path.parent.mkdir()
    path.write_text(json.dumps(entry))
    clean, robust = read(path, standard())
    assert (clean.value, robust.value) == (0.8703, 0.4925)
    assert robust.comparable


def test_another_attack_is_never_called_autoattack() -> None:
    for attacks in (
        ("pgd?eps=8/255&norm=linf",),
        (AUTOATTACK, "pgd?eps=8/255&norm=linf"),
        (AUTOATTACK.replace("standard", "plus"),),
    ):
        entry = model_info_entry(robust_score(*attacks), "8/255", "cifar10", {})
        assert "autoattack_acc" not in entry
        assert entry["external"] == "49.25"
        assert "not by AutoAttack" in entry["footnote"]
