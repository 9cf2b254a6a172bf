"""`gala report` on synthetic experiments: what is drawn, what is left in figures/, and what damaged files do."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from gala import report, scores
from gala.errors import UsageError
from gala.report import convergence, curves, energy, experiment, hardware, lines, scaling
from gala.report.read import number
from gala.report.series import Curve
from synthetic_experiment import STARTED, SyntheticExperiment, captions, summary, write


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> SyntheticExperiment:
    """Two algorithms, four seeds, written as a report."""
    made = SyntheticExperiment(tmp_path_factory.mktemp("experiments"), seeds=4, simulators=(8, 32))
    write(made)
    return made


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> SyntheticExperiment:
    """Two games and a task without a yardstick, of all four algorithms."""
    made = SyntheticExperiment(
        tmp_path_factory.mktemp("experiments"),
        algorithms=("GALA-A2C", "A2C", "A3C", "IMPALA"),
        environments=("ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1"),
        figures=("scores", "curves"),
        seeds=2,
        records=12,
    )
    write(made)
    return made


def test_the_page_loads_nothing_and_every_drawing_has_ids_of_its_own(cartpole: SyntheticExperiment) -> None:
    source = (cartpole.directory / "report.html").read_text()
    body = source[source.index("<main>") :]
    assert "http" not in body
    assert "<script" not in source
    ids = re.findall(r' id="([^"]+)"', body)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", body)) <= set(ids)
    assert "Convergent runs against simulators, CartPole-v1" in body
    assert "Runs (16)" in body
    assert "16 finished" in body


def test_every_figure_is_an_svg_file_of_its_own_in_fixed_colours(cartpole: SyntheticExperiment) -> None:
    files = sorted((cartpole.directory / "figures").glob("*.svg"))
    assert [file.stem for file in files] == [
        "convergence-cartpole-v1", "curves-cartpole-v1-decisions", "curves-cartpole-v1-energy",
        "curves-cartpole-v1-wall-clock", "hardware-cartpole-v1", "scores-cartpole-v1", "throughput-cartpole-v1",
    ]  # fmt: skip
    for file in files:
        content = file.read_text()
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in content
        assert "#0f0f" not in content  # the stand-ins that pages replace
        words = " ".join("".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text"))
        assert "GALA-A2C" in words  # the legend
        assert "seeds" in words  # the caption
        assert len(content) < 100_000


def test_every_caption_says_over_how_many_seeds(games: SyntheticExperiment, cartpole: SyntheticExperiment) -> None:
    for made in (games, cartpole):
        for name, caption in captions(made).items():
            assert re.search(r"\d+ seeds per (line|point)|Seeds: |One seed", caption), (name, caption)
    assert "1 decision = 4 frames." in captions(games)["curves-ale-pong-v5-decisions"]
    assert "frames" not in captions(games)["curves-cartpole-v1-decisions"]


def test_convergence_counts_runs_whose_greedy_return_reaches_the_threshold(cartpole: SyntheticExperiment) -> None:
    numbers = summary(cartpole)["convergence-cartpole-v1"]
    assert numbers["threshold"] == {"return": 475.0, "measure": "greedy"}
    expected: dict[tuple[str, int], list[bool]] = {}
    for run in cartpole.index["runs"]:
        card = json.loads((cartpole.directory / run["name"] / "final" / "card.json").read_text())
        reached = card["evaluation"]["greedy"]["meanReturn"] >= 475
        expected.setdefault((run["algorithm"], run["totalSimulators"]), []).append(reached)
    found = {
        (line["algorithm"], point["simulators"]): (point["converged"], point["runs"])
        for line in numbers["lines"]
        for point in line["points"]
    }
    assert found == {key: (sum(outcomes), len(outcomes)) for key, outcomes in expected.items()}
    assert any(converged < runs for converged, runs in found.values())


@pytest.mark.parametrize("measure", ["greedy", "training"])
def test_a_failed_run_has_not_converged_and_an_unfinished_one_does_not_count(tmp_path: Path, measure: str) -> None:
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), figures=("convergence",), threshold=0.0)
    made.index["thresholds"]["CartPole-v1"]["measure"] = measure
    made.index["runs"][0]["state"] = "failed"  # whatever it had reached, and even if its final model was made
    made.index["runs"][1]["state"] = "running"
    made.save()
    write(made)
    (point,) = summary(made)["convergence-cartpole-v1"]["lines"][0]["points"]
    assert (point["converged"], point["runs"], point["failed"]) == (1, 2, 1)
    caption = captions(made)["convergence-cartpole-v1"]
    assert "1 run that failed counts as not convergent" in caption
    assert "1 of 3 runs has not ended" in caption


def test_a_threshold_reads_in_captions_and_tables_as_in_the_definition(tmp_path: Path) -> None:
    made = SyntheticExperiment(
        tmp_path, seeds=1, records=5, figures=("convergence", "curves", "scores"), threshold=0.95
    )
    write(made)
    told = captions(made)
    assert "at least 0.95," in told["convergence-cartpole-v1"]
    assert "Dotted: 0.95," in told["curves-cartpole-v1-decisions"]
    assert "Dotted: 0.95," in told["scores-cartpole-v1"]
    assert "| Reached 0.95 |" in (made.directory / "figures" / "tables.md").read_text()


def test_the_training_measure_is_the_mean_of_the_acting_learners_last_return(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, algorithms=("A3C",), learners=(3,), seeds=1)
    entry = experiment.read_experiment(made.directory).entries[0]
    assert entry.run is not None
    last = [number(one.last, "meanReturn") for one in entry.run.learners[1:]]
    assert convergence.result(entry, "training") == pytest.approx(sum(last) / 2)


def test_curves_have_their_three_axes_and_intervals_that_hold_the_line(cartpole: SyntheticExperiment) -> None:
    found = summary(cartpole)
    for name, unit in (("decisions", "decisions"), ("wall-clock", "seconds"), ("energy", "kJ")):
        for line in found[f"curves-cartpole-v1-{name}"]["lines"]:
            assert line["seeds"] == 4
            assert line[unit] == sorted(line[unit])
            known = [row for row in zip(line["low"], line["iqm"], line["high"], strict=True) if None not in row]
            assert len(known) > 50
            # IQM of 4 runs is the mean of two; a resampling can leave it just outside the percentiles.
            assert sum(low <= value <= high for low, value, high in known) > 0.9 * len(known)
    assert found["curves-cartpole-v1-decisions"]["lines"][0]["decisions"][-1] == 400_000


def test_energy_is_counted_from_the_first_record_on(tmp_path: Path) -> None:
    """25 W from the launcher's start on, 5 s before the first record: at second s of the report 0.025 s kJ."""
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), learners=(1,), seeds=1)
    entry = energy.with_energy(experiment.read_experiment(made.directory).entries[0])
    assert entry.run is not None
    for record in entry.run.learners[0].train:
        assert record["kilojoules"] == pytest.approx(0.025 * record["wallSeconds"], abs=0.01)
    assert energy.energy(entry.run).y[0] == 0.0
    assert hardware.watts(entry.run) == pytest.approx(25.0)


def test_power_is_that_of_the_time_in_which_energy_was_measured(tmp_path: Path) -> None:
    """25 W, and a counter that fails in the middle of the run."""
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), learners=(1,), seeds=1)
    file = made.directory / "run-0" / "energy.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]))
    run = experiment.read_experiment(made.directory).entries[0].run
    assert run is not None
    assert hardware.watts(run) == pytest.approx(25.0)


def test_energy_is_placed_by_the_time_of_day_so_a_stop_of_the_run_costs_none(tmp_path: Path) -> None:
    """10 W for 100 s, an hour's stop, 20 W for another 100 s."""
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), learners=(1,), seeds=1)
    hour = STARTED + 3600
    samples = [(STARTED - 5, 0.0), (STARTED + 100, 1050.0), (hour, 1050.0), (hour + 100, 3050.0)]
    lines = [{"time": time, "cpuJoules": joules, "gpuJoules": None} for time, joules in samples]
    made.write("run-0/energy.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    moments = [STARTED, STARTED + 100, hour + 50, hour + 100]
    records = [
        {"kind": "train", "time": moment, "globalSteps": i, "wallSeconds": 0} for i, moment in enumerate(moments)
    ]
    made.write("run-0/learner-0/metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    run = energy.with_energy(experiment.read_experiment(made.directory).entries[0]).run
    assert run is not None
    assert [record["kilojoules"] for record in run.learners[0].train] == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_where_energy_was_not_readable_the_plot_says_so_and_why(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, energy=False)
    write(made)
    assert summary(made)["curves-cartpole-v1-energy"] == {"measured": False}
    svg = (made.directory / "figures" / "curves-cartpole-v1-energy.svg").read_text()
    assert "Energy was not readable" in svg
    assert "powercap has no RAPL counter" in captions(made)["curves-cartpole-v1-energy"]
    assert "power in W" in captions(made)["hardware-cartpole-v1"].split("Not readable here:")[1]


def test_a_gpu_counter_that_fails_on_the_way_ends_the_energy(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), seeds=1)
    lines = [
        {"time": STARTED, "cpuJoules": 100.0, "gpuJoules": 50.0},
        {"time": STARTED + 10, "cpuJoules": 200.0, "gpuJoules": 150.0},
        {"time": STARTED + 20, "cpuJoules": 300.0, "gpuJoules": None},
    ]
    made.write("run-0/energy.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + "{truncat")
    made.write("run-0/learner-0/metrics.jsonl", json.dumps({"kind": "train", "time": STARTED}) + "\n")
    run = experiment.read_experiment(made.directory).entries[0].run
    assert run is not None
    assert energy.energy(run).y.tolist() == [0.0, 200.0]


def test_over_energy_a_run_is_drawn_so_far_as_its_counter_was_readable(tmp_path: Path) -> None:
    """Its return at that moment is not what it went on with: the other run of the line goes on alone."""
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), figures=("curves",), seeds=2)
    write(made)
    assert "Not measured to the end" not in captions(made)["curves-cartpole-v1-energy"]
    file = made.directory / "run-0" / "energy.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[len(lines) // 4 :]:
        line["cpuJoules"] = None
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(made)
    caption = captions(made)["curves-cartpole-v1-energy"]
    assert "Not measured to the end, and not drawn beyond: energy of run-0." in caption
    (line,) = summary(made)["curves-cartpole-v1-energy"]["lines"]
    assert line["iqm"][-1] is not None
    assert line["low"][-1] is None  # over one run there is no interval


def test_a_step_function_holds_until_the_next_value_and_the_last_one_as_long_as_told() -> None:
    one = Curve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, np.nan, 30.0, 40.0]))
    grid = np.array([0.5, 1.0, 2.5, 3.0, 4.0, 5.0, 7.0])
    assert curves.held(one, grid, 6.0).tolist() == pytest.approx(
        [math.nan, 10.0, 10.0, 30.0, 40.0, 40.0, math.nan], nan_ok=True
    )
    assert curves.first_reached(one, 30.0) == 3.0
    assert math.isnan(curves.first_reached(one, 41.0))


def test_scores_are_normalised_over_the_games_that_have_yardsticks(games: SyntheticExperiment) -> None:
    found = summary(games)["scores-human-normalised"]
    assert found["games"] == ["ALE/Pong-v5", "ALE/Breakout-v5"]
    assert [line["algorithm"] for line in found["lines"]] == ["GALA-A2C", "A2C", "A3C", "IMPALA"]
    raw = {
        environment: next(
            line["greedy"]["runs"] for line in summary(games)[name]["lines"] if line["algorithm"] == "A3C"
        )
        for environment, name in (("ALE/Pong-v5", "scores-ale-pong-v5"), ("ALE/Breakout-v5", "scores-ale-breakout-v5"))
    }
    means = [np.mean([scores.human_normalised(game, one) for one in values]) for game, values in raw.items()]
    (a3c,) = (line for line in found["lines"] if line["algorithm"] == "A3C")
    assert a3c["mean"]["value"] == pytest.approx(np.mean(means), rel=1e-3)
    assert a3c["mean"]["low"] <= a3c["mean"]["value"] <= a3c["mean"]["high"]
    assert set(summary(games)["scores-improvement"]["over"]) == {"A2C", "A3C", "IMPALA"}


def test_scores_say_which_runs_they_leave_out_and_what_became_of_them(tmp_path: Path) -> None:
    made = SyntheticExperiment(
        tmp_path, environments=("ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1"), figures=("scores",), seeds=3,
        records=5,
    )  # fmt: skip
    pong = [run for run in made.index["runs"] if run["environment"] == "ALE/Pong-v5"]
    breakout = [run for run in made.index["runs"] if run["environment"] == "ALE/Breakout-v5"]
    others = [run for run in made.index["runs"] if run["environment"] == "CartPole-v1"]
    for run, state in zip((*pong[:2], breakout[0], *others[::3]), ("failed", "running", *["failed"] * 3), strict=True):
        run["state"] = state
        (made.directory / run["name"] / "final" / "card.json").unlink()
    (made.directory / breakout[3]["name"] / "final" / "card.json").unlink()
    made.save()
    write(made)
    expected = {
        "scores-ale-pong-v5": "Without 2 of 3 runs of GALA-A2C: 1 failed, 1 has not ended.",
        "scores-ale-breakout-v5": (
            "Without 1 of 3 runs of GALA-A2C: 1 failed; 1 of 3 runs of A2C: 1 without a final score."
        ),
        "scores-cartpole-v1": "Without 1 of 3 runs per line: 1 failed.",
    }
    for figure in ("human-normalised", "profiles", "improvement"):
        expected[f"scores-{figure}"] = (
            "Without 3 of 6 runs of GALA-A2C: 2 failed, 1 has not ended; 1 of 6 runs of A2C: 1 without a final score."
        )
    for name, caption in captions(made).items():
        assert expected[name] in caption
    tables = (made.directory / "figures" / "tables.md").read_text()
    assert all(words in tables for words in expected.values())


def test_scores_over_games_say_how_many_seeds_a_line_has_in_a_game(tmp_path: Path) -> None:
    """Five in Pong, one in Breakout; those of CartPole, which has no yardstick, do not count."""
    made = SyntheticExperiment(
        tmp_path, environments=("ALE/Pong-v5", "ALE/Breakout-v5", "CartPole-v1"), figures=("scores",), seeds=5,
        records=5,
    )  # fmt: skip
    for run in made.index["runs"]:
        if run["environment"] == "ALE/Breakout-v5" and run["seed"] > 1:
            (made.directory / run["name"] / "final" / "card.json").unlink()
    write(made)
    for name in ("scores-human-normalised", "scores-profiles", "scores-improvement"):
        caption = captions(made)[name]
        assert "1 to 5 seeds per line and game. Some lines have a single run in Breakout: their intervals" in caption
        assert "Without 4 of 10 runs per line: 4 without a final score." in caption


def test_scores_of_all_runs_leave_none_out(games: SyntheticExperiment) -> None:
    assert not any("Without" in caption for caption in captions(games).values())


def test_a_line_without_a_score_in_one_of_the_games_is_left_out_of_the_aggregates(tmp_path: Path) -> None:
    made = SyntheticExperiment(
        tmp_path, environments=("ALE/Pong-v5", "ALE/Qbert-v5"), figures=("scores",), seeds=2, records=5
    )
    for run in made.index["runs"]:
        if run["algorithm"] == "A2C" and run["environment"] == "ALE/Qbert-v5":
            (made.directory / run["name"] / "final" / "card.json").unlink()
    write(made)
    assert [line["label"] for line in summary(made)["scores-human-normalised"]["lines"]] == ["GALA-A2C"]
    assert "Without A2C: no score in some of these games." in captions(made)["scores-human-normalised"]
    assert "scores-improvement" not in summary(made)


def test_throughput_counts_the_runs_decisions_and_learners_that_act(tmp_path: Path) -> None:
    made = SyntheticExperiment(
        tmp_path, algorithms=("GALA-A2C", "A3C"), learners=(2, 4), figures=("throughput",), seeds=2
    )
    write(made)
    found = {line["algorithm"]: line["points"] for line in summary(made)["throughput-cartpole-v1"]["lines"]}
    assert [point["learners"] for point in found["GALA-A2C"]] == [2, 4]
    assert [point["learners"] for point in found["A3C"]] == [1, 3]  # one of them is the server
    run = made.index["runs"][0]
    assert found["GALA-A2C"][0]["decisionsPerSecond"][0] == pytest.approx(400_000 / run["wallSeconds"], rel=0.01)
    uses = summary(made)["hardware-cartpole-v1"]["lines"][0]["points"][0]
    assert uses["cores"] == pytest.approx([2.2, 2.2])  # each of two learners keeps 1.1 busy
    assert uses["watts"] == pytest.approx([30.0, 30.0])


def test_runs_side_by_side_are_warned_of_where_time_matters(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, side_by_side=2)
    write(made)
    told = captions(made)
    for name in ("curves-cartpole-v1-wall-clock", "curves-cartpole-v1-energy", "throughput-cartpole-v1"):
        assert "Up to 2 runs shared the machine" in told[name]
    assert "shared the machine" not in told["curves-cartpole-v1-decisions"]


def test_factors_beside_the_algorithm_make_lines_of_their_own_but_not_the_seed_nor_the_axis(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, simulators=(8, 16), seeds=2, figures=("convergence", "curves"))
    found = experiment.read_experiment(made.directory)
    over_simulators = lines.lines(found, found.entries, lambda entry: entry.total_simulators)
    assert [line.label for line in over_simulators] == ["GALA-A2C", "A2C"]
    each = lines.lines(found, found.entries)
    assert [line.label for line in each] == [
        "GALA-A2C, simulators 8", "GALA-A2C, simulators 16", "A2C, simulators 8", "A2C, simulators 16",
    ]  # fmt: skip
    assert [line.seeds for line in each] == [2, 2, 2, 2]


def test_a_level_of_the_algorithm_that_also_changes_the_learners_is_still_the_algorithm(tmp_path: Path) -> None:
    """A3C has a rank more than the others: learners and algorithm say the same, and the axis must not swallow it."""
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C", "A3C"), learners=(4,), seeds=2)
    for run in made.index["runs"]:
        run["learners"] += run["algorithm"] == "A3C"
        run["factors"] = {"algorithm": run["algorithm"], "seed": run["seed"]}
    made.save()
    found = experiment.read_experiment(made.directory)
    assert [line.label for line in lines.lines(found, found.entries, scaling.acting)] == ["GALA-A2C", "A3C"]


def test_more_lines_than_colours_differ_in_their_style_and_so_do_their_swatches(tmp_path: Path) -> None:
    figures = ("convergence", "curves", "scores", "throughput")
    made = SyntheticExperiment(
        tmp_path, algorithms=[f"A{i}C" for i in range(17)], figures=figures, seeds=1, records=5, energy=False
    )
    source = write(made).read_text()
    plots = [plot for plot in re.findall(r"<figure>.*?</figure>", source, re.DOTALL) if "A16C" in plot]
    assert len(plots) == 6
    for plot in plots:
        swatches = re.findall(r'<i class="swatch ([^"]*)">', plot)
        assert len(swatches) == len(set(swatches)) == 17
        assert (swatches[0], swatches[8], swatches[16]) == ("series-0", "series-0 dashed", "series-0 dotted")
    for name in ("convergence-cartpole-v1", "curves-cartpole-v1-decisions", "throughput-cartpole-v1"):
        content = (made.directory / "figures" / f"{name}.svg").read_text()
        legend = re.findall(r'<line x1[^>]* stroke="(#\w+)" [^/]*?(?:stroke-dasharray="([^"]*)")?/>', content)
        assert len(set(legend)) == 17
        assert [legend[i][1] for i in (0, 8, 16)] == ["", "5 3", "1.5 2.5"]
        drawing = content[content.rindex("<svg") :]
        dashes = re.findall(rf'style="[^"]*stroke-dasharray: ([^;"]*)[^"]*stroke: {legend[0][0]}', drawing)
        assert len(set(dashes)) == 2, "beside the solid line a dashed and a dotted one"


def test_while_an_experiment_runs_its_figures_speak_of_the_runs_that_are_there(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, figures=("curves", "scores"), seeds=4)
    for name in ("run-0", "run-1"):  # of one algorithm
        shutil.rmtree(made.directory / name)
    write(made)
    found = summary(made)["curves-cartpole-v1-decisions"]["lines"]
    assert sorted((line["seeds"], line["runs"]) for line in found) == [(2, 2), (4, 4)]
    for name in ("curves-cartpole-v1-decisions", "curves-cartpole-v1-wall-clock", "scores-cartpole-v1"):
        assert re.search("Seeds: .* 2, .* 4|Seeds: .* 4, .* 2", captions(made)[name])


def test_curves_say_which_of_their_runs_have_failed_or_not_ended_and_how_those_count(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, figures=("curves",), seeds=4)
    for i, state in ((0, "failed"), (1, "interrupted"), (2, "waiting"), (4, "failed")):
        made.index["runs"][i]["state"] = state
    made.save()
    write(made)
    expected = (
        "Without 1 of 4 runs of GALA-A2C: 1 has not ended. "
        "Not finished, of GALA-A2C: 1 failed, 1 has not ended; of A2C: 1 failed. "
        "A run that failed keeps its last return to the end. One that has not ended counts as far as it got."
    )
    assert all(expected in captions(made)[f"curves-cartpole-v1-{axis.name}"] for axis in curves.AXES)
    assert expected in (made.directory / "figures" / "tables.md").read_text()


def test_curves_of_finished_runs_have_no_word_of_others(cartpole: SyntheticExperiment) -> None:
    assert not any(re.search("Without|Not finished", caption) for caption in captions(cartpole).values())


def test_an_experiment_that_has_just_begun_says_so(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, seeds=1)
    for run in made.index["runs"]:
        run["state"] = "waiting"
        shutil.rmtree(made.directory / run["name"])
    made.save()
    source = write(made).read_text()
    assert "Nothing can be drawn yet" in source
    assert "2 waiting" in source


def test_a_folder_of_a_run_that_is_to_be_started_over_is_not_drawn(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), figures=("curves",), seeds=3)
    made.index["runs"][0]["state"] = "waiting"
    made.save()
    write(made)
    (line,) = summary(made)["curves-cartpole-v1-decisions"]["lines"]
    assert line["runs"] == 2


def test_tables_are_written_in_markdown(cartpole: SyntheticExperiment) -> None:
    content = (cartpole.directory / "figures" / "tables.md").read_text()
    assert "## Final scores, CartPole-v1" in content
    block = content.split("## Final scores, CartPole-v1\n\n")[1].split("\n\n")[0].splitlines()
    assert len({row.count(" | ") for row in block}) == 1
    assert set(block[1]) == set("| -")


def test_the_same_experiment_gives_the_same_files(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, seeds=2, records=10)
    first = [write(made).read_bytes(), *(file.read_bytes() for file in sorted(made.directory.glob("figures/*")))]
    again = [write(made).read_bytes(), *(file.read_bytes() for file in sorted(made.directory.glob("figures/*")))]
    assert first == again


def test_plots_of_an_earlier_report_that_are_no_longer_drawn_are_removed_and_nothing_else(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, seeds=1, records=5, figures=("curves", "scores"))
    write(made)
    made.write("figures/mine.svg", "not the report's")
    made.write("kept.svg", "nor in its folder")
    file = made.directory / "figures" / "summary.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "figures": {**content["figures"], "../kept": {}, "gone": {}}}))
    made.index["figures"] = ["scores"]
    made.save()
    write(made)
    assert {path.name for path in (made.directory / "figures").glob("*.svg")} == {"scores-cartpole-v1.svg", "mine.svg"}
    assert (made.directory / "kept.svg").exists()


def test_an_experiment_is_reported_on_alone(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, seeds=1, records=5)
    with pytest.raises(UsageError, match=r"is an experiment; it is reported on alone"):
        report.write([made.directory, made.directory / "run-0"], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("algorithm", "staleness"), [("A3C", "Staleness of gradients"), ("IMPALA", "Policy lag"), ("A2C", None)]
)
def test_a_run_of_another_algorithm_has_its_roles_and_no_ball(
    tmp_path: Path, algorithm: str, staleness: str | None
) -> None:
    made = SyntheticExperiment(tmp_path, algorithms=(algorithm,), learners=(3,), seeds=1)
    page = report.write([made.directory / "run-0"], tmp_path / "report.html").read_text()
    headings = re.findall(r"<h3>([^<]*)</h3>", page)
    assert "Disagreement and the ε-ball" not in headings
    assert "Return against decisions" in headings
    assert ("Policy lag" in headings, "Staleness of gradients" in headings) == (
        staleness == "Policy lag", staleness == "Staleness of gradients",
    )  # fmt: skip
    if algorithm == "A3C":
        assert "server and 2 actor-learners" in page
        assert "server 0" not in page.split("Return against decisions")[1].split("</figure>")[0]  # it has no returns
        assert "each of 2 learners" in page
    if algorithm == "IMPALA":
        assert "learner and 2 actors" in page
        assert "One learner." in page.split("<h3>Losses</h3>")[1].split("</figure>")[0]
