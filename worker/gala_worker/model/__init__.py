"""The policy and value networks of a learner.

`make_policy` builds an `ActorCritic` for the spaces of an environment; its `actions` turn numbers into actions and back.
"""

from gala_worker.model.distributions import ActionDistribution
from gala_worker.model.policy import ActorCritic, PolicyOutput, make_policy
from gala_worker.model.recording import Recorder, make_recorder

__all__ = ["ActionDistribution", "ActorCritic", "PolicyOutput", "Recorder", "make_policy", "make_recorder"]
