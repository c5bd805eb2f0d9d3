"""What a pilot foretells, against the rows that it left on disk; and the figures of those rows."""

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from score_material import Slow, make_material

from raybench.config import ScoreConfig
from raybench.forecast import ClosestPair, Forecast, ModelForecast, forecast
from raybench.job import build_job
from raybench.metrics.sample_size import PairSize, SampleSize
from raybench.publish import report_folder, table_key, write_reports
from raybench.reports.summary import load_tables
from raybench.reports.tables import number
from raybench.sinks.store import find_manifests, load_rows, read_manifest

IMAGES = 24


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], str]:
    """Return three linear networks and the data."""
    material = make_material(tmp_path_factory.mktemp("material"), images=IMAGES)
    path = material.folder / "third.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, not gone
        torch.jit.script(Slow(2, 0).eval()).save(str(path))
    return (*material.models, f"torchscript:{path}?shape=1x8x8&classes=3"), material.data


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave torch's threads as they were: the pilot computes in this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan(specs: tuple[tuple[str, ...], str], out: Path, **options: object) -> Forecast:
    settings: dict = {
        "models": specs[0], "data": specs[1], "out": out, "reading": ("grid",), "samples": 64,
        "shard_size": 4, "runner": "local", **options,
    }  # fmt: skip
    config = ScoreConfig(**settings)
    return forecast(build_job(config, lambda text: None), config, 2, lambda text: None)


def stored(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the columns of the rows on disk by model."""
    found = {}
    for folder in find_manifests(out):
        manifest = read_manifest(folder)
        done = tuple(shard for shard in manifest.shards if shard.file in manifest.parts)
        rows = load_rows(folder, dataclasses.replace(manifest, shards=done))
        found[manifest.measurement["model"]["name"]] = {
            name: rows.column(name).to_numpy()
            for name in ("sample_id", "score", "half_a", "half_b")
        }
    return found


@pytest.mark.usefixtures("threads")
def test_sizes_are_those_of_the_pilots_rows(
    specs: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    report = plan(specs, tmp_path, ci_width=0.25)
    rows = stored(tmp_path)
    assert [row.model for row in report.rows] == ["first", "second", "third"]
    for row in report.rows:
        columns = rows[row.model]
        scores = columns["score"]
        mean, sd = scores.mean(), scores.std(ddof=1)
        assert (row.shards_done, row.shards, row.samples) == (2, 6, 64)
        assert row.size.pilot == 8
        assert (row.size.mean, row.size.sd) == pytest.approx((mean, sd))
        assert row.size.images == math.ceil((1.96 * sd / (0.25 * mean)) ** 2)
        noise = np.var(columns["half_a"] - columns["half_b"], ddof=1) / 4
        assert row.size.noise_share == pytest.approx(noise / sd**2)
        # 16 cells: fewer than 18 samples cannot be fitted, however little noise there is.
        own = sd**2 - noise
        assert row.size.samples == max(18, math.ceil(64 * noise / (0.1 * own)))
    (closest,) = report.closest
    gaps = {
        abs(np.mean(rows[one]["score"] - rows[other]["score"]))
        for one, other in (("first", "second"), ("first", "third"), ("second", "third"))
    }
    assert closest.pair.difference == pytest.approx(min(gaps))
    paired = rows[closest.pair.second]["score"] - rows[closest.pair.first]["score"]
    needed = (1.96 * paired.std(ddof=1) / paired.mean()) ** 2
    assert closest.pair.images == max(2, math.ceil(needed))


@pytest.mark.usefixtures("threads")
def test_the_pilot_is_spread_over_the_data(
    specs: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    plan(specs, tmp_path)
    ids = stored(tmp_path)["first"]["sample_id"]
    places = sorted(int(name.partition("#")[2]) for name in ids)
    assert places == [0, 1, 2, 3, 12, 13, 14, 15]


@pytest.mark.usefixtures("threads")
def test_readings_without_halves_and_tiny_pilots_say_what_they_cannot_tell(
    specs: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    report = plan(
        specs, tmp_path / "a", n=1, reading=("grid", "mask?segmentation=grid", "flip-radius")
    )
    assert report.closest == ()
    for row in report.rows:
        assert (row.size.pilot, row.size.sd, row.size.images) == (1, None, None)
    assert "not known: a standard deviation takes 2 scored images, found 1" in report.as_text()
    # The halves of a mask's weights are not in the unit of its area; the radius has none.
    report = plan(specs, tmp_path / "b", reading=("mask?segmentation=grid", "flip-radius"))
    assert all(row.size.noise_share is None for row in report.rows)
    assert all(row.size.sd is not None for row in report.rows)
    assert all(row.samples == 64 for row in report.rows)
    assert {one.reading.partition("?")[0] for one in report.closest} == {"mask", "flip-radius"}


def report(size: SampleSize, pair: PairSize | None = None) -> Forecast:
    row = ModelForecast(
        model="net",
        reading="grid",
        samples=1000,
        shards=25,
        shards_done=2,
        queries_left=368_000,
        seconds_left=12.0,
        size=size,
    )
    return Forecast(
        images=400,
        actors=2,
        rows=(row,),
        ci_width=0.1,
        closest=() if pair is None else (ClosestPair(reading="grid", pair=pair),),
        worker_bytes=2**30,
        seconds_left=6.0,
        notes=(),
    )


SIZE = SampleSize(pilot=32, mean=0.02, sd=0.03, images=865, noise_share=0.02, samples=205)


def test_the_text_answers_how_many_images_and_samples() -> None:
    pair = PairSize(
        first="net",
        second="other",
        pilot=32,
        difference=0.001,
        sd=0.005,
        images=97,
        images_four_in_five=197,
    )
    shown = report(SIZE, pair).as_text()
    for part in (
        "±10 %",
        "n = (1.96 sd / (0.1 mean))²",
        "normal approximation",
        "865 images, more than the 400 selected",
        "2 % of that variance at k = 1,000",
        "under 10 % of the images' own from about k = 205",
        "more images help, more samples hardly",
        "net and other",
        "97 images part them at 95 % half of the time, 197 four times in five",
    ):
        assert part in shown
    assert "more than" not in report(dataclasses.replace(SIZE, images=400)).as_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # Twice the samples leave 1 - share / 2 of the variance: sqrt 0.75 of the width.
        ({"noise_share": 0.5, "samples": 10_000}, "twice the samples narrow the interval by 13 %"),
        ({"noise_share": 1.0, "samples": None}, "take more samples first"),
        ({"noise_share": None, "samples": None}, "at k = 1,000: not known"),
        ({"images": None, "mean": 0.0}, "not known: the mean over 32 pilot images is 0"),
    ],
)
def test_the_text_says_what_helps(changes: dict, said: str) -> None:
    shown = report(dataclasses.replace(SIZE, **changes)).as_text()
    assert said in shown
    assert ("more samples hardly" in shown) == ("samples" not in changes)


def test_models_that_never_differed_are_not_promised_a_number() -> None:
    same = PairSize(
        first="a",
        second="b",
        pilot=32,
        difference=0.0,
        sd=0.0,
        images=None,
        images_four_in_five=None,
    )
    shown = report(SIZE, same).as_text()
    assert "a and b, without any difference over 32 images" in shown


def test_json_has_the_same() -> None:
    pair = PairSize(
        first="a", second="b", pilot=32, difference=0.1, sd=0.2, images=16, images_four_in_five=32
    )
    content = json.loads(json.dumps(report(SIZE, pair).as_json(), allow_nan=False))
    assert content["ci_width"] == 0.1
    assert content["rows"][0]["size"] == {
        "pilot": 32, "mean": 0.02, "sd": 0.03, "images": 865, "noise_share": 0.02, "samples": 205,
    }  # fmt: skip
    assert content["closest"][0]["pair"]["images"] == 16


@pytest.mark.usefixtures("threads")
def test_stored_rows_become_the_figures_of_disagreement_and_noise(
    specs: tuple[tuple[str, ...], str], tmp_path: Path
) -> None:
    plan(specs, tmp_path, shard_size=IMAGES // 2, reading=("grid", "flip-radius"))
    tables = load_tables(tmp_path)
    files = write_reports(tmp_path, tables, None)
    (shown,) = (table for table in tables if table.shown)
    names = {path.name for path in files[table_key(shown)]}
    folder = report_folder(tmp_path, shown)
    for stem in ("fig5_disagreement", "fig6_noise"):
        for kind in ("png", "svg"):
            assert f"{stem}.{kind}" in names
            assert (folder / f"{stem}.{kind}").stat().st_size > 1000
    # The running mean ends where the table is.
    drawn = (folder / "fig6_noise.svg").read_text()
    assert all(f"<!-- {number(row.score)} ± " in drawn for row in shown.rows)
