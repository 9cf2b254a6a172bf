"""The chaos bar: learners are killed at random, and the operator with them, and the run comes to its end.

A strike every ten seconds makes three minutes of it; where the machine is too slow for that, as many strikes take
longer. GALA_CHAOS_STRIKES makes them fewer, for work on the test itself.
"""

import itertools
import os
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

RUN = "pole"
LEARNERS = 4
STRIKES = int(os.environ.get("GALA_CHAOS_STRIKES", "18"))
SECONDS_BETWEEN = 10.0
SECONDS_BETWEEN_LOOKS = 0.5
BEGAN = re.compile(r" at [\d,]+ global steps, ([\d,]+) of its own")


@dataclass
class Life:
    """One pod of a learner: its own count of steps when it began and when it was last asked."""

    first: int | None = None
    last: int = 0


@dataclass
class Ring:
    """What is seen of the learners, and what is done to them."""

    namespace: Any
    lives: list[dict[str, Life]] = field(default_factory=lambda: [{} for _ in range(LEARNERS)])
    """Of each rank by the pod's uid, in their order."""
    ended: set[str] = field(default_factory=set)
    """The uids of pods that were killed: the API may lag behind, and one life ends once."""
    deleted: list[int] = field(default_factory=lambda: [0] * LEARNERS)
    killed: list[int] = field(default_factory=lambda: [0] * LEARNERS)

    def look(self) -> None:
        for pod in self.namespace.pods(RUN).values():
            rank, uid = pod["metadata"]["labels"].get("gala.dev/rank"), pod["metadata"]["uid"]
            if rank is None or uid in self.ended:
                continue  # asked by its name, a dead pod's successor may answer
            life = self.lives[int(rank)].setdefault(uid, Life())
            name = pod["metadata"]["name"]
            status = self.namespace.worker_status(name, seconds=2.0)
            if status.get("state") in ("training", "waiting"):
                life.last = status["steps"]
                if life.first is None:
                    # By its log: on a crowded machine it has made some steps when it is first asked.
                    [began] = BEGAN.findall(self.namespace.kubectl("logs", name))
                    life.first = int(began.replace(",", ""))

    def kill(self, rank: int, by_signal: bool) -> bool:
        """Without warning: its process on the node, or its pod in the API. False if there is nothing to kill now."""
        name = f"{RUN}-{rank}"
        pod = self.namespace.get("pods", name)
        if pod is None or pod["metadata"]["uid"] in self.ended or pod["status"]["phase"] not in ("Pending", "Running"):
            return False
        self.ended.add(pod["metadata"]["uid"])
        self.lives[rank].setdefault(pod["metadata"]["uid"], Life())
        states = [status.get("state", {}) for status in pod["status"].get("containerStatuses", [])]
        if by_signal and any("running" in state for state in states):
            container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
            self.namespace.cluster.enter("ctr", "task", "kill", "--signal", "SIGKILL", container)
            self.killed[rank] += 1
        else:
            self.namespace.kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
            self.deleted[rank] += 1
        return True

    def lost(self) -> tuple[int, int]:
        """Steps that the killed lives had and their successors did not begin with; and those lives' own steps."""
        lost = own = 0
        for lives in self.lives:
            seen = [life for life in lives.values() if life.first is not None]
            for life, successor in itertools.pairwise(seen):
                assert successor.first >= life.first, "a successor has less than what its predecessor began with"
                lost += max(0, life.last - successor.first)
                own += life.last - life.first
        return lost, own


def operator_pod(namespace) -> str:
    selector = "app.kubernetes.io/name=gala-operator,app.kubernetes.io/component=operator"
    name: str = namespace.items("pods", selector)[0]["metadata"]["name"]
    return name


@pytest.mark.timeout(1200, func_only=True)
def test_a_run_outlives_the_killing_of_random_learners_and_of_the_operator(namespace, slow_pole, deployed, until):
    if not namespace.cluster.node:
        pytest.skip("needs the inside of the node")
    deployed("controller.restartSecondsMax=4")
    checkpoints = {"everySteps": 200, "volume": {"size": "1Gi"}}
    pace = {"STEP_SECONDS": "0.05"}
    namespace.apply(
        slow_pole(RUN, env=pace, learners=LEARNERS, checkpoint=checkpoints, runPolicy={"backoffLimit": 100})
    )
    namespace.wait_state(RUN, "Running", seconds=240)
    ring, chance = Ring(namespace), random.Random(5)

    strike_at = time.monotonic() + SECONDS_BETWEEN
    for strike in range(STRIKES):
        while time.monotonic() < strike_at:
            ring.look()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        # Which of them may depend on the machine: one that is about to be replaced already cannot be killed again.
        until("there is a learner to kill", lambda: ring.kill(chance.randrange(LEARNERS), chance.random() < 0.5))
        strike_at = time.monotonic() + SECONDS_BETWEEN
        if strike in (STRIKES // 3, 2 * STRIKES // 3):
            namespace.kubectl("delete", "pod", operator_pod(namespace), "--force", "--grace-period=0", "--wait=false")

    def replaced() -> bool:
        uids = {pod["metadata"]["uid"] for pod in namespace.pods(RUN).values()}
        return len(uids) == LEARNERS and not uids & ring.ended

    # The last to be killed, too, and with its failure in the status.
    until("every learner that was killed has a successor", replaced)
    status = namespace.wait_state(RUN, "Running")
    ring.look()
    # Every learner has lived once more than it was killed, and no death was counted that was not its own.
    assert [len(lives) - 1 for lives in ring.lives] == [a + b for a, b in zip(ring.killed, ring.deleted, strict=True)]
    assert [learner["failures"] for learner in status["learnerStatuses"]] == ring.killed
    lost, own = ring.lost()
    kills = f"{sum(ring.killed)} processes and {sum(ring.deleted)} pods"
    print(f"{kills} killed; {lost} steps lost of {own} that those lives made")  # noqa: T201 -- with pytest -rP
    assert own > 0, "no life was seen to learn"
    assert lost <= own

    total = status["steps"] + 1
    namespace.patch(RUN, totalSteps=total)
    status = namespace.wait_state(RUN, "Succeeded", "Failed")
    assert status["state"] == "Succeeded", status["message"]
    assert status["finalModel"]["globalSteps"] >= total
    assert status["finalModel"]["averaged"] == list(range(LEARNERS))
