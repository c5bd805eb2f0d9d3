"""The ranked table says the same in every form, and no more than was measured."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from raybench.core.errors import StoreError
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.reports.tables import (
    as_json,
    as_markdown,
    as_text,
    interval,
    number,
    print_table,
    ranked_table,
    write_csv,
)

DATASET = DatasetInfo(
    spec="digits?split=test",
    name="digits",
    shape=(1, 8, 8),
    num_classes=10,
    size=797,
    has_labels=True,
    fingerprint="d" * 64,
)


def model(name: str, spec: str | None = None) -> ModelInfo:
    return ModelInfo(
        spec=spec or f"zoo:{name}",
        name=name,
        access=Access.LOGITS,
        input_shape=(1, 8, 8),
        num_classes=10,
        fingerprint="f" * 64,
    )


def row(name: str, score: float, rank: int, **more: object) -> ModelScore:
    values: dict = {
        "model": model(name),
        "reading": "grid",
        "key": "a" * 64,
        "folder": f"digits/{name}",
        "status": "complete",
        "score": score,
        "ci_low": score * 0.97,
        "ci_high": score * 1.03,
        "rank": rank,
        "n": 797,
        "queries": 797_000,
        "images_per_second": 12.345,
    }
    return ModelScore(**{**values, **more})


def failed(name: str) -> ModelScore:
    return ModelScore(
        model=model(name),
        reading="grid",
        key="a" * 64,
        folder=f"digits/{name}",
        status="failed",
        error="RuntimeError: out of memory\n  File 'worker.py', line 3, in call",
    )


TABLE = ScoreTable(
    dataset=DATASET,
    reading="grid",
    seed=0,
    samples=1000,
    baseline="cnn3",
    rows=(
        failed("mlp2"),
        row(
            "cnn3-adv",
            0.0351,
            1,
            tied=("cnn5",),
            baseline="cnn3",
            ri=12.3456,
            ri_low=10.1,
            ri_high=14.6,
            clean_accuracy=0.9737,
            warnings=("5 % of images have fewer than 5 segments",),
        ),
        row(
            "cnn5",
            0.0352,
            2,
            tied=("cnn3-adv",),
            unscored=3,
            warnings=("3 of 800 images could not be scored",),
        ),
        row("cnn3", 0.04, 3),
    ),
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.596, "0.5960"),
        (0.74314, "0.7431"),
        (0.09999999, "0.1000"),
        (12.3456, "12.35"),
        (99.996, "100.0"),
        (-1.5, "-1.500"),
        (123456.7, "123,457"),
        (0.0000123, "0.00001230"),
        (1.2346e-7, "1.235e-07"),
    ],
)
def test_numbers_keep_four_significant_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_intervals() -> None:
    assert interval(0.5, 0.25, 0.75) == "0.5000 [0.2500, 0.7500]"
    assert interval(0.5, None, 0.75) == "0.5000"
    assert interval(None, None, None) == "-"


def test_text_ranks_and_puts_failures_at_the_bottom() -> None:
    text = as_text(TABLE)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(
        "digits · reading grid · n = 797 · k = 1,000 · seed 0 · R.I. against cnn3"
    )
    body = [line for line in lines if re.match(r"\s*(\d=?|-)\s+\w", line)]
    assert [line.split()[:2] for line in body] == [
        ["1=", "cnn3-adv"],
        ["2=", "cnn5"],
        ["3", "cnn3"],
        ["-", "mlp2"],
    ]
    assert "0.03510 [0.03405, 0.03615]" in body[0]
    assert "12.35 [10.10, 14.60]" in body[0]
    assert "97.37" in body[0]
    assert "797,000" in body[0]
    assert "12.3" in body[0]
    assert "baseline" in body[2]
    assert "failed" in body[3]
    notes = " ".join(text.split())
    assert "cnn3-adv with cnn5; cnn5 with cnn3-adv" in notes
    assert notes.count("images could not be scored") == 1
    assert "cnn5: 3 of 800 images could not be scored" in notes
    assert "cnn3-adv: 5 % of images have fewer than 5 segments" in notes
    assert notes.endswith("mlp2 is failed: RuntimeError: out of memory")


def test_a_traceback_is_told_by_the_line_that_names_the_error() -> None:
    text = 'Traceback (most recent call last):\n  File "x.py", line 3, in call\nKeyError: 4\n'
    lost = dataclasses.replace(failed("mlp2"), error=text)
    assert "mlp2 is failed: KeyError: 4\n" in as_text(dataclasses.replace(TABLE, rows=(lost,)))


def six(**more: object) -> ScoreTable:
    """As the paper's six networks come out of the demo: every column known."""
    rows = [
        row(
            name,
            0.0117 + rank / 7919,
            rank,
            queries=400_000,
            noise_floor=0.00381,
            normalised=0.5230 + rank / 97,
            normalised_low=0.4587,
            normalised_high=0.5911,
            baseline=name.removesuffix("-adv"),
            ri=4.909 if "-adv" in name else 0.0,
            ri_low=-9.241,
            ri_high=17.82,
            ri_over_model=5.162,
            clean_accuracy=0.9667,
            **more,
        )
        for rank, name in enumerate(("mlp2", "mlp2-adv", "cnn3", "cnn3-adv", "cnn5", "cnn5-adv"), 1)
    ]
    return dataclasses.replace(TABLE, rows=tuple(rows))


def test_a_page_of_100_columns_keeps_the_normalised_interval_and_the_noise() -> None:
    text = as_text(six())
    assert max(map(len, text.splitlines())) <= 100
    first = next(line for line in text.splitlines() if line.lstrip().startswith("1 "))
    assert "0.5333 [0.4587, 0.5911]" in first
    assert " 0.0038 " in first
    assert "17.82" not in text
    notes = " ".join(text.split())
    assert "Left out for want of width: R.I. intervals, images/s" in notes
    assert "Images/s: mlp2 12.3, mlp2-adv 12.3" in notes
    wide = io.StringIO()
    Console(width=160, file=wide).print(ranked_table(six(), width=160))
    assert "17.82" in wide.getvalue()
    assert "Left out" not in wide.getvalue()


def test_queries_go_below_where_names_are_long() -> None:
    rows = tuple(
        dataclasses.replace(one, model=model(f"{one.model.name}-of-forty-epochs"))
        for one in six().rows
    )
    text = as_text(dataclasses.replace(six(), rows=rows))
    assert max(map(len, text.splitlines())) <= 100
    assert "Queries: 400,000 a model." in " ".join(text.split())
    assert all(one.model.name in text for one in rows)
    assert "0.5333 [0.4587, 0.5911]" in text


def test_orders_that_disagree_are_flagged_with_how_much() -> None:
    known = six(matched=0.02)
    rows = [
        dataclasses.replace(one, normalised=value, matched=other)
        for one, value, other in zip(
            known.rows, (0.2, 0.1, 0.3, 0.4, 0.6, 0.5), (1, 2, 3, 4, 5, 6), strict=True
        )
    ]
    notes = " ".join(as_text(dataclasses.replace(known, rows=rows)).split())
    assert (
        "of 15 pairs of models, tied ones included, these swap places: 2 between brittle-score and "
        "normalised; 2 between matched and normalised. matched: the brittle-score where the mean "
        "confidence is 0.9."
    ) in notes
    alike = [dataclasses.replace(one, matched=one.score) for one in six().rows]
    notes = " ".join(as_text(dataclasses.replace(known, rows=alike)).split())
    assert "brittle-score, matched, normalised: the order of the models is the same" in notes


def test_markdown_has_both_denominators_and_the_scores_at_other_temperatures() -> None:
    table = six(temperature_half=0.01742, temperature_double=0.0106, matched=0.01836)
    text = as_markdown(table)
    assert "| R.I. % (Eq. 3) [95 % CI] | R.I. % over own score |" in text
    assert "| 4.909 [-9.241, 17.82] | 5.162 |" in text
    assert "| baseline | - |" in text
    assert "| model | T = 0.5 | T = 1 | T = 2 |" in text
    assert "| mlp2 | 0.01742 | 0.01183 | 0.01060 | 0.01836 |" in text
    assert "T = 0.5" not in as_markdown(six())


def test_queries_of_another_reading_are_told_beside_it() -> None:
    text = as_text(six(normalised_by="flip-radius?samples=400", normalised_queries=161_000))
    assert "flip-radius?samples=400 (161,000 further queries for each model);" in " ".join(
        text.split()
    )


def test_columns_nothing_is_known_of_are_left_out() -> None:
    plain = dataclasses.replace(TABLE, baseline=None, rows=(row("a", 0.1, 1),))
    text = as_text(plain)
    assert "clean" not in text
    assert "R.I." not in text
    assert as_text(dataclasses.replace(plain, rows=())).startswith("digits · reading grid")


def test_a_warning_shared_by_all_is_said_once() -> None:
    rows = tuple(row(name, 0.1, i + 1, warnings=("beware",)) for i, name in enumerate("abc"))
    assert as_text(dataclasses.replace(TABLE, rows=rows)).count("beware") == 1
    assert "all models: beware" in as_text(dataclasses.replace(TABLE, rows=rows))


def test_long_names_and_markup_survive() -> None:
    name = "Rebuffi2021Fixing_70_16_cutmix_extra"
    gain = {"baseline": "Standard", "ri": 1.2346, "ri_low": -10.25, "ri_high": 10.75}
    rows = (
        row(name, 0.1, 1, clean_accuracy=0.5, **gain),
        row("[red]x[/red]", 0.1, 2, tied=tuple("abcdefgh"), queries=3_000_000),
    )
    text = as_text(dataclasses.replace(TABLE, rows=rows))
    assert max(map(len, text.splitlines())) <= 100
    assert name in text
    assert "[red]x[/red]" in text
    assert "0.1000 [0.09700, 0.1030]" in text
    assert " 1.235 " in text
    assert "a, b, c, d, e and 3 more" in " ".join(text.split())
    assert "1.235 [-10.25, 10.75]" in as_markdown(dataclasses.replace(TABLE, rows=rows))


def test_twins_are_each_compared_with_their_own() -> None:
    rows = (
        row("a-adv", 0.1, 1, baseline="a", ri=5.0),
        row("b-adv", 0.2, 2, baseline="b", ri=6.0),
        row("a", 0.3, 3, baseline="a", ri=0.0),
        row("b", 0.4, 4),
    )
    text = as_text(dataclasses.replace(TABLE, rows=rows))
    assert "R.I. compares a-adv with a; b-adv with b." in text
    assert "against" not in text
    assert [line.split()[1] for line in text.splitlines() if "baseline" in line] == ["a", "b"]


def test_printing_to_a_pipe_is_the_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(TABLE)
    assert capsys.readouterr().out == as_text(TABLE)


def test_words_a_score_cannot_carry_are_absent() -> None:
    everything = as_text(TABLE) + as_markdown(TABLE) + json.dumps(as_json(TABLE))
    assert not re.search(r"robust|prove|proof|guarant|secure|safe", everything, re.IGNORECASE)
    assert "less brittle under this reading" in " ".join(as_text(TABLE).split())


def test_markdown_has_one_line_per_model() -> None:
    awkward = dataclasses.replace(TABLE, rows=(*TABLE.rows, row("a|b", 0.5, 4)))
    lines = [line for line in as_markdown(awkward).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(awkward.rows)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"a\|b" in lines[-2]


def test_json_is_strict_and_complete() -> None:
    value = as_json(TABLE)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert {k: v for k, v in value.items() if k != "models"} == {
        "dataset": "digits",
        "reading": "grid",
        "seed": 0,
        "samples": 1000,
        "baseline": "cnn3",
        "rank_by": "score",
    }
    assert [entry["model"] for entry in value["models"]] == ["cnn3-adv", "cnn5", "cnn3", "mlp2"]
    first = value["models"][0]
    names = {field.name for field in dataclasses.fields(ModelScore)}
    bounds = {f"{score}_ci_{end}" for score in ("score", "normalised") for end in ("low", "high")}
    plain = names - {"normalised_low", "normalised_high"}
    assert set(first) == plain | bounds | {"spec", "fingerprint", "access"}
    assert (first["score_ci_low"], first["score_ci_high"]) == (first["ci_low"], first["ci_high"])
    assert first["access"] == "logits"
    assert first["spec"] == "zoo:cnn3-adv"
    assert first["score"] == 0.0351
    assert first["tied"] == ["cnn5"]
    assert value["models"][3]["score"] is None


def test_json_refuses_what_strict_json_cannot_hold() -> None:
    with pytest.raises(StoreError, match="cnn3: r2 is nan"):
        as_json(dataclasses.replace(TABLE, rows=(row("cnn3", 0.1, 1, r2=float("nan")),)))


def test_credentials_of_remote_specs_are_not_shown() -> None:
    remote = dataclasses.replace(
        row("x", 0.1, 1), model=model("x", "onnx:s3://key:hunter2@bucket/x.onnx")
    )
    table = dataclasses.replace(TABLE, rows=(remote,))
    assert "hunter2" not in json.dumps(as_json(table))
    assert as_json(table, redact=str.upper)["models"][0]["spec"].startswith("ONNX:S3")


def test_csv_holds_the_same_in_full_precision(tmp_path: Path) -> None:
    path = write_csv(TABLE, tmp_path / "scores.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    models = as_json(TABLE)["models"]
    assert [entry["model"] for entry in rows] == [entry["model"] for entry in models]
    assert float(rows[0]["ci_low"]) == models[0]["ci_low"]
    assert rows[0]["tied"] == "cnn5"
    assert rows[3]["score"] == ""
    assert rows[0]["run_baseline"] == rows[0]["baseline"] == "cnn3"
    assert set(models[0]) <= set(rows[0])


def test_the_terminal_table_is_the_same_table() -> None:
    drawn = ranked_table(TABLE)
    assert drawn.row_count == len(TABLE.rows)
    page = io.StringIO()
    Console(width=140, file=page).print(drawn)
    assert [line.split() for line in page.getvalue().splitlines() if "[0." in line] == [
        line.split() for line in as_text(TABLE).splitlines() if "[0." in line
    ]
