"""Charts of the HTML report as inline SVG: no script, no image, sharp at any width.

    bars([Bar("cnn3", 0.0179, 0.0154, 0.0205)])
    scatter([Dot("cnn3", 0.12, 0.53)], x_label="robust accuracy", y_label="score")

Colours come from the page's style sheet by class, so that dark mode and print may change them.
Points and lines carry numbers, so that nothing is told by colour alone. Texts are escaped by
ElementTree.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup

__all__ = [
    "DASHES",
    "SERIES",
    "Bar",
    "Curve",
    "Dot",
    "bar",
    "bar_limit",
    "forest",
    "limits",
    "lines",
    "scatter",
]

_WIDTH, _HEIGHT = 360.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 348.0, 10.0, 232.0
SERIES = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Lines are told apart by these too, in turn."""
_ROOM = 0.07  # of the range, left free at either end
_LETTER = 6.0  # about the width of a digit at 10 units
_LINE = 9.5


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its interval, None where unknown."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point with its intervals along both axes, None where unknown."""

    name: str
    x: float
    y: float
    x_bounds: tuple[float, float] | None = None
    y_bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points (x, y) in the order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


def _element(tag: str, text: str | None = None, /, **attributes: object) -> ET.Element:
    found = {
        name.rstrip("_").replace("_", "-"): f"{value:.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else str(value)
        for name, value in attributes.items()
        if value is not None and value != ""
    }
    element = ET.Element(tag, found)
    element.text = text
    return element


def _svg(children: Sequence[ET.Element], view: str, **attributes: object) -> Markup:
    root = _element("svg", viewBox=view, **attributes)
    root.extend(children)
    return Markup(ET.tostring(root, encoding="unicode"))


def bar_limit(bars: Sequence[Bar]) -> float:
    """Return the length that the longest bar of a chart stands for, its interval included."""
    return max((max(one.value, one.high or 0.0) for one in bars), default=0.0) or 1.0


def bar(one: Bar, limit: float, kind: str) -> Markup:
    """Return one bar from 0 to `limit` wide, with its interval; decoration of a number in text.

    Args:
        one: what to draw.
        limit: see `bar_limit`.
        kind: class of the bar: "plain" or "trained".
    """
    scale = 100.0 / limit
    parts = [_element("rect", x=0, y=2, width=one.value * scale, height=16, class_=f"bar {kind}")]
    if one.low is not None and one.high is not None:
        low, high = one.low * scale, one.high * scale
        parts += [_stroke(low, 10.0, high, 10.0), _stroke(low, 6.0, low, 14.0)]
        parts.append(_stroke(high, 6.0, high, 14.0))
    return _svg(parts, "0 0 100 20", class_="wide", preserveAspectRatio="none", aria_hidden="true")


def _stroke(x1: float, y1: float, x2: float, y2: float) -> ET.Element:
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="whisker")


def limits(bars: Sequence[Bar]) -> tuple[float, float]:
    """Return a common scale for `forest`: all values and intervals, with a little room."""
    ends = [end for one in bars for end in (one.value, one.low, one.high) if end is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = _ROOM * (high - low) or 0.5
    return low - room, high + room


def forest(one: Bar, scale: tuple[float, float]) -> Markup:
    """Return a value as a dot on its interval, within `scale`; decoration of a number in text."""

    def place(value: float) -> float:
        return 100.0 * (value - scale[0]) / (scale[1] - scale[0])

    parts = []
    if one.low is not None and one.high is not None:
        parts.append(_stroke(place(one.low), 10.0, place(one.high), 10.0))
    middle = place(one.value)
    # A line without length and with round ends stays round however the cell stretches it.
    parts.append(_element("line", x1=middle, y1=10, x2=middle, y2=10, class_="point"))
    return _svg(parts, "0 0 100 20", class_="wide", preserveAspectRatio="none", aria_hidden="true")


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear axis: its range in data, its range in the drawing, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def _axis(values: Sequence[float], start: float, end: float, *, zero: bool = False) -> _Axis:
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    room = _ROOM * (high - low) or abs(high) * 0.1 or 0.5
    low, high = (low if zero and low == 0.0 else low - room), high + room
    return _Axis(low, high, start, end, _ticks(low, high))


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Return about five round numbers between `low` and `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return tuple(index * step for index in range(first, math.floor(high / step + 1e-9) + 1))


def _frame(
    x: _Axis,
    y: _Axis,
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str],
) -> list[ET.Element]:
    parts = []
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(_element("line", x1=_LEFT, x2=_RIGHT, y1=at, y2=at, class_="grid"))
        text = f"{tick:.6g}"
        parts.append(_element("text", text, x=_LEFT - 5, y=at + 3.5, text_anchor="end"))
    for tick in x.ticks:
        at = x.place(tick)
        parts.append(_element("line", x1=at, x2=at, y1=_TOP, y2=_BOTTOM, class_="grid"))
        parts.append(_element("text", x_text(tick), x=at, y=_BOTTOM + 14, text_anchor="middle"))
    middle = (_TOP + _BOTTOM) / 2
    across = (_LEFT + _RIGHT) / 2
    parts.append(
        _element("text", x_label, x=across, y=_HEIGHT - 6, text_anchor="middle", class_="label")
    )
    turned = f"rotate(-90 9 {middle:.0f})"
    parts.append(
        _element(
            "text", y_label, x=9, y=middle, text_anchor="middle", transform=turned, class_="label"
        )
    )
    return parts


def scatter(
    dots: Sequence[Dot], *, x_label: str, y_label: str, title: str, percent: bool = True
) -> Markup:
    """Return the points with their intervals, numbered from 1 in the order given.

    Args:
        dots: one or more.
        x_label: what the x axis shows.
        y_label: what the y axis shows.
        title: what a screen reader says of the chart.
        percent: x are fractions, shown in percent.
    """
    x = _axis([v for d in dots for v in (d.x, *(d.x_bounds or ()))], _LEFT, _RIGHT)
    y = _axis([v for d in dots for v in (d.y, *(d.y_bounds or ()))], _BOTTOM, _TOP)
    parts = _frame(x, y, x_label, y_label, lambda v: f"{100 * v:.4g} %" if percent else f"{v:.6g}")
    for dot in dots:
        at_x, at_y = x.place(dot.x), y.place(dot.y)
        if dot.x_bounds:
            left, right = map(x.place, dot.x_bounds)
            parts.append(_element("line", x1=left, x2=right, y1=at_y, y2=at_y, class_="error"))
        if dot.y_bounds:
            low, high = map(y.place, dot.y_bounds)
            parts.append(_element("line", x1=at_x, x2=at_x, y1=low, y2=high, class_="error"))
    taken = []
    for dot in dots:
        at_x, at_y = x.place(dot.x), y.place(dot.y)
        mark = _element("circle", cx=at_x, cy=at_y, r=4, class_="dot")
        mark.append(_element("title", dot.name))
        parts.append(mark)
        taken.append((at_x - 5, at_y - 5, at_x + 5, at_y + 5))
    for index, dot in enumerate(dots):
        text = str(index + 1)
        spot = _free_spot(x.place(dot.x), y.place(dot.y), _LETTER * len(text), taken)
        taken.append(spot)
        parts.append(
            _element(
                "text", text, x=(spot[0] + spot[2]) / 2, y=spot[3] - 1, text_anchor="middle",
                class_="name",
            )
        )  # fmt: skip
    return _chart(parts, title)


_Box = tuple[float, float, float, float]


def _free_spot(x: float, y: float, width: float, taken: Sequence[_Box]) -> _Box:
    """Return the box near (x, y) for a number that covers least of the boxes `taken`."""
    best: tuple[float, _Box] | None = None
    for far in (6.0, 12.0, 20.0):
        for dx, dy in (
            (1, -1),
            (-1, -1),
            (1, 1),
            (-1, 1),
            (0, -1.4),
            (0, 1.4),
            (1.4, 0),
            (-1.4, 0),
        ):
            middle, centre = x + dx * (far + width / 2), y + dy * far
            box = (middle - width / 2, centre - 5.5, middle + width / 2, centre + 5.5)
            covered = sum(_shared(box, other) for other in taken)
            if box[0] < _LEFT or box[2] > _RIGHT + 8 or box[1] < 0 or box[3] > _BOTTOM:
                covered += 1000.0
            if best is None or covered < best[0] - 1e-9:
                best = covered, box
        if best is not None and best[0] == 0:
            break
    assert best is not None
    return best[1]


def _shared(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def lines(curves: Sequence[Curve], *, x_label: str, y_label: str, title: str) -> Markup:
    """Return lines over the logarithm of x to the base 2, numbered and dashed in turn.

    Args:
        curves: one or more; x are powers of two.
        x_label: what the x axis shows.
        y_label: what the y axis shows.
        title: what a screen reader says of the chart.
    """
    exponents = [math.log2(point[0]) for curve in curves for point in curve.points]
    low, high = min(exponents), max(exponents)
    ticks = tuple(float(tick) for tick in np.arange(math.ceil(low), math.floor(high) + 1, 2))
    x = _Axis(low, high, _LEFT, _RIGHT - 16, ticks)
    y = _axis([point[1] for curve in curves for point in curve.points], _BOTTOM, _TOP, zero=True)
    parts = _frame(x, y, x_label, y_label, _power)
    for index, curve in enumerate(curves):
        path = " ".join(
            f"{x.place(math.log2(at)):.1f},{y.place(value):.1f}" for at, value in curve.points
        )
        line = _element(
            "polyline", points=path, class_=f"line c{index % SERIES}",
            stroke_dasharray=DASHES[index % len(DASHES)],
        )  # fmt: skip
        line.append(_element("title", curve.name))
        parts.append(line)
    heights = _apart([y.place(curve.points[-1][1]) for curve in curves])
    for index, at in enumerate(heights):
        parts.append(_element("text", str(index + 1), x=_RIGHT - 12, y=at + 3.5, class_="name"))
    return _chart(parts, title)


def _power(exponent: float) -> str:
    return f"{2**exponent:g}" if exponent >= 0 else f"1/{2**-exponent:g}"


def _apart(heights: Sequence[float]) -> list[float]:
    """Return `heights` moved so that no two are nearer than a line of text, in the same order."""
    order = sorted(range(len(heights)), key=lambda index: (heights[index], index))
    room = min(_LINE, (_BOTTOM - _TOP) / max(1, len(heights) - 1))
    moved = list(heights)
    for before, index in itertools.pairwise(order):
        moved[index] = max(moved[index], moved[before] + room)
    # What was pushed over the edge comes back, and pushes its neighbours up.
    over = max(0.0, moved[order[-1]] - _BOTTOM)
    moved[order[-1]] -= over
    for index, after in reversed(list(itertools.pairwise(order))):
        moved[index] = min(moved[index], moved[after] - room)
    return moved


def _chart(parts: Sequence[ET.Element], title: str) -> Markup:
    head = _element("title", title)
    return _svg([head, *parts], f"0 0 {_WIDTH:g} {_HEIGHT:g}", class_="chart", role="img")
