"""What outlives a process, and what a joiner takes over from a neighbour."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gala.errors import CheckpointError
from gala_worker import checkpoint
from gala_worker.algorithms.rmsprop import SQUARE_AVERAGE
from gala_worker.flat import FlatState
from gala_worker.state import ACTION_GENERATOR, Counters, capture, restore, restore_furthest


def learner(value: float) -> tuple[FlatState, dict[str, torch.Tensor]]:
    flat = FlatState(nn.Linear(3, 2))
    flat.vector.fill_(value)
    return flat, {SQUARE_AVERAGE: torch.full_like(flat.trainable, value + 0.5)}


COUNTERS = Counters(
    updates=7, steps=560, skipped_updates=2, episodes=3, wall_seconds=12.5, epoch=2, progress={0: 560, 1: 640}
)


def test_a_resumed_learner_has_everything_it_had() -> None:
    flat, average = learner(1.0)
    generator = torch.Generator().manual_seed(4)
    stored = checkpoint.loads(checkpoint.dumps(capture(flat, average, COUNTERS, generator)), flat.schema.hash)
    other, other_average = learner(9.0)
    counters = restore(stored, 0, other, other_average)
    assert counters == COUNTERS
    assert torch.equal(other.vector, flat.vector)
    assert torch.equal(other_average[SQUARE_AVERAGE], average[SQUARE_AVERAGE])
    assert torch.equal(stored.tensors[ACTION_GENERATOR], generator.get_state())


def test_a_capture_does_not_change_with_the_learner() -> None:
    flat, average = learner(1.0)
    stored = capture(flat, average, COUNTERS)
    flat.vector.fill_(3.0)
    average[SQUARE_AVERAGE].fill_(3.0)
    other, other_average = learner(9.0)
    restore(stored, 0, other, other_average)
    assert torch.equal(other.vector, torch.ones_like(other.vector))


def test_a_joiner_takes_parameters_and_progress_but_counts_its_own_steps() -> None:
    flat, average = learner(1.0)
    stored = capture(flat, average, COUNTERS)
    counters = restore(stored, 1, *learner(9.0))
    assert counters.steps == 640  # what the ring knows of rank 1, not the 560 of the neighbour
    assert (counters.episodes, counters.skipped_updates) == (0, 0)
    assert counters.global_steps == 1200
    assert restore(stored, 5, *learner(9.0)).steps == 0


def test_progress_is_the_most_that_either_state_has_heard() -> None:
    theirs = capture(*learner(1.0), COUNTERS)
    own = capture(*learner(2.0), Counters(steps=700, progress={1: 700, 2: 50}))
    counters = restore(theirs, 1, *learner(9.0), also=[own])
    assert counters.progress == {0: 560, 1: 700, 2: 50}
    assert counters.steps == 700


@pytest.mark.parametrize(
    "breakage",
    [
        pytest.param(lambda s: s.tensors.pop("vector"), id="no vector"),
        pytest.param(lambda s: s.tensors.update(vector=torch.zeros(3)), id="short vector"),
        pytest.param(lambda s: s.tensors.update({"optimizer.square_average": torch.zeros(8).double()}), id="type"),
        pytest.param(lambda s: s.counters.pop("updates"), id="no updates"),
        pytest.param(lambda s: s.counters.update(steps=-1), id="negative steps"),
        pytest.param(lambda s: s.counters.update(progress=[1, 2]), id="progress is a list"),
        pytest.param(lambda s: s.counters.update(progress={"a": 1}), id="rank is a word"),
        pytest.param(lambda s: s.counters.update(wallSeconds="long"), id="time is a word"),
        pytest.param(lambda s: s.counters.update(wallSeconds=float("nan")), id="time is not a number"),
        pytest.param(lambda s: s.counters.update(updates=float("inf")), id="endless updates"),
        pytest.param(lambda s: s.counters.update(updates=2**62), id="more updates than a message can say"),
        pytest.param(lambda s: s.counters.update(progress={0: 2**70}), id="more steps than a message can say"),
        pytest.param(lambda s: s.counters.update(progress={1024: 1}), id="a rank that no run has"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(breakage) -> None:  # type: ignore[no-untyped-def]
    stored = dataclasses.replace(capture(*learner(1.0), COUNTERS))
    breakage(stored)
    flat, average = learner(9.0)
    with pytest.raises(CheckpointError):
        restore(stored, 0, flat, average)
    assert torch.equal(flat.vector, torch.full_like(flat.vector, 9.0))
    assert torch.equal(average[SQUARE_AVERAGE], torch.full_like(average[SQUARE_AVERAGE], 9.5))


def state(value: float, progress: dict[int, int]) -> checkpoint.Checkpoint:
    return capture(*learner(value), Counters(steps=progress.get(0, 0), progress=progress))


def test_of_several_states_the_furthest_is_the_start_and_the_others_progress_counts() -> None:
    behind, ahead = state(1.0, {0: 500, 1: 10}), state(2.0, {0: 400, 1: 900})
    for candidates in ([behind, ahead], [ahead, None, behind]):
        flat, average = learner(9.0)
        found = restore_furthest(candidates, 0, flat, average)
        assert found is not None
        assert found[0] is ahead
        assert found[1].progress == {0: 500, 1: 900}
        assert torch.equal(flat.vector, torch.full_like(flat.vector, 2.0))


@pytest.mark.parametrize(
    "breakage",
    [
        pytest.param(lambda s: s.counters.pop("updates"), id="counters"),
        pytest.param(lambda s: s.tensors.pop("vector"), id="tensors"),
    ],
)
def test_a_neighbour_s_broken_state_does_not_cost_a_learner_its_own(
    breakage: Callable[[checkpoint.Checkpoint], object], caplog: pytest.LogCaptureFixture
) -> None:
    own, theirs = state(1.0, {0: 500}), state(2.0, {0: 400, 1: 900})
    breakage(theirs)
    flat, average = learner(9.0)
    found = restore_furthest([own, theirs], 0, flat, average)
    assert found is not None
    assert found[0] is own
    assert found[1].progress == {0: 500}
    assert torch.equal(flat.vector, torch.ones_like(flat.vector))
    assert len(caplog.records) == 1


def test_without_a_state_that_can_be_used_nothing_is_changed() -> None:
    broken = state(2.0, {0: 400})
    broken.counters.pop("progress")
    flat, average = learner(9.0)
    assert restore_furthest([None, broken], 0, flat, average) is None
    assert restore_furthest([None, None], 0, flat, average) is None
    assert torch.equal(flat.vector, torch.full_like(flat.vector, 9.0))
