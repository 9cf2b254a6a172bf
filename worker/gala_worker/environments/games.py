"""Names of Atari games: from the id in a GalaRun to the ROM that ale-py calls it by.

Only `ALE/<Game>-v5` is supported. ale-py also registers `PongNoFrameskip-v4` and the like, whose rules (frame skip,
sticky actions) are part of the name; here the preset decides them, so that two runs of one game always compare.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

from ale_py import roms

from gala.errors import SimulatorError

_SUPPORTED: Final = re.compile(r"(?:ale_py:)?ALE/(?P<game>\w+)-v5")
# Versions 0, 4 and 5 only: Gymnasium has a Blackjack-v1 of its own, which is no Atari game.
_LEGACY: Final = re.compile(
    r"(?:ale_py:)?(?:ALE/)?(?P<game>[A-Za-z0-9]+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v[045]"
)
_MULTIPLAYER_ONLY: Final = frozenset({"combat", "joust", "maze_craze", "warlords"})


def is_atari(environment_id: str) -> bool:
    """Whether the id belongs to ale-py, be it one that is supported or one that `rom` explains away."""
    return _namespace(environment_id) == "ALE" or _legacy_game(environment_id) is not None


def rom(environment_id: str) -> str:
    """The ROM's name, `space_invaders` for `ALE/SpaceInvaders-v5`.

    Raises:
        SimulatorError: no such game, with close matches; or an id of ale-py's other families, with the id to use.
    """
    games = _games()
    match = _SUPPORTED.fullmatch(environment_id)
    if match is not None and match["game"] in games:
        return games[match["game"]]
    if (game := _legacy_game(environment_id)) is not None:
        raise SimulatorError(
            f"spec.environment.id: {environment_id} is not supported: such ids fix frame skip and sticky actions, "
            f"which the preset decides here; use `id: ALE/{game}-v5` with `preset: paper` (as NoFrameskip-v4 ids are "
            f"used in the literature: no sticky actions, up to 30 no-ops, an episode ends with a life) or `preset: "
            f"modern` (sticky actions, whole games, all 18 actions)"
        )
    wanted = re.sub(r"(-v\d+)?$", "", environment_id.rpartition("/")[2]).replace("_", "").lower()
    by_lower = {game.lower(): game for game in games}
    close = [wanted] if wanted in by_lower else difflib.get_close_matches(wanted, by_lower, n=3)
    if close:
        remedy = f"did you mean {' or '.join(f'ALE/{by_lower[name]}-v5' for name in close)}?"
    else:
        remedy = f"use ALE/<Game>-v5, where <Game> is one of {', '.join(sorted(games))}"
    raise SimulatorError(f"spec.environment.id: there is no Atari game {environment_id}; {remedy}")


def _legacy_game(environment_id: str) -> str | None:
    """The game of an id such as PongNoFrameskip-v4, Pong-v0 or ALE/Pong-ram-v5; None for any other id."""
    match = _LEGACY.fullmatch(environment_id)
    return match["game"] if match is not None and match["game"] in _games() else None


def _namespace(environment_id: str) -> str:
    return environment_id.removeprefix("ale_py:").partition("/")[0]


def _games() -> dict[str, str]:
    """ROM names by the names that ids use: `SpaceInvaders` -> `space_invaders`."""
    return {rom.title().replace("_", ""): rom for rom in roms.get_all_rom_ids() if rom not in _MULTIPLAYER_ONLY}
