"""The cluster's side of the command line: submit a run, watch it, read its logs, fetch what it has learned.

    commands     the typer commands, thin shells over the rest
    submitting   document -> server-side apply
    watching     GalaRun, again and again -> the table of `gala run`, and an exit code
    view         GalaRun -> what is shown; pure
    logs         the learners' logs, side by side
    fetching     results pod -> run directory; unpacking opens what it sends
    cluster      the only module that imports the Kubernetes client
    refusals     the API server's errors -> ours; pure

Nothing here is imported by `gala run`, by the operator or by a worker.
"""
