"""A run's galarun.yaml while its launcher is at work: users edit it, and `gala run` hands changes over through it.

Place in the flow: `launcher` asks for news between two looks at its workers.
"""

from __future__ import annotations

from collections.abc import Callable

from gala import names
from gala.errors import SpecError
from gala.local.changes import changed_fields, describe, not_live
from gala.local.rundir import RunDirectory
from gala.spec import GalaRun


class LiveDocument:
    """Reads the file again only when it is another one, or was written to."""

    def __init__(self, directory: RunDirectory, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._seen = (0, 0, 0)

    def write(self, run: GalaRun) -> None:
        """Puts the document there that the launcher begins with. Raises: OSError."""
        self._directory.write_run(run)
        self._seen = self._signature()

    def news(self, known: GalaRun) -> GalaRun | None:
        """The run as the file has it now, if that is another one than `known` and workers can follow the changes.

        Tells the user what has changed, or why it is not followed. Raises: OSError.
        """
        signature = self._signature()
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            run = self._directory.run()
        except SpecError as error:
            self._say(f"{names.SPEC_FILE} is not followed: {error}")
            return None
        changes = changed_fields(known, run)
        if rigid := not_live(changes):
            self._say(f"{names.SPEC_FILE} is not followed, a live run cannot change {describe(rigid)}")
            return None
        if not changes:
            return None
        self._say(describe(changes))
        return run

    def _signature(self) -> tuple[int, int, int]:
        try:
            status = self._directory.spec_file.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_size)
