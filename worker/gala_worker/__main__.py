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
from typing import TYPE_CHECKING, NoReturn

from gala.errors import GalaError
from gala_worker import open_files
from gala_worker.imports import without_garbage_collection

if TYPE_CHECKING:
    from gala_worker.worker import Worker


def main() -> int:
    """Runs a worker to its end and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopped_by: list[int] = []
    workers: list[Worker] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not workers:
            # Importing torch takes seconds, and there is nothing to clean up yet. Not by an exception, which may be
            # swallowed where it is raised amid an import.
            os._exit(128 + number)
        stopped_by.append(number)
        workers[0].stop()

    # Before all imports that take time: the first process of a container ignores what it has no handler for.
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    open_files.raise_limit()
    try:
        from gala_worker.config import WorkerConfig

        config = WorkerConfig.from_environment(os.environ)
        with without_garbage_collection():
            from gala_worker import worker  # after the configuration: a mistake in it is said at once

        workers.append(worker.Worker(config))
        if workers[0].run():
            return 0
        return 128 + stopped_by[0] if stopped_by else 1
    except GalaError as error:
        print(error, file=sys.stderr)  # noqa: T201 launcher and kubelet show the last line of stderr
        return error.exit_code
    except SystemExit:  # of an environment's code, or a library's: not the end of the run that its code may say it is
        logging.exception("the learner was ended by sys.exit()")
        return 1


def leave(code: int) -> NoReturn:
    """Ends the process at once: all is saved, closed and, after this, written out.

    Python would first take down what threads may still be using: one that waits for gloo to end is killed inside a
    destructor, and the finished process aborts (SIGABRT).
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
