"""`gala` from the outside: what it prints, which exit code it ends with, and that mistakes cost one line each."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gala import cli
from gala.plan import RunPlan
from remote_cluster import Gala

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
EXAMPLES = Path(__file__).parents[2] / "examples"


def write(path: Path, **spec: object) -> str:
    document = {"apiVersion": "gala.dev/v1alpha1", "kind": "GalaRun", "metadata": {"name": "pole"}}
    path.write_text(yaml.safe_dump({**document, "spec": {"environment": {"id": "CartPole-v1"}, **spec}}))
    return str(path)


def test_help_lists_every_command_with_a_sentence(gala: Gala) -> None:
    code, out, _ = gala("--help")
    assert code == 0
    for command in ("run", "validate", "plan", "evaluate", "report", "crd", "submit", "status", "logs", "fetch"):
        line = next(line for line in out.splitlines() if line.split()[:1] == [command])
        assert len(line.split()) > 4


def test_the_version_is_the_installed_one(gala: Gala) -> None:
    assert gala("--version") == (0, f"gala {version('gala')}\n", "")


def test_help_imports_nothing_heavy() -> None:
    heavy = ("pydantic", "yaml", "torch", "numpy", "matplotlib", "grpc", "kubernetes")
    code = "import sys\nfrom gala import cli\ntry: cli.app(['--help'])\nexcept SystemExit: pass\n"
    code += f"sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert ended.stderr == "[]\n"


def test_valid_documents_are_valid(gala: Gala) -> None:
    files = [str(path) for path in sorted(EXAMPLES.glob("*.yaml"))]
    code, out, err = gala("validate", *files)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{file}: valid" for file in files]


def test_validate_lists_every_problem_of_every_file(gala: Gala, tmp_path: Path) -> None:
    good = write(tmp_path / "good.yaml")
    bad = write(tmp_path / "bad.yaml", learners=-3, algorithm="PPO")
    code, out, err = gala("validate", good, bad, "missing.yaml")
    assert code == 2
    assert out == f"{good}: valid\n"
    first, second, third = sorted(err.splitlines())
    assert first.startswith(f"{bad}: spec.algorithm: ")
    assert second.startswith(f"{bad}: spec.learners: must be at least 1, got -3")
    assert third.startswith("missing.yaml: ")


def test_validate_judges_experiments_by_all_their_runs(gala: Gala, tmp_path: Path) -> None:
    files = sorted(str(path) for path in PAPER.glob("*.yaml"))
    code, out, err = gala("validate", *files)
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{file}: valid" for file in files]
    document = yaml.safe_load((PAPER / "curves.yaml").read_text())
    document["spec"]["matrix"]["algorithm"] = ["GALA-A2C", "A4C"]
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(document))
    code, out, err = gala("validate", str(bad))
    assert (code, out) == (2, "")
    assert "A4C" in err


def test_plan_shows_the_ring(gala: Gala, tmp_path: Path) -> None:
    file = write(tmp_path / "pole.yaml", learners=3)
    code, out, _ = gala("plan", file)
    assert code == 0
    assert "Ring of 3: beta = 0.5000" in out
    assert out.splitlines()[-1].split()[:4] == ["2", "actor-learner", "0", "1"]


def test_plan_as_json_is_what_workers_read(gala: Gala, tmp_path: Path) -> None:
    _, out, _ = gala("plan", write(tmp_path / "pole.yaml"), "--json", "--learners", "2", "--name", "on")
    plan = RunPlan.from_json(out)
    assert (plan.run_name, plan.ranks) == ("on", (0, 1))


def test_a_name_that_cannot_be_is_told_as_it_was_given(gala: Gala, tmp_path: Path) -> None:
    file = write(tmp_path / "pole.yaml")
    for name in ("😀", "pölé"):
        code, out, err = gala("plan", file, "--name", name)
        assert (code, out) == (2, "")
        assert err.startswith("error: metadata.name: must consist of lower-case letters")
        assert err.endswith(f", got '{name}'\n")
    code, out, err = gala("plan", file, "--set", r'metadata.name="\ud800"')
    assert (code, out) == (2, "")
    assert err == "error: metadata.name: must be text of whole characters, not halves of them, got '\\ud800'\n"


def test_options_win_over_the_file_and_the_last_word_wins(gala: Gala, tmp_path: Path) -> None:
    arguments = ["--set", "spec.learners=5", "--set", "spec.topology.type=Complete"]
    _, out, _ = gala("plan", write(tmp_path / "pole.yaml", learners=3), *arguments, "--json")
    document = json.loads(out)
    assert len(document["learners"]) == 5
    assert document["learners"][0]["outPeers"] == [1, 2, 3, 4]


BROKEN = {
    "wrong enum": "spec: {environment: {id: CartPole-v1}, algorithm: PPO}",
    "negative number": "spec: {environment: {id: CartPole-v1}, learners: -3}",
    "unknown field": "spec: {environment: {id: CartPole-v1}, lerners: 3}",
    "missing env id": "spec: {environment: {}}",
    "duplicate key": "spec: {environment: {id: CartPole-v1}, learners: 3, learners: 4}",
    "wrong kind": "spec: {environment: {id: CartPole-v1}}\nkind: Deployment",
    "not yaml": "spec: [",
    "not a mapping": "- spec",
    "empty": "",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_broken_document_costs_one_line_and_exit_code_2(gala: Gala, tmp_path: Path, command: str, body: str) -> None:
    file = tmp_path / "broken.yaml"
    kind = "" if "kind" in body or not body.startswith("spec: {") else "kind: GalaRun\n"
    head = "apiVersion: gala.dev/v1alpha1\nmetadata: {name: pole}\n" if body.startswith("spec: {") else ""
    file.write_text(head + kind + body)
    code, out, err = gala(command, str(file))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_document_that_the_system_does_not_show_is_the_users_mistake(
    gala: Gala, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    name = "x" * 300
    assert gala(command, name) == (2, "", f"error: {name}: cannot be read (File name too long)\n")

    def locked(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", locked)
    monkeypatch.setattr(Path, "stat", locked)
    assert gala(command, "locked.yaml") == (2, "", "error: locked.yaml: cannot be read (Permission denied)\n")


def test_a_working_directory_that_has_been_removed_is_told(
    gala: Gala, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "pole.yaml")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for output in ("runs", str(tmp_path / "runs")):
        told = f"error: {output}/pole: the working directory has been removed; cd to another one\n"
        assert gala("run", file, "--output", output) == (2, "", told)


@pytest.mark.parametrize("command", [("evaluate", "nothing"), ("report", "nothing")])
def test_a_run_that_is_not_there_is_named(gala: Gala, command: tuple[str, ...]) -> None:
    code, _, err = gala(*command)
    assert code == 2
    assert err == "error: nothing is not a run: no run.json in nothing or in runs/nothing\n"


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_run_that_the_system_does_not_show_is_the_users_mistake(
    gala: Gala, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in ("x" * 300, f"there/{'x' * 300}"):
        code, out, err = gala(command, name)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert err.startswith(f"error: {name}")

    def locked(path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", locked)
    assert gala(command, "locked") == (2, "", "error: locked: cannot be read: Permission denied\n")


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The command line of the program that `gala evaluate` becomes, which ends with 3; runs/pole is a run."""
    (tmp_path / "runs/pole").mkdir(parents=True)
    (tmp_path / "runs/pole/run.json").touch()
    command: list[str] = []

    def become(program: str, arguments: list[str]) -> None:
        assert program == arguments[0]
        command.extend(arguments)
        raise SystemExit(3)

    monkeypatch.setattr(os, "execv", become)
    return command


def test_evaluate_becomes_the_player_with_its_options(gala: Gala, player: list[str]) -> None:
    """In its place, so that whoever ends it ends the player."""
    code, _, _ = gala("evaluate", "pole", "--episodes", "3", "--video", "a.gif", "--sampled", "--seed", "7")
    assert code == 3
    expected = "-P -m gala_worker.evaluate --episodes=3 --video=a.gif --sampled --seed=7 -- runs/pole"
    assert player == [sys.executable, *expected.split()]


def test_names_that_begin_like_options_are_no_options_of_the_player(
    gala: Gala, player: list[str], tmp_path: Path
) -> None:
    (tmp_path / "-pole").mkdir()
    (tmp_path / "-pole/run.json").touch()
    gala("evaluate", "--video", "-a.gif", "--", "-pole")
    assert player[4:] == ["--episodes=10", "--video=-a.gif", "--", "-pole"]


@pytest.mark.parametrize(
    ("seed", "bound"), [("-1", "0"), (str(2**31), "2147483647"), ("99999999999999999999", "2147483647")]
)
def test_a_seed_that_no_simulator_takes_is_refused(monkeypatch: pytest.MonkeyPatch, seed: str, bound: str) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it is played with"))
    ended = CliRunner().invoke(cli.app, ["evaluate", "pole", "--seed", seed])
    assert ended.exit_code == 2
    (told,) = [line for line in ended.output.splitlines() if line.startswith("Error: ")]
    assert "--seed" in told
    assert bound in told


def test_a_misspelt_option_is_the_users_mistake() -> None:
    ended = CliRunner().invoke(cli.app, ["run", "--lerners", "3"])
    assert ended.exit_code == 2
    assert "Traceback" not in ended.output


def test_the_crd_is_the_committed_one(gala: Gala) -> None:
    code, out, _ = gala("crd")
    assert code == 0
    assert out == (EXAMPLES.parent / "crds/galarun.yaml").read_text()


@pytest.mark.parametrize("arguments", [("crd",), ("--help",), ("plan", "cartpole.yaml"), ("validate", "cartpole.yaml")])
def test_an_output_that_the_disk_does_not_take_costs_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-P", "-m", "gala", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=EXAMPLES, check=False)
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")


def test_a_character_that_the_output_cannot_hold_is_a_question_mark(
    gala: Gala, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "β ± 1.yaml")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="iso-8859-1"))
    assert gala("validate", "β ± 1.yaml") == (0, "", "")
    assert written.getvalue() == "? ± 1.yaml: valid\n".encode("iso-8859-1")


def test_closed_standard_streams_are_no_others() -> None:
    """The next file that is opened would get the number of the closed one."""
    program = "from gala import streams; import os, sys; streams.prepare(); print(os.open('/dev/null', 0) > 2)"
    done = subprocess.run(
        ["bash", "-c", '"$0" -P -c "$1" >&- 2>&-; exec "$0" -P -m gala crd >&-', sys.executable, program],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
