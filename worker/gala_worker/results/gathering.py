"""The main path of the results pod: collect the learners' files, average and evaluate them, leave the result served."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

from gala import names
from gala.answers import json_file, json_object, number
from gala.errors import GalaError
from gala.local.rundir import RunDirectory, RunRecord, State
from gala.plan import RunPlan
from gala.spec import parse
from gala_worker import files, plan_file
from gala_worker.config import ResultsConfig
from gala_worker.downloads import checksum
from gala_worker.finalize import finalize
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.results.archive import Archive
from gala_worker.results.collecting import Patience, collect
from gala_worker.results.server import Board, ResultsServer

log = logging.getLogger(__name__)

EARLIER: Final = "earlier"
"""Where the folders of an earlier run's learners go, `learner-3` as `learner-3.1`, the next one as `learner-3.2`."""


def gather(config: ResultsConfig, listen: str, patience: Patience) -> bool:
    """True when the result is served; False when it is served that there is none, nor would be at another attempt.

    Raises:
        UsageError: the plan cannot be read, or the folder not be written to.
        RunError: not one learner answers; another attempt may do better.
    """
    plan = plan_file.read(config.plan_file)
    run_dir = config.output_dir
    files.make_directory(run_dir)
    board = Board(plan)
    loop = LoopThread("results-http")
    loop.run(ResultsServer(listen, board).start())
    card = finished_card(run_dir, plan)
    if card is None:
        discard_foreign(run_dir, plan)
        write_run(run_dir, plan)
        left_out = loop.run(collect(plan, run_dir, patience=patience, progress=board.say))
        board.evaluating(_left_out(left_out))
        try:
            card = finalize(run_dir, progress=lambda line: log.info("%s", json.dumps(line)))
        except GalaError as error:  # the same files would give the same again
            log.error("%s", error)
            write_record(run_dir, plan, "failed")
            board.failed(str(error))
            return False
        write_record(run_dir, plan, "finished", card)
    model = run_dir / names.FINAL_DIRECTORY / names.MODEL_FILE
    board.ready(card, checksum(model), Archive(run_dir))
    log.info("the result is served: %s", board.status()["message"])
    return True


def finished_card(run_dir: Path, plan: RunPlan) -> dict[str, Any] | None:
    """The card of a final model that an earlier attempt has left on the volume; None if there is none of this run."""
    final = run_dir / names.FINAL_DIRECTORY
    card = json_file(final / names.CARD_FILE)
    record = json_file(run_dir / names.RUN_FILE)
    is_ours = card.get("uid") == plan.run_uid == record.get("uid") and record.get("state") == "finished"
    return card if is_ours and (final / names.MODEL_FILE).is_file() else None


def discard_foreign(run_dir: Path, plan: RunPlan) -> None:
    """Puts out of the way what an earlier run of the same name, whose volume this is, has left.

    Its models are removed: they must not go into the average. Folders of learners that only it had are moved as they
    are: they must not go into the archive, but may hold the only checkpoints of that run.
    """
    gathered_last = json_file(run_dir / names.RUN_FILE).get("uid", plan.run_uid)
    kept = {run_dir, *(run_dir / names.learner_directory(rank) for rank in plan.ranks)}
    for folder in (run_dir, *run_dir.glob("learner-*")):
        final = folder / names.FINAL_DIRECTORY
        record = json_file(final / names.CARD_FILE) or json_file(final / names.MODEL_RECORD_FILE)
        if folder not in kept and record.get("uid", gathered_last) != plan.run_uid:
            _set_aside(folder)
        elif record.get("uid") != plan.run_uid:
            for name in (names.CARD_FILE, names.MODEL_FILE, names.MODEL_RECORD_FILE):
                (final / name).unlink(missing_ok=True)


def _set_aside(folder: Path) -> None:
    aside = folder.parent / EARLIER
    aside.mkdir(exist_ok=True)
    free = (path for number in itertools.count(1) if not (path := aside / f"{folder.name}.{number}").exists())
    target = folder.rename(next(free))
    log.warning("%s is of an earlier run of this name: it is now %s", folder, target)


def write_run(run_dir: Path, plan: RunPlan) -> None:
    """What a launcher puts at the top of a run's folder."""
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": plan.run_name},
        "spec": plan.spec.model_dump(mode="json", by_alias=True),
    }
    directory = RunDirectory(run_dir)
    directory.write_run(parse(document))
    directory.write_plan(plan)
    write_record(run_dir, plan, "running")


def write_record(run_dir: Path, plan: RunPlan, state: State, card: dict[str, Any] | None = None) -> None:
    """run.json, as the local launcher writes it."""
    record = RunRecord(
        uid=plan.run_uid,
        state=state,
        start_time=_start_time(run_dir),
        wall_seconds=float((card or {}).get("wallSeconds", 0.0)),
        updated_time=time.time(),
    )
    RunDirectory(run_dir).write_record(record)


def _start_time(run_dir: Path) -> float:
    """When the first learner wrote its first record; now if there is none yet."""
    times = [time.time()]
    for path in run_dir.glob(f"learner-*/{names.METRICS_FILE}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            first = json_object(file.readline(1 << 16)) or {}
            if (written := number(first.get("time"))) is not None:
                times.append(written)
    return min(times)


def _left_out(reasons: dict[int, str]) -> str:
    return "".join(f"; without rank {rank} ({reason})" for rank, reason in sorted(reasons.items())[:8])
