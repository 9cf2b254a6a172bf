"""From the id in a GalaRun to the game, and what is said of ids that are none."""

from __future__ import annotations

import pytest

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments import make_simulators


@pytest.mark.parametrize(
    ("environment_id", "told"),
    [
        ("ALE/Pnog-v5", "did you mean ALE/Pong-v5"),
        ("ALE/space_invaders-v5", "did you mean ALE/SpaceInvaders-v5"),
        ("ALE/Pong", "did you mean ALE/Pong-v5"),
        ("ALE/Combat-v5", "there is no Atari game ALE/Combat-v5"),
        ("ALE/Xyzzyx-v5", "one of Adventure, "),
        ("PongNoFrameskip-v4", "use `id: ALE/Pong-v5` with `preset: paper`"),
        ("Breakout-v0", "use `id: ALE/Breakout-v5` with `preset: paper`"),
        ("ALE/Pong-ram-v5", "use `id: ALE/Pong-v5`"),
        ("QbertDeterministic-v4", "use `id: ALE/Qbert-v5`"),
    ],
)
def test_an_unknown_game_is_refused_with_the_id_to_use(environment_id: str, told: str) -> None:
    with pytest.raises(SimulatorError) as caught:
        make_simulators(Environment.model_validate({"id": environment_id}), 1)
    assert str(caught.value).startswith("spec.environment.id: ")
    assert environment_id in str(caught.value)
    assert told in str(caught.value)
