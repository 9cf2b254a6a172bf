"""What a GalaRun says about learning: the numbers, the network, and what is recorded for study.

Part of `gala.spec`, whose rules it follows. A hyperparameter whose published default differs between algorithms has no
default in the CRD: `gala.spec` fills it in by the algorithm, so that the API server cannot fill in the wrong one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gala import names
from gala.algorithms import exceptions
from gala.spec_base import Integer, Number, Section, Switch
from gala.spec_schema import BY_ALGORITHM


def by_algorithm(name: str, default: Any, description: str) -> Any:
    """A field whose default depends on the algorithm; the description tells all of them."""
    others = ", ".join(f"{algorithm} {value}" for algorithm, value in exceptions(name).items())
    usual = "unset" if default is None else default
    return Field(
        default=default,
        description=f"{description} Default: {usual}; {others}.",
        json_schema_extra={BY_ALGORITHM: True},
    )


class Hyperparameters(Section):
    """The learner's numbers. Defaults are the published ones of each algorithm; for GALA the paper's, 16 simulators."""

    learning_rate: Annotated[Number, Field(gt=0, le=1)] = by_algorithm(
        "learning_rate", 7e-4, "Step size of the optimiser."
    )
    learning_rate_schedule: Literal["constant", "linear"] = by_algorithm(
        "learning_rate_schedule", "constant", "constant, or linear from learningRate to 0 at totalSteps."
    )
    rollout_length: Annotated[Integer, Field(ge=1, le=names.MAX_ROLLOUT_LENGTH)] = by_algorithm(
        "rollout_length", 5, "Decisions of each simulator per update (n of the n-step return)."
    )
    discount: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.99, description="Discount of the next decision's return."
    )
    gae_lambda: Annotated[Number, Field(ge=0, le=1)] | None = by_algorithm(
        "gae_lambda",
        None,
        "Lambda of generalised advantage estimation; unset = n-step returns. IMPALA: lambda of V-trace.",
    )
    entropy_coefficient: Annotated[Number, Field(ge=0, le=10)] = Field(
        default=0.01, description="Weight of the entropy bonus in the loss."
    )
    value_coefficient: Annotated[Number, Field(ge=0, le=100)] = by_algorithm(
        "value_coefficient", 0.5, "Weight of the value loss, which is the squared error, without a factor of one half."
    )
    loss_reduction: Literal["mean", "sum"] = by_algorithm(
        "loss_reduction", "mean", "Whether the loss is the mean or the sum over an update's decisions."
    )
    max_gradient_norm: Annotated[Number, Field(gt=0, le=1_000_000)] = by_algorithm(
        "max_gradient_norm", 0.5, "The gradient's 2-norm is clipped to this."
    )
    rms_prop_decay: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.99, description="Decay of RMSprop's running mean of squared gradients."
    )
    rms_prop_epsilon: Annotated[Number, Field(gt=0, le=1)] = by_algorithm(
        "rms_prop_epsilon",
        1e-5,
        "Added to the square root in RMSprop's denominator (torch's form, not TensorFlow's).",
    )
    reward_clipping: Switch | None = Field(
        default=None,
        description="Clip rewards to [-1, 1]. Unset = on for ALE/* environments, off elsewhere. Scores are raw.",
    )
    epochs: Annotated[Integer, Field(ge=1, le=1000)] = Field(
        default=4, description="GALA-PPO: passes over each rollout."
    )
    minibatches: Annotated[Integer, Field(ge=1, le=128)] = Field(
        default=4, description="GALA-PPO: parts that each pass is cut into, one optimiser step each."
    )
    clip_range: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.1, description="GALA-PPO: how far the probability ratio may move from 1."
    )
    normalize_advantages: Switch = Field(
        default=True, description="GALA-PPO: bring each minibatch's advantages to mean 0 and deviation 1."
    )
    adam_epsilon: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=1e-5, description="GALA-PPO: added to the square root in Adam's denominator."
    )
    batch_rollouts: Annotated[Integer, Field(ge=1, le=65_536)] = Field(
        default=32,
        description="IMPALA: rollouts, one of each simulator, that the learner's update waits for at least.",
    )
    vtrace_rho_clip: Annotated[Number, Field(gt=0, le=1000)] = Field(
        default=1.0, description="IMPALA: bound of the importance weights of V-trace's differences."
    )
    vtrace_c_clip: Annotated[Number, Field(gt=0, le=1000)] = Field(
        default=1.0, description="IMPALA: bound of the importance weights of V-trace's traces."
    )


class Policy(Section):
    """The network."""

    network: Literal["auto", "nature-32", "mlp"] = Field(
        default="auto", description="nature-32: the CNN for stacked images. mlp: for vectors. auto: by the observation."
    )
    hidden_sizes: Annotated[
        tuple[Annotated[Integer, Field(ge=1, le=65_536)], ...], Field(min_length=1, max_length=16)
    ] = Field(default=(64, 64), description="Widths of the mlp's hidden layers.")
    recurrent: Switch = Field(default=False, description="Put a GRU between the network and its heads.")
    normalize_observations: Switch | None = Field(
        default=None, description="Normalise observations by their running mean and deviation. Unset = on for vectors."
    )


class Diagnostics(Section):
    """What is recorded for the study of gossip; see docs/experiments.md."""

    every_updates: Annotated[Integer, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Each learner keeps its parameters and gradient at each so many of its updates, and a trace of all"
        " of them: what the figures of the epsilon-ball and of gradient correlation are made of. Unset = nothing.",
    )
    max_snapshots: Annotated[Integer, Field(ge=2, le=10_000)] = Field(
        default=200, description="Snapshots that a learner keeps; beyond them, every other one is dropped."
    )
