"""The figures of `topology_study`: radius over time, time to consensus against the number of learners, drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gala import topology

COLOURS = {"Ring": "#4477aa", "Exponential": "#cc6677", "OnePeerExponential": "#228833", "Complete": "#aa8800"}
STYLES = {"average": "-", "push-sum": "--"}
MARKS = {"average": "o", "push-sum": "s"}
Rows = list[dict[str, Any]]


class _Shape:
    def __init__(self, kind: str) -> None:
        self.type = kind
        self.peers = None


def draw(document: dict[str, Any], output: Path) -> list[Path]:
    """Writes the three figures. Returns: their paths."""
    rows: Rows = document["rows"]
    sizes = sorted({row["learners"] for row in rows})
    middle = 64 if 64 in sizes else sizes[-1]
    with matplotlib.rc_context({"font.size": 8, "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 8.5}):
        return [
            _save(_radius(document, middle), output / "radius.png"),
            _save(_consensus(document, sizes), output / "consensus.png"),
            _save(_drift(document, sizes), output / "drift.png"),
        ]


def _radius(document: dict[str, Any], size: int) -> Figure:
    rows = [row for row in document["rows"] if row["learners"] == size]
    title = f"Radius of {size} learners that start apart and only gossip; median of {_seeds(rows)}"

    def panel(axes: Axes, name: str) -> None:
        for row in _of(rows, name):
            times = [t for t, r in zip(row["times"], row["course"], strict=True) if r > 0]
            values = [r for r in row["course"] if r > 0]
            axes.plot(times, values, STYLES[row["mixing"]], color=COLOURS[row["topology"]], linewidth=1.3)
        if name == "synchronous":
            for kind, colour in COLOURS.items():
                beta = topology.beta(_Shape(kind), size)
                if beta > 0:
                    axes.plot([0, 60], [1, beta**60], ":", color=colour, linewidth=1)
            axes.text(0.98, 0.9, "dotted: beta^k", transform=axes.transAxes, ha="right")
        axes.set(yscale="log", ylim=(1e-3, 1.5), xlim=(0, 60), xlabel="updates of an average learner")
        axes.set_ylabel("radius, share of that at the start")

    return _panels(document, title, panel)


def _consensus(document: dict[str, Any], sizes: list[int]) -> Figure:
    title = f"Updates until the radius is at {document['consensus']:.0%}, against learners; {_seeds(document['rows'])}"

    def panel(axes: Axes, name: str) -> None:
        for kind, colour in COLOURS.items():
            for mixing, style in STYLES.items():
                rows = _of(document["rows"], name, kind, mixing)
                rows = [row for row in rows if row["consensus"] is not None]
                if rows:
                    middle = [row["consensus"] for row in rows]
                    low = [row["consensus"] - row["consensus_range"][0] for row in rows]
                    high = [row["consensus_range"][1] - row["consensus"] for row in rows]
                    x = [row["learners"] * (1.05 if mixing == "push-sum" else 1) for row in rows]
                    axes.errorbar(x, middle, [low, high], fmt=MARKS[mixing] + style, color=colour, ms=3, lw=1.2)
        axes.set(xscale="log", yscale="log", xticks=sizes, xticklabels=sizes, xlabel="learners")
        axes.minorticks_off()
        axes.set(ylim=(0.8, 400), ylabel="updates (median, bars: range)")

    return _panels(document, title, panel)


def _drift(document: dict[str, Any], sizes: list[int]) -> Figure:
    title = f"How far the learners' mean has moved at the end, in radii of the start; {_seeds(document['rows'])}"

    def panel(axes: Axes, name: str) -> None:
        for kind, colour in COLOURS.items():
            for mixing, style in STYLES.items():
                # While the learners are apart, the plain mean of de-biased vectors says nothing about push-sum.
                rows = [r for r in _of(document["rows"], name, kind, mixing) if r["consensus"] is not None]
                axes.plot(
                    [row["learners"] for row in rows],
                    [max(row["drift"], 1e-7) for row in rows],
                    MARKS[mixing] + style,
                    color=colour,
                    ms=3,
                    lw=1.2,
                )
        axes.set(xscale="log", yscale="log", xticks=sizes, xticklabels=sizes, xlabel="learners", ylim=(5e-8, 1))
        axes.minorticks_off()
        axes.set_ylabel("drift, share of the radius at the start")

    return _panels(document, title, panel)


def _panels(document: dict[str, Any], title: str, panel: Callable[[Axes, str], None]) -> Figure:
    names = [conditions["name"] for conditions in document["conditions"]]
    figure = Figure(figsize=(7.4, 5.6), layout="constrained")
    figure.suptitle(title, fontsize=9.5)
    for axes, name in zip(figure.subplots(2, 2).flat, names, strict=True):
        panel(axes, name)
        axes.set_title(name)
    lines = [matplotlib.lines.Line2D([], [], color=colour, label=kind) for kind, colour in COLOURS.items()]
    lines += [
        matplotlib.lines.Line2D([], [], color="k", ls=ls, marker=MARKS[m], ms=3, label=m) for m, ls in STYLES.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _of(rows: Rows, conditions: str, kind: str | None = None, mixing: str | None = None) -> Rows:
    return [
        row
        for row in rows
        if row["conditions"] == conditions and kind in (None, row["topology"]) and mixing in (None, row["mixing"])
    ]


def _seeds(rows: Rows) -> str:
    few, many = min(row["seeds"] for row in rows), max(row["seeds"] for row in rows)
    return f"{many} seeds" if few == many else f"{few} to {many} seeds"


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=100, metadata={"Software": None})
    return path
