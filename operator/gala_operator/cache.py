"""What the operator has seen of its cluster, run by run: filled by the watches, read by the controller.

    watch events, answers to our own writes -> `put`, `remove` -> slim records by run -> `observed(key)` -> `decide`

Records are kept, raw objects are not: 500 runs of 4 learners take a few megabytes. Belongs to the event loop's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from gala import answers
from gala_operator import records
from gala_operator.kinds import POD, RUN, WATCHED_KINDS
from gala_operator.observed import (
    ChildKind,
    LearnerProgress,
    Observed,
    ObservedChild,
    ObservedPod,
    ResultsProgress,
    RunObject,
)
from gala_operator.records import Key, Raw

MAX_GONE: Final = 8192
"""Uids of removed objects that are remembered, so that a late answer does not bring one back."""

Place = tuple[str, str]
"""(namespace, name) of any object."""

Record = RunObject | ObservedPod | ObservedChild


@dataclass(slots=True)
class _Stored:
    uid: str
    version: str
    """resourceVersion."""
    key: Key
    record: Record


@dataclass(slots=True)
class _Family:
    """What belongs to one run beside the GalaRun itself."""

    pods: dict[str, ObservedPod] = field(default_factory=dict)
    children: dict[tuple[str, str], ObservedChild] = field(default_factory=dict)
    progress: dict[int, LearnerProgress] = field(default_factory=dict)
    results: ResultsProgress | None = None


class Cache:
    """Objects by kind, namespace and name; of two versions the newer one stays, in whatever order they come."""

    def __init__(self) -> None:
        self._stored: dict[str, dict[Place, _Stored]] = {kind: {} for kind in WATCHED_KINDS}
        self._foreign: dict[str, dict[str, tuple[Place, str]]] = {kind: {} for kind in WATCHED_KINDS}
        """uid -> place and resourceVersion of what carries our label and is none of ours."""
        self._families: dict[Key, _Family] = {}
        self._gone: OrderedDict[str, str] = OrderedDict()
        """uid -> resourceVersion at which it went; empty = for good."""

    def put(self, kind: str, raw: Raw) -> Key | None:
        """An object as the API server delivered it. Returns the run to look at.

        None if the object is not ours, or a GalaRun as we know it already: the echo of a status that we have written.
        """
        meta = records.metadata(raw)
        uid, version = answers.text(meta.get("uid")), answers.text(meta.get("resourceVersion"))
        place = answers.text(meta.get("namespace")), answers.text(meta.get("name"))
        key = records.key_of(kind, raw)
        record = _parse(kind, raw) if key is not None else None
        before = self._stored[kind].get(place)
        if key is None or record is None:
            return self._put_foreign(kind, place, uid, version)
        if kind == RUN and before is not None and (before.uid, before.version) == (uid, version):
            return None
        if self.is_gone(uid, version) or (before is not None and _is_older(version, before.version)):
            return key
        self._gone.pop(uid, None)
        self._foreign[kind].pop(uid, None)
        if before is not None and before.key != key:
            self._drop(kind, place)
        self._stored[kind][place] = _Stored(uid, version, key, record)
        if isinstance(record, ObservedPod):
            self._family(key).pods[record.name] = record
        elif isinstance(record, ObservedChild):
            self._family(key).children[kind, record.name] = record
        elif before is not None and before.uid != uid:
            self._forget_progress(key)
        return key

    def remove(self, kind: str, raw: Raw) -> Key | None:
        """The object is gone, or does not carry our label any more. Returns the run to look at."""
        meta = records.metadata(raw)
        uid, version = answers.text(meta.get("uid")), answers.text(meta.get("resourceVersion"))
        place = answers.text(meta.get("namespace")), answers.text(meta.get("name"))
        return self.remove_uid(kind, place, uid, version) or records.key_of(kind, raw)

    def remove_uid(self, kind: str, place: Place, uid: str, version: str = "") -> Key | None:
        """As `remove`, for who knows no more than this. Only a newer version can come back; without one none can."""
        self._gone[uid] = version
        while len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)
        self._foreign[kind].pop(uid, None)
        stored = self._stored[kind].get(place)
        if stored is None or stored.uid != uid:  # its successor of the same name is already here
            return None
        self._drop(kind, place)
        return stored.key

    def run(self, key: Key) -> RunObject | None:
        """The GalaRun, if there is one."""
        stored = self._stored[RUN].get(key)
        return cast("RunObject", stored.record) if stored is not None else None

    def version(self, key: Key) -> str:
        """resourceVersion of the GalaRun as last seen."""
        stored = self._stored[RUN].get(key)
        return stored.version if stored is not None else ""

    def observed(self, key: Key) -> Observed:
        """A snapshot of everything that belongs to the run."""
        family = self._families.get(key)
        if family is None:
            return Observed()
        return Observed(
            pods=tuple(family.pods.values()),
            children=tuple(family.children.values()),
            progress=dict(family.progress),
            results=family.results,
        )

    def pods(self, key: Key) -> tuple[ObservedPod, ...]:
        """The run's pods."""
        family = self._families.get(key)
        return tuple(family.pods.values()) if family is not None else ()

    def has_child(self, key: Key, kind: str, name: str) -> bool:
        """Whether that child has been seen."""
        family = self._families.get(key)
        return family is not None and (kind, name) in family.children

    def runs(self) -> Iterator[tuple[Key, RunObject]]:
        """All GalaRuns."""
        for key, stored in list(self._stored[RUN].items()):
            yield key, cast("RunObject", stored.record)

    def all_keys(self) -> set[Key]:
        """Every run that exists or has left something behind."""
        return set(self._stored[RUN]) | set(self._families)

    def versions(self, kind: str) -> dict[str, tuple[Place, str]]:
        """uid -> ((namespace, name), resourceVersion) of everything of a kind: for the comparison of `resync`.

        What is none of ours is in it as well: it is in the API server's lists, and the watches deliver it.
        """
        ours = {stored.uid: (place, stored.version) for place, stored in self._stored[kind].items()}
        return self._foreign[kind] | ours

    def is_gone(self, uid: str, version: str = "") -> bool:
        """Whether the object has been seen to be removed, and this version of it is not from after that.

        To a watch with a selector an object goes when it loses its label, and it may get that back.
        """
        return uid in self._gone and not _is_older(self._gone[uid], version)

    def put_progress(self, key: Key, progress: LearnerProgress) -> None:
        """A learner has answered."""
        if key in self._stored[RUN]:
            self._family(key).progress[progress.rank] = progress

    def put_results(self, key: Key, results: ResultsProgress) -> None:
        """The results pod has answered."""
        if key in self._stored[RUN]:
            self._family(key).results = results

    def progress(self, key: Key) -> Mapping[int, LearnerProgress]:
        """The learners' last answers."""
        family = self._families.get(key)
        return family.progress if family is not None else {}

    def _put_foreign(self, kind: str, place: Place, uid: str, version: str) -> Key | None:
        """Returns the run that it belonged to until now: it may have carried our labels."""
        before = self._stored[kind].get(place)
        ours = before if before is not None and before.uid == uid else None
        known = self._foreign[kind].get(uid, (place, ""))[1] if ours is None else ours.version
        if uid and not self.is_gone(uid, version) and not _is_older(version, known):
            self._gone.pop(uid, None)
            if ours is not None:
                self._drop(kind, place)
            self._foreign[kind][uid] = place, version
        return None if ours is None else ours.key

    def _family(self, key: Key) -> _Family:
        return self._families.setdefault(key, _Family())

    def _drop(self, kind: str, place: Place) -> None:
        stored = self._stored[kind].pop(place)
        family = self._families.get(stored.key)
        if kind == RUN:
            self._forget_progress(stored.key)
        elif family is not None and kind == POD:
            family.pods.pop(place[1], None)
        elif family is not None:
            family.children.pop((kind, place[1]), None)
        if family is not None and not family.pods and not family.children and stored.key not in self._stored[RUN]:
            del self._families[stored.key]

    def _forget_progress(self, key: Key) -> None:
        family = self._families.get(key)
        if family is not None:
            family.progress.clear()
            family.results = None


def _parse(kind: str, raw: Raw) -> Record | None:
    if kind == RUN:
        return records.run_object(raw)
    if kind == POD:
        return records.pod(raw)
    return records.child(cast("ChildKind", kind), raw)


def _is_older(version: str, than: str) -> bool:
    """Versions are compared as numbers, which today's servers promise; what is no number is not older than anything,
    nor is anything older than it."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)
