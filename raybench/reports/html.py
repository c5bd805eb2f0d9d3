"""The HTML report: one page that needs nothing else, from values that are ready to be shown.

    page = Page(title="digits", datasets=(...), ...)
    html = render_page(page)

Every text is escaped by the template, for model names are what users typed. The page allows itself
its own style and script, by their hashes, and nothing from anywhere else.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from raybench.reports.html_charts import DASHES, SERIES
from raybench.reports.html_gallery import Picture
from raybench.reports.html_tables import Grid

__all__ = [
    "BarLine",
    "Budget",
    "DatasetView",
    "Figure",
    "Page",
    "Plot",
    "Reading",
    "Tile",
    "render_page",
]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure: what it shows, where its file lies beside the page, and its content.

    `data` is a data URI; where it is empty the page only links to the file.
    """

    title: str
    file: str
    data: str = ""


@dataclass(frozen=True, slots=True)
class BarLine:
    """One bar of Fig. 1: its name, its value in words, and the drawing."""

    name: str
    text: str
    detail: str
    drawing: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A chart with what it shows in words, and its numbers as a table."""

    title: str
    drawing: Markup
    caption: str
    grid: Grid | None = None
    file: str = ""
    keys: tuple[str, ...] = ()
    shown: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The ranked models under one reading.

    `shown` opens it at once. `lead` is who ranks first.
    """

    id: str
    title: str
    lead: str
    shown: bool
    grid: Grid
    notes: tuple[str, ...]
    bars: tuple[BarLine, ...]
    bars_note: str
    gallery: tuple[Picture, ...]
    gallery_note: str
    temperature: Plot | None
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Robust accuracy within one budget."""

    id: str
    title: str
    shown: bool
    grid: Grid
    notes: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A number at the top of a section and what it is."""

    value: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetView:
    """Everything of one selection of images; rows of two are never ranked together."""

    id: str
    name: str
    facts: str
    tiles: tuple[Tile, ...]
    failed: tuple[str, ...]
    readings: tuple[Reading, ...]
    budgets: tuple[Budget, ...]
    security: tuple[Figure, ...]
    correlations: Grid | None
    plots: tuple[Plot, ...]
    further_plots: tuple[Plot, ...]
    published: Grid | None
    cost: Grid
    cost_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The whole report.

    Attributes:
        title: for the tab and the top.
        about: one line below it: what was measured, by which versions, when.
        problems: sentences a reader must see first.
        datasets: one section each.
        entries: what is not ranked, and why: history, failures; None where all is.
        provenance: tables of models, settings and libraries.
        files: (address beside the page, what it is).
    """

    title: str
    about: str
    problems: tuple[str, ...]
    datasets: tuple[DatasetView, ...]
    entries: Grid | None
    provenance: tuple[Grid, ...]
    files: tuple[tuple[str, str], ...]


def _source(name: str) -> str:
    return files("raybench.reports").joinpath("templates", name).read_text("utf-8")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _allowed(text: str) -> str:
    """Return the source expression that lets a browser run or apply `text` inline."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render_page(page: Page) -> str:
    """Return the page as HTML; the same page gives the same bytes."""
    style, script = _source("report.css"), _source("report.js")
    rules: Sequence[str] = (
        "default-src 'none'",
        "img-src data:",
        f"style-src {_allowed(style)}",
        f"script-src {_allowed(script)}",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return (
        _environment()
        .get_template("report.html")
        .render(
            page=page,
            dashes=DASHES,
            series=SERIES,
            style=Markup(style),
            script=Markup(script),
            policy="; ".join(rules),
        )
    )
