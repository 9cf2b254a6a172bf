"""TensorBoard's curves, written without TensorFlow and without a thread of their own.

The usual SummaryWriter imports TensorFlow wherever that is installed (seconds, and gigabytes of memory), and on a full
disk its thread dies with a traceback. The two pieces it is made of, the record format and the protocol messages, are
enough: `metrics.py` already has a thread to write from.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

TRAIN_TAGS: Final = {
    "meanReturn": "return/training",
    "meanEpisodeSteps": "return/episode_steps",
    "stepsPerSecond": "speed/steps_per_second",
    "policyLoss": "learning/policy_loss",
    "valueLoss": "learning/value_loss",
    "entropy": "learning/entropy",
    "gradientNorm": "learning/gradient_norm",
    "learningRate": "learning/learning_rate",
    "updateNorm": "learning/update_norm",
    "parameterNorm": "learning/parameter_norm",
}
GOSSIP_TAGS: Final = {
    "mixes": "gossip/mixes",
    "skips": "gossip/skips",
    "seconds": "gossip/seconds_on_learner_thread",
    "stalenessUpdates": "gossip/staleness_updates",
    "stalenessSeconds": "gossip/staleness_seconds",
    "disagreement": "gossip/disagreement",
    "relativeDisagreement": "gossip/relative_disagreement",
}
_serial = itertools.count()


class EventFile:
    """One event file; TensorBoard reads all files of a folder as one history."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_serial)}"
        self._records = RecordWriter((directory / name).open("wb"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds the scalars of a metrics record, over the global step.

        Raises:
            OSError: the disk did not take it; the file is then not to be used any more.
        """
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        if values:
            self._add(Event(wall_time=record["time"], step=record["globalSteps"], summary=Summary(value=values)))

    def close(self) -> None:
        """Closes the file."""
        self._records.close()

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`(tag, value)` of everything in a metrics record that makes a curve."""
    if record["kind"] == "evaluation":
        yield f"return/evaluation_{record['mode']}", float(record["meanReturn"])
    elif record["kind"] == "train":
        gossip = record.get("gossip") or {}
        for source, tags in ((record, TRAIN_TAGS), (gossip, GOSSIP_TAGS)):
            for key, tag in tags.items():
                if source.get(key) is not None:
                    yield tag, float(source[key])
