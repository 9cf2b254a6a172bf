"""The end of a run: `python -m gala_worker.finalize RUN_DIR` averages the learners, scores the average, writes final/.

Place in the flow: the launcher calls it when the last learner has exited with 0. It prints one JSON object a line on
its progress, and writes final/model.safetensors, then final/card.json: a card says that the final model is there.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from gala import answers, atomic, names, scores
from gala.errors import MAX_SHOWN_VALUE, CheckpointError, GalaError, RunError
from gala.plan import RunPlan
from gala_worker import model_file
from gala_worker.evaluation import EvaluationResult, Mode
from gala_worker.flat import Schema
from gala_worker.model_file import Model
from gala_worker.players import Player, evaluation_seed, open_plan

MODES: Final[tuple[Mode, ...]] = ("greedy", "sampled")
LEFT_BEHIND: Final = 0.05
"""A learner that ended before the run's steps were done, and earlier than the furthest one by more than this share of
them, is left out of the average: its parameters are of another time."""
PACKAGES: Final = ("gala", "torch", "gymnasium", "ale_py", "numpy")

Progress = Callable[[dict[str, Any]], None]


def finalize(run_dir: Path, *, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Writes final/ of the run and returns the card.

    Raises:
        UsageError: `run_dir` is not a run's folder.
        RunError: no learner has left a usable model.
    """
    plan = open_plan(run_dir)
    with Player(plan.spec, plan.spec.evaluation.episodes) as player:
        models = collect(run_dir, plan, player.schema, progress)
        progress({"event": "averaging", "ranks": sorted(models)})
        kept = [model for _, model in sorted(models.items())]
        player.load(
            model_file.average([model.tensors for model in kept], [model_file.share(model.record) for model in kept])
        )
        results: dict[Mode, EvaluationResult] = {}
        for mode in MODES:
            progress({"event": "evaluating", "mode": mode, "episodes": plan.spec.evaluation.episodes})
            results[mode] = player.play(mode=mode, seed=evaluation_seed(plan))
            progress({"event": "evaluated", **results[mode].document()})
        card = make_card(plan, models, player.schema.hash, results)
        final = run_dir / names.FINAL_DIRECTORY
        record = {key: card[key] for key in ("run", "uid", "globalSteps", "finishedAt")}
        tensors = player.policy.state_dict()
        model_file.save_model(final / names.MODEL_FILE, tensors, player.schema.hash, plan.spec, record)
    atomic.replace(final / names.CARD_FILE, (json.dumps(card, indent=2) + "\n").encode())
    progress({"event": "done", "model": str(final / names.MODEL_FILE), "card": str(final / names.CARD_FILE)})
    return card


def collect(run_dir: Path, plan: RunPlan, schema: Schema, progress: Progress) -> dict[int, Model]:
    """The models of the plan's keepers that can be averaged, by rank; says which cannot, and why.

    Raises:
        RunError: there is none.
    """
    models: dict[int, Model] = {}
    for rank in plan.keepers:
        path = run_dir / names.learner_directory(rank) / names.FINAL_DIRECTORY / names.MODEL_FILE
        if not path.exists():
            progress({"event": "missing", "rank": rank, "reason": "it has left no final model"})
            continue
        try:
            models[rank] = _checked(model_file.load_model(path, schema), path)
        except CheckpointError as error:
            progress({"event": "refused", "rank": rank, "reason": str(error)})
    if not models:
        raise RunError(f"no learner of {run_dir} has left a model that can be used")
    # Who has the run's steps has ended in time, however far others went on before they had heard of it.
    steps = {rank: _steps(model) or 0 for rank, model in sorted(models.items())}
    furthest = min(max(steps.values()), plan.spec.total_steps)
    for rank, made in steps.items():
        if made < furthest * (1 - LEFT_BEHIND):
            reason = f"it ended at {made:,} of {furthest:,} steps"
            progress({"event": "refused", "rank": rank, "reason": reason})
            del models[rank]
    return models


def make_card(
    plan: RunPlan, models: dict[int, Model], schema_hash: str, results: dict[Mode, EvaluationResult]
) -> dict[str, Any]:
    """final/card.json: what the model is, how it came about, how good it is."""
    game = scores.game(plan.spec.environment.id)
    return {
        "run": plan.run_name,
        "uid": plan.run_uid,
        "spec": plan.spec.model_dump(mode="json", by_alias=True),
        "seed": plan.seed,
        "learners": len(plan.learners),
        "averaged": sorted(models),
        "globalSteps": max(_steps(model) or 0 for model in models.values()),
        "wallSeconds": max(_wall_seconds(model) or 0.0 for model in models.values()),
        "versions": versions(),
        "finishedAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "schema": schema_hash,
        "evaluation": {mode: result.document() for mode, result in results.items()},
        "human": scores.YARDSTICKS[game]._asdict() if game else None,
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gala_worker.finalize",
        description="Average the learners of a finished run and score the result.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the run's folder")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        finalize(options.run_dir, progress=_print)
    except GalaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"cannot write the final model: {error}\n")
        return 1
    return 0


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _checked(model: Model, path: Path) -> Model:
    """Raises: CheckpointError for a model whose record cannot be true."""
    for key, value in (("globalSteps", _steps(model)), ("wallSeconds", _wall_seconds(model))):
        if value is None or value < 0:
            shown = repr(model.record[key])[:MAX_SHOWN_VALUE]
            raise CheckpointError(f"{path} says {key}: {shown}, which cannot be; it takes a number from 0")
    return model


def _steps(model: Model) -> int | None:
    return answers.count(model.record.get("globalSteps", 0))


def _wall_seconds(model: Model) -> float | None:
    return answers.number(model.record.get("wallSeconds", 0.0))


if __name__ == "__main__":
    sys.exit(main())
