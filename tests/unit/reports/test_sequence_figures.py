"""The figure and the sentences of a sequential run."""

import html
from dataclasses import replace
from pathlib import Path

import pytest

from raybench.core.decisions import Decisions, PairDecision
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.reports.notes import footnotes
from raybench.reports.sequence_figures import draw_sequences, fig7_sequences
from raybench.reports.tables import as_json, as_markdown, as_text
from raybench.sinks.headlines import headline

PAIRS = (
    PairDecision(
        lower="a",
        higher="b",
        verdict="separated",
        difference=0.2,
        images=64,
        decided_at=48,
        path=((32, None, None), (48, 0.05, 0.4), (64, 0.08, 0.35)),
    ),
    PairDecision(
        lower="b",
        higher="c",
        verdict="tied",
        difference=0.001,
        images=96,
        decided_at=96,
        path=((32, -0.2, 0.2), (64, -0.12, 0.11), (96, -0.09, 0.08)),
    ),
    PairDecision(
        lower="c",
        higher="d",
        verdict="undecided",
        difference=0.05,
        images=96,
        decided_at=None,
        path=((32, -0.2, 0.3), (96, -0.02, 0.2)),
    ),
)


def row(name: str, rank: int, images: int) -> ModelScore:
    model = ModelInfo(
        spec=name,
        name=name,
        access=Access.SCORES,
        input_shape=(1, 8, 8),
        num_classes=10,
        fingerprint=name * 64,
    )
    return ModelScore(
        model=model,
        reading="flip-radius?samples=1000",
        key=name * 64,
        folder="f",
        status="complete",
        score=0.1 * rank,
        normalised=0.1 * rank,
        rank=rank,
        n=images,
        queries=images * 1000,
        fixed_n=96,
        queries_fixed_n=96_000,
    )


@pytest.fixture
def table() -> ScoreTable:
    images = {"a": 64, "b": 96, "c": 96, "d": 96}
    decisions = Decisions(
        evaluation="flip-radius?samples=1000",
        column="normalised",
        method="betting",
        alpha=0.05,
        pairs_covered=6,
        margin=0.1,
        decided=False,
        fixed_n=96,
        queries_spent=352_000,
        queries_fixed_n=384_000,
        models={name: (name, count) for name, count in images.items()},
        pairs=PAIRS,
    )
    return ScoreTable(
        dataset=DatasetInfo(
            spec="digits?n=96&sample_seed=0",
            name="digits",
            shape=(1, 8, 8),
            num_classes=10,
            size=96,
            has_labels=False,
            fingerprint="f" * 64,
        ),
        reading="flip-radius?samples=1000",
        seed=0,
        samples=1000,
        baseline=None,
        rows=[row(name, rank, images[name]) for rank, name in enumerate(images, start=1)],
        rank_by="normalised",
        decisions=decisions,
    )


def test_figure_has_a_panel_for_each_pair_and_the_same_bytes(
    table: ScoreTable, tmp_path: Path
) -> None:
    assert table.decisions is not None
    figure = draw_sequences(table.decisions, table)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["b -\na\nseparated at 48", "c -\nb\ntied at 96", "d -\nc\nundecided"]
    first, second = (fig7_sequences(table, tmp_path / name / "fig7") for name in "xy")
    assert [path.suffix for path in first] == [".png", ".svg"]
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)] == [
        True,
        True,
    ]


def test_no_figure_without_decisions(table: ScoreTable, tmp_path: Path) -> None:
    assert fig7_sequences(replace(table, decisions=None), tmp_path / "fig7") == []
    assert list(tmp_path.iterdir()) == []


def test_figure_of_many_pairs_shows_those_that_took_longest(table: ScoreTable) -> None:
    assert table.decisions is not None
    quick = tuple(
        replace(PAIRS[0], lower=f"m{index}", higher=f"m{index + 1}", decided_at=48 + index)
        for index in range(30)
    )
    many = replace(table.decisions, pairs=quick)
    titles = [axes.get_title() for axes in draw_sequences(many, table).axes]
    assert len(titles) == 12
    assert titles[0].startswith("m19 -\nm18")


def test_text_and_markdown_say_verdicts_and_what_they_are_worth(table: ScoreTable) -> None:
    for page in (as_text(table), html.unescape(as_markdown(table))):
        text = " ".join(page.split())
        assert "n = 64 to 96 of 96" in text
        assert "1 of 3 neighbours are still undecided at 96 of 96 images: 352,000 queries" in text
        assert "92 % of the 384,000 of fixed n" in text
        assert "a < b [0.05, 0.4] at 48 images" in text
        assert "b = c [-0.09, 0.08] at 96 images" in text
        assert "c ? d [-0.02, 0.2] at 96 images" in text
        assert "but for 5 %: a betting confidence sequence" in text
        assert "Bonferroni over 6 pairs" in text


def test_asymptotic_guarantee_is_called_what_it_is(table: ScoreTable) -> None:
    assert table.decisions is not None
    found = replace(table.decisions, method="asymptotic", margin=0.0)
    text = " ".join(footnotes(replace(table, decisions=found)))
    assert "an asymptotic confidence sequence, whose error nears this with more images" in text
    assert "= tied (no margin was given)" in text


def test_rows_without_their_record_warn_of_their_intervals(table: ScoreTable) -> None:
    notes = " ".join(footnotes(replace(table, decisions=None)))
    assert "A sequential run chose how many images" in notes
    whole = replace(table, decisions=None, rows=[replace(r, fixed_n=None) for r in table.rows])
    assert "sequential" not in " ".join(footnotes(whole))
    assert "n = 96 ·" in as_text(whole)


def test_json_holds_the_sequences(table: ScoreTable) -> None:
    content = as_json(table)["sequential"]
    assert content["pairs"][0]["path"][0] == (32, None, None)
    assert "sequential" not in as_json(replace(table, decisions=None))


def test_headline_says_where_it_was_decided(table: ScoreTable) -> None:
    first, second = table.rows[:2]
    assert "n = 64 (decided at 64 of 96 images)" in headline(first)
    assert "decided" not in headline(second)
    assert (first.queries_spent, replace(first, fixed_n=None).queries_spent) == (64_000, None)
