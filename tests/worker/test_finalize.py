"""The end of a run: which models are averaged, what is written, and what `gala evaluate` makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gala.errors import CheckpointError, RunError, UsageError
from gala.plan import RunPlan, plan
from gala.spec import parse
from gala_worker import checkpoint, evaluate, film, finalize, model_file
from gala_worker.environments import make_simulators
from gala_worker.evaluation import make_evaluation_policy
from gala_worker.flat import FlatState
from gala_worker.players import Player, open_plan
from gala_worker.state import Counters


@pytest.fixture(autouse=True)
def one_compute_thread() -> Iterator[None]:
    """Several would wait for each other at every layer of these small networks, on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_plan(environment: str = "CartPole-v1", **spec: Any) -> RunPlan:
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "test"},
        "spec": {"environment": {"id": environment}, "learners": 3, "evaluation": {"episodes": 2}, **spec},
    }
    return plan(parse(document), uid="uid-1")


def flat_state(made: RunPlan) -> FlatState:
    simulators = make_simulators(made.spec.environment, 1)
    policy = make_evaluation_policy(made.spec, simulators)
    simulators.close()
    return FlatState(policy, policy.gossiped_buffers())


class Run:
    """A run's folder whose learners' parameters the test chooses."""

    def __init__(self, directory: Path, made: RunPlan) -> None:
        self.directory = directory
        self.plan = made
        self.flat = flat_state(made)
        self.start = self.flat.vector.clone()
        (directory / "plan.json").write_text(made.to_json())

    def learner(self, rank: int) -> Path:
        return self.directory / f"learner-{rank}"

    def export(
        self,
        rank: int,
        offset: float = 0.0,
        *,
        global_steps: int = 1000,
        plan: RunPlan | None = None,
        weight: Any = 1.0,
        record: dict[str, Any] | None = None,
    ) -> Path:
        """`record`: what the file says instead."""
        self.flat.vector.copy_(self.start + offset)
        counters = Counters(steps=global_steps, wall_seconds=60.0 + rank, progress={0: global_steps})
        made = plan or self.plan
        path = model_file.export_model(self.learner(rank), self.flat, made, rank, counters, weight=weight)
        if record is not None:
            model = model_file.load_model(path)
            model_file.save_model(path, model.tensors, model.schema_hash, made.spec, {**model.record, **record})
        return path

    def save_checkpoint(self, rank: int, offset: float, global_steps: int, *, weight: Any = 1.0) -> None:
        saved = checkpoint.Checkpoint(
            tensors={checkpoint.VECTOR: self.start + offset},
            counters={"weight": weight},
            schema_hash=self.flat.schema.hash,
            global_steps=global_steps,
        )
        checkpoint.save(self.learner(rank) / "checkpoints", saved)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, make_plan())


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    return []


def finalized(run: Run, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return finalize.finalize(run.directory, progress=lines.append)


def final_vector(run: Run) -> torch.Tensor:
    tensors = model_file.load_model(run.directory / "final" / "model.safetensors").tensors
    return torch.cat([tensors[name].flatten() for name in run.flat.schema.names])


def test_with_push_sum_the_final_model_is_the_mean_that_gossip_has_kept(run: Run, lines: list[dict[str, Any]]) -> None:
    for rank, (offset, weight) in enumerate([(0.0, 0.5), (0.25, 0.5), (0.5, 2.0)]):
        run.export(rank, offset, weight=weight)
    finalized(run, lines)
    assert torch.allclose(final_vector(run), run.start + (0.25 * 0.5 + 0.5 * 2.0) / 3)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 1e30, float("nan"), "heavy", None, [1.0]])
def test_a_weight_that_cannot_be_counts_like_the_others(run: Run, lines: list[dict[str, Any]], weight: Any) -> None:
    run.export(0, 0.0, weight=weight)
    run.export(1, 0.5)
    finalized(run, lines)
    assert torch.allclose(final_vector(run), run.start + 0.25)


def test_the_final_model_is_the_learners_average(run: Run, lines: list[dict[str, Any]]) -> None:
    for rank, offset in enumerate([0.0, 0.25, 0.5]):
        run.export(rank, offset)
    card = finalized(run, lines)
    assert torch.allclose(final_vector(run), run.start + 0.25)
    assert card["averaged"] == [0, 1, 2]
    assert [line["event"] for line in lines] == [
        "averaging",
        "evaluating",
        "evaluated",
        "evaluating",
        "evaluated",
        "done",
    ]


def test_the_card_says_what_the_model_is_and_how_good(run: Run, lines: list[dict[str, Any]]) -> None:
    for rank in range(3):
        run.export(rank, global_steps=1000 + rank)
    finalized(run, lines)
    card = json.loads((run.directory / "final" / "card.json").read_text())
    assert (card["run"], card["uid"], card["seed"], card["learners"]) == ("test", "uid-1", 1, 3)
    assert card["spec"]["environment"]["id"] == "CartPole-v1"
    assert (card["globalSteps"], card["wallSeconds"]) == (1002, 62.0)
    assert card["schema"] == run.flat.schema.hash
    assert {"python", "torch", "gymnasium", "ale_py", "gala"} <= card["versions"].keys()
    for mode in ("greedy", "sampled"):
        assert card["evaluation"][mode]["mode"] == mode
        assert len(card["evaluation"][mode]["returns"]) == 2
    assert card["human"] is None


def test_observation_statistics_are_part_of_the_final_model(run: Run, lines: list[dict[str, Any]]) -> None:
    run.export(0)
    finalized(run, lines)
    names = model_file.load_model(run.directory / "final" / "model.safetensors").tensors.keys()
    assert any(name.startswith("normalisation.") for name in names)


def spoil_with_nan(run: Run) -> str:
    run.export(1, math.nan)
    return "not finite"


def spoil_with_another_network(run: Run) -> str:
    other = make_plan(policy={"hiddenSizes": [8]})
    foreign = flat_state(other)
    model_file.export_model(run.learner(1), foreign, other, 1, Counters(progress={0: 1000}))
    return "another network"


def spoil_by_truncation(run: Run) -> str:
    path = run.export(1, 9.0)
    path.write_bytes(path.read_bytes()[:-100])
    return "truncated"


def spoil_with_a_stranger(run: Run) -> str:
    path = run.export(1, 9.0)
    path.write_bytes(b"not a model at all")
    return "no model"


def spoil_with_tensors_of_eight_bits(run: Run) -> str:
    path = run.export(1, 9.0)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in run.flat.tensors().items()}
    path.write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    return "not finite numbers, in"


def spoil_by_absence(run: Run) -> str:
    return "left no final model"


def spoil_by_age(run: Run) -> str:
    run.export(1, 9.0, global_steps=500)
    return "ended at 500 of 1,000 steps"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_with_nan,
        spoil_with_another_network,
        spoil_by_truncation,
        spoil_with_a_stranger,
        spoil_with_tensors_of_eight_bits,
        spoil_by_absence,
        spoil_by_age,
    ],
)
def test_a_model_that_cannot_be_used_is_named_and_left_out(
    run: Run, lines: list[dict[str, Any]], spoil: Callable[[Run], str]
) -> None:
    run.export(0, 0.0)
    run.export(2, 0.5)
    reason = spoil(run)
    card = finalized(run, lines)
    assert card["averaged"] == [0, 2]
    assert torch.allclose(final_vector(run), run.start + 0.25)
    (said,) = [line for line in lines if line["event"] in ("refused", "missing")]
    assert said["rank"] == 1
    assert reason in said["reason"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("globalSteps", None),
        ("globalSteps", "x"),
        pytest.param("globalSteps", 10**400, id="no bound"),
        ("wallSeconds", None),
        ("wallSeconds", -1),
    ],
)
def test_a_learner_whose_record_cannot_be_true_is_named_and_left_out(
    run: Run, lines: list[dict[str, Any]], key: str, value: Any
) -> None:
    run.export(0, 0.0)
    run.export(1, 9.0, record={key: value})
    run.export(2, 0.5)
    card = finalized(run, lines)
    assert (card["averaged"], card["globalSteps"], card["wallSeconds"]) == ([0, 2], 1000, 62.0)
    (said,) = [line for line in lines if line["event"] == "refused"]
    assert said["rank"] == 1
    assert f"says {key}: {str(value)[:20]}".replace("x", "'x'") in said["reason"]


def test_a_run_without_any_model_is_an_error(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert finalize.main([str(run.directory)]) == 1
    assert "no learner" in capsys.readouterr().err
    assert not (run.directory / "final").exists()


def test_the_command_prints_json_lines(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.export(0)
    assert finalize.main([str(run.directory)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == {"event": "missing", "rank": 1, "reason": "it has left no final model"}
    assert printed[-1]["event"] == "done"


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"no plan\.json"):
        open_plan(tmp_path)
    assert finalize.main([str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe{}", "it is no text"),
        (b"[" * 100_000, "cannot be read (RecursionError"),
        (b'{"format": 1, "learners": []}', "has no learners"),
    ],
)
@pytest.mark.parametrize("command", [finalize.main, evaluate.main])
def test_a_damaged_plan_is_told(
    run: Run, capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], int], content: bytes, told: str
) -> None:
    (run.directory / "plan.json").write_bytes(content)
    assert command([str(run.directory)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "plan.json" in line
    assert told in line


def test_averages_are_exact_where_float32_sums_are_not() -> None:
    values = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    mean = model_file.average([{"x": value, "count": torch.tensor(3)} for value in values])
    assert mean["x"].item() == pytest.approx(1 / 3)
    assert mean["x"].dtype == torch.float32
    assert mean["count"].item() == 3


def test_an_average_counts_each_model_by_its_weight() -> None:
    mean = model_file.average([{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([5.0, 6.0])}], [0.75, 0.25])
    assert mean["x"].tolist() == [2.0, 3.0]


def test_models_of_different_shapes_are_not_averaged() -> None:
    with pytest.raises(CheckpointError, match="different shapes"):
        model_file.average([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}])


def test_a_finished_run_is_evaluated_as_its_card_says(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.export(0)
    card = finalized(run, [])
    arguments = [str(run.directory), "--episodes", "2", "--sampled", "--json"]
    assert evaluate.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["source"] == "final model"
    assert printed["returns"] == card["evaluation"]["sampled"]["returns"]


def test_the_documented_program_plays_with_a_run(
    run: Run, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.export(0)
    finalized(run, lines)
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
    card = finalized(run, [])
    assert evaluate.main([str(run.directory), "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{card['evaluation']['greedy']['meanReturn']:.1f} ±" in text
    assert "greedy" in text


def test_an_unfinished_run_is_evaluated_by_the_average_of_its_newest_checkpoints(run: Run) -> None:
    run.save_checkpoint(0, 5.0, 80)
    run.save_checkpoint(0, 0.5, 160)
    run.save_checkpoint(2, 1.0, 240)
    with Player(run.plan.spec, 1) as player:
        source = evaluate.load_newest(player, run.directory, run.plan)
        assert torch.allclose(player._flat.vector, run.start + 0.75)
    assert source == "average of 2 of 3 learners' checkpoints at 240 steps"


def test_who_has_the_steps_of_the_run_counts_however_far_others_have_gone_on(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    run = Run(tmp_path, make_plan(totalSteps=1000))
    run.export(0, 0.5, global_steps=1000)
    run.export(1, 1.0, global_steps=1100)
    run.export(2, 9.0, global_steps=900)
    assert finalized(run, lines)["averaged"] == [0, 1]
    assert {"event": "refused", "rank": 2, "reason": "it ended at 900 of 1,000 steps"} in lines


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


def test_an_unknown_run_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["no-such-run"]) == 2
    assert "there is no run no-such-run" in capsys.readouterr().err


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
        return film.Film(path=path, num_frames=30, seconds=2.0, result=None)

    monkeypatch.setattr(film, "film", pretend)
    video = run.directory / "play.gif"
    assert (
        evaluate.main([str(run.directory), "--episodes", "1", "--sampled", "--seed", "9", "--video", str(video)]) == 0
    )
    assert filmed == {"mode": "sampled", "seed": 9, "spec": run.plan.spec, "weight": 0.5}
    assert "longer than the film" in capsys.readouterr().out
