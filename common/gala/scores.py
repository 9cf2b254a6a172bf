"""Yardsticks for raw scores: what a random and a human player reach in the six games of the GALA paper.

Workers normalise their evaluations by them, and the report its aggregates. The figures are those of DQN Zoo
(google-deepmind/dqn_zoo, dqn_zoo/atari_data.py), which the field normalises by.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Yardstick(NamedTuple):
    """Mean raw scores of one game."""

    random: float
    human: float


YARDSTICKS: Final = {
    "BeamRider": Yardstick(363.9, 16926.5),
    "Breakout": Yardstick(1.7, 30.5),
    "Pong": Yardstick(-20.7, 14.6),
    "Qbert": Yardstick(163.9, 13455.0),
    "Seaquest": Yardstick(68.4, 42054.7),
    "SpaceInvaders": Yardstick(148.0, 1668.7),
}
_GAME: Final = re.compile(r"(?:ale_py:)?(?:ALE/)?(?P<game>[A-Za-z]+?)(?:NoFrameskip|Deterministic)?-v\d+")


def game(environment_id: str) -> str | None:
    """The game of `ALE/Pong-v5` or `PongNoFrameskip-v4`, if it is one of the six."""
    match = _GAME.fullmatch(environment_id)
    return match["game"] if match and match["game"] in YARDSTICKS else None


def human_normalised(environment_id: str, score: float) -> float | None:
    """0 is a random player, 1 the human one; None for environments without a yardstick."""
    known = game(environment_id)
    if known is None:
        return None
    yardstick = YARDSTICKS[known]
    return (score - yardstick.random) / (yardstick.human - yardstick.random)
