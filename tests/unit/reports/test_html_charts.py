"""The report's drawings: numbers at their places, texts escaped, nothing over anything else."""

import itertools
from xml.etree import ElementTree as ET

import pytest
from report_material import EVIL

from raybench.reports.html_charts import (
    Bar,
    Curve,
    Dot,
    bar,
    bar_limit,
    forest,
    limits,
    lines,
    scatter,
)


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("a", 1.0, 0.5, 2.0), Bar("b", 0.5)]
    limit = bar_limit(bars)
    assert limit == 2.0
    widths = [
        float(ET.fromstring(bar(one, limit, "plain")).find("rect").get("width")) for one in bars
    ]
    assert widths == [50.0, 25.0]
    whiskers = ET.fromstring(bar(bars[0], limit, "plain")).findall("line")
    assert [(w.get("x1"), w.get("x2")) for w in whiskers] == [
        ("25", "100"),
        ("25", "25"),
        ("100", "100"),
    ]
    assert ET.fromstring(bar(bars[1], limit, "plain")).findall("line") == []


def test_bars_of_zero_are_drawn() -> None:
    assert bar_limit([]) == 1.0
    root = ET.fromstring(bar(Bar("constant", 0.0, 0.0, 0.0), bar_limit([Bar("x", 0.0)]), "plain"))
    assert root.find("rect").get("width") == "0"


def test_intervals_share_one_scale() -> None:
    bars = [Bar("a", 1.0, 0.0, 2.0), Bar("b", 3.0, 2.0, 4.0)]
    low, high = limits(bars)
    assert low < 0.0
    assert high > 4.0
    dots = [ET.fromstring(forest(one, (low, high))).findall("line")[-1] for one in bars]
    places = [float(dot.get("x1")) for dot in dots]
    assert places[0] == pytest.approx(100 * (1 - low) / (high - low), abs=0.01)
    assert places[1] == pytest.approx(100 * (3 - low) / (high - low), abs=0.01)
    assert limits([Bar("only", 2.0)]) == (1.5, 2.5)


def test_points_are_numbered_and_named() -> None:
    dots = [Dot(name=EVIL, x=0.1, y=5.0, x_bounds=(0.0, 0.3)), Dot(name="b", x=0.9, y=1.0)]
    drawn = scatter(dots, x_label="x < 1", y_label="y", title=EVIL)
    assert "<img" not in drawn
    root = ET.fromstring(drawn)
    circles = root.findall("circle")
    assert [circle.find("title").text for circle in circles] == [EVIL, "b"]
    assert float(circles[0].get("cx")) < float(circles[1].get("cx"))
    assert float(circles[0].get("cy")) < float(circles[1].get("cy"))  # up is more
    assert {"1", "2", "x < 1"} <= set(texts(root))
    assert root.get("role") == "img"
    assert root.find("title").text == EVIL


def test_numbers_of_points_that_coincide_do_not() -> None:
    dots = [Dot(name=str(place), x=0.5, y=1.0) for place in range(6)]
    root = ET.fromstring(scatter(dots, x_label="x", y_label="y", title="t"))
    names = [element for element in root.iter("text") if element.get("class") == "name"]
    assert len({(name.get("x"), name.get("y")) for name in names}) == 6


def test_lines_run_over_powers_of_two_and_end_apart() -> None:
    factors = [2.0**power for power in range(-6, 7)]
    curves = [Curve(f"m{k}", tuple((t, 1.0 + k / 1000) for t in factors)) for k in range(12)]
    root = ET.fromstring(lines(curves, x_label="T", y_label="score", title="t"))
    drawn = root.findall("polyline")
    assert len(drawn) == 12
    # Colour and dashes together tell all twelve apart, dashes alone neighbours.
    looks = [(line.get("class"), line.get("stroke-dasharray")) for line in drawn]
    assert len(set(looks)) == 12
    assert all(one[1] != other[1] for one, other in itertools.pairwise(looks))
    ends = [element for element in root.iter("text") if element.get("class") == "name"]
    assert [end.text for end in ends] == [str(place) for place in range(1, 13)]
    heights = sorted(float(end.get("y")) for end in ends)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 9
    assert heights[-1] < 240
    assert {"1/64", "1", "64"} <= set(texts(root))


def test_one_value_has_an_axis() -> None:
    root = ET.fromstring(
        scatter([Dot(name="a", x=0.0, y=0.0)], x_label="x", y_label="y", title="t", percent=False)
    )
    assert len(texts(root)) > 4
    ET.fromstring(lines([Curve("a", ((0.5, 0.0), (2.0, 0.0)))], x_label="", y_label="", title=""))
