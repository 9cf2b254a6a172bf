"""The local launcher: `gala run` on one machine, with the same plan and the same workers as in a cluster."""

from gala.local.launcher import Commands, Rhythm, start
from gala.local.supervisor import Patience

__all__ = ["Commands", "Patience", "Rhythm", "start"]
