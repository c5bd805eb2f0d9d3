"""Figures of robust accuracy: who withstands what, and how it falls with budget, steps and queries.

robust_bars(table, Path("out/robust"))                 # robust.png, robust.svg
security_curves(members, Path("out/security"))         # accuracy against eps
effort_curves(members, Path("out/effort"))             # accuracy against iterations and queries
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raybench.core.robustness import AttackTable
from raybench.reports.attacks import AttackRows
from raybench.reports.figures import DPI, STYLE, TALLEST, WIDTH, plain, save

__all__ = ["effort_curves", "robust_bars", "security_curves", "share_standing"]

# Okabe and Ito's colours; line style and marker tell models apart in grey.
_COLOURS = ("#0072B2", "#E8743B", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_MOST = 12
_MORE = "only the first 12 models are drawn"


def share_standing(member: AttackRows, column: str, limits: np.ndarray) -> np.ndarray:
    """Return [limits]: the share of judged images still right after that much effort.

    Args:
        member: the rows of one model under one attack.
        column: what effort is counted in: ``found_at`` (iterations) or ``found_queries``; or a
            distance (``linf``, ``l2``, ``l1``, ``l0``) for an attack that minimises it.
        limits: [T] amounts.
    """
    right, success, spent = member.right, member.flag("success"), member.number(column)
    fallen = right & success
    count = max(int(member.judged.sum()), 1)
    return np.array([(right & ~(fallen & (spent <= limit))).sum() / count for limit in limits])


def robust_bars(table: AttackTable, path_stem: Path) -> list[Path]:
    """Draw robust accuracy with its 95 % interval inside clean accuracy, a bar a model."""
    rows = [row for row in table.rows if row.robust_accuracy is not None]
    if not rows:
        return []
    with mpl.rc_context(STYLE):
        height = min(1.4 + 0.34 * len(rows), TALLEST)
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(rows))
        clean = [100 * (row.clean_accuracy or 0) for row in rows]
        robust = [100 * (row.robust_accuracy or 0) for row in rows]
        axes.barh(places, clean, 0.72, color="white", edgecolor="0.4", label="clean")
        axes.barh(places, robust, 0.72, color=_COLOURS[0], edgecolor="black", label="robust")
        for place, row in zip(places, rows, strict=True):
            bounds = [100 * (row.robust_low or 0), 100 * (row.robust_high or 0)]
            axes.plot(bounds, [place, place], color="black", linewidth=1.4)
            axes.plot(bounds, [place, place], "|", color="black", markersize=7)
            axes.annotate(
                f"{100 * (row.robust_accuracy or 0):.1f}", (101, place), va="center", fontsize=8
            )
        axes.set_yticks(places, [row.model.name for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 108)
        axes.set_xlabel("share of images classified right, %  (robust: with 95 % interval)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        figure.suptitle(
            f"{table.dataset.name}: accuracy under attack within {table.threat}, "
            f"n = {table.dataset.size:,}",
            fontsize=10, x=0.01, ha="left",
        )  # fmt: skip
        plain(axes, "x")
        return save(figure, path_stem)


def security_curves(members: Sequence[AttackRows], path_stem: Path) -> list[Path]:
    """Draw accuracy against the budget: worst case over the attacks stored at each eps.

    Drawn where one norm and target has at least two budgets; the first such is taken. Budget 0 is
    clean accuracy.
    """
    groups: dict[tuple[str | None, str | None], list[AttackRows]] = {}
    for member in members:
        if member.rows is not None and member.spec.get("eps"):
            key = (member.spec.get("norm"), member.spec.get("targeted"))
            groups.setdefault(key, []).append(member)
    for (norm, targeted), group in groups.items():
        if len({member.spec.get("eps") for member in group}) < 2:
            continue
        lines = {name: _worst(own) for name, own in _by_model(group).items()}
        label = f"budget eps, {norm}" + (f", targeted {targeted}" if targeted else "")
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, 4.6), dpi=DPI, layout="constrained")
            axes = figure.subplots()
            _lines(axes, lines, marked=True)
            axes.set_xlabel(f"{label} (pixel units; 8/255 = 0.031)", fontsize=9)
            return _finished(figure, [axes], group, path_stem)
    return []


def effort_curves(members: Sequence[AttackRows], path_stem: Path) -> list[Path]:
    """Draw accuracy against iterations and against queries, of the attacks that took most of them.

    Iterations are those of an attack with gradients; a cascade counts components, not iterations.
    """
    known = [member for member in members if member.rows is not None]
    stepping = [
        member
        for member in known
        if member.spec.scheme != "autoattack" and np.nansum(member.number("gradients")) > 0
    ]
    panels = [
        (_longest(stepping, "found_at"), "found_at", "iterations"),
        (_longest(known, "found_queries"), "found_queries", "queries"),
    ]
    drawn = [(group, column, label) for group, column, label in panels if group]
    if not drawn:
        return []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
        all_axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, (group, column, label) in zip(all_axes, drawn, strict=True):
            last = max(float(np.nanmax(member.number(column))) for member in group)
            limits = np.unique(np.concatenate([[0], np.geomspace(1, last, 80)]))
            lines = {
                name: (limits, 100 * share_standing(own[0], column, limits))
                for name, own in _by_model(group).items()
            }
            _lines(axes, lines, marked=False)
            axes.set_xscale("symlog", linthresh=1)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            eps = group[0].spec.get("eps")
            budget = f", eps {eps}" if eps else ""
            axes.set_xlabel(f"{label} of {group[0].spec.scheme}{budget}", fontsize=9)
        return _finished(figure, list(all_axes), drawn[0][0], path_stem)


def _longest(members: Sequence[AttackRows], column: str) -> list[AttackRows]:
    """Return the measurements of the attack whose successes took longest; none, if under 2."""
    last = [float(np.nanmax(member.number(column))) for member in members]
    if not last or max(last) < 2:
        return []
    spec = members[int(np.argmax(last))].spec.canonical()
    return [member for member in members if member.spec.canonical() == spec]


def _by_model(members: Sequence[AttackRows]) -> dict[str, list[AttackRows]]:
    found: dict[str, list[AttackRows]] = {}
    for member in members:
        found.setdefault(str(member.manifest.measurement["model"]["name"]), []).append(member)
    return dict(list(found.items())[:_MOST])


def _worst(members: Sequence[AttackRows]) -> tuple[np.ndarray, np.ndarray]:
    """Return budgets and accuracies in percent of one model, clean accuracy first."""
    by_eps: dict[Fraction, np.ndarray] = {}
    for member in members:
        eps = Fraction(member.spec.get("eps") or "0")
        standing = member.standing()
        by_eps[eps] = by_eps[eps] & standing if eps in by_eps else standing
    judged = np.logical_and.reduce([member.judged for member in members])
    budgets = sorted(by_eps)
    shares = [members[0].right[judged].mean(), *(by_eps[eps][judged].mean() for eps in budgets)]
    return np.array([0.0, *map(float, budgets)]), 100 * np.array(shares)


def _lines(axes: Axes, lines: dict[str, tuple[np.ndarray, np.ndarray]], *, marked: bool) -> None:
    for index, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(
            x, y,
            color=_COLOURS[index % len(_COLOURS)],
            linestyle=_LINES[index // len(_COLOURS) % len(_LINES)],
            marker=_MARKS[index % len(_MARKS)] if marked else None,
            markersize=5, linewidth=1.6, label=name,
            drawstyle="default" if marked else "steps-post",
        )  # fmt: skip


def _finished(
    figure: Figure, panels: Sequence[Axes], group: Sequence[AttackRows], path_stem: Path
) -> list[Path]:
    dataset = group[0].manifest.measurement["dataset"]
    for axes in panels:
        axes.set_ylim(-2, 102)
        plain(axes, "y")
    panels[0].set_ylabel("images right, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False,
        fontsize=8,
    )  # fmt: skip
    more = len({m.manifest.measurement["model"]["name"] for m in group}) > _MOST
    title = f"{dataset['name']}: accuracy under attack, n = {dataset['size']:,}"
    figure.suptitle(f"{title} ({_MORE})" if more else title, fontsize=10, x=0.01, ha="left")
    return save(figure, path_stem)
