"""A plot as an SVG file of its own, to be shown in a document: with title, legend and caption, light, on white.

The drawing is the page's; its CSS variables become the light colours of page.css.
"""

from __future__ import annotations

import functools
import html
import re
import warnings
from importlib import resources
from typing import Final

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from gala.report.canvas import WIDTH
from gala.report.plots import Plot

MARGIN: Final = 14
_FONT: Final = "'DejaVu Sans', Verdana, sans-serif"
"""What the text is measured in, the widest of the common ones: in another font it has more room, not less."""

_TITLE, _TEXT, _SMALL = 12.0, 9.5, 8.5


def document(plot: Plot) -> str:
    """The file's content."""
    y = MARGIN + _TITLE
    parts = []
    for line in wrapped(plot.title, _TITLE, bold=True):
        parts.append(_text(MARGIN, y, line, _TITLE, "--ink", ' font-weight="bold"'))
        y += 1.3 * _TITLE
    entries, y = _legend(plot.legend, y)
    parts.append(entries)
    width, height = _size(plot.svg)
    scale = WIDTH / width
    drawing = re.sub(r"<svg[^>]*>", _nested(y, scale * height, plot.svg), plot.svg, count=1)
    parts.append(drawing)
    y += scale * height + 1.3 * _SMALL
    for line in wrapped(plot.caption, _SMALL):
        parts.append(_text(MARGIN, y, line, _SMALL, "--muted"))
        y += 1.4 * _SMALL
    full, tall = WIDTH + 2 * MARGIN, y + MARGIN - _SMALL
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full} {tall:.0f}" width="{2 * full}" '
        f'height="{2 * tall:.0f}" font-family="{_FONT}">'
    )
    background = f'<rect width="{full}" height="{tall:.0f}" fill="var(--card)"/>'
    style = "<style>text { font-family: inherit !important; }</style>"
    content = "\n".join([opening, style, background, *parts, "</svg>\n"])
    colours = light_colours()
    return re.sub(r"var\((--[\w-]+)\)", lambda match: colours.get(match[1], "#000000"), content)


@functools.cache
def light_colours() -> dict[str, str]:
    """The page's CSS variables in light."""
    css = resources.files("gala.report").joinpath("page.css").read_text(encoding="utf-8")
    light = css[: css.index("@media")]
    return dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-fA-F]+)", light))


def wrapped(words: str, size: float, *, bold: bool = False) -> list[str]:
    """Lines of at most WIDTH, broken between words; a word that is longer has a line of its own."""
    lines: list[str] = []
    for word in _printable(words).split():
        if lines and _width(f"{lines[-1]} {word}", size, bold) <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _legend(entries: tuple[tuple[str, str], ...], y: float) -> tuple[str, float]:
    """The legend from the baseline `y` on, and the y below it."""
    if not entries:
        return "", y - 0.6 * _TITLE
    x, parts = float(MARGIN), []
    for css_class, label in entries:
        needed = 20 + _width(_printable(label), _TEXT, False)
        if x > MARGIN and x + needed > MARGIN + WIDTH:
            x, y = MARGIN, y + 1.45 * _TEXT
        colour, look = _LOOKS.get(css_class) or _series(css_class)
        middle = y - 0.35 * _TEXT
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + 15:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="var({colour})" {look}/>'
        )
        parts.append(_text(x + 20, y, label, _TEXT, "--muted"))
        x += needed + 12
    return "\n".join(parts), y + 0.5 * _TEXT


_LOOKS: Final = {
    "thick": ("--ink", 'stroke-width="3"'),
    "thin": ("--muted", 'stroke-width="1.2"'),
    "bound": ("--bad", 'stroke-width="1.8" stroke-dasharray="5 3"'),
    "dotted": ("--ink", 'stroke-width="1.8" stroke-dasharray="1.5 2.5"'),
}
"""Swatches that are not a series, as page.css has them."""

_SERIES_LOOKS: Final = {
    "": 'stroke-width="2.5"',
    "dashed": 'stroke-width="2" stroke-dasharray="5 3"',
    "dotted": 'stroke-width="2" stroke-dasharray="1.5 2.5"',
}


def _series(css_class: str) -> tuple[str, str]:
    name, _, look = css_class.partition(" ")
    return f"--{name}", _SERIES_LOOKS[look]


def _nested(y: float, height: float, svg: str) -> str:
    box = re.search(r'viewBox="[^"]*"', svg)
    return f'<svg x="{MARGIN}" y="{y:.1f}" width="{WIDTH}" height="{height:.1f}" {box[0] if box else ""}>'


def _size(svg: str) -> tuple[float, float]:
    box = re.search(r'viewBox="([^"]*)"', svg)
    numbers = [float(part) for part in box[1].split()] if box else []
    return (numbers[2], numbers[3]) if len(numbers) == 4 and numbers[2] > 0 else (WIDTH, 250.0)


def _text(x: float, y: float, words: str, size: float, colour: str, more: str = "") -> str:
    shown = html.escape(_printable(words), quote=True)
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="var({colour})"{more}>{shown}</text>'


@functools.cache
def _width(words: str, size: float, bold: bool) -> float:
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        # Names may be in scripts that this font lacks: the viewer's font has them, or shows boxes of about that width.
        warnings.simplefilter("ignore")
        width, _, _ = text_to_path.get_text_width_height_descent(words, font, ismath=False)
    return float(width)


def _printable(words: str) -> str:
    """Without what XML cannot hold: control characters and halves of characters."""
    whole = words.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in whole)
