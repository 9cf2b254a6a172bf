"""`python -m gala_worker.evaluate RUN` plays with a run's policy and prints its scores; `gala evaluate` calls it.

The final model is played; while a run is not finished, or trains on, the average of its learners' newest checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gala import names, scores, streams
from gala.errors import MAX_SHOWN_VALUE, GalaError, RunError, UsageError, reading
from gala_worker import film
from gala_worker.evaluation import EvaluationResult, Mode
from gala_worker.film import Film
from gala_worker.players import Player, evaluation_seed, load_newest, open_plan

RUNS_DIR = Path(names.RUNS_DIRECTORY)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    streams.prepare()
    try:
        with streams.writing():
            _evaluate(options)
    except GalaError as error:
        sys.stderr.writelines(f"error: {line}\n" for line in str(error).splitlines())
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gala_worker.evaluate", description="Play with a run's policy and print its scores."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder, or its name below runs/")
    parser.add_argument("--episodes", type=_positive, default=10, metavar="N", help="whole games to play (default: 10)")
    parser.add_argument("--sampled", action="store_true", help="draw actions from the policy; default: the likeliest")
    parser.add_argument(
        "--seed", type=_seed, metavar="N", help="of the games; default: that of the run's final evaluation"
    )
    parser.add_argument("--video", type=Path, metavar="FILE", help="film one more game, as .gif or .mp4")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _positive(text: str) -> int:
    return _whole(text, 1, sys.maxsize)


def _seed(text: str) -> int:
    return _whole(text, 0, names.MAX_SEED)


def _whole(text: str, low: int, high: int) -> int:
    with contextlib.suppress(ValueError):
        if low <= (number := int(text)) <= high:
            return number
    raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, got {text[:MAX_SHOWN_VALUE]!r}")


def _evaluate(options: argparse.Namespace) -> None:
    if options.video is not None:
        film.check(options.video)
    mode: Mode = "sampled" if options.sampled else "greedy"
    run_dir = _run_dir(options.run)
    plan = open_plan(run_dir)
    seed = evaluation_seed(plan) if options.seed is None else options.seed
    with Player(plan.spec, options.episodes) as player:
        source = load_newest(player, run_dir, plan)
        result = player.play(mode=mode, seed=seed)
        if not math.isfinite(result.mean_return):
            raise RunError(
                f"{plan.run_name} has no score: {result.environment_id} has given a reward that is not a finite number "
                f"in {sum(not math.isfinite(score) for score in result.returns)} of {options.episodes} episodes"
            )
        if not options.json:
            _show(plan.run_name, source, result)
        filmed = None
        try:
            if options.video is not None:
                filmed = film.film(player.policy, plan.spec, options.video, mode=mode, seed=seed)
        finally:  # the scores are told whatever becomes of the film
            if options.json:
                sys.stdout.write(json.dumps(_document(plan.run_name, source, seed, result, filmed)) + "\n")
            elif filmed is not None:
                _show_film(filmed)


def _run_dir(run: Path) -> Path:
    with reading(run):
        if run.is_dir():
            return run
        if (RUNS_DIR / run).is_dir():
            return RUNS_DIR / run
    raise UsageError(f"there is no run {run}: neither that folder nor {RUNS_DIR / run} exists")


def _document(run: str, source: str, seed: int, result: EvaluationResult, filmed: Film | None) -> dict[str, Any]:
    document = {"run": run, "environment": result.environment_id, "source": source, "seed": seed, **result.document()}
    if filmed is not None:
        score = None if filmed.result is None else filmed.result.mean_return
        document["video"] = {"path": str(filmed.path), "seconds": filmed.seconds, "return": score}
    return document


def _show(run: str, source: str, result: EvaluationResult) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{run}[/]: {result.environment_id}, {source}, {result.mode} actions")
    table = Table("episode", "return", "decisions", box=None)
    for column in table.columns:
        column.justify = "right"
    for number, (score, steps) in enumerate(zip(result.returns, result.episode_steps, strict=True), start=1):
        table.add_row(str(number), f"{score:g}", f"{steps:,}")
    table.add_section()
    table.add_row("mean", f"{result.mean_return:.1f} ± {result.std_return:.1f}", f"{result.mean_episode_steps:,.0f}")
    console.print(table)
    if result.human_normalised is not None:
        yardstick = scores.YARDSTICKS[scores.game(result.environment_id) or ""]
        console.print(
            f"human-normalised: {result.human_normalised:.2f} "
            f"(0 = random player, {yardstick.random:g}; 1 = human, {yardstick.human:g})"
        )


def _show_film(filmed: Film) -> None:
    end = "longer than the film" if filmed.result is None else f"return {filmed.result.mean_return:g}"
    text = f"filmed: {filmed.path}, {filmed.seconds:.0f} s, one game, {end}"
    Console(highlight=False).print(text, markup=False)


if __name__ == "__main__":
    sys.exit(main())
