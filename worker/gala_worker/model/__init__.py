"""The policy and value networks of a learner.

`make_policy` builds an `ActorCritic` for the spaces of an environment; its `actions` turn numbers into actions and
back; a `Tape` keeps what acting computed for learning.
"""

from gala_worker.model.distributions import ActionDistribution
from gala_worker.model.policy import ActorCritic, PolicyOutput, make_policy
from gala_worker.model.tape import Replay, Tape

__all__ = ["ActionDistribution", "ActorCritic", "PolicyOutput", "Replay", "Tape", "make_policy"]
