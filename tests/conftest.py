"""Set-up of all tests."""

from hypothesis import settings

# No deadline per example: the machine is shared with training runs, and pytest-timeout catches what hangs. Derandomised:
# the same commit gives the same verdict.
settings.register_profile("gala", deadline=None, derandomize=True)
settings.load_profile("gala")
