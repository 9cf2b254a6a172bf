"""A run is changed while it learns: scaled, suspended, told another end, and told what it must refuse."""

import re
from typing import Any

import pytest

from live_cluster import PATIENCE_SECONDS

RUN = "pole"
STARTED = re.compile(r"(?P<how>resumed|joined|seeded) at (?P<steps>[\d,]+) global steps")


def epoch(learner: dict[str, Any]) -> int:
    """Of the plan that a learner's own /status speaks of."""
    return int(learner.get("epoch", -1))


@pytest.mark.usefixtures("operator")
@pytest.mark.timeout(420, func_only=True)
def test_a_ring_is_scaled_and_edited_without_a_restart_and_refuses_what_it_must(namespace, slow_pole, until):
    namespace.apply(slow_pole(RUN))
    namespace.wait_condition(RUN, "RingFormed", "Formed", 120)
    started = namespace.lives(RUN)

    def scaled(learners: int) -> None:
        namespace.kubectl("scale", f"galarun/{RUN}", f"--replicas={learners}")
        generation = namespace.get("galaruns", RUN)["metadata"]["generation"]
        status = namespace.wait(
            "galaruns",
            RUN,
            lambda found: found["status"] if found["status"]["observedGeneration"] == generation else None,
        )
        for name in started:
            until(
                f"{name} adopts the plan of epoch {status['epoch']}",
                lambda name=name: epoch(namespace.worker_status(name)) == status["epoch"],
            )

    def everyone_learns(learners: int) -> None:
        def is_so(found: dict[str, Any]) -> bool:
            status = found["status"]
            formed = {c["type"]: c["status"] for c in status["conditions"]}["RingFormed"] == "True"
            return (status["state"], status["ready"], formed) == ("Running", f"{learners}/{learners}", True)

        namespace.wait("galaruns", RUN, is_so, 2 * PATIENCE_SECONDS, f"{learners} learners train")
        names = {f"{RUN}-{rank}" for rank in range(learners)}
        until("no other pods", lambda: set(namespace.pods(RUN)) == names)
        lives = namespace.lives(RUN)
        assert {name: lives[name] for name in started} == started

    scaled(4)
    everyone_learns(4)
    for rank in (2, 3):
        assert "joined at" in namespace.kubectl("logs", f"{RUN}-{rank}")
    scaled(2)
    everyone_learns(2)

    # What may not change, and what makes no sense, is refused; the learners do not notice.
    refusals = (
        ({"environment": {"id": "CartPole-v1"}}, {"environment": {"id": "slow_pole:SlowPole-v0"}}, "immutable"),
        ({"topology": {"peers": 7}}, {"topology": {"peers": None}}, "spec.topology.peers"),
    )
    for change, undone, words in refusals:
        before = namespace.status(RUN)["steps"]
        namespace.patch(RUN, **change)
        reason = "ImmutableFieldChanged" if "environment" in change else "InvalidSpec"
        refused = namespace.wait_condition(RUN, "Accepted", reason)
        assert refused["status"] == "False"
        assert words in refused["message"]
        until(
            "the learners go on",
            lambda before=before: namespace.worker_status(f"{RUN}-0").get("globalSteps", 0) > before,
        )
        namespace.patch(RUN, **undone)
        namespace.wait_condition(RUN, "Accepted", "Valid")
    everyone_learns(2)

    # Another end, which is now.
    namespace.patch(RUN, totalSteps=namespace.status(RUN)["steps"] + 100)
    status = namespace.wait_state(RUN, "Succeeded", "Failed")
    assert status["state"] == "Succeeded", status["message"]
    assert status["finalModel"]["averaged"] == [0, 1]


@pytest.mark.usefixtures("operator")
def test_a_suspended_run_goes_on_from_its_checkpoints_where_it_stopped(namespace, slow_pole, until):
    run = slow_pole(RUN, checkpoint={"volume": {"size": "1Gi"}})
    namespace.apply(run)
    namespace.wait_condition(RUN, "RingFormed", "Formed", 120)
    namespace.wait("galaruns", RUN, lambda found: found["status"]["steps"] >= 400, what="400 steps")
    first = {name: uid for name, (uid, _) in namespace.lives(RUN).items()}
    learned = {entry["rank"]: entry["steps"] for entry in namespace.status(RUN)["learnerStatuses"]}

    namespace.patch(RUN, runPolicy={"suspend": True})
    status = namespace.wait_state(RUN, "Suspended")
    assert not namespace.pods(RUN)
    assert status["ready"] == "0/2"
    assert {c["type"]: c["status"] for c in status["conditions"]}["Suspended"] == "True"
    assert "startTime" not in status
    claims = {
        claim["metadata"]["name"]: claim["metadata"]["uid"] for claim in namespace.items("persistentvolumeclaims")
    }
    assert set(claims) == {f"{RUN}-0", f"{RUN}-1", f"{RUN}-results"}

    namespace.patch(RUN, runPolicy={"suspend": False})
    status = namespace.wait_state(RUN, "Running")
    starts = {name: STARTED.search(namespace.kubectl("logs", name)) for name in first}
    assert "resumed" in {start["how"] for start in starts.values()}, "nobody had a checkpoint"
    for rank, steps in learned.items():
        name = f"{RUN}-{rank}"
        assert namespace.lives(RUN)[name][0] != first[name]
        # Who is there second may find the first one ahead of its own checkpoint.
        assert int(starts[name]["steps"].replace(",", "")) >= sum(learned.values()), "older than the suspension"
        until(f"{name} answers", lambda name=name: namespace.worker_status(name))
        assert namespace.worker_status(name)["steps"] >= steps
    assert {c["metadata"]["name"]: c["metadata"]["uid"] for c in namespace.items("persistentvolumeclaims")} == claims
    assert {c["type"]: c["status"] for c in status["conditions"]}["Suspended"] == "False"

    namespace.delete("galarun", RUN)
    namespace.wait_gone(RUN)
