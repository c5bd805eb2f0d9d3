"""The report's colours: texts and marks that everybody can tell from what is behind them."""

import re
from importlib.resources import files

import pytest

CSS = files("raybench.reports").joinpath("templates", "report.css").read_text("utf-8")


def themes() -> dict[str, dict[str, str]]:
    """Return the colours of the light theme, the dark one, and paper."""
    blocks = re.findall(r":root\s*\{([^}]*)\}", CSS)
    found = [dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{3,6})", block)) for block in blocks]
    assert len(found) == 3
    return dict(zip(("light", "dark", "paper"), found, strict=True))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula_has_its_ends() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777", "#777777") == pytest.approx(1)


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_texts_have_the_contrast_of_wcag_aa(theme: str) -> None:
    colours = themes()[theme]
    for text in ("ink", "quiet", "link", "warn"):
        for behind in ("paper", "panel"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    assert contrast(colours["ink"], colours["mark"]) >= 4.5
    assert contrast(colours["quiet"], colours["mark"]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_marks_have_the_contrast_of_graphics(theme: str) -> None:
    colours = themes()[theme]
    for mark in ("plain", "trained", "c0", "c1", "c2", "c3", "c4", "c5"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
    for bar in ("plain", "trained"):
        assert contrast(colours["ink"], colours[bar]) >= 3, f"whiskers on {bar}"
