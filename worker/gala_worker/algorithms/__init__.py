"""Local learners: how one update of the parameters is computed."""
