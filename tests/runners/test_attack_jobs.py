"""Attacks as jobs: the engine's promises hold for them as for scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from score_material import Material, make_material, part_bytes, stored_tables

import raybench
from raybench.cli import main
from raybench.core.catalog import load_model
from raybench.core.errors import InputError


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"), images=20)


def attack(material: Material, out: Path, *more: str) -> int:
    arguments = ["attack", *material.models, "--data", material.data, "--out", str(out)]
    arguments += ["--attack", "pgd,square?queries=30", "--eps", "8/255", "--steps", "5"]
    return main([*arguments, "--shard-size", "6", "--quiet", *more])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_and_one_process_give_the_same_bytes(material: Material, tmp_path: Path) -> None:
    assert attack(material, tmp_path / "ray", "--actors", "2") == 0
    assert attack(material, tmp_path / "local", "--runner", "local") == 0
    assert part_bytes(tmp_path / "ray") == part_bytes(tmp_path / "local")
    assert part_bytes(tmp_path / "ray")


def test_a_second_run_computes_nothing_and_damage_is_repaired(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert attack(material, out, "--runner", "local") == 0
    before, tables = part_bytes(out), stored_tables(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    assert attack(material, out, "--runner", "local", "--json") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")} == stamps
    part = next(iter(sorted(stamps)))
    part.write_bytes(part.read_bytes()[:-7] + b"damaged")
    assert main(["verify", str(out)]) == 3
    assert main(["verify", str(out), "--repair", "--runner", "local"]) == 0
    assert part_bytes(out) == before
    assert stored_tables(out) == tables
    capsys.readouterr()


def test_attacks_are_joined_to_one_robust_accuracy(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["attack", material.models[0], "--data", material.data, "--n", "8"]
    arguments += ["--attack", "fgsm,pgd,apgd-ce,square?queries=20,noise", "--eps", "0.1"]
    arguments += ["--steps", "5", "--out", str(tmp_path), "--runner", "local", "--quiet", "--json"]
    assert main(arguments) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    names = [attack["attack"] for attack in model["attacks"]]
    assert names == ["fgsm", "pgd", "apgd-ce", "square", "noise"]
    assert {attack["status"] for attack in model["attacks"]} == {"complete"}
    assert model["robust_accuracy"] <= min(attack["accuracy"] for attack in model["attacks"])


def test_a_suite_that_the_classes_do_not_allow_is_refused_at_once(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["robust-acc", material.models[0], "--data", material.data, "--eps", "0.1"]
    assert main([*arguments, "--suite", "fast", "--out", str(tmp_path), "--quiet"]) == 2
    assert "apgd-t needs at least 4 classes" in capsys.readouterr().err
    assert main([*arguments, "--suite", "fats", "--out", str(tmp_path), "--quiet"]) == 2
    assert "did you mean fast" in capsys.readouterr().err


def test_scores_and_attacks_of_the_same_models_are_joined(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    third = make_material(tmp_path / "third", images=20).models[0]
    models = [*material.models, f"{third}&mean=0.3&std=0.2&name=third"]
    shared = ["--data", material.data, "--out", str(out), "--runner", "local", "--quiet"]
    assert main(["score", *models, *shared, "--samples", "64"]) == 0
    assert main(["attack", *models, *shared, "--attack", "fgsm", "--eps", "0.01"]) == 0
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    said = capsys.readouterr().out
    assert "attacks within linf 0.01" in said
    assert "normalised score against linf 0.01: Pearson" in said
    assert list(out.rglob("fig4-score-linf-0.01.png"))
    assert main(["sync", str(out)]) == 0


def test_python_gives_the_same(material: Material, tmp_path: Path) -> None:
    run = raybench.attack(
        models=list(material.models), data=material.data, attack="fgsm", eps="0.1",
        out=tmp_path, runner="local", quiet=True,
    )  # fmt: skip
    (table,) = run.tables
    assert [row.status for row in table.rows] == ["complete", "complete"]
    assert run.exit_code == 0


def test_mistakes_are_told_together_before_any_device_is_taken(
    material: Material, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        raybench.attack(
            models=list(material.models), data=material.data, attack=["pgd", "jsma", "noise"],
            eps="8", steps=3, step_size="0.1", restarts=0.5, out=tmp_path,
        )  # fmt: skip
    assert "restarts" in str(caught.value)
    with pytest.raises(InputError) as caught:
        raybench.attack(
            models=[f"{material.models[0]}&access=scores"], data=material.data,
            attack=["pgd", "noise"], eps="8", steps=3, out=tmp_path,
        )  # fmt: skip
    assert "did you mean 8/255" in str(caught.value)
    with pytest.raises(InputError, match="needs access to gradients"):
        raybench.attack(
            models=[f"{material.models[0]}&access=scores"], data=material.data,
            attack=["pgd", "noise"], eps="0.1", out=tmp_path,
        )  # fmt: skip
    with pytest.raises(InputError, match="--steps: none of the attacks takes it"):
        raybench.attack(
            models=list(material.models), data=material.data, attack="fgsm", eps="0.1", steps=3,
            out=tmp_path,
        )  # fmt: skip
    assert not list(tmp_path.rglob("*.parquet"))


def test_where_targeted_walks_begin_depends_on_no_shard(material: Material, tmp_path: Path) -> None:
    network = load_model(material.models[1])
    pixels = np.random.default_rng(1).integers(0, 256, size=(20, 8, 8), dtype=np.uint8)
    labels = network.labels(torch.from_numpy(pixels)[:, None] / 255).numpy()
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    arguments = ["attack", material.models[1], "--data", f"npz:{tmp_path / 'data.npz'}", "--quiet"]
    arguments += ["--targeted", "next", "--attack", "hopskipjump?queries=60", "--runner", "local"]
    tables = []
    for size in ("3", "20"):
        out = tmp_path / size
        assert main([*arguments, "--out", str(out), "--shard-size", size]) == 0
        (rows,) = (table.to_pylist() for table in stored_tables(out).values())
        tables.append(sorted((row["sample_id"], row["success"], row["queries"]) for row in rows))
    assert tables[0] == tables[1]
    assert any(success for _, success, _ in tables[0])
