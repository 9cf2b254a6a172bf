"""The end of a run: which models are averaged, and what is written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ended_run import Run, flat_state, make_plan
from gala.errors import CheckpointError, UsageError
from gala_worker import evaluate, finalize, model_file
from gala_worker.players import open_plan
from gala_worker.state import Counters

pytestmark = pytest.mark.usefixtures("one_compute_thread")


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


def test_models_in_a_folder_whose_name_is_not_utf_8_are_read(run: Run, lines: list[dict[str, Any]]) -> None:
    run.export(0, 0.0)
    moved = run.directory.rename(run.directory.with_name(os.fsdecode(b"q\xff")))
    assert finalize.finalize(moved, progress=lines.append)["averaged"] == [0]
    assert model_file.load_model(moved / "final" / "model.safetensors").record["globalSteps"] == 1000


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


def spoil_with_other_tensors(run: Run, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """Under the schema that the others have."""
    path = run.export(1, 9.0)
    model = model_file.load_model(path)
    change(model.tensors)
    model_file.save_model(path, model.tensors, model.schema_hash, run.plan.spec, model.record)
    return "holds other tensors than its schema"


def spoil_with_another_shape(run: Run) -> str:
    return spoil_with_other_tensors(run, lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3)}))


def spoil_with_a_tensor_missing(run: Run) -> str:
    return spoil_with_other_tensors(run, lambda tensors: tensors.popitem())


def spoil_with_a_tensor_too_many(run: Run) -> str:
    return spoil_with_other_tensors(run, lambda tensors: tensors.update(more=torch.zeros(2)))


def spoil_with_whole_numbers(run: Run) -> str:
    name = next(iter(run.flat.tensors()))
    return spoil_with_other_tensors(run, lambda tensors: tensors.update({name: tensors[name].int()}))


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
        spoil_with_another_shape,
        spoil_with_a_tensor_missing,
        spoil_with_a_tensor_too_many,
        spoil_with_whole_numbers,
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


def test_who_has_the_steps_of_the_run_counts_however_far_others_have_gone_on(
    tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    run = Run(tmp_path, make_plan(totalSteps=1000))
    run.export(0, 0.5, global_steps=1000)
    run.export(1, 1.0, global_steps=1100)
    run.export(2, 9.0, global_steps=900)
    assert finalized(run, lines)["averaged"] == [0, 1]
    assert {"event": "refused", "rank": 2, "reason": "it ended at 900 of 1,000 steps"} in lines
