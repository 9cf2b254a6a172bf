"""Small pieces of HTML. Every function takes plain text and escapes it; what they return is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from gala.report.plots import Plot


def escape(value: str) -> str:
    """Plain text as markup, also within attributes."""
    return html.escape(value, quote=True)


def figure(plot: Plot) -> str:
    """A plot with its title, legend and caption."""
    entries = "".join(f"<li>{swatch(css_class)}{escape(label)}</li>" for css_class, label in plot.legend)
    legend = f'<ul class="legend">{entries}</ul>' if entries else ""
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f"<figure><h3>{escape(plot.title)}</h3>{legend}{plot.svg}{caption}</figure>"


def table(head: Iterable[str], rows: Iterable[Sequence[str]], swatches: Sequence[str] = ()) -> str:
    """A table that scrolls within itself on a narrow screen.

    Args:
        rows: the first cell of each names the row.
        swatches: CSS classes of colour swatches, one per row.
    """
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = ""
    for i, (first, *rest) in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{swatch(swatches[i]) if swatches else ""}{escape(first)}</th>{cells}</tr>'
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def tile(name: str, value: str, detail: str) -> str:
    """One number of the header, with what it is above and what to know about it below."""
    return f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><span>{escape(detail)}</span></dd></div>"


def note(value: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{escape(value)}</p>'


def folded(title: str, content: str) -> str:
    """Something to unfold; `content` is markup."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def chip(state: str) -> str:
    """A run's state, in the colour of its tone."""
    tone = {"finished": "good", "running": "live", "failed": "bad"}.get(state.lower(), "")
    return f'<span class="chip {tone}">{escape(state)}</span>'


def swatch(css_class: str) -> str:
    """The sample of a line or a mark in a legend."""
    return f'<i class="swatch {css_class}"></i>'
