"""Tables of text: for terminals, plain pages and Markdown, whatever they show."""

import io
import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["GAP", "WIDTH", "draw", "hide_remote", "markdown", "page_text", "print_page", "shorten"]

WIDTH = 100
GAP = 2  # what the box puts between two columns
_MANY = 5


def shorten(items: Sequence[str], separator: str = ", ") -> str:
    """Return `items` in a row, the tail of a long list as its length."""
    shown = separator.join(items[:_MANY])
    return f"{shown} and {len(items) - _MANY} more" if len(items) > _MANY else shown


def hide_remote(spec: str) -> str:
    """Return `spec` cut before a URI: only remote places carry credentials."""
    head, mark, _ = spec.partition("://")
    return f"{head}{mark}..." if mark else spec


def draw(
    title: str,
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    notes: Sequence[str],
    *,
    wrong: Sequence[bool] = (),
    tight: bool = False,
) -> Table:
    """Return a table for a terminal: numbers to the right, ``model`` folded, notes below.

    Args:
        title: what stands above it.
        headings: columns.
        cells: rows of text.
        notes: lines below it.
        wrong: rows to mark in red.
        tight: no space around cells.
    """
    drawn = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption=Text("\n".join(notes), style="dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0) if tight else (0, GAP - 1, 0, 0),
    )
    for heading in headings:
        if heading == "model":
            drawn.add_column(heading, overflow="fold", min_width=8)
        else:
            drawn.add_column(heading, justify="right", no_wrap=True)
    marks = list(wrong) or [False] * len(cells)
    for row, mark in zip(cells, marks, strict=True):
        drawn.add_row(*map(Text, row), style="red" if mark else None)
    return drawn


def page_text(make: Callable[[int], Table]) -> str:
    """Return what `make` draws for a width as plain text of at most `WIDTH` columns."""
    page = io.StringIO()
    console = Console(file=page, width=WIDTH, color_system=None, force_terminal=False)
    console.print(make(console.width))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def print_page(make: Callable[[int], Table]) -> None:
    """Print on stdout, in colour and as wide as the terminal where it is one."""
    if sys.stdout.isatty():
        console = Console()
        console.print(make(console.width))
    else:
        print(page_text(make), end="")


def markdown(
    title: str, headings: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """Return the table in GitHub's Markdown, notes as a list; names in it are never markup."""

    def plain(text: str) -> str:
        return " ".join(text.splitlines()).replace("<", "&lt;")

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in row) + " |"

    rule = ["---" if heading == "model" else "---:" for heading in headings]
    return "\n".join(
        [f"**{plain(title)}**", "", line(headings), line(rule), *map(line, cells), ""]
        + [f"- {plain(note)}" for note in notes]
        + [""]
    )
