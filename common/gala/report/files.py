"""What an experiment's report leaves in figures/, to be committed to a repository: SVGs, tables, and the numbers.

figures/<section>.svg      each plot with title, legend and caption; those of an earlier report are removed
figures/tables.md          the tables in Markdown
figures/summary.json       the numbers behind every plot
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gala.report.experiment import Experiment
from gala.report.read import Record, mapping
from gala.report.section import Section, Table, slug
from gala.report.standalone import document

FIGURES_DIRECTORY: Final = "figures"
SUMMARY_FILE: Final = "summary.json"
TABLES_FILE: Final = "tables.md"


def files(experiment: Experiment, sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """(name within figures/, content) of each file."""
    for section in sections:
        yield f"{section.name}.svg", document(section.plot)
    yield TABLES_FILE, tables(experiment, sections)
    yield SUMMARY_FILE, _json(summary(experiment, sections))


def superseded(earlier: Record, sections: Sequence[Section]) -> Iterator[str]:
    """The SVGs of an earlier report, whose summary.json is given, that this one has no section for."""
    names = {section.name for section in sections}
    # A name becomes a path: it must be one that a section can have.
    yield from (f"{name}.svg" for name in mapping(earlier, "figures") if name not in names and slug(name) == name)


def summary(experiment: Experiment, sections: Sequence[Section]) -> dict[str, Any]:
    """The numbers behind every plot as plain JSON; what is not known is null."""
    return {
        "format": 1,
        "experiment": experiment.name,
        "scale": experiment.scale,
        "runs": [
            {"name": entry.name, "state": entry.state, "algorithm": entry.algorithm, "environment": entry.environment,
             "seed": entry.seed}
            for entry in experiment.entries
        ],
        "figures": {
            section.name: {
                "title": section.plot.title, "caption": section.plot.caption, "numbers": plain(section.numbers)
            }
            for section in sections
        },
    }  # fmt: skip


def _json(document: Mapping[str, Any]) -> str:
    """Indented, but a list of numbers on one line: a curve is not a page."""
    shown = json.dumps(document, indent=1, allow_nan=False)
    return re.sub(r"\[[\s\d.,eE+\-nul]*\]", lambda match: "".join(match[0].split()), shown) + "\n"


def plain(value: object) -> Any:
    """What JSON can hold: numbers rounded to five digits, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def tables(experiment: Experiment, sections: Sequence[Section]) -> str:
    """All tables as one Markdown document."""
    parts = [f"# {_cell(experiment.name)}"]
    for section in sections:
        if section.table is not None:
            parts.append(f"## {_cell(section.plot.title)}\n\n{markdown(section.table)}")
    return "\n\n".join(parts) + "\n"


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown, its note below it."""
    rows = [table.head, ("---",) * len(table.head), *table.rows]
    shown = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    return f"{shown}\n\n{_cell(table.note)}" if table.note else shown


def _cell(words: str) -> str:
    """Plain text in a table's cell, or below it: no line of it ends the row, no character of it is markup."""
    flat = " ".join(words.split()) if words != "---" else words
    for mark in ("\\", "|", "<", "`", "*", "_", "["):
        flat = flat.replace(mark, f"\\{mark}")
    return flat
