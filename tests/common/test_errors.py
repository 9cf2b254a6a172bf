"""The error tree: its shape, its exit codes, and the sentences users read."""

from __future__ import annotations

import pickle

import pytest

from gala import errors
from gala.errors import MISSING, GalaError, GossipError, MessageError, Problem, RefusedError, SilentError, SpecError


def _all_errors() -> list[type[GalaError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def test_every_error_is_a_gala_error_and_stands_in_the_drawn_tree() -> None:
    assert errors.__doc__ is not None
    for kind in _all_errors():
        assert issubclass(kind, GalaError)
        assert kind.__name__ in errors.__doc__


def test_users_mistakes_exit_with_2_and_all_else_with_1() -> None:
    codes = {kind.__name__: kind.exit_code for kind in _all_errors()}
    assert {name for name, code in codes.items() if code == 2} == {
        *("SpecError", "UsageError", "NotFoundError", "SimulatorError")
    }
    assert {name for name, code in codes.items() if code == 124} == {"TimedOutError"}
    assert {name for name, code in codes.items() if code == 1} == {
        *("GalaError", "RunError", "ClusterError", "UnreachableError", "CheckpointError"),
        *("GossipError", "RefusedError", "SilentError", "MessageError", "NotFiniteError"),
    }


@pytest.mark.parametrize("kind", [RefusedError, SilentError, MessageError])
def test_what_neighbours_do_to_each_other_is_a_gossip_error(kind: type[GalaError]) -> None:
    assert issubclass(kind, GossipError)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        pytest.param(
            Problem(path="spec.learners", value=-3, message="must be at least 1", remedy="set 1 or more"),
            "spec.learners: must be at least 1, got -3; set 1 or more",
            id="value and remedy",
        ),
        pytest.param(Problem(path="a", value=None, message="m"), "a: m, got None", id="None is a value"),
        pytest.param(Problem(path="a", value=MISSING, message="m"), "a: m", id="nothing there"),
        pytest.param(Problem(path="a", message="m", remedy="r"), "a: m; r", id="remedy only"),
    ],
)
def test_a_problem_reads_as_path_message_value_remedy(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_huge_value_is_cut() -> None:
    assert len(str(Problem(path="a", value="x" * 10_000, message="m"))) < 120


def test_a_spec_error_lists_every_problem_on_its_own_line() -> None:
    problems = [Problem(path="a", message="m"), Problem(path="b", message="n")]
    error = SpecError(problems)
    assert error.problems == tuple(problems)
    assert str(error).splitlines() == ["a: m", "b: n"]


def test_a_spec_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(SpecError([Problem(path="a", message="m")])))
    assert error.problems == (Problem(path="a", message="m"),)


def test_a_refusal_keeps_the_neighbours_reason() -> None:
    assert RefusedError("another run").reason == "another run"
