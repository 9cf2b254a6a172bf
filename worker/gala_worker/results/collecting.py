"""Fetching the finished learners' files over HTTP into one run directory.

Place in the flow: `results` runs `collect` on its asyncio thread and then averages what is there. What comes from a
learner is bounded in size and checked against its checksum; a file that is already there, from an attempt that was
interrupted, is not fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from gala import names
from gala.errors import RunError
from gala.plan import LearnerPlan, RunPlan
from gala_worker.downloads import SERVED, checksum

log = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 4 << 30
MAX_LISTING_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 20
TRANSFER_SECONDS: Final = 900.0
"""The longest that one file may take."""
MAX_TRANSFERS: Final = 8
"""Learners that are fetched from at the same time."""
MODEL: Final = f"{names.FINAL_DIRECTORY}/{names.MODEL_FILE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long to wait for learners that do not answer, or have not finished."""

    learner_seconds: float = 60.0
    """One whose files could not be had after so long is left out; a transfer under way is not cut off."""
    nobody_seconds: float = 600.0
    """If not one model could be had after so long, the attempt has failed."""
    first_retry_seconds: float = 0.5
    longest_retry_seconds: float = 8.0


class _Refused(Exception):
    """A learner has not finished yet, or what it sends is not what it announced."""


async def collect(
    plan: RunPlan, run_dir: Path, *, patience: Patience | None = None, progress: Callable[[str], None] = log.info
) -> dict[int, str]:
    """Fetches every learner's files into its folder of `run_dir`.

    Returns: the learners that were left out, with the reason, by rank.

    Raises:
        RunError: not one model could be had.
        OSError: the disk does not take the files.
    """
    patience = patience or Patience()
    deadline = time.monotonic() + patience.nobody_seconds
    # Names are looked up anew each time: a pod that was replaced has another address.
    connector = aiohttp.TCPConnector(use_dns_cache=False, limit=MAX_TRANSFERS)
    timeout = aiohttp.ClientTimeout(total=TRANSFER_SECONDS, connect=10.0, sock_connect=5.0, sock_read=20.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
        collection = _Collection(session, run_dir, patience, progress, plan)
        while True:
            await asyncio.gather(*(collection.learner(learner) for learner in plan.learners))
            missing = {rank: reason for rank, reason in collection.left_out.items() if rank in plan.keepers}
            if len(missing) < len(plan.keepers):
                return collection.left_out
            rank, reason = min(missing.items())
            if time.monotonic() >= deadline:
                raise RunError(f"no learner gives its final model; rank {rank}: {reason}")


class _Collection:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        run_dir: Path,
        patience: Patience,
        progress: Callable[[str], None],
        plan: RunPlan,
    ) -> None:
        self._session = session
        self._run_dir = run_dir
        self._patience = patience
        self._progress = progress
        self._num_learners = len(plan.learners)
        self._keepers = plan.keepers
        self._num_fetched = 0
        self._transfers = asyncio.Semaphore(MAX_TRANSFERS)
        self.left_out: dict[int, str] = {}

    async def learner(self, learner: LearnerPlan) -> None:
        """All files of one learner, however many attempts it takes within the patience."""
        rank = learner.rank
        deadline = time.monotonic() + self._patience.learner_seconds
        retry = self._patience.first_retry_seconds
        while True:
            try:
                async with self._transfers:
                    await self._fetch(learner)
            except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError, _Refused) as error:
                reason = str(error) or type(error).__name__
            else:
                self.left_out.pop(rank, None)
                self._num_fetched += 1
                self._progress(f"fetched {self._num_fetched} of {self._num_learners} learners")
                return
            if time.monotonic() >= deadline:
                self._give_up(rank, reason)
                return
            await asyncio.sleep(retry * random.uniform(0.5, 1.0))  # not all at the same time
            retry = min(2 * retry, self._patience.longest_retry_seconds)

    def _give_up(self, rank: int, reason: str) -> None:
        """Leaves a learner out; not if its model is here, from an earlier attempt or on a volume that is its too."""
        if (self._directory(rank) / MODEL).is_file():
            log.info("taking the files of rank %d that are here already: %s", rank, reason)
            self.left_out.pop(rank, None)
            return
        if rank not in self.left_out:
            log.warning("leaving out rank %d: %s", rank, reason)
        self.left_out[rank] = reason

    async def _fetch(self, learner: LearnerPlan) -> None:
        base = f"http://{learner.address.http}/files"
        announced = await self._listing(base)
        if MODEL not in announced and learner.rank in self._keepers:
            raise _Refused("it serves no final model")
        for name in sorted(announced, key=lambda name: name == MODEL):  # last: it says that all of the learner is there
            await self._file(f"{base}/{name}", self._directory(learner.rank) / name, announced[name])

    def _directory(self, rank: int) -> Path:
        return self._run_dir / names.learner_directory(rank)

    async def _listing(self, url: str) -> dict[str, dict[str, Any]]:
        async with self._session.get(url) as response:
            content = await _read(response, MAX_LISTING_BYTES)
        try:
            entries = json.loads(content)
        except RecursionError as error:
            raise _Refused("its list of files is nested too deeply") from error
        if not isinstance(entries, list):
            raise _Refused("its list of files is no list")
        # By our own names only: a name from a stranger never becomes a path.
        return {
            name: entry
            for entry in entries
            if isinstance(entry, dict) and (name := entry.get("path")) in SERVED and _is_plausible(entry)
        }

    async def _file(self, url: str, target: Path, announced: dict[str, Any]) -> None:
        if await asyncio.to_thread(_is_there, target, announced):
            return
        size = announced["bytes"]
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            async with self._session.get(url) as response:
                _check(response)
                received = 0
                with partial.open("wb") as file:
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        received += len(chunk)
                        if received > size:
                            raise _Refused(f"{target.name} is longer than announced")
                        file.write(chunk)
            if not await asyncio.to_thread(_is_there, partial, announced):
                raise _Refused(f"{target.name} is not what was announced: {received:,} of {size:,} bytes")
            partial.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()


def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == 409:
        raise _Refused("it has not finished")
    if response.status != 200:
        raise _Refused(f"it answers {response.status}")


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    _check(response)
    content = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise _Refused("its answer is too long")
    return bytes(content)


def _is_plausible(entry: dict[str, Any]) -> bool:
    size, digest = entry.get("bytes"), entry.get("sha256")
    return isinstance(size, int) and 0 <= size <= MAX_FILE_BYTES and isinstance(digest, str)


def _is_there(path: Path, announced: dict[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == announced["bytes"] and checksum(path) == announced["sha256"])
    except FileNotFoundError:
        return False
