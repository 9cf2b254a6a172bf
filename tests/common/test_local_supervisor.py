"""Who is started, restarted, let go and given up, and when: with fake processes and a clock of our own."""

from __future__ import annotations

from typing import Any

from gala.local.restarts import Backoff
from gala.local.supervisor import Patience, Supervisor
from gala.plan import LearnerPlan, plan
from gala.spec import GalaRun, parse


def a_run(**spec: Any) -> GalaRun:
    return parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "pole"},
            "spec": {"environment": {"id": "CartPole-v1"}, "learners": 3, "runPolicy": {"backoffLimit": 2}, **spec},
        }
    )


class TestBackoff:
    def test_delays_double_up_to_their_maximum_and_end_at_the_limit(self) -> None:
        backoff = Backoff(limit=5, base_seconds=1, max_seconds=6, healthy_seconds=600)
        assert [backoff.crashed(1) for _ in range(6)] == [1, 2, 4, 6, 6, None]

    def test_a_healthy_while_clears_the_record(self) -> None:
        backoff = Backoff(limit=2, base_seconds=1, max_seconds=60, healthy_seconds=600)
        assert [backoff.crashed(599), backoff.crashed(1)] == [1, 2]
        assert backoff.crashed(600) == 1
        assert backoff.total_restarts == 3

    def test_without_restarts_the_first_crash_is_the_last(self) -> None:
        backoff = Backoff(limit=0, base_seconds=1, max_seconds=60, healthy_seconds=600)
        assert backoff.crashed(10_000) is None


class FakeProcess:
    """A process that ends when the test says so."""

    def __init__(self, learner: LearnerPlan) -> None:
        self.rank, self.pid = learner.rank, 1000 + learner.rank
        self.code: int | None = None
        self.terminated = self.killed = False

    def exit_code(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.terminated = True

    def kill(self) -> None:
        self.killed = True

    def last_line(self) -> str:
        return "the last line"


class Ring:
    """A supervisor over fake processes, at a time of our choosing."""

    def __init__(self, num_learners: int = 3, algorithm: str = "GALA-A2C", **run_policy: int) -> None:
        self.algorithm = algorithm
        self.run_policy = {"backoffLimit": 2, **run_policy}
        self.lives: dict[int, list[FakeProcess]] = {}
        self.said: list[str] = []
        patience = Patience(backoff_base=1, healthy=600, stop=60, leave=30, stragglers=120)
        self.supervisor = Supervisor(spawn=self._spawn, report=self.said.append, patience=patience)
        self.follow(num_learners, at=0)

    def _spawn(self, learner: LearnerPlan) -> FakeProcess:
        self.lives.setdefault(learner.rank, []).append(FakeProcess(learner))
        return self.lives[learner.rank][-1]

    def follow(self, num_learners: int, at: float, total_steps: int = 1000) -> None:
        run = a_run(learners=num_learners, totalSteps=total_steps, algorithm=self.algorithm, runPolicy=self.run_policy)
        self.supervisor.follow(plan(run), at)

    def process(self, rank: int) -> FakeProcess:
        return self.lives[rank][-1]

    def ends(self, rank: int, code: int, at: float) -> None:
        self.process(rank).code = code
        self.supervisor.step(at)

    def phases(self) -> dict[int, str]:
        return {rank: learner.phase for rank, learner in self.supervisor.learners.items()}


class TestSupervisor:
    def test_a_crash_is_followed_by_a_restart_when_its_time_has_come(self) -> None:
        ring = Ring()
        ring.ends(1, code=1, at=10)
        assert ring.phases() == {0: "running", 1: "backing off", 2: "running"}
        ring.supervisor.step(10.9)
        assert len(ring.lives[1]) == 1
        ring.supervisor.step(11)
        assert len(ring.lives[1]) == 2
        ring.ends(1, code=-9, at=12)
        ring.supervisor.step(13.9)
        assert len(ring.lives[1]) == 2
        ring.supervisor.step(14)
        assert len(ring.lives[1]) == 3
        assert [len(ring.lives[rank]) for rank in (0, 2)] == [1, 1]

    def test_a_crash_after_ten_healthy_minutes_starts_counting_anew(self) -> None:
        ring = Ring()
        for at in (10, 20, 1000):
            ring.ends(0, code=1, at=at)
            ring.supervisor.step(at + 5)
        assert ring.phases()[0] == "running"
        assert ring.said[-1] == "learner 0 crashed with exit code 1 (the last line); restart 1 of 2 in 1 s"

    def test_a_learner_beyond_its_limit_is_given_up_and_the_rest_can_finish(self) -> None:
        ring = Ring()
        for at in (10, 20, 30):
            ring.ends(0, code=1, at=at)
            ring.supervisor.step(at + 5)
        assert ring.phases() == {0: "given up", 1: "running", 2: "running"}
        assert ring.supervisor.outcome is None
        ring.ends(1, code=0, at=50)
        ring.ends(2, code=0, at=51)
        assert ring.supervisor.outcome == "finished"

    def test_who_waits_for_a_crashed_server_is_said(self) -> None:
        ring = Ring(algorithm="A3C")
        ring.ends(0, code=-9, at=10)
        assert ring.said[-1].endswith("was killed by signal 9; restart 1 of 2 in 1 s; the others wait for it")
        ring.ends(1, code=-9, at=11)
        assert ring.said[-1].endswith("restart 1 of 2 in 1 s")

    def test_the_run_has_failed_when_one_that_the_others_need_is_given_up(self) -> None:
        ring = Ring(algorithm="IMPALA")
        for at in (10, 20, 30):
            ring.ends(0, code=1, at=at)
            ring.supervisor.step(at + 5)
        for rank in (1, 2):
            assert ring.process(rank).terminated
            ring.ends(rank, code=143, at=40)
        assert ring.supervisor.outcome == "failed"
        assert ring.supervisor.failure is not None
        assert ring.supervisor.failure.endswith("after 2 restarts; the others cannot go on without it")

    def test_an_actor_that_is_given_up_does_not_end_the_run(self) -> None:
        ring = Ring(algorithm="IMPALA")
        for at in (10, 20, 30):
            ring.ends(2, code=1, at=at)
            ring.supervisor.step(at + 5)
        assert ring.phases() == {0: "running", 1: "running", 2: "given up"}
        assert ring.supervisor.failure is None

    def test_the_run_has_failed_when_fewer_are_left_than_it_has_to_have(self) -> None:
        ring = Ring(minLearners=2)
        for at in (10, 20, 30):
            ring.ends(0, code=1, at=at)
            ring.supervisor.step(at + 5)
        assert ring.supervisor.failure is None
        for at in (40, 50, 60):
            ring.ends(2, code=1, at=at)
            ring.supervisor.step(at + 5)
        assert ring.process(1).terminated
        ring.ends(1, code=143, at=70)
        assert ring.supervisor.outcome == "failed"
        assert ring.supervisor.failure == "1 of 3 learners are left, fewer than spec.runPolicy.minLearners 2"

    def test_once_one_has_finished_it_does_not_matter_how_many_are_left(self) -> None:
        ring = Ring(minLearners=3)
        ring.ends(0, code=0, at=10)
        ring.ends(1, code=1, at=11)
        ring.ends(2, code=0, at=12)
        assert ring.supervisor.outcome == "finished"

    def test_when_all_are_given_up_the_run_has_failed(self) -> None:
        ring = Ring(1)
        for at in (10, 20, 30):
            ring.ends(0, code=1, at=at)
            ring.supervisor.step(at + 5)
        assert ring.supervisor.outcome == "failed"

    def test_a_users_mistake_stops_everyone_and_restarts_nobody(self) -> None:
        ring = Ring()
        ring.ends(1, code=2, at=1)
        assert ring.supervisor.mistake == "the last line"
        assert ring.process(0).terminated
        assert ring.process(2).terminated
        ring.ends(0, code=143, at=2)
        assert ring.supervisor.outcome is None
        ring.ends(2, code=143, at=2)
        assert ring.supervisor.outcome == "failed"
        assert [len(lives) for lives in ring.lives.values()] == [1, 1, 1]

    def test_stopping_waits_and_then_kills(self) -> None:
        ring = Ring(2)
        ring.supervisor.stop(100)
        ring.ends(0, code=143, at=101)
        ring.supervisor.step(159)
        assert not ring.process(1).killed
        ring.supervisor.step(160)
        assert ring.process(1).killed
        assert ring.supervisor.outcome is None
        ring.ends(1, code=-9, at=161)
        assert ring.supervisor.outcome == "stopped"

    def test_stopping_while_one_backs_off_does_not_start_it_again(self) -> None:
        ring = Ring(2)
        ring.ends(0, code=1, at=10)
        ring.supervisor.stop(10.5)
        ring.ends(1, code=143, at=20)
        assert ring.supervisor.outcome == "stopped"
        assert len(ring.lives[0]) == 1

    def test_a_signal_that_we_did_not_send_is_a_crash(self) -> None:
        ring = Ring(2)
        ring.ends(0, code=143, at=10)
        assert ring.phases()[0] == "backing off"

    def test_ranks_that_leave_the_plan_get_time_then_sigterm_then_sigkill(self) -> None:
        ring = Ring(3)
        ring.follow(1, at=100)
        ring.ends(1, code=0, at=101)
        assert ring.phases() == {0: "running", 2: "leaving"}
        ring.supervisor.step(129)
        assert not ring.process(2).terminated
        ring.supervisor.step(130)
        assert ring.process(2).terminated
        ring.supervisor.step(190)
        assert ring.process(2).killed
        ring.ends(2, code=-9, at=191)
        assert ring.phases() == {0: "running"}
        assert ring.supervisor.outcome is None

    def test_a_rank_that_returns_while_it_is_leaving_starts_anew(self) -> None:
        ring = Ring(2)
        ring.follow(1, at=100)
        ring.follow(2, at=101)
        assert len(ring.lives[1]) == 1
        ring.ends(1, code=0, at=102)
        assert len(ring.lives[1]) == 2
        assert ring.phases() == {0: "running", 1: "running"}

    def test_once_one_has_finished_a_crash_is_not_repaired_and_stragglers_are_stopped(self) -> None:
        ring = Ring(3)
        ring.ends(0, code=0, at=100)
        ring.ends(1, code=1, at=101)
        assert ring.phases()[1] == "given up"
        ring.supervisor.step(219)
        assert not ring.process(2).terminated
        ring.supervisor.step(220)
        assert ring.process(2).terminated
        ring.ends(2, code=143, at=221)
        assert ring.supervisor.outcome == "finished"

    def test_once_one_has_finished_nobody_is_started_again(self) -> None:
        ring = Ring(2)
        ring.ends(1, code=1, at=99.5)
        ring.ends(0, code=0, at=100)
        assert ring.supervisor.outcome == "finished"
        ring.supervisor.step(200)
        assert len(ring.lives[1]) == 1

    def test_after_a_stop_a_plan_starts_everyone_again(self) -> None:
        ring = Ring(2)
        ring.supervisor.stop(10)
        ring.ends(0, code=143, at=11)
        ring.ends(1, code=143, at=11)
        ring.follow(2, at=20)
        assert [len(lives) for lives in ring.lives.values()] == [2, 2]
        assert ring.supervisor.outcome is None

    def test_larger_total_steps_start_again_who_had_finished_and_nobody_is_a_straggler(self) -> None:
        ring = Ring(4)
        ring.ends(3, code=1, at=99.5)
        ring.ends(0, code=0, at=100)
        ring.ends(1, code=1, at=101)
        assert ring.phases() == {0: "finished", 1: "given up", 2: "running", 3: "given up"}
        ring.follow(4, at=110, total_steps=2000)
        assert [len(ring.lives[rank]) for rank in range(4)] == [2, 2, 1, 2]
        ring.supervisor.step(300)
        assert not any(ring.process(rank).terminated for rank in range(4))
        ring.ends(1, code=1, at=301)
        assert ring.phases()[1] == "backing off"
        for rank in (0, 2, 3):
            ring.ends(rank, code=0, at=302)
        assert ring.supervisor.outcome == "finished"

    def test_larger_total_steps_do_not_start_again_who_was_given_up(self) -> None:
        ring = Ring(2)
        for at in (10, 20, 30):
            ring.ends(0, code=1, at=at)
            ring.supervisor.step(at + 5)
        ring.follow(2, at=50, total_steps=2000)
        assert ring.phases() == {0: "given up", 1: "running"}

    def test_another_number_of_learners_starts_nobody_again_who_had_finished(self) -> None:
        ring = Ring(2)
        ring.ends(0, code=0, at=100)
        ring.follow(3, at=101)
        assert [len(ring.lives[rank]) for rank in range(3)] == [1, 1, 1]

    def test_who_ends_before_it_can_have_noticed_larger_total_steps_starts_again(self) -> None:
        ring = Ring(2)
        ring.follow(2, at=100, total_steps=2000)
        ring.ends(0, code=0, at=101)
        assert ring.phases() == {0: "running", 1: "running"}
        ring.ends(0, code=0, at=102)
        assert ring.phases()[0] == "finished", "its second life knew the new total"
        ring.ends(1, code=0, at=131)
        assert ring.phases()[1] == "finished", "it has had time to notice"

    def test_a_straggler_that_was_just_stopped_starts_again_with_larger_total_steps(self) -> None:
        ring = Ring(2)
        ring.ends(0, code=0, at=100)
        ring.supervisor.step(220)
        assert ring.process(1).terminated
        ring.follow(2, at=221, total_steps=2000)
        ring.ends(1, code=143, at=260)
        assert ring.phases() == {0: "running", 1: "running"}

    def test_after_a_suspension_nobody_is_a_straggler_because_of_an_end_before_it(self) -> None:
        ring = Ring(2)
        ring.ends(0, code=0, at=100)
        ring.supervisor.stop(101)
        ring.ends(1, code=143, at=102)
        assert ring.supervisor.outcome == "stopped"
        ring.follow(2, at=1000)
        ring.supervisor.step(1001)
        assert [len(ring.lives[rank]) for rank in (0, 1)] == [2, 2]
        assert not ring.process(1).terminated
