"""One actor-learner: simulators, policy, A2C updates, and gossip with its ring neighbours."""
