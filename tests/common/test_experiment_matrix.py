"""From a GalaExperiment to its runs: levels, overrides, names, and everything that may be wrong with a definition."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gala import names, spec
from gala.errors import SpecError
from gala.experiment import definition, index, matrix, naming
from gala.experiment.matrix import Expansion

RFC1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def document(**fields: Any) -> dict[str, Any]:
    """A definition with two algorithms and two seeds; `fields` replace those of its spec."""
    return {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaExperiment",
        "metadata": {"name": "poles"},
        "spec": {
            "figures": ["curves"],
            "base": {"environment": {"id": "CartPole-v1"}, "learners": 2, "totalSteps": 1000},
            "matrix": {"algorithm": ["GALA-A2C", "A2C"], "seed": ["1..2"]},
            **fields,
        },
    }


def expand(data: dict[str, Any], scale: definition.Scale = "full") -> Expansion:
    return matrix.expand(definition.parse(data), scale)


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        expand(data)
    return str(caught.value)


class TestExpansion:
    def test_every_combination_is_a_valid_run_with_its_levels(self) -> None:
        made = expand(document())
        assert [(run.name, dict(run.levels)) for run in made.runs] == [
            ("poles-gala-a2c-s1", {"algorithm": "GALA-A2C", "seed": 1}),
            ("poles-a2c-s1", {"algorithm": "A2C", "seed": 1}),
            ("poles-gala-a2c-s2", {"algorithm": "GALA-A2C", "seed": 2}),
            ("poles-a2c-s2", {"algorithm": "A2C", "seed": 2}),
        ]
        for run in made.runs:
            assert spec.parse(run.document) == run.run
            assert (run.run.spec.algorithm, run.run.spec.seed) == (run.levels["algorithm"], run.levels["seed"])
            assert run.run.metadata.labels["gala.dev/experiment"] == "poles"

    def test_plain_levels_have_short_forms_and_any_field_may_be_a_factor(self) -> None:
        factors = {
            "environment": ["Acrobot-v1"],
            "simulators": [3],
            "topology": ["Complete"],
            "mixing": ["push-sum"],
            "hyperparameters.learningRate": [0.5],
            "learners": [3],
        }
        of = expand(document(matrix=factors)).runs[0].run.spec
        assert (of.environment.id, of.environment.simulators, of.topology.type) == ("Acrobot-v1", 3, "Complete")
        assert (of.gossip.mixing, of.hyperparameters.learning_rate, of.learners) == ("push-sum", 0.5, 3)

    def test_a_level_may_set_whatever_it_likes(self) -> None:
        levels = [
            {"label": "few", "set": {"learners": 2, "environment.simulators": 4}},
            {"label": "many", "set": {"learners": 4, "environment": {"simulators": 8}}},
        ]
        runs = expand(document(matrix={"size": levels})).runs
        assert [(run.levels["size"], run.run.spec.learners, run.run.spec.environment.simulators) for run in runs] == [
            ("few", 2, 4),
            ("many", 4, 8),
        ]

    def test_later_overrides_win_and_reach_only_those_they_name(self) -> None:
        per = [
            {"when": {"algorithm": ["A2C", "GALA-A2C"]}, "set": {"totalSteps": 5}},
            {"when": {"algorithm": "A2C", "seed": 2}, "set": {"totalSteps": 7}},
        ]
        runs = expand(document(per=per)).runs
        assert {run.name: run.run.spec.total_steps for run in runs} == {
            "poles-gala-a2c-s1": 5,
            "poles-a2c-s1": 5,
            "poles-gala-a2c-s2": 5,
            "poles-a2c-s2": 7,
        }

    def test_excluded_combinations_are_left_out(self) -> None:
        runs = expand(document(exclude=[{"when": {"algorithm": "A2C", "seed": 1}}])).runs
        assert "poles-a2c-s1" not in [run.name for run in runs]
        assert len(runs) == 3
        assert len(expand(document(exclude=[{"when": {"algorithm": "A2C", "seed": "1..2"}}])).runs) == 2

    def test_simulators_in_all_are_shared_out_among_the_ranks_that_have_any(self) -> None:
        data = document(
            base={"environment": {"id": "CartPole-v1"}, "learners": 4, "totalSimulators": 64},
            matrix={"algorithm": ["GALA-A2C", "IMPALA"]},
            per=[{"when": {"algorithm": "IMPALA"}, "set": {"learners": 5}}],
        )
        entries = [run.entry() for run in expand(data).runs]
        assert [(it.learners, it.simulators, it.total_simulators) for it in entries] == [(4, 16, 64), (5, 16, 64)]

    def test_fields_that_are_null_share_simulators_out_as_their_defaults_do(self) -> None:
        base = {"environment": {"id": "CartPole-v1"}, "learners": None, "algorithm": None, "totalSimulators": 8}
        assert [run.entry().simulators for run in expand(document(base=base, matrix={"seed": [1]})).runs] == [2]

    def test_a_smaller_scale_replaces_factors_and_adds_the_rest(self) -> None:
        data = document(
            matrix={"environment": ["ALE/Pong-v5"], "algorithm": ["A2C", "A3C"], "seed": ["1..10"]},
            per=[{"when": {"environment": "ALE/Pong-v5"}, "set": {"hyperparameters.learningRate": 1e-3}}],
            small={
                "figures": ["scores"],
                "base": {"totalSteps": 10},
                "matrix": {"environment": ["CartPole-v1", "Acrobot-v1"], "seed": [1], "algorithm": []},
                "per": [{"when": {"environment": "Acrobot-v1"}, "set": {"totalSteps": 20}}],
            },
        )
        assert len(expand(data).runs) == 20
        small = expand(data, "small")
        assert (small.name, list(small.figures)) == ("poles-small", ["scores"])
        assert {run.name: run.run.spec.total_steps for run in small.runs} == {
            "poles-small-cartpole-s1": 10,
            "poles-small-acrobot-s1": 20,
        }

    def test_a_scale_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(SpecError, match=r"spec.small: is not there"):
            expand(document(), "small")

    def test_the_base_is_not_changed_by_what_is_laid_over_it(self) -> None:
        data = document(matrix={"hyperparameters.discount": [0.5, 0.25]}, base=document()["spec"]["base"])
        before = copy.deepcopy(data)
        assert [run.run.spec.hyperparameters.discount for run in expand(data).runs] == [0.5, 0.25]
        assert data == before


LEVELS = st.one_of(st.integers(-5, 10**6), st.booleans(), st.text("aAbB/-_. é:1", min_size=1, max_size=60))


class TestNames:
    @given(
        st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=40),
        st.lists(st.fixed_dictionaries({"seed": LEVELS, "x": LEVELS}), min_size=1, max_size=20),
    )
    def test_names_are_unique_deterministic_and_fit_into_a_cluster(
        self, folder: str, combinations: list[dict[str, Any]]
    ) -> None:
        seen: list[dict[str, Any]] = []
        for levels in combinations:
            if not any(all(definition.same(levels[key], other[key]) for key in levels) for other in seen):
                seen.append(levels)
        found = naming.run_names(folder, seen)
        assert len(set(found)) == len(seen)
        assert found == naming.run_names(folder, copy.deepcopy(seen))
        for name in found:
            assert len(name) <= names.MAX_RUN_NAME
            assert RFC1035.fullmatch(name)

    def test_more_seeds_leave_the_names_of_the_others_as_they_were(self) -> None:
        more = expand(document(matrix={"algorithm": ["GALA-A2C", "A2C"], "seed": ["1..20"]}))
        assert {run.name for run in expand(document()).runs} < {run.name for run in more.runs}

    def test_a_level_that_reads_like_an_earlier_one_leaves_the_names_that_are_there(self) -> None:
        def names(*environments: str) -> list[str]:
            return naming.run_names("x", [{"environment": it, "seed": 1} for it in environments])

        assert names("CartPole-v1") == ["x-cartpole-s1"]
        assert names("CartPole-v1", "CartPole-v0") == ["x-cartpole-s1", "x-cartpole-v0-s1"]
        plain, other, last = names("ALE/Pong-v5", "mine/Pong-v5", "yours/Pong-v5")
        assert (plain, other) == ("x-pong-s1", "x-pong-v5-s1")
        assert re.fullmatch(r"x-pong-s1-[0-9a-f]{8}", last)

    def test_a_sign_is_part_of_a_name(self) -> None:
        assert naming.run_names("x", [{"offset": 1}, {"offset": -1}, {"offset": -0.5}]) == ["x-1", "x-m1", "x-m0-5"]

    @pytest.mark.parametrize(
        ("level", "text"),
        [
            ("ALE/SpaceInvaders-v5", "spaceinvaders"),
            ("CartPole-v1", "cartpole"),
            ("games.maze:Maze-v0", "maze"),
            ("GALA-A2C", "gala-a2c"),
            (7e-4, "0-0007"),
            (True, "true"),
        ],
    )
    def test_a_level_becomes_a_readable_part_of_a_name(self, level: index.Level, text: str) -> None:
        assert naming.slug(level) == text


class TestRefusals:
    def test_every_problem_of_the_form_is_told_at_once(self) -> None:
        data = document(
            figures=["curvs"], matrix={"seed": [[1]]}, bases={}, thresholds={"CartPole-v1": {"return": "475"}}
        )
        data["metadata"]["name"] = "Poles"
        text = refusal(data)
        assert "metadata.name: must consist of lower-case letters" in text
        assert "spec.figures[0]: must be one of convergence, curves" in text
        assert "did you mean curves?" in text
        assert "spec.figures: must have at least" not in text, "it has an entry, though a wrong one"
        assert "spec.matrix.seed[0]: must be a number, true, false or a short text" in text
        assert "spec.bases: is not a field of GalaExperiment, got {}; did you mean base?" in text
        assert "spec.thresholds.CartPole-v1.return: must be a number, got '475'; remove the quotes" in text
        assert "spec.thresholds.CartPole-v1.measure: is required" in text

    def test_what_is_wrong_with_runs_is_told_once_where_the_definition_says_it(self) -> None:
        data = document(
            base={"environment": {"id": "CartPole-v1", "simulator": 3}, "hyperparameters.discount": 2},
            matrix={"algorithm": ["GALA-A2C", "A2D"], "seed": ["1..3"]},
            per=[{"when": {"seed": 2}, "set": {"learners": 0}}],
        )
        lines = refusal(data).splitlines()
        assert len(lines) == 4
        text = "\n".join(lines)
        assert "spec.base.environment.simulator: is not a field of GalaRun" in text
        assert "spec.base.hyperparameters.discount: must be at most 1, got 2" in text
        assert "(in 6 of 6 runs, such as poles-gala-a2c-s1)" in text
        assert "spec.matrix.algorithm: must be one of GALA-A2C" in text
        assert "spec.per[0].set.learners: must be at least 1, got 0" in text
        assert "(in 2 of 6 runs, such as poles-gala-a2c-s2)" in text

    def test_what_is_missing_belongs_into_the_base(self) -> None:
        assert refusal(document(base={})).startswith("spec.base.environment: is required")

    def test_a_smaller_scale_is_checked_with_the_full_one(self) -> None:
        text = refusal(document(small={"base": {"totalSteps": 0}, "matrix": {"seed": [1]}}))
        assert text.startswith("spec.small.base.totalSteps: must be at least 1, got 0")
        assert "such as poles-small-" in text

    @pytest.mark.parametrize("algorithm", [["GALA-A2C", "A2C"], {}, 3])
    def test_an_algorithm_that_is_no_name_is_told_as_that(self, algorithm: object) -> None:
        base = {"algorithm": algorithm, "totalSimulators": 8, "environment": {"id": "CartPole-v1"}, "learners": 2}
        text = refusal(document(base=base, matrix={"seed": [1]}))
        assert text.startswith("spec.base.algorithm: must be one of GALA-A2C")
        assert len(text.splitlines()) == 1

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            pytest.param(
                {"per": [{"when": {"algoritm": "A2C"}, "set": {}}]},
                "spec.per[0].when.algoritm: is not a factor of the matrix; did you mean algorithm?",
                id="factor",
            ),
            pytest.param(
                {"exclude": [{"when": {"algorithm": "A2D"}}]},
                "spec.exclude[0].when.algorithm: is not one of the factor's levels, got 'A2D'; did you mean A2C?",
                id="level",
            ),
            pytest.param({"matrix": {"seed": [1, "1..3"]}}, "spec.matrix.seed: names a level twice, got 1", id="twice"),
            pytest.param({"matrix": {"1st": [1]}}, "spec.matrix.1st: must be a name of letters, digits", id="name"),
            pytest.param(
                {"matrix": {"seed": [1]}, "thresholds": {"a b": {"return": 1, "measure": "greedy"}}},
                "spec.thresholds.a b: must be a Gymnasium id",
                id="environment",
            ),
            pytest.param({"matrix": {"seed": []}}, "spec.matrix.seed: has no levels", id="none"),
            pytest.param({"matrix": {"seed": ["3..1"]}}, "must be a range such as 1..10, upwards", id="downwards"),
            pytest.param({"exclude": [{"when": {"seed": [1, 2]}}]}, "spec.exclude: leaves no run", id="nothing left"),
            pytest.param(
                {"matrix": {f"f{factor}": ["1..100"] for factor in range(4)}},
                "spec.matrix: makes more than 10,000 runs",
                id="too many",
            ),
            pytest.param(
                {"base": {"totalSimulators": 63, "learners": 2, "environment.id": "CartPole-v1"}},
                "spec.base.totalSimulators: must be a multiple of the 2 ranks that have simulators, got 63",
                id="shares",
            ),
            pytest.param(
                {"base": {"learners": 2, "learners.x": 1, "environment.id": "CartPole-v1"}},
                "spec.base.learners.x: cannot be set: learners is no mapping",
                id="through a number",
            ),
            pytest.param(
                {"figures": ["convergence"]},
                "spec.thresholds.CartPole-v1: is required by the figure convergence",
                id="threshold",
            ),
        ],
    )
    def test_a_mistake_in_a_definition_is_refused_where_it_stands(self, fields: dict[str, Any], expected: str) -> None:
        assert expected in refusal(document(**fields))


class TestIndex:
    def test_an_index_is_the_same_after_writing_and_reading(self, tmp_path: Path) -> None:
        data = document(thresholds={"CartPole-v1": {"return": 475, "measure": "greedy"}})
        made = expand(data)
        written = made.index([run.entry() for run in made.runs])
        (tmp_path / index.INDEX_FILE).write_text(written.to_json())
        read = index.read(tmp_path)
        assert read is not None
        assert read.to_json() == written.to_json()
        assert read.thresholds == {"CartPole-v1": {"return": 475.0, "measure": "greedy"}}
        assert read.runs[0].factors == {"algorithm": "GALA-A2C", "seed": 1}

    def test_a_folder_without_an_index_reads_as_none(self, tmp_path: Path) -> None:
        assert index.read(tmp_path) is None


PAPER = sorted((Path(__file__).parents[2] / "benchmarks" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_experiments_are_valid_at_every_scale(path: Path) -> None:
    if yaml.safe_load(path.read_text())["kind"] != definition.KIND:
        pytest.skip("not an experiment")
    for scale in ("full", "small", "toy"):
        assert matrix.expand(definition.load(path), scale).runs


def test_the_handbooks_example_is_valid_and_says_what_it_makes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    data = yaml.safe_load(example)
    assert len(expand(data).runs) == 30, "two algorithms, two rates, ten seeds, without A2C's high rate"
    assert len(expand(data, "small").runs) == 9
    data["spec"]["per"][0]["set"]["learners"] = 0
    told = text.partition("error: ")[2].partition("\n")[0]
    assert refusal(data) == told, "as the handbook shows it, and once for all scales"
