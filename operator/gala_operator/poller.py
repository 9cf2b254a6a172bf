"""Asks the learners how they are getting on: GET /status by pod IP, in the background.

Place in the flow: the controller says which runs are worth asking; answers go into the cache, and the run into the
queue. A few learners of a run are asked at a time, in turn; all of them when something depends on it: while the ring
forms, and near the end. Nobody is asked again before the controller has looked at the last answers: while it has its
hands full, questions would only take its time. What comes back is foreign: it is bounded, checked and taken as plain
numbers.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import aiohttp

from gala import names
from gala.answers import count, items, json_object, mapping, number, text
from gala_operator.cache import Cache
from gala_operator.metrics import Metrics
from gala_operator.observed import LearnerProgress, ObservedPod, ResultsProgress, RunObject
from gala_operator.records import Key

log = logging.getLogger(__name__)

SAMPLE: Final = 4
"""Learners of a run that are asked in one cycle."""
MAX_EAGER: Final = 64
"""Of more learners not all are asked in one cycle even then."""
EAGER_SECONDS: Final = 2.0
NEAR_THE_END: Final = 0.02
"""Of the run's steps are left."""
MAX_BODY_BYTES: Final = 1 << 20
TIMEOUT_SECONDS: Final = 3.0
MAX_CONNECTIONS: Final = 64
TICK_SECONDS: Final = 0.25
MAX_SILENCE: Final = 3
"""Doublings of the interval for a run of which nobody answers."""


@dataclass(slots=True)
class _Subject:
    """A run that is being asked."""

    due: float
    turn: int = 0
    silence: int = 0
    """Cycles in a row without any answer."""
    answered: bool = False
    """There are answers that the controller has not looked at yet."""
    task: asyncio.Task[None] | None = None


class Poller:
    """Use as an asynchronous context; `work` asks until cancelled."""

    def __init__(
        self,
        *,
        cache: Cache,
        add: Callable[[Key], None],
        poll_seconds: float,
        metrics: Metrics,
        port: int = names.PORT_HTTP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`add` is called with every run of which something new is known."""
        self._cache = cache
        self._add = add
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._port = port
        self._clock = clock
        self._subjects: dict[Key, _Subject] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Poller:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [subject.task for subject in self._subjects.values() if subject.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def watch(self, key: Key, wanted: bool) -> None:
        """The controller has looked at the run: whether its workers are worth asking. A new one is asked at once."""
        if not wanted:
            subject = self._subjects.pop(key, None)
            if subject is not None and subject.task is not None:
                subject.task.cancel()
        elif key in self._subjects:
            self._subjects[key].answered = False
        else:
            self._subjects[key] = _Subject(due=self._clock())

    async def work(self) -> None:
        """Asks whoever is due, until cancelled."""
        while True:
            now = self._clock()
            for key, subject in list(self._subjects.items()):
                if subject.due <= now and subject.task is None and not subject.answered:
                    subject.task = asyncio.create_task(self._cycle(key, subject), name=f"poll-{key[1]}")
            await asyncio.sleep(min(TICK_SECONDS, self._poll_seconds / 4))

    async def release(self, ip: str) -> None:
        """POST /release: the worker of that address may exit. Best effort."""
        session = self._open_session()
        try:
            async with session.post(self._url(ip, "release"), allow_redirects=False):
                pass
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("release of %s: %s", ip, error)

    async def _cycle(self, key: Key, subject: _Subject) -> None:
        try:
            answered = await self.poll(key, turn=subject.turn)
            subject.turn += 1
            # A learner that is starting is rightly silent, and its first answer is waited for.
            silent = not answered and any(pod.ready for pod in self._cache.pods(key))
            subject.silence = min(subject.silence + 1, MAX_SILENCE) if silent else 0
            if answered:
                subject.answered = True
                self._add(key)
        except Exception:
            log.exception("asking the workers of %s/%s failed", *key)
        finally:
            subject.task = None
            subject.due = self._clock() + self._interval(key, subject)

    async def poll(self, key: Key, *, turn: int = 0) -> int:
        """Asks some of the run's workers now; `turn` says whose turn it is. Returns how many have answered."""
        run = self._cache.run(key)
        if run is None:
            return 0
        pods = [pod for pod in self._cache.pods(key) if _can_answer(pod, run)]
        learners = sorted((pod for pod in pods if pod.rank is not None), key=lambda pod: pod.rank or 0)
        asked = _in_turn(learners, MAX_EAGER if self._is_eager(key) else SAMPLE, turn)
        asked += [pod for pod in pods if pod.role == names.ROLE_RESULTS]
        answers = await asyncio.gather(*(self._ask(key, run, pod) for pod in asked))
        return sum(answers)

    def _is_eager(self, key: Key) -> bool:
        """Whether the next answers decide something."""
        run = self._cache.run(key)
        if run is None:
            return False
        formed = any(
            condition.get("type") == "RingFormed" and condition.get("status") == "True"
            for condition in items(run.status.get("conditions"))
        )
        if not formed or any(pod.role == names.ROLE_RESULTS for pod in self._cache.pods(key)):
            return True
        known = self._cache.progress(key).values()
        if any(progress.state == "finished" for progress in known):
            return True
        total = number(mapping(run.document.get("spec")).get("totalSteps"))
        if not known or total is None:
            return False
        left = total - max(progress.global_steps for progress in known)
        learners = max(number(mapping(run.document.get("spec")).get("learners")) or 1.0, 1.0)
        speed = learners * max(progress.steps_per_second for progress in known)
        return left <= max(NEAR_THE_END * total, 2 * self._poll_seconds * speed)

    def _interval(self, key: Key, subject: _Subject) -> float:
        if subject.silence:
            return float(self._poll_seconds * 2 ** (subject.silence - 1))
        if self._is_eager(key):
            return min(EAGER_SECONDS, self._poll_seconds)
        # The same for a run, different for different runs: they are not all asked in the same moment.
        return self._poll_seconds * (0.9 + 0.2 * (zlib.crc32("/".join(key).encode()) % 100) / 100)

    async def _ask(self, key: Key, run: RunObject, pod: ObservedPod) -> bool:
        answer = await self._fetch(pod.ip or "")
        if answer is None:
            return False
        # Addresses are used again: another run's pod may have this one by now. Learners of earlier versions say no uid.
        uid = answer.get(names.STATUS_UID, None if pod.role == names.ROLE_RESULTS else run.uid)
        if uid != run.uid:
            return False
        if pod.role == names.ROLE_RESULTS:
            results = results_progress(answer, pod_uid=pod.uid)
            if results is not None:
                self._cache.put_results(key, results)
            return results is not None
        progress = learner_progress(answer, rank=pod.rank or 0, pod_uid=pod.uid)
        if progress is None or answer.get("run") != run.name:
            return False
        self._cache.put_progress(key, progress)
        return True

    async def _fetch(self, ip: str) -> Mapping[str, Any] | None:
        session = self._open_session()
        try:
            async with session.get(self._url(ip, "status"), allow_redirects=False) as response:
                if response.status != 200:
                    self._metrics.polls.labels("refused").inc()
                    return None
                body = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        self._metrics.polls.labels("too-large").inc()
                        return None
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._metrics.polls.labels("no-answer").inc()
            return None
        answer = json_object(bytes(body))
        self._metrics.polls.labels("not-json" if answer is None else "answer").inc()
        return answer

    def _url(self, ip: str, path: str) -> str:
        return f"http://{f'[{ip}]' if ':' in ip else ip}:{self._port}/{path}"

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the poller has not been entered")
        return self._session


def learner_progress(answer: Mapping[str, Any], *, rank: int, pod_uid: str) -> LearnerProgress | None:
    """What a worker's /status says; None if it is not that rank's. A learner that is starting has no numbers yet."""
    state = answer.get("state")
    if answer.get("rank") != rank or not isinstance(state, str):
        return None
    peers = answer.get("inPeers")
    return LearnerProgress(
        rank=rank,
        pod_uid=pod_uid,
        state=state[:32],
        epoch=count(answer.get("epoch")) or 0,
        steps=count(answer.get("steps")) or 0,
        global_steps=count(answer.get("globalSteps")) or 0,
        steps_per_second=number(answer.get("stepsPerSecond")) or 0.0,
        mean_return=number(answer.get("meanReturn")),
        staleness=count(answer.get("stalenessUpdates")),
        disagreement=number(answer.get("relativeDisagreement")),
        in_peers=tuple(
            peer
            for peer in (peers if isinstance(peers, list) else [])[: names.MAX_LEARNERS]
            if isinstance(peer, int) and not isinstance(peer, bool)
        ),
    )


def results_progress(answer: Mapping[str, Any], *, pod_uid: str) -> ResultsProgress | None:
    """What the results pod's /status says."""
    state, card = answer.get("state"), answer.get("card")
    if not isinstance(state, str):
        return None
    return ResultsProgress(
        pod_uid=pod_uid,
        state=state[:32],
        message=text(answer.get("message"))[:2000],
        card=card if isinstance(card, dict) else None,
        sha256=text(answer.get("sha256"))[:64] or None,
    )


def _can_answer(pod: ObservedPod, run: RunObject) -> bool:
    return pod.run_uid == run.uid and pod.phase == "Running" and not pod.deleting and pod.ip is not None


def _in_turn(learners: list[ObservedPod], count: int, turn: int) -> list[ObservedPod]:
    if len(learners) <= count:
        return list(learners)
    start = turn * count % len(learners)
    return [learners[(start + offset) % len(learners)] for offset in range(count)]
