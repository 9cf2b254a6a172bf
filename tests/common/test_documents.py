"""The documents: what they tell people to type is at least well-formed, and what they point to is there.

That it works is proven where it can be run: tests/cluster/test_documentation.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gala.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
DOCUMENTS += ["charts/gala-operator/README.md", "tests/cluster/node/README.md"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(document: str, language: str = r"\w*") -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(document: str, program: str) -> Iterator[list[str]]:
    """Every line of a shell block that calls the program, in words."""
    for block in blocks(document, r"bash|sh|text|"):
        for line in block.replace("\\\n", " ").splitlines():
            # What is optional, and the notes beside it, are in brackets or a column of their own.
            plain = re.split(r"\s{3,}", re.sub(r"[\[\]]", "", line.strip()))[0]
            if plain.startswith(f"{program} "):
                yield shlex.split(plain, comments=True)[1:]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_bash_block_is_bash(document: str) -> None:
    for block in blocks(document, "bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_gala_command_has_the_subcommand_and_the_options_that_it_names(document: str) -> None:
    program: Any = typer.main.get_command(app)
    subcommands = program.commands
    for words in commands(document, "gala"):
        if words[0].startswith("-"):
            continue
        assert words[0] in subcommands, words
        known = {option for each in subcommands[words[0]].params for option in each.opts + each.secondary_opts}
        used = {word.split("=")[0] for word in words[1:] if word.startswith("-")}
        assert used <= known | {"--help"}, words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_is_there(document: str) -> None:
    for words in commands(document, "make"):
        assert next(word for word in words if "=" not in word) in TARGETS, words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / document).read_text()):
        if "://" not in target:
            assert ((ROOT / document).parent / target).exists(), target
