"""The command `gala experiment`: a thin shell over `gala.experiment`, on this machine or in a cluster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gala.cli_options import DEFAULT_OUTPUT, ExperimentOverrides, Name, all_overrides
from gala.errors import UsageError
from gala.remote.commands import Context, Kubeconfig, Namespace

if TYPE_CHECKING:
    from rich.console import Console

    from gala.experiment.folder import Folder
    from gala.experiment.place import Place


def experiment(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GalaExperiment document (yaml).", show_default=False)],
    small: Annotated[bool, typer.Option("--small", help="The small version, for a machine without a GPU.")] = False,
    toy: Annotated[bool, typer.Option("--toy", help="The tiny version, which tests use.", hidden=True)] = False,
    listing: Annotated[bool, typer.Option("--list", help="Print the matrix and how far it is; run nothing.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Runs at once; here 1, in a cluster as many as fit.", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start over the runs that were made with another definition.")
    ] = False,
    overrides: ExperimentOverrides = None,
    name: Name = None,
    output: Annotated[Path, typer.Option(help="Where run folders go.", metavar="FOLDER")] = DEFAULT_OUTPUT,
    in_cluster: Annotated[
        bool, typer.Option("--cluster", help="Run it in a cluster, where the operator is installed.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="With --cluster: leave the runs there once they are fetched.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run a matrix of runs: every combination of algorithm, environment, seed and so on of one document.

    What is done is not done again: the same command goes on where it was stopped. Ctrl-C stops the runs, after a
    checkpoint; in a cluster they go on. `gala report` draws the figures.
    """
    import yaml

    from gala import document
    from gala.experiment import conducting, definition, matrix
    from gala.experiment.folder import Folder
    from gala.experiment.table import listing as listed
    from gala.local.console import lasting_console

    if small and toy:
        raise UsageError("--small and --toy: choose one")
    if not in_cluster and (keep or namespace or context or kubeconfig):
        raise UsageError("--keep, --namespace, --context and --kubeconfig go with --cluster")
    data = document.override(document.read(file), all_overrides(overrides, None, name))
    expansion = matrix.expand(definition.parse(data), "small" if small else "toy" if toy else "full")
    folder = Folder(output / expansion.name)
    if listing:
        typer.echo(listed(expansion.index(conducting.survey(expansion, folder))), nl=False)
        return
    console = lasting_console()
    if in_cluster:
        place = _cluster(folder, console, jobs, keep, namespace, context, kubeconfig)
    else:
        place = _machine(folder, jobs)
    text = yaml.safe_dump(data, sort_keys=False) if overrides or name else file.read_text(encoding="utf-8")
    raise typer.Exit(conducting.conduct(expansion, folder, place, console=console, force=force, definition=text))


def _machine(folder: Folder, jobs: int | None) -> Place:
    from gala.experiment.machine import Machine

    return Machine(folder, jobs=jobs or 1)


def _cluster(
    folder: Folder,
    console: Console,
    jobs: int | None,
    keep: bool,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> Place:
    from gala.local.console import say
    from gala.remote.cluster import Cluster
    from gala.remote.experiments import ClusterRuns

    cluster = Cluster.connect(kubeconfig=kubeconfig, context=context, namespace=namespace)
    return ClusterRuns(cluster, folder, jobs=jobs, keep=keep, say=partial(say, console))
