"""`gala`: the command line. Every command is a thin shell over a function of this package.

Heavy modules are imported by the command that needs them, so that `gala --help` and `gala --version` answer at once.
Exit codes: 0 done, 1 failed, 2 the user's mistake (one line says which), 124 timeout, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gala import names, streams
from gala.cli_experiment import experiment
from gala.cli_options import DEFAULT_OUTPUT, File, Learners, Name, Overrides, all_overrides
from gala.errors import GalaError, SpecError, UsageError, reading
from gala.remote import commands as remote

if TYPE_CHECKING:
    from gala.plan import RunPlan

app = typer.Typer(
    name="gala",
    help="Train reinforcement-learning agents with gossiping actor-learners: one yaml, here or in a cluster.",
    epilog="Start with: gala run examples/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text reads the same everywhere, and --help need not import rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name below runs/.", show_default=False)]


def main() -> None:
    """The console script: errors become one line each and an exit code."""
    streams.prepare()
    try:
        with streams.writing():
            app()
    except GalaError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gala {version('gala')}")
        raise typer.Exit


@app.callback()
def _gala(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The options of `gala` itself."""


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    learners: Learners = None,
    name: Name = None,
    force: Annotated[bool, typer.Option("--force", help="Remove an earlier run of this name and start over.")] = False,
    output: Annotated[Path, typer.Option(help="Where run folders go.", metavar="FOLDER")] = DEFAULT_OUTPUT,
) -> None:
    """Train on this machine, and watch.

    Ctrl-C stops cleanly and the same command resumes; a second Ctrl-C kills. While a run is live, the same command with
    another --learners N changes its ring without restarting anybody.
    """
    from gala import local
    from gala.spec import load

    made = all_overrides(overrides, learners, name)
    document = load(file, made)
    source = file if not overrides and file.is_file() else None
    asked = tuple(override.partition("=")[0].strip() for override in made)
    raise typer.Exit(local.start(document, output=output, force=force, source=source, asked=asked))


@app.command()
def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="GalaRun or GalaExperiment documents.", show_default=False)
    ],
) -> None:
    """Check documents and list everything that is wrong with them."""
    from gala.checking import check_files

    verdicts = check_files(files)
    for path, error in verdicts.items():
        if error is None:
            typer.echo(f"{path}: valid")
        else:
            for problem in error.problems:
                typer.echo(f"{path}: {problem}" if problem.path != path else str(problem), err=True)
    raise typer.Exit(SpecError.exit_code if any(verdicts.values()) else 0)


@app.command()
def plan(
    file: File,
    overrides: Overrides = None,
    learners: Learners = None,
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plan.json as the workers read it.")] = False,
) -> None:
    """Show who would take part in a run: ranks, peers, seeds, addresses in a cluster."""
    from gala.plan import plan as make_plan
    from gala.spec import load

    made = make_plan(load(file, all_overrides(overrides, learners, name)))
    typer.echo(made.to_json() if as_json else _plan_text(made), nl=False)


@app.command()
def evaluate(
    run: Run,
    episodes: Annotated[int, typer.Option(help="Episodes to play.", min=1, metavar="N")] = 10,
    video: Annotated[
        Path | None, typer.Option(help="Film an episode (.gif or .mp4).", metavar="FILE", show_default=False)
    ] = None,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Draw actions from the policy instead of its best one.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the simulators.", min=0, max=names.MAX_SEED, metavar="N", show_default=False),
    ] = None,
) -> None:
    """Play with a run's policy and score it, in raw returns."""
    options = [f"--episodes={episodes}"]
    options += [f"--video={video}"] if video is not None else []
    options += ["--sampled"] if sampled else []
    options += [f"--seed={seed}"] if seed is not None else []
    player = [sys.executable, "-P", "-m", "gala_worker.evaluate", *options, "--", str(_run_directory(run))]
    os.execv(player[0], player)  # in this process's place: who ends the one ends the other


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders, or names below runs/.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page to write; RUN/report.html, or report.html here for several.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about runs, side by side, or about an experiment."""
    from gala.experiment.index import INDEX_FILE
    from gala.report import write

    directories = [_run_directory(run, names.RUN_FILE, INDEX_FILE) for run in runs]
    page = output or (directories[0] / names.REPORT_FILE if len(directories) == 1 else Path(names.REPORT_FILE))
    typer.echo(write(directories, page))


app.command()(experiment)


@app.command()
def crd(
    reference: Annotated[
        bool, typer.Option("--reference", help="Print the field reference (Markdown) instead.")
    ] = False,
) -> None:
    """Print the CustomResourceDefinition of GalaRun."""
    if reference:
        from gala.reference import render as render_reference

        typer.echo(render_reference(), nl=False)
    else:
        from gala.crd import render as render_crd

        typer.echo(render_crd(), nl=False)


app.add_typer(remote.app)  # without a name: its commands stand beside these


def _run_directory(run: str, *files: str) -> Path:
    """A run's folder, known by run.json or one of the `files` that are told instead. Raises: UsageError."""
    for path in (Path(run), DEFAULT_OUTPUT / run):
        with reading(path):
            if any((path / file).exists() for file in files or (names.RUN_FILE,)):
                return path
    raise UsageError(f"{run} is not a run: no {names.RUN_FILE} in {run} or in {DEFAULT_OUTPUT / run}")


def _plan_text(made: RunPlan) -> str:
    from gala.algorithms import ALGORITHMS
    from gala.topology import beta

    spec = made.spec
    size = len(made.learners)
    rows = [("rank", "role", "sends to", "hears from", "simulator seeds", "gossip", "http")]
    rows += [
        (
            str(learner.rank),
            learner.role,
            _ranks(learner.out_peers),
            _ranks(learner.in_peers),
            f"{learner.seed}...",
            learner.address.gossip,
            learner.address.http,
        )
        for learner in made.learners
    ]
    shape = f"{size} workers"
    if ALGORITHMS[spec.algorithm].gossips:
        shape = f"{spec.topology.type} of {size}: beta = {beta(spec.topology, size):.4f}"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = [
        f"{made.run_name}: {spec.algorithm} on {spec.environment.id}, {spec.total_steps:,} decisions",
        f"{shape}, parameters from seed {made.seed}",
        "",
    ]
    return "\n".join([*head, *table]) + "\n"


def _ranks(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 8:
        return " ".join(map(str, ranks[:6])) + f" ... ({len(ranks)})"
    return " ".join(map(str, ranks)) or "-"
