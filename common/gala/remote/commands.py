"""The commands that talk to a cluster: `gala submit | status | logs | fetch`, and the same as `kubectl gala ...`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gala.cli_options import DEFAULT_OUTPUT, File, Learners, Name, Overrides, all_overrides
from gala.errors import UsageError

if TYPE_CHECKING:
    from gala.remote.cluster import Cluster

app = typer.Typer()

SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's name in the cluster.", show_default=False)]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Namespace; that of the document or kubeconfig.", show_default=False
    ),
]
Context = Annotated[
    str | None, typer.Option(metavar="NAME", help="Context of kubeconfig; its current one.", show_default=False)
]
Kubeconfig = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Instead of $KUBECONFIG or ~/.kube/config.", show_default=False),
]
Timeout = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Wait no longer: 90, 30m, 2h. Then the exit code is 124.", show_default=False),
]


@app.command()
def submit(
    file: File,
    overrides: Overrides = None,
    learners: Learners = None,
    name: Name = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run's end.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait, and show the live table.")] = False,
    timeout: Timeout = None,
    force: Annotated[bool, typer.Option("--force", help="Delete an earlier run of this name and start over.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Train in a cluster, where the operator is installed.

    A second submit changes a run that goes on: --learners N its ring, without restarting anybody. Exit codes with
    --wait or --follow: 0 succeeded, 1 failed, 2 refused, 124 timeout. Ctrl-C ends the watching, the run goes on.
    """
    from gala.remote import submitting

    seconds = _seconds(timeout)
    document = submitting.read(file, all_overrides(overrides, learners, name))
    cluster = _connect(kubeconfig, context, namespace or submitting.namespace(document))
    typer.echo(submitting.submit(cluster, document, force=force))
    submitted = str(document["metadata"]["name"])
    if wait or follow or seconds is not None:
        _watch(cluster, submitted, table=follow, seconds=seconds)
    else:
        typer.echo(f"watch it with: gala status {submitted} --follow{cluster.options}")


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run, in detail; all runs.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the live table of RUN until its end.")] = False,
    timeout: Timeout = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Runs of all namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the runs of a cluster, or one of them: what it does, and why it does not.

    With --follow until the run's end, with the exit codes of submit.
    """
    from gala.remote import view

    seconds = _seconds(timeout)
    cluster = _connect(kubeconfig, context, namespace)
    now = datetime.now(UTC)
    if run is None:
        if follow or seconds is not None:
            raise UsageError("--follow and --timeout are about one run: name it")
        runs = [view.Run.of(found) for found in cluster.runs(all_namespaces=all_namespaces)]
        if runs:
            typer.echo(view.listing(runs, now, namespaces=all_namespaces), nl=False)
        else:
            typer.echo("no runs" + ("" if all_namespaces else f" in namespace {cluster.namespace}"))
    elif follow or seconds is not None:
        _watch(cluster, run, table=follow, seconds=seconds)
    else:
        typer.echo(view.details(view.Run.of(cluster.get(run)), now, cluster.options), nl=False)


@app.command()
def logs(
    run: Run,
    rank: Annotated[
        str | None,
        typer.Argument(
            metavar="[RANK]", help="A learner, or results; all, each line with its rank.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run's end.")] = False,
    tail: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Only the last N lines of each.", show_default=False)
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what the learners of a run in a cluster print."""
    from gala.remote import logs as reading

    cluster = _connect(kubeconfig, context, namespace)
    show = reading.follow if follow else reading.show
    try:
        show(cluster, run, rank=rank, tail=tail, write=typer.echo, note=_note)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def fetch(
    run: Run,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where run folders go.")] = DEFAULT_OUTPUT,
    force: Annotated[bool, typer.Option("--force", help="Replace another run of this name there.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Bring the final model, metrics and report of a run in a cluster to this machine."""
    from gala.local.ending import shown
    from gala.remote import fetching

    cluster = _connect(kubeconfig, context, namespace)
    path = shown(fetching.fetch(cluster, run, output=output, force=force, say=typer.echo))
    typer.echo(f"Next:\n  gala evaluate {path} --video {run}.gif\n      watch the final policy play")


def _watch(cluster: Cluster, name: str, *, table: bool, seconds: float | None) -> None:
    from rich.console import Console

    from gala.remote import watching

    raise typer.Exit(watching.watch(cluster, name, console=Console(), table=table, timeout_seconds=seconds))


def _connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    from gala.remote.cluster import Cluster

    return Cluster.connect(kubeconfig=kubeconfig, context=context, namespace=namespace)


def _note(line: str) -> None:
    typer.echo(line, err=True)


def _seconds(text: str | None) -> float | None:
    """`90`, `90s`, `30m`, `1h30m`."""
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"--timeout: {text} is no time; write seconds, or such as 90s, 30m, 1h30m")
    return sum(float(number) * SECONDS[unit] for number, unit in parts)
