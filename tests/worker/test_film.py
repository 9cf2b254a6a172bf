"""Films of a policy at play."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from gala.errors import SimulatorError, UsageError
from gala.spec import RunSpec, parse
from gala_worker import film
from gala_worker.environments.filming import make_filmed_simulator
from gala_worker.players import Player

pytestmark = pytest.mark.usefixtures("one_compute_thread")


def make_spec(environment: str, **options: Any) -> RunSpec:
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "test"},
        "spec": {"environment": {"id": environment, **options}},
    }
    return parse(document).spec


class Corridor(gymnasium.Env[np.ndarray, int]):
    """Ten steps, each shown as a brighter grey."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's way

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.position = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.position = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position += 1
        return np.full(1, self.position, np.float32), 1.0, self.position == 10, False, {}

    def render(self) -> np.ndarray:
        return np.full((31, 41, 3), 20 * self.position, np.uint8)


class Blind(Corridor):
    """Shows nothing."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's way

    def render(self) -> Any:
        return None


@pytest.fixture(scope="module", autouse=True)
def registered_environments() -> Iterator[None]:
    gymnasium.register("GalaTestCorridor-v0", Corridor)
    gymnasium.register("GalaTestBlind-v0", Blind)
    yield
    del gymnasium.registry["GalaTestCorridor-v0"], gymnasium.registry["GalaTestBlind-v0"]


def filmed(spec: RunSpec, path: Path) -> film.Film:
    with Player(spec, 1) as player:
        return film.film(player.policy, spec, path, mode="greedy", seed=1)


def test_a_gif_has_a_picture_of_every_step_with_the_score_below(tmp_path: Path) -> None:
    made = filmed(make_spec("GalaTestCorridor-v0"), tmp_path / "play.gif")
    assert made.result is not None
    assert made.result.returns == (10.0,)
    assert made.seconds == 1.1
    with Image.open(tmp_path / "play.gif") as gif:
        assert gif.n_frames == 11
        assert gif.info["duration"] == 100
        greys = []
        for number in range(11):
            gif.seek(number)
            picture = gif.convert("RGB")
            greys.append(picture.getpixel((50, 50))[0])
            subtitle = picture.crop((0, picture.height - film.SUBTITLE_HEIGHT, picture.width, picture.height))
            assert max(high for _, high in subtitle.getextrema()) > 150
    assert picture.width % 2 == 0
    assert picture.height % 2 == 0
    assert greys == sorted(greys)
    assert greys[-1] - greys[0] > 150


def test_an_mp4_plays(tmp_path: Path) -> None:
    filmed(make_spec("GalaTestCorridor-v0"), tmp_path / "play.mp4")
    num_frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "play.mp4"))
    assert num_frames == 11
    assert seconds == pytest.approx(1.1)


def test_a_long_game_is_filmed_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "MAX_SECONDS", 0.5)
    made = filmed(make_spec("GalaTestCorridor-v0"), tmp_path / "play.gif")
    assert made.seconds == 0.5
    assert made.result is None
    with Image.open(made.path) as gif:
        assert gif.n_frames == 5


def test_atari_is_filmed_in_colour_and_the_camera_sees_the_policys_game() -> None:
    """Sticky actions on: two emulators that did not share their randomness would soon show different games."""
    made = make_spec("ALE/Pong-v5", preset="modern")
    simulators, camera = make_filmed_simulator(made.environment)
    actions = np.random.default_rng(0)
    simulators.reset(5)
    for _ in range(150):
        seen = simulators.step(actions.integers(0, 18, 1)).observations[0, -1]
        picture = camera.frame()
        # What the policy sees is this picture in grey, shrunk to 84 x 84; another game differs by up to 149.
        grey = Image.fromarray(picture).convert("L").resize((84, 84), Image.Resampling.BOX)
        assert np.abs(np.asarray(grey, int) - seen.astype(int)).max() < 80
    simulators.close()
    assert picture.shape == (210, 160, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
    assert camera.frames_per_second == 15.0


def test_an_environment_that_shows_nothing_cannot_be_filmed() -> None:
    with pytest.raises(SimulatorError, match=r"GalaTestBlind-v0 cannot be filmed.*rgb_array"):
        make_filmed_simulator(make_spec("GalaTestBlind-v0").environment)


@pytest.mark.parametrize(
    ("name", "message"),
    [("play.avi", "must end in"), ("missing/play.gif", "there is no folder"), ("folder.gif", "is a folder")],
)
def test_a_film_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UsageError, match=message):
        film.check(tmp_path / name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg's broken pipe
@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_film_that_the_disk_does_not_take_is_the_users_to_put_elsewhere(ending: str) -> None:
    with pytest.raises(UsageError, match=rf"--video /proc/play\.{ending}: cannot be written: "):
        filmed(make_spec("GalaTestCorridor-v0"), Path(f"/proc/play.{ending}"))


def test_without_the_report_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[report\]'"):
        film.check(tmp_path / "play.gif")
