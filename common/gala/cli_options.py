"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gala import names

DEFAULT_OUTPUT: Final = Path(names.RUNS_DIRECTORY)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A GalaRun document (yaml).", show_default=False)]


def _set(example: str) -> Any:
    text = f"Override a field, such as {example}; may be repeated."
    return typer.Option("--set", metavar="PATH=VALUE", help=text, show_default=False)


Overrides = Annotated[list[str] | None, _set("spec.learners=8")]
ExperimentOverrides = Annotated[list[str] | None, _set("spec.base.totalSteps=1000")]
Learners = Annotated[int | None, typer.Option(help="Short for --set spec.learners=N.", metavar="N", show_default=False)]
Name = Annotated[
    str | None, typer.Option(help="Another name, to keep several runs of one file.", metavar="NAME", show_default=False)
]


def all_overrides(overrides: list[str] | None, learners: int | None, name: str | None) -> list[str]:
    """--set, --learners and --name as overrides of the document."""
    short = [] if learners is None else [f"spec.learners={learners}"]
    # Quoted: a name such as 123 or on is a string all the same. Not in ASCII: JSON writes 😀 as two
    # escapes there, which YAML reads as two halves of a character.
    short += [] if name is None else [f"metadata.name={json.dumps(name, ensure_ascii=False)}"]
    return [*(overrides or []), *short]
