"""`gala fetch`: from the results pod of a run that has ended to a run directory on this machine.

What arrives is laid out like the directory of a local run, so that `gala report` and `gala evaluate` work on it.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from gala import names
from gala.errors import ClusterError, RunError, UsageError
from gala.local import ending
from gala.local.rundir import RunDirectory, RunRecord
from gala.remote.cluster import Cluster
from gala.remote.unpacking import CHUNK_BYTES, MAX_BYTES, unpack
from gala.remote.view import Run

SILENCE_SECONDS: Final = 60.0
"""A results pod that sends nothing for so long is given up."""
TRIES: Final = 3

Say = Callable[[str], None]


def fetch(cluster: Cluster, name: str, *, output: Path, force: bool, say: Say) -> Path:
    """Bring a run's final model, metrics and records to `output`/`name`, and write the report. Returns the folder.

    Args:
        force: replace another run of this name that is there.

    Raises:
        UsageError: the run has not ended, left nothing, or its folder is taken.
        ClusterError: what arrived is not what was trained.
    """
    run = Run.of(cluster.get(name))
    pod = _results_pod(cluster, run)
    directory = RunDirectory(output / name)
    if not directory.acquire():
        raise UsageError(f"{directory.path} belongs to a run that is going on here; use another --output")
    try:
        _refuse_taken(directory, run, force=force)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=output) as scratch:
            archive, content = Path(scratch) / "archive.tar", Path(scratch) / "content"
            content.mkdir()
            _download(cluster, pod, archive, say)
            unpack(archive, content)
            _verify(content, run)
            directory.clear()
            for entry in content.iterdir():
                shutil.move(entry, directory.path / entry.name)
        _complete(directory, run)
    except OSError as error:
        raise RunError(f"{directory.path} cannot be written: {error.strerror or error}") from error
    finally:
        directory.release()
    for line in ending.results(directory, ending.write_report(directory)):
        say(line)
    return directory.path


def _results_pod(cluster: Cluster, run: Run) -> str:
    if not run.ended:
        raise UsageError(
            f"{run.name} has not ended ({run.state}), its results come with its end; "
            f"watch it with: gala status {run.name} --follow{cluster.options}"
        )
    expected = names.results_name(run.name)
    for pod in cluster.pods(run.name):
        if pod.name == expected and pod.run_uid in ("", run.uid) and pod.running:
            return pod.name
    if not run.final_model:
        raise UsageError(f"{run.name} has no final model: {run.failure}; see gala logs {run.name}{cluster.options}")
    raise UsageError(
        f"the pod {expected}, which serves the results, is gone: its node was lost, or spec.runPolicy.cleanPodPolicy "
        "is All; what is left are the run's volumes, if it has any"
    )


def _refuse_taken(directory: RunDirectory, run: Run, *, force: bool) -> None:
    if directory.is_empty():
        return
    if not (directory.path / names.RUN_FILE).exists():
        remedy = ", --force does not remove it" if force else ""
        raise UsageError(f"{directory.path} exists and is not a run directory{remedy}; use another --output")
    if force:
        return
    record = directory.record()
    if record is None or record.uid != run.uid:
        raise UsageError(f"{directory.path} holds another run; --force replaces it, --output FOLDER keeps both")


def _download(cluster: Cluster, pod: str, archive: Path, say: Say) -> None:
    for attempt in range(TRIES):
        try:
            with archive.open("wb") as file:
                size = _receive(cluster, pod, file)
        except ClusterError as error:
            if attempt == TRIES - 1:
                raise
            say(f"{error}; trying again")
        else:
            say(f"received {size / 1e6:,.1f} MB from {pod}")
            return


def _receive(cluster: Cluster, pod: str, file: IO[bytes]) -> int:
    """GET /archive of the results pod, into a file. Returns its size."""
    connection = http.client.HTTPConnection(pod)
    size = 0
    try:
        with cluster.port(pod, names.PORT_HTTP) as channel:
            channel.settimeout(SILENCE_SECONDS)
            connection.sock = channel
            connection.request("GET", "/archive", headers={"Connection": "close"})
            response = connection.getresponse()
            if response.status != 200:
                answer = response.read(500).decode(errors="replace").strip()
                raise ClusterError(f"pod {pod} does not hand out its results ({response.status}): {answer}")
            while chunk := response.read(CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise ClusterError(f"pod {pod} sends more than {MAX_BYTES:,} bytes")
                file.write(chunk)
            if response.length:  # bytes still missing; http.client does not mind
                raise ClusterError(f"the connection to pod {pod} broke after {size:,} bytes")
    except http.client.HTTPException as error:
        raise ClusterError(f"pod {pod} does not answer: {str(error) or type(error).__name__}") from error
    return size


def _verify(content: Path, run: Run) -> None:
    """The model is the one that the run's status tells of."""
    expected = run.final_model.get("sha256")
    model = content / names.FINAL_DIRECTORY / names.MODEL_FILE
    if not model.is_file():
        raise ClusterError(f"the archive holds no {names.FINAL_DIRECTORY}/{names.MODEL_FILE}")
    with model.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(expected, str) and expected and found != expected:
        raise ClusterError(f"the model that arrived is not the one that the run's status tells of: sha256 {found}")


def _complete(directory: RunDirectory, run: Run) -> None:
    """run.json as a local run has it: the run's identity, for the next fetch and for `gala evaluate`."""
    now = datetime.now(UTC)
    wall_seconds = run.wall_seconds(now)
    directory.write_record(
        RunRecord(
            uid=run.uid,
            state="finished",
            start_time=time.time() - wall_seconds if run.created is None else run.created.timestamp(),
            wall_seconds=wall_seconds,
            updated_time=time.time(),
        )
    )
