"""What the operator, the launchers and the workers agree on: the GalaRun spec, the topology, the plan and the wire."""
