"""`python -m gala_worker.results`: fetches the learners' final models, averages and scores them, serves the result.

Exit codes: 0 told to end after the result was there; 1 no result, worth another attempt; 2 the user's mistake; 128 +
signal when told to end before. What went wrong is the last line of stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from gala import names
from gala.errors import GalaError
from gala_worker.imports import without_garbage_collection

LISTEN: Final = f"all:{names.PORT_HTTP}"
"""A name, which stands for all interfaces."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns an exit code if it fails; otherwise it serves until a signal ends the process."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    has_result: list[bool] = []

    def on_signal(number: int, frame: FrameType | None) -> NoReturn:
        # At once: every file is written whole or not at all, so there is nothing to clean up.
        os._exit(0 if any(has_result) else 128 + number)

    # Before all imports that take time: the first process of a container ignores what it has no handler for.
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        from gala_worker.config import ResultsConfig

        config = ResultsConfig.from_environment(os.environ)
        with without_garbage_collection():
            from gala_worker.results import gathering  # after the configuration: a mistake in it is said at once
            from gala_worker.results.collecting import Patience

        patience = Patience(learner_seconds=options.patience, nobody_seconds=10 * options.patience)
        has_result.append(gathering.gather(config, options.listen, patience))
        while True:
            signal.pause()
    except GalaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gala_worker.results",
        description="Fetch the learners' final models, average and score them, and serve the result until SIGTERM.",
    )
    parser.add_argument("--listen", default=LISTEN, metavar="HOST:PORT", help="default: port 7071 of all interfaces")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for a learner that does not answer; ten times as long if none does (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
