"""The simulators that a learner acts in: Atari natively, everything else through Gymnasium, both behind one face.

Read `simulators.py` first (the promises), then `factory.py` (which one an id gets), `atari.py` and `vector.py`.
"""

from gala_worker.environments.factory import make_simulators
from gala_worker.environments.games import is_atari
from gala_worker.environments.simulators import Episode, Simulators, Transition

__all__ = ["Episode", "Simulators", "Transition", "is_atari", "make_simulators"]
