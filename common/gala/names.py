"""One place for every name that two programs must agree on, each with its range of values.

A label, an environment variable, a port, a child's name or a path of the run directory is spelled here and nowhere
else; the operator, the launchers, the workers and the report import it.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "gala.dev"
"""The API group of the GalaRun resource."""
VERSION: Final = "v1alpha1"
KIND: Final = "GalaRun"
PLURAL: Final = "galaruns"
API_VERSION: Final = f"{GROUP}/{VERSION}"
"""What a document of the group begins with."""

# Limits that names must stay within.

MAX_RUN_NAME: Final = 50
"""Characters of a run's name. With the longest child suffix (`-1023`) a name stays below the 63 of a DNS label."""
MAX_LEARNERS: Final = 1024
"""Ranks are 0 to 1023."""
MAX_SIMULATORS: Final = 4096
"""Simulators of one learner; a rank's range of simulator seeds is twice as wide (training, then evaluation)."""
MAX_ROLLOUT_LENGTH: Final = 1024
"""Decisions of one simulator."""
COUNT_LIMIT: Final = 1 << 62
"""Steps, updates and versions are smaller: what a message can carry, with room for sums."""
MAX_SEED: Final = 2**31 - 1
"""Seeds begin at 0; larger ones the Atari emulator does not take."""

# Labels and annotations of the children in a cluster.

LABEL_RUN: Final = f"{GROUP}/run"
"""The run's name: 1 to 50 characters of a DNS label."""
LABEL_RUN_UID: Final = f"{GROUP}/run-uid"
"""The uid of the GalaRun, so that children of a deleted run of the same name are told apart."""
LABEL_RANK: Final = f"{GROUP}/rank"
"""0 to learners - 1, decimal, without leading zeros."""
LABEL_ROLE: Final = f"{GROUP}/role"
"""`actor-learner`, `server`, `learner` or `actor`, as the plan says; `results` for the pod that gathers the result."""
LABEL_EXPERIMENT: Final = f"{GROUP}/experiment"
"""Of a GalaRun that `gala experiment` made: the name of the experiment's folder, a DNS label."""
EXPERIMENT_FACTOR_PREFIX: Final = f"experiment.{GROUP}"
"""`experiment.gala.dev/<factor>`: the run's level of a factor, in lower-case letters, digits and dashes."""
ANNOTATION_PLAN_EPOCH: Final = f"{GROUP}/plan-epoch"
"""0, 1, 2, ...: grows by one when the set of learners changes."""

ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"
"""Of a pod: 0 for the first pod of its rank, one more for each that replaced a failed one."""
ANNOTATION_SPEC_HASH: Final = f"{GROUP}/spec-hash"
"""Of a pod: hash of the part of the run's spec that the pod was made from. For people; never a reason to replace it."""
ANNOTATION_OPERATOR_VERSION: Final = f"{GROUP}/operator-version"
"""Of a pod: version of the operator that made it. For people; never a reason to replace it."""
ANNOTATION_MANIFEST_HASH: Final = f"{GROUP}/manifest-hash"
"""Of every child but pods: hash of the manifest that was applied; a child with another hash is applied again."""
ANNOTATION_PLAN_HASH: Final = f"{GROUP}/plan-hash"
"""Of the plan's ConfigMap: hash of what it tells the learners, but for its epoch; another asks for a new epoch."""
ANNOTATION_IMMUTABLE_HASH: Final = f"{GROUP}/immutable-hash"
"""Of the plan's ConfigMap: hash of the fields that may not change while the run exists."""
ANNOTATION_COMMON_HASH: Final = f"{GROUP}/common-hash"
"""Of the plan's ConfigMap: hash of the fields that all workers of the run must have read alike."""

CONTAINER_LEARNER: Final = "learner"
"""Of a learner's pod: the container that is ours. An admission webhook may put others beside it."""
CONTAINER_RESULTS: Final = "results"
"""Likewise of the results pod."""

ROLE_ACTOR_LEARNER: Final = "actor-learner"
"""Acts in its own simulators and learns from them: the only role of GALA and of A2C."""
ROLE_SERVER: Final = "server"
"""Holds the parameters of A3C and applies the gradients that actor-learners push: rank 0."""
ROLE_LEARNER: Final = "learner"
"""Learns, in IMPALA, from the rollouts that actors stream to it: rank 0."""
ROLE_ACTOR: Final = "actor"
"""Acts, in IMPALA, with the learner's newest parameters."""
ROLE_RESULTS: Final = "results"
"""Collects the learners' final models at the run's end, averages and scores them, and serves the result."""

# The environment of a worker, in a pod and in a subprocess alike.

ENV_RANK: Final = "GALA_RANK"
"""0 to learners - 1."""
ENV_PLAN_FILE: Final = "GALA_PLAN_FILE"
"""Path of plan.json. It is replaced atomically when the plan's epoch changes; workers watch it."""
ENV_OUTPUT_DIR: Final = "GALA_OUTPUT_DIR"
"""Path of the run directory; a worker writes only below its own `learner-<rank>/` there."""
ENV_THREADS: Final = "GALA_THREADS"
"""Threads that this worker may use for computing, >= 1. Optional: without it, the cores that the worker itself sees."""
ENV_INCARNATION: Final = "GALA_INCARNATION"
"""An integer that grows with every start of this rank, so that peers tell a new life from an old one. Optional: without
it, the time of the start."""

ENV_HOLD: Final = "GALA_HOLD_SECONDS"
"""For how long nobody must have asked for a finished worker's /status before it no longer serves /files, waits for POST
/release, and exits, >= 0. Optional: 0, as on one machine, where the run directory is shared."""

# Ports in a cluster, where every worker has an address of its own. The local launcher picks free ones.

PORT_GOSSIP: Final = 7070
"""gRPC: parameter streams from the in-peers, and state for those that join."""
PORT_HTTP: Final = 7071
"""HTTP: /healthz /readyz /metrics /status, and for a finished worker /files and /release."""

STATUS_UID: Final = "uid"
"""In an answer to /status: the run's uid, so that whoever asks at an address that was another run's can tell."""

# Paths in a learner's container.

PLAN_MOUNT: Final = "/etc/gala"
"""The plan's ConfigMap: `/etc/gala/plan.json`."""
OUTPUT_MOUNT: Final = "/var/lib/gala"
"""The checkpoint volume, or a folder that lives as long as the pod."""

# The run directory: runs/<name>/...

SPEC_FILE: Final = "galarun.yaml"
"""The run's document, normalised. A second `gala run` changes it and the live launcher follows."""
PLAN_FILE: Final = "plan.json"
RUN_FILE: Final = "run.json"
"""The launcher's record: uid, state, startTime, wallSeconds."""
ENERGY_FILE: Final = "energy.jsonl"
"""What the machine has used while the run was running; only where it can be read."""
LOCK_FILE: Final = "launcher.lock"
"""Held with flock for as long as a launcher lives."""
REPORT_FILE: Final = "report.html"
RUNS_DIRECTORY: Final = "runs"
FINAL_DIRECTORY: Final = "final"
"""At the top the averaged model and its card; below a learner's directory that learner's last parameters."""
MODEL_FILE: Final = "model.safetensors"
CARD_FILE: Final = "card.json"
"""Beside the averaged model: spec, seeds, versions and scores."""
MODEL_RECORD_FILE: Final = "model.json"
"""Beside a single learner's final model."""
METRICS_FILE: Final = "metrics.jsonl"
LOG_FILE: Final = "log.txt"
TENSORBOARD_DIRECTORY: Final = "tensorboard"
CHECKPOINTS_DIRECTORY: Final = "checkpoints"
CHECKPOINT_TENSORS_FILE: Final = "state.safetensors"
CHECKPOINT_RECORD_FILE: Final = "state.json"


def learner_name(run_name: str, rank: int) -> str:
    """The name of a learner's pod, and of the learner in logs: `pong-0`."""
    return f"{run_name}-{rank}"


def service_name(run_name: str) -> str:
    """The name of the run's headless Service: the run's own."""
    return run_name


def plan_name(run_name: str) -> str:
    """The name of the ConfigMap that carries plan.json."""
    return f"{run_name}-plan"


def results_name(run_name: str) -> str:
    """The name of the pod that gathers and serves the final model, and of its claim where it has one."""
    return f"{run_name}-results"


def learner_host(run_name: str, namespace: str, rank: int) -> str:
    """The DNS name of a learner's pod under the run's headless Service, resolvable from the same cluster."""
    return f"{learner_name(run_name, rank)}.{service_name(run_name)}.{namespace}.svc"


def learner_directory(rank: int) -> str:
    """The learner's folder in the run directory: `learner-0`."""
    return f"learner-{rank}"


def checkpoint_directory(global_step: int) -> str:
    """A checkpoint's folder, named so that the order of the names is the order of the steps: `step-000001000000`."""
    return f"step-{global_step:012d}"
