"""`gala evaluate`: what of a run is played, what is said of it, and which mistakes are told."""

from __future__ import annotations

import io
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from ended_run import Run, make_plan
from gala.errors import RunError, UsageError
from gala_worker import evaluate, film, finalize
from gala_worker.players import Player
from small_games import Flawed

pytestmark = pytest.mark.usefixtures("one_compute_thread")


def test_a_finished_run_is_evaluated_as_its_card_says(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.export(0)
    card = finalize.finalize(run.directory)
    arguments = [str(run.directory), "--episodes", "2", "--sampled", "--json"]
    assert evaluate.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["source"] == "final model"
    assert printed["returns"] == card["evaluation"]["sampled"]["returns"]


def test_the_documented_program_plays_with_a_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.export(0)
    finalize.finalize(run.directory)
    runs = run.directory / "somewhere" / "runs"
    runs.mkdir(parents=True)
    (runs / "pong").symlink_to(run.directory)
    monkeypatch.chdir(runs.parent)
    document = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    program = document[document.index("## A trained policy in a program of your own") :].split("```python\n")[1]
    exec(program.split("```")[0], {})
    said = capsys.readouterr().out
    assert said.startswith("final model\n[Episode(return_=")


def test_the_table_shows_every_episode_and_the_mean(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.export(0)
    card = finalize.finalize(run.directory)
    assert evaluate.main([str(run.directory), "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{card['evaluation']['greedy']['meanReturn']:.1f} ±" in text
    assert "greedy" in text


@pytest.mark.parametrize(
    ("steps", "source"), [(1000, "final model"), (1001, "average of 1 of 3 learners' checkpoints")]
)
def test_a_run_that_trains_on_after_its_end_is_evaluated_by_its_newest_state(run: Run, steps: int, source: str) -> None:
    run.export(0, 0.25, global_steps=1000)
    finalize.finalize(run.directory)
    run.save_checkpoint(0, 0.5, steps)
    with Player(run.plan.spec, 1) as player:
        assert evaluate.load_newest(player, run.directory, run.plan).startswith(source)
        assert torch.allclose(player._flat.vector, run.start + (0.25 if source == "final model" else 0.5))


def test_a_later_checkpoint_of_a_straggler_is_not_taken_for_a_newer_state(run: Run) -> None:
    total = run.plan.spec.total_steps
    run.export(0, 0.25, global_steps=total)
    finalize.finalize(run.directory)
    run.save_checkpoint(1, 0.5, total + 40)
    with Player(run.plan.spec, 1) as player:
        assert evaluate.load_newest(player, run.directory, run.plan) == "final model"


def test_an_output_that_cannot_hold_a_character_or_anything_costs_no_traceback(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.export(0)
    finalize.finalize(run.directory)
    arguments = [str(run.directory), "--episodes", "1"]
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert evaluate.main(arguments) == 0
    assert b" ? 0.0" in written.getvalue()

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="1"):
            evaluate.main(arguments)
    assert capsys.readouterr().err == "error: the output cannot be written: No space left on device\n"


def test_an_unfinished_run_is_evaluated_by_the_average_of_its_newest_checkpoints(run: Run) -> None:
    run.save_checkpoint(0, 5.0, 80)
    run.save_checkpoint(0, 0.5, 160)
    run.save_checkpoint(2, 1.0, 240)
    with Player(run.plan.spec, 1) as player:
        source = evaluate.load_newest(player, run.directory, run.plan)
        assert torch.allclose(player._flat.vector, run.start + 0.75)
    assert source == "average of 2 of 3 learners' checkpoints at 240 steps"


def test_the_checkpoint_of_a_learner_that_is_gone_for_long_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path, make_plan(checkpoint={"everySteps": 100}))
    run.save_checkpoint(0, 0.5, 500)
    run.save_checkpoint(1, 1.0, 300)
    run.save_checkpoint(2, 9.0, 299)
    with Player(run.plan.spec, 1) as player:
        source = evaluate.load_newest(player, run.directory, run.plan)
        assert torch.allclose(player._flat.vector, run.start + 0.75)
    assert source == "average of 2 of 3 learners' checkpoints at 500 steps"


def test_checkpoints_of_push_sum_are_averaged_by_their_weights(run: Run) -> None:
    run.save_checkpoint(0, 0.0, 80, weight=0.5)
    run.save_checkpoint(1, 0.25, 80, weight=0.5)
    run.save_checkpoint(2, 0.5, 80, weight=2.0)
    with Player(run.plan.spec, 1) as player:
        evaluate.load_newest(player, run.directory, run.plan)
        assert torch.allclose(player._flat.vector, run.start + (0.25 * 0.5 + 0.5 * 2.0) / 3)


def test_a_run_with_nothing_to_evaluate_says_when_there_will_be(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run.directory)]) == RunError.exit_code
    assert "every 1,000,000 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "bounds"),
    [
        ("--seed", "-1", "from 0 to 2147483647"),
        ("--seed", str(2**31), "from 0 to 2147483647"),
        ("--seed", "9" * 5000, "from 0 to 2147483647"),
        ("--seed", "x", "from 0 to 2147483647"),
        ("--episodes", "0", "from 1 to"),
    ],
)
def test_a_number_out_of_bounds_is_refused(
    run: Run, capsys: pytest.CaptureFixture[str], option: str, value: str, bounds: str
) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate.main([str(run.directory), f"{option}={value}"])
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: must be a whole number {bounds}" in told
    assert f"got '{value[:20]}" in told


def test_a_final_model_that_cannot_be_looked_at_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with Player(run.plan.spec, 1) as player, monkeypatch.context() as patched:
        patched.setattr(Path, "exists", locked)
        with pytest.raises(UsageError, match=r"model\.safetensors: cannot be read: Permission denied$"):
            evaluate.load_newest(player, run.directory, run.plan)


def test_a_run_whose_rewards_are_no_numbers_has_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its final model too: the card stays JSON that everybody reads."""

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    spec = EnvSpec("GalaFlawed-v0", entry_point=partial(Flawed, reward=math.nan), disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, "GalaFlawed-v0", spec)
    run = Run(tmp_path, make_plan("GalaFlawed-v0"))
    run.export(0)
    assert finalize.main([str(tmp_path)]) == 0
    printed = [json.loads(line, parse_constant=strict) for line in capsys.readouterr().out.splitlines()]
    assert printed[-1]["event"] == "done"
    card = json.loads((tmp_path / "final" / "card.json").read_text(), parse_constant=strict)
    assert card["evaluation"]["greedy"]["meanReturn"] is None
    assert card["evaluation"]["greedy"]["returns"] == [None, None]
    assert evaluate.main([str(tmp_path), "--episodes", "3", "--json"]) == RunError.exit_code
    said = capsys.readouterr()
    told = "GalaFlawed-v0 has given a reward that is not a finite number in 3 of 3 episodes"
    assert (said.out, said.err) == ("", f"error: test has no score: {told}\n")


def test_an_unknown_run_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["no-such-run"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no run no-such-run")
    assert evaluate.main(["x" * 300]) == 2
    assert "cannot be read: File name too long" in capsys.readouterr().err


def test_a_run_may_be_named_by_its_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.save_checkpoint(0, 0.0, 80)
    monkeypatch.setattr(evaluate, "RUNS_DIR", run.directory.parent)
    assert evaluate.main([run.directory.name, "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "test"


def test_a_film_that_cannot_be_written_is_refused_before_anything_is_played(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has nothing to play, which would be the next complaint."""
    assert evaluate.main([str(run.directory), "--video", "play.avi"]) == 2
    assert "must end in .gif or .mp4" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_scores_are_told_even_if_the_film_fails(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    run.save_checkpoint(0, 0.5, 80)

    def fail(*_: Any, **options: Any) -> film.Film:
        raise UsageError("--video play.gif: cannot be written: the disk is full")

    monkeypatch.setattr(film, "film", fail)
    video = str(run.directory / "play.gif")
    assert evaluate.main([str(run.directory), "--episodes", "1", "--video", video, *arguments]) == 2
    said = capsys.readouterr()
    assert "the disk is full" in said.err
    assert ("meanReturn" if arguments else "mean") in said.out


def test_the_film_is_made_with_the_runs_policy(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    run.save_checkpoint(0, 0.5, 80)
    filmed: dict[str, Any] = {}

    def pretend(policy: Any, spec: Any, path: Path, **options: Any) -> film.Film:
        filmed.update(options, spec=spec, weight=policy.value_head.bias.item())
        return film.Film(path=path, seconds=2.0, result=None)

    monkeypatch.setattr(film, "film", pretend)
    video = run.directory / "play.gif"
    assert (
        evaluate.main([str(run.directory), "--episodes", "1", "--sampled", "--seed", "9", "--video", str(video)]) == 0
    )
    assert filmed == {"mode": "sampled", "seed": 9, "spec": run.plan.spec, "weight": 0.5}
    assert "longer than the film" in capsys.readouterr().out
