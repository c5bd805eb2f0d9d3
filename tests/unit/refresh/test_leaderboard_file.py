"""The leaderboard file: what it accepts, every mistake at once, patterns spelt out."""

from pathlib import Path

import pytest

from raybench.core.errors import InputError
from raybench.refresh.datasets import open_datasets
from raybench.refresh.file import LeaderboardFile, load_leaderboard
from raybench.refresh.listing import Listed, list_models

HEAD = """
benchmark_version: "1"
out: results
datasets: [digits]
"""


def load(folder: Path, text: str, head: str = HEAD) -> LeaderboardFile:
    path = folder / "leaderboard.yaml"
    path.write_text(head + text)
    return load_leaderboard(path)


def listed(folder: Path, models: str) -> list[Listed]:
    file = load(folder, f"evaluations: [grid]\nmodels:\n{models}")
    return list_models(file, folder / "cache.json")


def test_bare_lines_and_full_ones(tmp_path: Path) -> None:
    file = load(
        tmp_path,
        """
datasets:
  - digits?n=7
  - {name: hard, spec: digits, n: 5, threat: linf 8/255}
evaluations:
  - grid?samples=64
  - {spec: "pgd?steps=3", datasets: hard}
models:
  - zoo:cnn3
  - {spec: "zoo:mlp2", datasets: [hard], name: plain}
baseline: {hard: plain}
resources: {runner: local, shard_size: 8}
reference:
  - {model: plain, dataset: hard, metric: robust_accuracy, value: 0.4, source: x, threat: linf 0.1}
""",
        head='benchmark_version: "1"\nout: results\n',
    )
    assert [line.name for line in file.datasets] == ["digits", "hard"]
    assert file.evaluations[1].datasets == ("hard",)
    assert str(file.datasets[1].threat) == "linf 8/255"
    means = file.means(runner=None, actors="3")
    assert (means.runner, means.shard_size, means.actors) == ("local", 8, 3)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(
            tmp_path,
            """
sead: 3
evaluations: [{spec: "suite:fats"}, {spec: "attack"}]
models: [{spec: "zoo:cnn3", naem: x}]
resources: {actrs: 2}
reference:
  - {model: a, dataset: digits, metric: clean_accuracy, value: 98, source: x}
  - {model: a, dataset: digits, metric: robust_accuracy, value: 0.5, source: x}
  - {model_info: /nowhere/at/all}
""",
        )
    text = str(caught.value)
    for part in (
        "sead: no such key; did you mean seed?",
        "did you mean fast?",
        "name the attack",
        "models.0.naem: no such key; did you mean name?",
        "no such option: actrs; did you mean actors?",
        "did you mean 0.98?",
        "holds within a threat",
        "no file or folder /nowhere/at/all",
    ):
        assert part in text
    assert "at least 1 item" not in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "evaluations: [grid]\nmodels: [{spec: zoo:cnn3, datasets: digit}]",
            "did you mean digits?",
        ),
        ("evaluations: [grid]", "models: must be given"),
        ("evaluations: [grid]\nmodels: [zoo:cnn3]\nbaseline: {dogits: a}", "did you mean digits?"),
        ("evaluations: [grid]\nmodels: [zoo:cnn3]\nresources: {device: tpu}", "device: Input"),
        ("evaluations: [grid]\nmodels: [zoo:cnn3]\nseed: true", "whole number"),
        ("evaluations: [grid?samples=3]\nmodels: [zoo:cnn3]", "quote"),
    ],
)
def test_mistakes_name_what_is_wrong(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        load(tmp_path, text)


def test_two_datasets_of_one_name_are_refused(tmp_path: Path) -> None:
    head = 'benchmark_version: "1"\nout: o\ndatasets: [digits, "digits?n=3"]\n'
    with pytest.raises(InputError, match="two are named digits"):
        load(tmp_path, "evaluations: [grid]\nmodels: [zoo:cnn3]", head)


def test_files_are_found_by_pattern_and_lines_of_their_own_win(tmp_path: Path) -> None:
    for name in ("a/model.pt", "b/model.pt", "c/other.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = listed(
        tmp_path,
        f"""
  - "torchscript:{tmp_path}/*/*.pt?shape=1x8x8"
  - {{spec: "torchscript:{tmp_path}/b/model.pt?shape=1x8x8", name: mine}}
""",
    )
    assert [one.spec for one in found] == [
        f"torchscript:{tmp_path}/a/model.pt?shape=1x8x8",
        f"torchscript:{tmp_path}/c/other.pt?shape=1x8x8",
        f"torchscript:{tmp_path}/b/model.pt?name=mine&shape=1x8x8",
    ]


def test_a_pattern_names_its_models_by_folder_or_file(tmp_path: Path) -> None:
    (tmp_path / "run7").mkdir()
    (tmp_path / "run7" / "best.pt").write_bytes(b"x")
    pattern = f"onnx:{tmp_path}/*/best.pt"
    found = listed(tmp_path, f'  - {{spec: "{pattern}", name: "{{folder}}-{{stem}}"}}')
    assert found[0].spec.endswith("?name=run7-best")
    with pytest.raises(InputError, match="stands for several models"):
        listed(tmp_path, f'  - {{spec: "{pattern}", name: same}}')


def test_a_pattern_that_fits_nothing_is_an_entry_with_a_problem(tmp_path: Path) -> None:
    found = listed(tmp_path, f'  - "torchscript:{tmp_path}/*.pt"\n  - zoo:cnn3\n  - python:*')
    assert [bool(one.problem) for one in found] == [True, False, True]
    assert "cannot be listed" in str(found[2].problem)


def test_names_of_the_built_in_networks_are_patterns_too(tmp_path: Path) -> None:
    found = listed(tmp_path, "  - zoo:cnn*\n  - control:*")
    names = [one.spec for one in found]
    assert names[:4] == ["zoo:cnn3", "zoo:cnn3-adv", "zoo:cnn5", "zoo:cnn5-adv"]
    assert "control:distilled" in names


def test_a_star_in_robustbench_stays_within_its_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench.models import robustbench

    calls = []

    def listing() -> dict[str, list[str]]:
        calls.append(1)
        return {"cifar10/Linf": ["A", "B"], "cifar10/L2": ["A"], "cifar100/Linf": ["A"]}

    monkeypatch.setattr(robustbench, "listing", listing)
    for _ in range(2):
        found = listed(tmp_path, "  - robustbench:cifar10/Linf/*\n  - robustbench:*/L2/A")
    assert [one.spec.removeprefix("robustbench:") for one in found] == [
        "cifar10/Linf/A",
        "cifar10/Linf/B",
        "cifar10/L2/A",
    ]
    assert len(calls) == 1  # importing the package takes seconds: once is enough


def test_one_model_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given twice for digits"):
        listed(tmp_path, '  - zoo:cnn3\n  - {spec: "zoo:cnn3", name: again}')


def open_all(folder: Path, text: str, threat: str = "null") -> list[str]:
    """Return the evaluations that `text` asks for, by their canonical specs."""
    head = (
        'benchmark_version: "1"\nout: o\n'
        f'datasets: [{{name: d, spec: "digits", n: 20, threat: {threat}}}]\n'
    )
    file = load(folder, f"evaluations:\n{text}\nmodels: [zoo:cnn3]", head)
    [opened] = open_datasets(file)
    attacks = [one for several in opened.attacks.values() for one in several]
    return [one.canonical() for one in (*opened.readings, *attacks)]


def test_evaluations_are_spelt_in_the_one_syntax(tmp_path: Path) -> None:
    found = open_all(
        tmp_path,
        """
  - lime?samples=64
  - lime:grid?samples=64
  - flip-radius
  - attack:pgd?steps=3&eps=0.1
  - suite:fast?eps=8/255&norm=linf
""",
    )
    schemes = [one.partition("?")[0] for one in found]
    assert schemes == ["grid", "flip-radius", "pgd", "apgd-ce", "apgd-t"]
    assert "eps=8/255" in found[3]


def test_attacks_stay_within_the_threat_of_their_dataset(tmp_path: Path) -> None:
    [found] = open_all(tmp_path, "  - pgd?steps=3", "linf 0.2")
    assert "eps=0.2" in found
    assert "norm=linf" in found
    [same] = open_all(tmp_path, "  - pgd?eps=1/5&steps=3", "linf 0.2")
    assert "eps=" in same
    with pytest.raises(InputError, match="rows of two threats do not mix"):
        open_all(tmp_path, "  - pgd?eps=0.1&steps=3", "linf 0.2")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("grit", "did you mean grid?"),
        ("pgd", "needs a budget"),
        ("suite:fast?steps=3", "no option is named 'steps'"),
        ("grid?cells=99", "cells"),
    ],
)
def test_evaluations_that_the_images_cannot_have(tmp_path: Path, line: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        open_all(tmp_path, f"  - {line}\n  - flip-radius?samples=1")
    assert part in str(caught.value)
    assert "evaluations.1 on d" in str(caught.value)  # and the others with it
