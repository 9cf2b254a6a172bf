"""A policy at play, as a GIF or an MP4."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from gala.errors import UsageError, to_install
from gala.spec import RunSpec
from gala_worker.environments.filming import Frame, make_filmed_simulator
from gala_worker.evaluation import EvaluationResult, Interrupted, Mode, evaluate
from gala_worker.model import ActorCritic

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = (".gif", ".mp4")
MAX_SECONDS: Final = 180.0
"""A longer game is filmed up to here: a GIF is held in memory until it is written."""
MIN_HEIGHT: Final = 400
"""Pixels; smaller pictures are enlarged by a whole number, so that their pixels stay sharp."""
SUBTITLE_HEIGHT: Final = 24
"""Even, as MP4 wants all sizes to be."""
PALETTE_COLOURS: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """What was filmed."""

    path: Path
    seconds: float
    result: EvaluationResult | None
    """The game's score; None if it was longer than the film."""


def check(path: Path) -> None:
    """Whether a film can be written to `path`: cheap, to be asked before anything is played.

    Raises:
        UsageError: the ending is unknown, there is no such folder or no right to write there, or the [report] extra is
            not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--video {path}: must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--video {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--video {path}: is a folder; name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--video {path}: there is no right to write there")
    try:
        import PIL

        if path.suffix.lower() == ".mp4":
            import imageio_ffmpeg

            imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"--video needs the report extra; {to_install('report')} ({error})") from error
    del PIL


def film(policy: ActorCritic, spec: RunSpec, path: Path, *, mode: Mode, seed: int) -> Film:
    """Plays one game with `policy` and writes its pictures, with the score below them, to `path`.

    Raises:
        UsageError: see `check`; or the disk does not take it.
        SimulatorError: the environment shows no pictures.
    """
    check(path)
    try:
        return _shoot(policy, spec, path, mode=mode, seed=seed)
    except OSError as error:
        reason = (error.strerror or str(error)).splitlines()[0]
        raise UsageError(f"--video {path}: cannot be written: {reason}") from error


def _shoot(policy: ActorCritic, spec: RunSpec, path: Path, *, mode: Mode, seed: int) -> Film:
    environment_id = spec.environment.id
    simulators, camera = make_filmed_simulator(spec.environment)
    stop = threading.Event()
    num_frames = 0
    with ExitStack() as resources:
        resources.enter_context(closing(simulators))
        rate = camera.frames_per_second
        make_tape = Gif if path.suffix.lower() == ".gif" else Mp4
        tape = resources.enter_context(closing(make_tape(path, rate)))

        def watch(score: float, steps: int) -> None:
            nonlocal num_frames
            num_frames += 1
            tape.add(subtitled(camera.frame(), f"{environment_id}   score {score:g}   step {steps}"))
            if num_frames >= MAX_SECONDS * rate:
                stop.set()

        try:
            result = evaluate(
                policy,
                simulators,
                environment_id=environment_id,
                episodes=1,
                mode=mode,
                seed=seed,
                stop=stop,
                watch=watch,
            )
        except Interrupted:
            result = None
    return Film(path=path, seconds=num_frames / rate, result=result)


def subtitled(frame: Frame, text: str) -> Image:
    """The picture, enlarged if it is small, with a line of text below; its width and height are even."""
    from PIL import Image, ImageDraw

    scale = max(1, round(MIN_HEIGHT / frame.shape[0]))
    large = np.repeat(np.repeat(frame, scale, 0), scale, 1)
    height, width = large.shape[:2]
    picture = Image.new("RGB", (width + width % 2, height + height % 2 + SUBTITLE_HEIGHT))
    picture.paste(Image.fromarray(large), (0, 0))
    ImageDraw.Draw(picture).text((8, height + 5), text, fill=(220, 220, 220))
    return picture


class Gif:
    """Takes pictures of one size; the file is there once it is closed.

    Pillow writes a GIF in one go, so the pictures are kept until then, with one byte a pixel.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path = path
        # GIFs count hundredths of a second, and players slow down what claims to be faster than two of them.
        self._milliseconds = 10 * max(2, round(100 / frames_per_second))
        self._pictures: list[Image] = []

    def add(self, picture: Image) -> None:
        from PIL.Image import Dither, Quantize

        self._pictures.append(picture.quantize(PALETTE_COLOURS, Quantize.FASTOCTREE, dither=Dither.NONE))

    def close(self) -> None:
        if self._pictures:
            first, *rest = self._pictures
            first.save(self._path, save_all=True, append_images=rest, duration=self._milliseconds, loop=0)


class Mp4:
    """Takes pictures of one size; the file is complete once it is closed.

    H.264 by the ffmpeg that imageio-ffmpeg carries, so that every browser plays it.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path = path
        self._frames_per_second = frames_per_second
        self._writer: Generator[None, bytes | None] | None = None

    def add(self, picture: Image) -> None:
        import imageio_ffmpeg

        if self._writer is None:
            self._writer = imageio_ffmpeg.write_frames(
                str(self._path), picture.size, fps=self._frames_per_second, macro_block_size=2, ffmpeg_log_level="error"
            )
            self._writer.send(None)
        self._writer.send(np.asarray(picture).tobytes())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
