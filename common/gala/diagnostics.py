"""What learners record for the study of gossip: the files below `learner-<rank>/diagnostics/`.

    trace-<incarnation>.jsonl                     every update of one life of the learner, see `TRACE_FORMAT`
    start-<incarnation>.safetensors               the parameters with which that life began
    snapshot-<incarnation>-<version>.safetensors  parameters and gradient at one version, 12 digits

Written by `gala_worker.diagnostics`, read by `gala.report.traces`. Nothing here is needed to go on with a run.

A trace's first line is an object: `format`, `rank`, `incarnation`, `version` (the learner's update count at its start;
the parameters then are in the start file), `parameters` (P), `wire` and `mixing` (the run's `gossip.precision` and
`gossip.mixing`). Every further line is one update, in the order of versions and without a gap:

    [version, norm, [[rank, incarnation, version, weight], ...]]

`norm` is the 2-norm of the optimiser's change of the trainable parameters [P]. The list says what was mixed in right
after it: the sender, its life and version, and the weight of its message in the learner's new parameters. The learner's
own weight is what is missing to 1; an empty list is an update without a mixing; null is what is not known. A message of
version v holds the parameters after its sender's update v and before the mixing that followed.

Snapshots hold float32 tensors `parameters` [P], right after the version's mixing, and `gradient` [P] of its update.
"""

from __future__ import annotations

from typing import Final

TRACE_FORMAT: Final = 1
"""Rises when a reader of the old format would misread the new one."""
DIRECTORY: Final = "diagnostics"
"""Below the learner's folder."""
TENSOR_PARAMETERS: Final = "parameters"
TENSOR_GRADIENT: Final = "gradient"


def trace_file(incarnation: int) -> str:
    """The name of the trace of one life."""
    return f"trace-{incarnation}.jsonl"


def start_file(incarnation: int) -> str:
    """The name of the file with the parameters at the beginning of one life."""
    return f"start-{incarnation}.safetensors"


def snapshot_file(incarnation: int, version: int) -> str:
    """The name of a snapshot."""
    return f"snapshot-{incarnation}-{version:012d}.safetensors"
