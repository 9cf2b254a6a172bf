"""`gala run` of a name that is there already: refused, resumed, replaced, or handed to the launcher that lives."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gala.errors import UsageError
from gala.local.admission import amend
from gala.local.rundir import RunDirectory, RunRecord
from gala.spec import load
from local_machine import DOCUMENT, Machine, ignores_sigterm
from waiting import eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

BACK = "; the run that was to be replaced is back in its place"


def test_a_finished_run_is_not_overwritten_without_force(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script("all", "finish")
    machine.ends(launcher, 0)
    uid = machine.record()["uid"]
    code, _, error = machine.says()
    assert code == 2
    assert "--force" in error
    assert "--name pole-2" in error
    assert len(error.splitlines()) == 1
    assert machine.record()["uid"] == uid

    machine.script("all")
    launcher = machine.gala("--name", "pole-2")
    eventually(lambda: (machine.folder / "runs/pole-2/learner-1/notes.jsonl").exists())
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)
    assert machine.record()["state"] == "finished"

    launcher = machine.gala("--force")
    eventually(lambda: machine.uid() not in (None, uid))
    machine.started(0, 1)
    assert not (machine.run / "final").exists()
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


@pytest.mark.parametrize("end", ["mistake", "crash", "broken folder", "Ctrl-C"])
def test_a_run_that_was_to_be_replaced_is_back_when_its_successor_never_trained(machine: Machine, end: str) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script("all", "finish")
    machine.ends(launcher, 0)
    before = machine.record()
    if end == "mistake":
        machine.script("all", "mute", "mistake error: there is no environment CartPol-v1")
        launcher = machine.gala("--force", "--set", "spec.environment.id=CartPol-v1")
        text = machine.ends(launcher, 2)
        assert f"there is no environment CartPol-v1{BACK}" in text
    elif end == "crash":
        machine.script("all", "crash")
        text = machine.ends(machine.gala("--force", "--set", "spec.runPolicy.backoffLimit=0"), 1)
        assert text.splitlines()[-1] == f"error: no learner of pole is left{BACK}"
    elif end == "broken folder":
        machine.script("all", "mute")
        launcher = machine.gala("--force")
        eventually(lambda: machine.uid() not in (None, before["uid"]))
        machine.started(0, 1)
        (machine.run / "learner-2").touch()  # where a folder has to be
        assert machine.says("--learners", "3")[0] == 0
        text = machine.ends(launcher, 1)
        assert "error: the launcher cannot go on: " in text
        assert text.endswith(f"{BACK}\n")
    else:
        machine.script("all", "mute")
        launcher = machine.gala("--force")
        eventually(lambda: machine.uid() not in (None, before["uid"]))
        machine.started(0, 1)
        launcher.send_signal(signal.SIGINT)
        assert BACK in machine.ends(launcher, 130)
    assert machine.record() == before
    assert (machine.run / "final" / "card.json").exists()

    machine.script("all")
    launcher = machine.gala("--force")
    eventually(lambda: machine.uid() not in (None, before["uid"]))
    eventually(lambda: not (machine.run / ".replaced").exists())
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)
    assert machine.record()["uid"] != before["uid"]


def test_a_change_that_comes_while_the_run_is_evaluated_is_refused(machine: Machine) -> None:
    (machine.folder / "fake-wait").touch()
    launcher = machine.gala()
    machine.started(0, 1)
    machine.script("all", "finish")
    eventually(lambda: machine.record().get("isEnding"))
    code, _, error = machine.says("--learners", "5")
    assert code == 2
    assert "run pole has its steps and is being evaluated" in error
    (machine.folder / "fake-wait").unlink()
    machine.ends(launcher, 0)
    assert "isEnding" not in machine.record()


@pytest.mark.parametrize("reason", ["Ctrl-C", "deadline"])
def test_a_change_that_comes_while_the_workers_stop_is_refused(machine: Machine, reason: str) -> None:
    machine.script(0, "deaf")
    launcher = machine.gala()
    machine.started(0, 1)
    eventually(lambda: ignores_sigterm(machine.pid(0)))
    if reason == "Ctrl-C":
        launcher.send_signal(signal.SIGINT)
    else:
        assert machine.says("--set", "spec.runPolicy.activeDeadlineSeconds=1")[0] == 0
    eventually(lambda: machine.record().get("isStopping"))
    code, out, error = machine.says("--learners", "3")
    assert (code, out) == (2, "")
    assert error == "error: run pole is being stopped; the same command resumes it in a moment\n"
    launcher.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGTERM)
    machine.ends(launcher, 130 if reason == "Ctrl-C" else 1)
    assert "isStopping" not in machine.record()
    assert not machine.notes(2)


def test_a_call_that_comes_as_the_launcher_ends_is_told_to_come_again(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "pole")
    directory.path.mkdir()
    (tmp_path / "pole.yaml").write_text(DOCUMENT)
    run = load(tmp_path / "pole.yaml")
    directory.write_run(run)
    directory.write_record(RunRecord(uid="u", state="finished", start_time=1.0))
    with pytest.raises(UsageError, match="run pole is just being started, or ends; try again in a moment"):
        amend(directory, run, force=False, asked=())


def test_a_run_with_checkpoints_is_not_resumed_as_another_experiment(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)
    code, _, error = machine.says("--set", "spec.seed=2", "--set", "spec.environment.id=Acrobot-v1")
    assert code == 2
    assert "spec.environment.id CartPole-v1 -> Acrobot-v1, spec.seed 1 -> 2" in error
    assert "--force" in error
    assert len(error.splitlines()) == 1


def test_a_document_that_was_edited_in_the_run_folder_does_not_make_it_another_experiment(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    document = machine.run / "galarun.yaml"
    document.write_text(document.read_text().replace("seed: 1", "seed: 2"))
    code, out, _ = machine.says("--learners", "3")
    assert code == 0, "its workers still have the seed of the first call"
    assert "spec.learners 2 -> 3" in out
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)

    document.write_text(document.read_text().replace("seed: 1", "seed: 2"))
    for arguments in (("--set", "spec.seed=2"), ("--learners", "5", "--set", "spec.seed=2")):
        code, _, error = machine.says(*arguments)
        assert code == 2
        assert "cannot be resumed as another experiment: spec.seed 1 -> 2; undo that" in error
    launcher = machine.gala("--learners", "3")
    machine.started(0, 1, times=2)
    launcher.send_signal(signal.SIGINT)
    assert "seed" not in machine.ends(launcher, 130)


def test_a_folder_that_is_no_run_is_never_removed(machine: Machine) -> None:
    machine.run.mkdir(parents=True)
    (machine.run / "thesis.tex").write_text("years")
    for arguments in ([], ["--force"]):
        code, _, error = machine.says(*arguments)
        assert code == 2
        assert "is not a run directory" in error
    assert (machine.run / "thesis.tex").read_text() == "years"
    assert [entry.name for entry in machine.run.iterdir()] == ["thesis.tex"], "and nothing is put there"


def test_a_second_call_changes_the_ring_of_a_live_run_without_restarts(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    code, out, _ = machine.says("--learners", "4")
    assert code == 0
    assert "spec.learners 2 -> 4" in out
    machine.started(2, 3)
    eventually(lambda: machine.notes(0, "replanned"))
    grown = json.loads((machine.run / "plan.json").read_text())
    assert grown["epoch"] == 1
    assert [learner["outPeers"] for learner in grown["learners"]] == [[1], [2], [3], [0]]

    code, _, _ = machine.says("--learners", "1")
    assert code == 0
    eventually(lambda: all(machine.notes(rank, "left") for rank in (1, 2, 3)))
    shrunk = json.loads((machine.run / "plan.json").read_text())
    assert shrunk["epoch"] == 2
    assert shrunk["learners"][0]["address"] == grown["learners"][0]["address"]
    assert len(machine.notes(0, "started")) == 1

    code, _, _ = machine.says("--learners", "2")
    machine.started(1, times=2)
    machine.script("all", "finish")
    assert "learner 3 has left the ring" in machine.ends(launcher, 0)


def test_a_second_call_changes_how_many_peers_the_learners_of_a_live_run_have(machine: Machine) -> None:
    launcher = machine.gala("--learners", "3")
    machine.started(0, 1, 2)
    code, out, _ = machine.says("--learners", "3", "--set", "spec.topology.peers=2")
    assert code == 0
    assert "spec.topology.peers unset -> 2" in out
    eventually(lambda: machine.notes(0, "replanned"))
    plan = json.loads((machine.run / "plan.json").read_text())
    assert [learner["outPeers"] for learner in plan["learners"]] == [[1, 2], [0, 2], [0, 1]]
    machine.script("all", "finish")
    machine.ends(launcher, 0)


def test_fewer_steps_than_a_live_run_has_been_given_are_taken_from_the_command_line_only(machine: Machine) -> None:
    launcher = machine.gala("--set", "spec.totalSteps=2000000")
    machine.started(0, 1)
    code, out, error = machine.says("--learners", "3")
    assert (code, out) == (2, "")
    assert "spec.totalSteps 2000000 -> 1000000; give --set spec.totalSteps=2000000 again" in error
    assert not machine.notes(0, "replanned")
    assert machine.says("--learners", "3", "--set", "spec.totalSteps=2000000")[0] == 0
    machine.started(2)
    code, out, _ = machine.says("--learners", "3", "--set", "spec.totalSteps=1500000")
    assert code == 0
    assert "spec.totalSteps 2000000 -> 1500000" in out
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


def test_a_live_run_refuses_what_running_workers_cannot_follow(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    for arguments, expected in [
        ([], "is already running"),
        (["--force"], "stop it with Ctrl-C"),
        (["--set", "spec.hyperparameters.learningRate=0.1"], "or stop it with Ctrl-C and resume it so"),
        (["--set", "spec.hyperparameters.learningRate=0.1"], "spec.hyperparameters.learningRate 0.0007 -> 0.1"),
        (["--set", "spec.seed=5"], "give the options of the first call again, or use --name pole-2"),
    ]:
        code, _, error = machine.says(*arguments)
        assert code == 2
        assert expected in error
        assert len(error.splitlines()) == 1
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)
