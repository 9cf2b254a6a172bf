"""`python -m gala_worker`: one actor-learner, as a launcher starts it.

Place in the flow: environment -> WorkerConfig -> Worker.run(). Signals and logging are set up here and nowhere else.

Exit codes: 0 finished, or no longer in the plan; 2 the user's mistake, said on the last line of stderr; 128 + signal
after a clean stop; anything else is a crash, and the launcher starts this rank again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

from gala.errors import GalaError
from gala_worker.config import WorkerConfig


def main() -> int:
    """Runs a worker to its end and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = WorkerConfig.from_environment(os.environ)
        from gala_worker.worker import Worker  # after the configuration: importing torch takes seconds

        worker = Worker(config)
        stopped_by: list[int] = []

        def on_signal(number: int, frame: FrameType | None) -> None:
            stopped_by.append(number)
            worker.stop()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        if worker.run():
            return 0
        return 128 + stopped_by[0] if stopped_by else 1
    except GalaError as error:
        print(error, file=sys.stderr)  # noqa: T201 the launcher shows the last line of stderr
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
