"""A user's own environment, for tests in which learners are to be there rather than to learn: CartPole that takes time.

It leaves the machine's cores to what is tested, and does what files in its pod's /tmp ask for: hurt it from inside.
"""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.03"))
BREAKS = os.environ.get("BREAKS", "nobody") == os.environ.get("GALA_RANK")


class SlowPole(CartPoleEnv):
    """Each step of a simulator takes STEP_SECONDS."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(STEP_SECONDS)
        if BREAKS:
            raise RuntimeError("the pole broke")
        if Path("/tmp/take-memory").exists():
            self.hoard = b"x" * 2**31
        return super().step(action)


gymnasium.register("SlowPole-v0", entry_point=SlowPole, max_episode_steps=500)
