"""What a learner says about itself."""

from gala_worker.telemetry import Telemetry


def test_a_learner_says_whose_it_is_from_the_start() -> None:
    telemetry = Telemetry(run="pong", uid="run-1", rank=2, incarnation=5, total_steps=100)
    status = telemetry.status()
    assert (status["run"], status["uid"], status["rank"], status["incarnation"]) == ("pong", "run-1", 2, 5)
    assert status["state"] == "starting"
