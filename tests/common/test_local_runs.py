"""`gala run` from the outside: a real launcher process with fake workers, stopped, resumed and rescaled."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import time

import pytest

from gala.local.interrupts import ECHO_SECONDS
from local_machine import Machine, alive, ignores_sigterm
from waiting import eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]


def test_a_run_that_reaches_its_steps_ends_with_scores_and_hints(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script("all", "finish")
    text = machine.ends(launcher, 0)
    assert machine.record()["state"] == "finished"
    assert "pole has reached 1,234,567 decisions" in text
    assert "mean return 19.5 ± 0.5 over 10 episodes (114% of human)" in text
    assert "skipped" not in text
    assert "  gala evaluate runs/pole --video pole.gif\n" in text
    assert "  gala run pole.yaml --name pole-more --learners 4\n" in text
    assert "  gala report runs/pole runs/pole-more\n" in text


def test_the_end_tells_what_could_not_be_learned_from(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    records = [{"kind": "train", "updates": 50, "skippedUpdates": 3}, {"kind": "event", "event": "finished"}]
    lines = [json.dumps(record) for record in records]
    (machine.run / "learner-0" / "metrics.jsonl").write_text('{"kind": "train", "updates": 50, "skippedUpdates": 0}\n')
    (machine.run / "learner-1" / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "tra']))
    machine.script("all", "finish")
    text = machine.ends(launcher, 0)
    assert "  skipped         3 of 50 updates, because rewards, observations or gradients were not finite" in text
    assert "; see runs/pole/learner-1/log.txt\n" in text


def test_a_score_that_is_no_number_is_said_to_be_unknown(machine: Machine) -> None:
    (machine.folder / "fake-flaws").touch()
    machine.script("all", "finish")
    text = machine.ends(machine.gala(), 0)
    assert (
        "greedy policy   mean return unknown: the environment has given rewards that are not finite numbers\n" in text
    )


def test_the_hints_at_the_end_know_the_options_of_the_call_and_what_is_possible(machine: Machine) -> None:
    name = "pole-" + "x" * 45
    machine.script("all", "finish")
    launcher = machine.gala("--name", name, "--output", "my runs", "--set", "spec.environment.id=mine:Pole-v1")
    text = machine.ends(launcher, 0)
    more = f"{name[:45]}-more"
    assert f"  gala run 'my runs/{name}/galarun.yaml' --name {more} --learners 4 --output 'my runs'\n" in text
    assert f"  gala report 'my runs/{name}' 'my runs/{more}'\n" in text
    assert f"  gala evaluate 'my runs/{name}' --episodes 100\n" in text, "whether it can be filmed is not known"


def test_a_worker_gets_its_rank_plan_folder_and_share_of_the_cores(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    told = machine.notes(1)[0]["told"]
    assert told["GALA_RANK"] == "1"
    assert told["GALA_PLAN_FILE"] == str(machine.run / "plan.json")
    assert told["GALA_OUTPUT_DIR"] == str(machine.run)
    assert int(told["GALA_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert int(told["GALA_INCARNATION"]) > int(machine.notes(0)[0]["told"]["GALA_INCARNATION"]) - 10_000
    assert "fake worker 1 started" in (machine.run / "learner-1" / "log.txt").read_text()
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


def test_progress_is_plain_lines_where_there_is_no_terminal(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    assert launcher.stdout is not None
    line = next(line for line in launcher.stdout if "2 of 2 learners" in line)
    assert "of 1,000,000 decisions" in line
    assert "200/s, return -20.5" in line
    assert "ETA" in line
    assert "\x1b" not in line
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    launcher.send_signal(signal.SIGINT)
    text = machine.ends(launcher, 130)
    assert "the same command resumes" in text
    assert [len(machine.notes(rank, "stopped")) for rank in (0, 1)] == [1, 1]
    before = machine.record()
    assert before["state"] == "stopped"
    assert before["wallSeconds"] > 0

    launcher = machine.gala()
    machine.started(0, 1, times=2)
    first, second = machine.notes(0, "started")
    assert second["epoch"] == first["epoch"] + 1
    assert int(second["told"]["GALA_INCARNATION"]) > int(first["told"]["GALA_INCARNATION"])
    machine.script("all", "finish")
    assert "pole resumes" in machine.ends(launcher, 0)
    after = machine.record()
    assert (after["uid"], after["startTime"]) == (before["uid"], before["startTime"])
    assert after["wallSeconds"] > before["wallSeconds"]


def test_ctrl_c_in_a_terminal_reaches_the_launcher_only_and_leaves_the_table(machine: Machine) -> None:
    master, terminal = pty.openpty()
    launcher = machine.gala(
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        preexec_fn=lambda: __import__("fcntl").ioctl(terminal, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(terminal)
    shown = ""
    with contextlib.suppress(OSError):  # a pty whose other side is gone
        while "training" not in shown or "-20.5" not in shown:
            shown += os.read(master, 65_536).decode(errors="replace")
        os.write(master, b"\x03")
        while True:
            shown += os.read(master, 65_536).decode(errors="replace")
    os.close(master)
    assert launcher.wait(20) == 130
    for heading in ("learner", "per second", "return", "staleness", "disagreement", "restarts", "ETA"):
        assert heading in shown
    assert [note["word"] for note in machine.notes(0)] == ["started", "stopped"]


def test_a_training_outlives_its_terminal_until_it_is_told_to_stop(machine: Machine) -> None:
    master, terminal = pty.openpty()
    launcher = machine.gala(
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests themselves may run under nohup
    )
    os.close(terminal)
    shown = b""
    while b"starts" not in shown:
        shown += os.read(master, 65_536)
    os.close(master)  # from now on every write fails
    machine.started(0, 1)
    code, _, _ = machine.says("--learners", "3")
    assert code == 0
    machine.started(2)
    launcher.send_signal(signal.SIGHUP)  # what a terminal sends that closes
    assert launcher.wait(20) == 128 + signal.SIGHUP
    assert [len(machine.notes(rank, "stopped")) for rank in (0, 1, 2)] == [1, 1, 1]
    assert machine.record()["state"] == "stopped"


def test_a_reader_that_ends_does_not_end_the_training(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    assert launcher.stdout is not None
    launcher.stdout.close()
    code, _, _ = machine.says("--learners", "3")  # which is told to nobody
    assert code == 0
    machine.started(2)
    machine.script("all", "finish")
    assert launcher.wait(20) == 0
    assert launcher.stderr is not None
    assert launcher.stderr.read() == ""
    assert machine.record()["state"] == "finished"


def test_a_launcher_that_cannot_go_on_lets_its_workers_write_their_checkpoints(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    (machine.run / "learner-2").touch()  # where a folder has to be
    code, _, _ = machine.says("--learners", "3")
    assert code == 0
    assert "the launcher cannot go on" in machine.ends(launcher, 1)
    assert [len(machine.notes(rank, "stopped")) for rank in (0, 1)] == [1, 1]
    assert machine.record()["state"] == "failed"


def test_a_second_ctrl_c_kills_workers_that_do_not_stop(machine: Machine) -> None:
    machine.script(0, "deaf")
    launcher = machine.gala()
    machine.started(0, 1)
    eventually(lambda: ignores_sigterm(machine.pid(0)))
    launcher.send_signal(signal.SIGINT)
    eventually(lambda: machine.notes(1, "stopped"))
    assert launcher.poll() is None
    assert alive(machine.pid(0))
    time.sleep(ECHO_SECONDS)  # as a hand would: right after the first it is the same one
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)
    assert not alive(machine.pid(0))
    assert machine.record()["state"] == "stopped"


def test_a_crashed_worker_is_restarted_while_the_others_go_on(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    os.kill(machine.pid(1), signal.SIGKILL)
    machine.started(1, times=2)
    first, second = machine.notes(1, "started")
    assert int(second["told"]["GALA_INCARNATION"]) > int(first["told"]["GALA_INCARNATION"])
    assert len(machine.notes(0, "started")) == 1
    machine.script("all", "finish")
    assert "learner 1 was killed by signal 9; restart 1 of 3" in machine.ends(launcher, 0)


def test_a_worker_beyond_its_restarts_is_given_up_and_the_others_reach_the_end(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script(1, "crash")
    assert launcher.stdout is not None
    given_up = next(line for line in launcher.stdout if "given up" in line)
    assert (
        "learner 1 crashed with exit code 1 (fake worker 1 started) and is given up after 3 restarts; 1 go on"
        in given_up
    )
    machine.script(0, "finish")
    machine.ends(launcher, 0)
    assert len(machine.notes(1, "started")) == 4  # the first life and three restarts


def test_a_run_with_fewer_learners_than_it_has_to_have_fails(machine: Machine) -> None:
    launcher = machine.gala("--set", "spec.runPolicy.minLearners=2")
    machine.started(0, 1)
    machine.script(1, "crash")
    text = machine.ends(launcher, 1)
    assert "1 of 2 learners are left, fewer than spec.runPolicy.minLearners 2" in text
    assert machine.notes(0, "stopped")
    assert machine.record()["state"] == "failed"


def test_a_run_without_learners_left_fails_with_exit_code_1(machine: Machine) -> None:
    launcher = machine.gala("--set", "spec.runPolicy.backoffLimit=0")
    machine.started(0, 1)
    machine.script("all", "crash")
    text = machine.ends(launcher, 1)
    assert "error: no learner of pole is left" in text
    assert "Traceback" not in text
    assert machine.record()["state"] == "failed"


def test_a_users_mistake_that_a_worker_finds_ends_the_run_with_its_message(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script(1, "mistake error: no ROM is called Pongg; did you mean Pong?")
    text = machine.ends(launcher, 2)
    assert text.splitlines()[-1] == "error: no ROM is called Pongg; did you mean Pong?"
    assert len(machine.notes(1, "started")) == 1
    assert len(machine.notes(0, "stopped")) == 1


def test_after_such_a_mistake_the_corrected_file_runs_under_the_same_name(machine: Machine) -> None:
    machine.script("all", "mistake error: no such environment")
    machine.ends(machine.gala(), 2)
    uid = machine.record()["uid"]
    machine.script("all")
    launcher = machine.gala("--set", "spec.environment.id=CartPole-v2")
    eventually(lambda: machine.uid() not in (None, uid))
    machine.started(0, 1)
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


def test_a_damaged_document_in_the_run_folder_does_not_disturb_a_live_run(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    (machine.run / "galarun.yaml").write_text("spec: [")
    assert launcher.stdout is not None
    assert any("galarun.yaml is not followed" in line for line in launcher.stdout)
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


def test_a_folder_that_cannot_be_written_does_not_end_the_training(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    eventually(lambda: machine.record()["workerPids"])
    (machine.run / "run.json").unlink()
    (machine.run / "run.json").mkdir()  # nothing can be put in its place, not even by root
    assert launcher.stdout is not None
    assert any("run.json cannot be written" in line for line in launcher.stdout)
    assert alive(machine.pid(0))
    (machine.run / "run.json").rmdir()
    machine.script("all", "finish")
    machine.ends(launcher, 0)
    assert machine.record()["state"] == "finished"


def test_suspending_a_live_run_stops_its_workers_until_it_is_lifted(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    assert machine.says("--set", "spec.runPolicy.suspend=true")[0] == 0
    eventually(lambda: machine.notes(0, "stopped") and machine.notes(1, "stopped"))
    eventually(lambda: machine.record()["state"] == "suspended")
    assert launcher.poll() is None
    assert machine.says()[0] == 0
    machine.started(0, 1, times=2)
    machine.script("all", "finish")
    machine.ends(launcher, 0)


def test_a_suspended_document_starts_nothing(machine: Machine) -> None:
    code, _, error = machine.says("--set", "spec.runPolicy.suspend=true")
    assert code == 2
    assert "spec.runPolicy.suspend" in error


def test_a_run_past_its_deadline_fails(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    assert machine.says("--set", "spec.runPolicy.activeDeadlineSeconds=1")[0] == 0
    text = machine.ends(launcher, 1)
    assert "activeDeadlineSeconds" in text
    assert [len(machine.notes(rank, "stopped")) for rank in (0, 1)] == [1, 1]
    assert machine.record()["state"] == "failed"
    code, _, error = machine.says("--set", "spec.runPolicy.activeDeadlineSeconds=1")
    assert code == 2
    assert "raise it to resume" in error
    assert len(machine.notes(0, "started")) == 1


def test_a_failing_final_evaluation_is_an_error_that_the_same_command_repeats(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    (machine.folder / "fake-finalize").touch()
    machine.script("all", "finish")
    text = machine.ends(launcher, 1)
    assert "the evaluation of the final model has failed: no simulators left" in text
    assert machine.record()["state"] == "failed"
    (machine.folder / "fake-finalize").unlink()
    machine.ends(machine.gala(), 0)
    assert machine.record()["state"] == "finished"


@pytest.mark.parametrize(("least", "succeeds"), [(19.5, True), (19.6, False)])
def test_a_final_score_below_the_least_fails_the_run_and_keeps_its_results(
    machine: Machine, least: float, succeeds: bool
) -> None:
    launcher = machine.gala("--set", f"spec.evaluation.minReturn={least}")
    machine.started(0, 1)
    machine.script("all", "finish")
    text = machine.ends(launcher, 0 if succeeds else 1)
    assert "mean return 19.5 ± 0.5 over 10 episodes" in text
    assert machine.record()["state"] == ("finished" if succeeds else "failed")
    assert ("spec.evaluation.minReturn: the final model's mean return is 19.5, below 19.6" in text) is not succeeds
    if not succeeds:
        machine.ends(machine.gala("--set", "spec.evaluation.minReturn=19"), 0)


def test_a_learner_that_does_not_notice_the_end_is_stopped(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script(0, "finish")
    assert "learner 1 goes on though the total steps are reached" in machine.ends(launcher, 0)
    assert machine.notes(1, "stopped")
