"""Matplotlib figures as inline SVG that takes its colours and its font from the page.

A figure is drawn once, in stand-in colours; they are then replaced by the page's CSS variables, so that one drawing is
right in light and in dark. A figure's unit is the CSS pixel of a phone; wider screens scale it up.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gala.report import formats

WIDTH = 380

# Stand-in colours; no other colour may appear in a figure. page.css gives each variable a light and a dark value.
INK, MUTED, GRID, BACKGROUND, GOOD, BAD = "#0f0f01", "#0f0f02", "#0f0f03", "#0f0f04", "#0f0f05", "#0f0f06"
SERIES = tuple(f"#0f0f1{i}" for i in range(8))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    BACKGROUND: "--card",
    GOOD: "--good",
    BAD: "--bad",
    **{stand_in: f"--series-{i}" for i, stand_in in enumerate(SERIES)},
}

_DASHES = {"": "-", "dashed": "--", "dotted": ":"}
"""Of the first round of colours, the second and the third: CSS class -> line style."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: the page's font, selectable
    "svg.hashsalt": "gala",  # the same run gives the same page
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "path.simplify": True,
    "axes.unicode_minus": True,
    "timezone": "UTC",
}


def colour(index: int) -> str:
    """The stand-in colour of the index-th learner, run or line."""
    return SERIES[index % len(SERIES)]


def dash(index: int) -> str:
    """Its line style: lines that share a colour differ in it."""
    return list(_DASHES.values())[_round(index)]


def swatch_class(index: int) -> str:
    """The CSS classes of its swatch, which has the same colour and style: series-0, series-0 dashed."""
    return f"series-{index % len(SERIES)} {list(_DASHES)[_round(index)]}".strip()


def _round(index: int) -> int:
    return index // len(SERIES) % len(_DASHES)


def style() -> AbstractContextManager[None]:
    """Matplotlib's settings for the drawing of figures; the caller's are back afterwards."""
    return matplotlib.rc_context(_STYLE)


class Canvas:
    """One figure of stacked panels that share x."""

    def __init__(self, *titles: str, panel_height: int = 190) -> None:
        """One panel per title; a title says what y is, and in which unit."""
        top, bottom, between = 26, 40, 34
        height = top + len(titles) * panel_height + (len(titles) - 1) * between + bottom
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
        self.panels: list[Axes] = []
        for i, title in enumerate(titles):
            y = height - top - panel_height - i * (panel_height + between)
            box = (44 / WIDTH, y / height, (WIDTH - 44 - 12) / WIDTH, panel_height / height)
            axes = self.figure.add_axes(box, sharex=self.panels[0] if self.panels else None)
            self.panels.append(axes)
            axes.set_facecolor("none")
            # Left-aligned over the tick labels instead of turned by 90 degrees: read without tilting the head.
            axes.annotate(
                title, (0, 1), (-42, 10), xycoords="axes fraction", textcoords="offset points", color=MUTED, va="bottom"
            )
            axes.grid(axis="y", color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            for side in ("left", "right", "top"):
                axes.spines[side].set_visible(False)
            axes.spines["bottom"].set_color(GRID)
            axes.tick_params(length=0, colors=MUTED, labelsize=10.5, pad=4, labelbottom=i == len(titles) - 1)
            axes.yaxis.set_major_locator(MaxNLocator(5 if panel_height > 120 else 3, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(_tick))
            axes.margins(x=0.01, y=0.07)

    def decisions_axis(self) -> None:
        """x is in agent decisions."""
        self._x_axis(_tick, "agent decisions, all learners together")

    def wall_clock_axis(self, longest: float) -> None:
        """x is in wall-clock seconds up to `longest`; labelled in the unit that suits it."""
        unit, seconds = "seconds", 1.0
        if longest > 3 * 3600:
            unit, seconds = "hours", 3600.0
        elif longest > 180:
            unit, seconds = "minutes", 60.0
        locator = _StepLocator(seconds)
        self.panels[-1].xaxis.set_major_locator(locator)
        self._x_axis(lambda value, position: _tick(value / seconds, position), f"wall-clock {unit} of training")

    def numbers_axis(self, title: str) -> None:
        """x is what `title` says, in round numbers."""
        self._x_axis(_tick, title)

    def say(self, message: str) -> None:
        """Writes what is missing into the empty first panel."""
        axes = self.panels[0]
        axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])

    def mark_y(self, value: float) -> None:
        """A dotted line across the first panel."""
        self.panels[0].axhline(value, color=MUTED, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)

    def label_x(self, title: str) -> None:
        """x is what `title` says; ticks stay as they are."""
        self.panels[-1].set_xlabel(title, color=MUTED, labelpad=5)

    def _x_axis(self, label: Callable[[float, int], str], title: str) -> None:
        axis = self.panels[-1].xaxis
        if not isinstance(axis.get_major_locator(), _StepLocator):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(label))
        self.label_x(title)

    def svg(self, label: str, identity: str) -> str:
        """The figure as an SVG element; `identity`, unique in the page, keeps its inner ids apart from others'."""
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=metadata)
        return inline(buffer.getvalue(), label, identity)


class _StepLocator(MaxNLocator):
    """Round ticks in a unit of `size` data units: whole minutes on an axis of seconds."""

    def __init__(self, size: float) -> None:
        super().__init__(5, steps=[1, 1.5, 2, 3, 5, 6, 10] if size > 1 else [1, 2, 3, 5, 10])
        self._size = size

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [float(tick) * self._size for tick in super().tick_values(vmin / self._size, vmax / self._size)]


def _tick(value: float, _position: int = 0) -> str:
    return formats.compact(value) if math.isfinite(value) else ""


def inline(svg: str, label: str, identity: str) -> str:
    """Makes matplotlib's SVG document an element of an HTML page: no prolog, no metadata, own ids, the page's colours.

    Args:
        label: plain text, for those who hear the page instead of seeing it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg class="plot" {view_box.group() if view_box else ""} role="img" aria-label="{html.escape(label)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    # Group ids such as "axes_1" are the same in every figure and nobody refers to them.
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{identity}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{identity}-\1"', svg)
    svg = re.sub(r"font-family: [^;\"]*;?|(?<=px )'DejaVu Sans'[^;\"]*", "", svg)
    # A hundredth of a pixel is enough; the rest is half of the page's size.
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()
