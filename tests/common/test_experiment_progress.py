"""How far an experiment is: counts, the time left, the lines and tables that say so, and what is read off the disk."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gala.errors import UsageError
from gala.experiment import definition, matrix
from gala.experiment.conducting import survey
from gala.experiment.folder import Folder, made_steps
from gala.experiment.index import Index, RunEntry
from gala.experiment.progress import eta_seconds, groups
from gala.experiment.table import listing, live_view, plain_line

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"


def entry(seed: int, algorithm: str = "A2C", environment: str = "CartPole-v1", **fields: Any) -> RunEntry:
    return RunEntry(
        name=f"x-{algorithm.lower()}-s{seed}",
        factors={"algorithm": algorithm, "seed": seed},
        environment=environment,
        algorithm=algorithm,
        topology="Ring",
        learners=2,
        simulators=4,
        total_simulators=8,
        total_steps=1000,
        seed=seed,
        **fields,
    )


def index(*entries: RunEntry) -> Index:
    return Index(
        name="x",
        experiment="x",
        scale="full",
        description="",
        figures=("curves",),
        thresholds={},
        factors={"algorithm": ["A2C", "A3C"], "seed": [1, 2]},
        runs=entries,
    )


SOME = index(
    entry(1, state="finished", steps=1010, wall_seconds=100.0),
    entry(2, state="running", steps=250, wall_seconds=30.0),
    entry(1, "A3C", state="failed", steps=500, wall_seconds=900.0, reason="no memory"),
    entry(2, "A3C", state="waiting"),
)


class TestEta:
    def test_runs_of_the_same_kind_tell_the_pace(self) -> None:
        rest = entry(3)
        known = [entry(1, state="finished", steps=1000, wall_seconds=50.0), rest]
        slower = [entry(1, "A3C", state="finished", steps=1000, wall_seconds=500.0)]
        assert eta_seconds([*known, *slower], 1) == pytest.approx(50.0)

    def test_what_is_made_already_is_not_made_again(self) -> None:
        known = [entry(1, state="finished", steps=1000, wall_seconds=50.0)]
        assert eta_seconds([*known, entry(2, state="interrupted", steps=900, wall_seconds=45.0)], 1) == pytest.approx(
            5.0
        )

    def test_another_kind_in_the_same_environment_is_the_next_best_guess(self) -> None:
        known = [
            entry(1, "A3C", state="finished", steps=1000, wall_seconds=50.0),
            entry(1, "A3C", environment="ALE/Pong-v5", state="finished", steps=1000, wall_seconds=5000.0),
        ]
        assert eta_seconds([*known, entry(1)], 1) == pytest.approx(50.0)

    def test_runs_side_by_side_share_the_time(self) -> None:
        known = [entry(1, state="finished", steps=1000, wall_seconds=50.0)]
        waiting = [entry(seed) for seed in (2, 3)]
        assert eta_seconds([*known, *waiting], 2) == pytest.approx(50.0)
        assert eta_seconds([*known, *waiting], 8) == pytest.approx(50.0), "no more at once than there are"

    def test_nothing_is_known_at_first_and_nothing_is_left_at_last(self) -> None:
        assert eta_seconds([entry(1)], 1) is None
        assert eta_seconds([entry(1, state="finished", steps=1000, wall_seconds=50.0)], 1) == 0

    def test_however_many_runs_there_are_each_is_looked_at_twice(self) -> None:
        """It is drawn anew twice a second, while runs are timed."""

        class Counted(list[RunEntry]):
            passes = 0

            def __iter__(self) -> Iterator[RunEntry]:
                self.passes += 1
                assert self.passes <= 2
                return super().__iter__()

        runs = [entry(seed, f"A{seed % 1000}C", f"Game{seed % 60}-v5") for seed in range(1, 10_000)]
        known = entry(0, state="finished", steps=1000, wall_seconds=50.0)
        assert eta_seconds(Counted([known, *runs]), 1) == pytest.approx(50.0 * len(runs))


class TestShown:
    def test_groups_are_the_runs_that_differ_by_their_seed_alone(self) -> None:
        assert [(it.levels, it.finished, it.running, it.failed, it.left, it.share) for it in groups(SOME)] == [
            (("A2C",), 1, 1, 0, 0, 0.625),
            (("A3C",), 0, 0, 1, 1, 0.25),
        ]

    def test_a_line_says_what_is_done_running_left_and_failed(self) -> None:
        assert plain_line(SOME, at_once=1) == (
            "1 of 4 runs done (43.8% of the decisions), 1 running (x-a2c-s2 25%), 1 left, 1 failed, ETA 31 min"
        )

    def test_a_table_fits_the_terminal(self) -> None:
        many = index(*(entry(1, f"A{number}C", state="running") for number in range(40)))
        console = Console(file=io.StringIO(), width=100)
        lines = console.render_lines(live_view(many, at_once=1, max_rows=12), pad=False)
        assert len(lines) <= 12 + 6
        text = "\n".join("".join(segment.text for segment in line) for line in lines)
        assert "... and 34 more rows" in text
        assert "... and 35 more under way" in text

    def test_a_list_has_every_run(self) -> None:
        text = listing(SOME)
        assert text.splitlines()[0].split() == ["RUN", "ALGORITHM", "SEED", "STATE", "DECISIONS", "OF"]
        assert text.splitlines()[2].split() == ["x-a2c-s2", "A2C", "2", "running", "250", "1,000"]
        assert text.splitlines()[-1].startswith("4 runs, 4,000 decisions in all: 1 done, 1 running, 1 left, 1 failed")


class TestSteps:
    def write(self, folder: Path, rank: int, *lines: str) -> None:
        path = folder / f"learner-{rank}" / "metrics.jsonl"
        path.parent.mkdir()
        path.write_text("\n".join(lines))

    def test_the_learner_that_knows_most_counts(self, tmp_path: Path) -> None:
        self.write(tmp_path, 0, '{"kind": "train", "globalSteps": 100}', "")
        self.write(tmp_path, 1, '{"kind": "train", "globalSteps": 300}', '{"kind": "event"}', '{"kind": "tra')
        self.write(tmp_path, 2, "not json")
        assert made_steps(tmp_path) == 300

    def test_the_final_models_card_has_the_last_word(self, tmp_path: Path) -> None:
        self.write(tmp_path, 0, '{"kind": "train", "globalSteps": 100}')
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "card.json").write_text(json.dumps({"globalSteps": 120}))
        assert made_steps(tmp_path) == 120

    @pytest.mark.parametrize("card", ["[" * 100_000, '{"globalSteps": 1e400}', '{"globalSteps": null}'])
    def test_damaged_files_have_no_word(self, tmp_path: Path, card: str) -> None:
        self.write(tmp_path, 0, '{"kind": "train", "globalSteps": 100}', "[" * 20_000)
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "card.json").write_text(card)
        assert made_steps(tmp_path) == 100

    def test_a_folder_without_records_has_made_no_steps(self, tmp_path: Path) -> None:
        assert made_steps(tmp_path) == 0


@pytest.mark.parametrize("scale", ["full", "small", "toy"])
def test_curves_and_scores_are_of_the_same_runs_with_the_same_report(scale: definition.Scale) -> None:
    """Under one name: whoever has made the one has nothing left to do for the other, and loses none of its figures."""
    curves, scores = (matrix.expand(definition.load(PAPER / f"{name}.yaml"), scale) for name in ("curves", "scores"))
    assert curves.name == scores.name
    assert curves.index(()) == scores.index(())
    assert [run.document for run in curves.runs] == [run.document for run in scores.runs]


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b'{"format": 1}', b"null"])
def test_a_damaged_index_does_not_hide_the_runs(tmp_path: Path, content: bytes) -> None:
    made = matrix.expand(definition.load(PAPER / "curves.yaml"), "toy")
    (tmp_path / "experiment.json").write_bytes(content)
    entries = survey(made, Folder(tmp_path))
    assert [entry.state for entry in entries] == ["waiting"] * len(made.runs)


def test_a_folder_that_the_system_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        Folder(tmp_path / ("x" * 300)).acquire()
