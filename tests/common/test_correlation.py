"""Gradient correlation, the files that it and the epsilon-ball are read from, and the figures of both."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gala import diagnostics as names
from gala.report.correlation import correlation, cosines, together
from gala.report.experiment import read_experiment
from gala.report.figures import draw
from gala.report.radius import epsilon_ball
from gala.report.read import read_run
from gala.report.traces import TraceError, read_tensor, read_traces


def write_tensors(path: Path, **tensors: Any) -> None:
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = np.asarray(tensor, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": [len(tensor)], "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    said = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(said)) + said + data)


def write_run(
    folder: Path, *, learners: int = 3, versions: int = 6, topology: str = "Ring", algorithm: str = "GALA-A2C",
    shared: float = 1.0, seed: int = 0, gossip: bool = True,
) -> Path:  # fmt: skip
    """A run whose gradients have a common part of weight `shared`; whatever it says, its learners mix as a ring."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    spec = {"algorithm": algorithm, "environment": {"id": "CartPole-v1"}, "topology": {"type": topology}}
    spec["gossip"] = {"maxStaleness": 0}
    (folder / "galarun.yaml").write_text(yaml.safe_dump({"metadata": {"name": folder.name}, "spec": spec}))
    x = np.zeros((learners, 40))
    traces = [[json.dumps({"format": 1, "rank": r, "incarnation": 5, "version": 0, "parameters": 40, "wire": "float32",
                           "mixing": "average"})] for r in range(learners)]  # fmt: skip
    for rank in range(learners):
        directory = folder / f"learner-{rank}" / names.DIRECTORY
        directory.mkdir(parents=True)
        write_tensors(directory / names.start_file(5), parameters=x[rank])
    for version in range(1, versions + 1):
        gradients = shared * rng.normal(size=40) + rng.normal(size=(learners, 40))
        updates = -0.1 * gradients
        y = x + updates
        x = (y + np.roll(y, 1, axis=0)) / 2 if gossip else y
        for rank in range(learners):
            mixed = [[(rank - 1) % learners, 5, version, 0.5]] if gossip else []
            traces[rank].append(json.dumps([version, float(np.linalg.norm(updates[rank])), mixed]))
            path = folder / f"learner-{rank}" / names.DIRECTORY / names.snapshot_file(5, version)
            write_tensors(path, parameters=x[rank], gradient=gradients[rank])
    for rank in range(learners):
        trace_of(folder, rank).write_text("\n".join(traces[rank]) + "\n")
    return folder


def trace_of(run: Path, rank: int) -> Path:
    return run / f"learner-{rank}" / names.DIRECTORY / names.trace_file(5)


def test_the_cosine_is_that_of_the_angle() -> None:
    found = cosines(np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]]))
    half = 1 / np.sqrt(2)
    expected = [[1, 0, -1, half], [0, 1, 0, half], [-1, 0, 1, -half], [half, half, -half, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_gradient_without_a_direction_has_no_cosine(bad: float) -> None:
    assert cosines(np.array([[1.0, 2.0], [bad, bad]])) is None


def test_correlation_is_the_mean_over_the_snapshots_of_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", learners=4))
    found = correlation(run)
    assert found is not None
    assert (found.snapshots, found.versions) == (6, (1, 6))
    each = []
    for version in range(1, 7):
        paths = [
            tmp_path / "run" / f"learner-{r}" / names.DIRECTORY / names.snapshot_file(5, version) for r in range(4)
        ]
        each.append(np.corrcoef([read_tensor(path, "gradient") for path in paths]))
    np.testing.assert_allclose(found.cosines, np.mean(each, axis=0), atol=0.1)  # almost: their means are almost 0
    assert 0.3 < found.mean() < 0.7  # a common part as large as the own one: 1/2
    assert found.neighbours == {(0, 1), (1, 2), (2, 3), (0, 3)}
    late = correlation(run, since=0.6)
    assert late is not None
    assert (late.snapshots, late.versions) == (3, (4, 6))


def test_gradients_without_a_common_part_are_not_correlated(tmp_path: Path) -> None:
    found = correlation(read_run(write_run(tmp_path / "run", shared=0.0, versions=60)))
    assert found is not None
    assert abs(found.mean()) < 0.06


def test_a2c_has_no_neighbours(tmp_path: Path) -> None:
    found = correlation(read_run(write_run(tmp_path / "run", algorithm="A2C", gossip=False)))
    assert found is not None
    assert found.neighbours == frozenset()
    assert np.isnan(found.mean(neighbours=True))


def test_several_runs_count_the_same(tmp_path: Path) -> None:
    runs = [correlation(read_run(write_run(tmp_path / str(n), versions=n, seed=n))) for n in (3, 9)]
    both = together([run for run in runs if run is not None])
    assert both.snapshots == 12
    assert both.versions == (1, 9)
    assert both.mean() == pytest.approx(np.mean([run.mean() for run in runs if run is not None]))


def test_a_run_that_recorded_nothing_has_neither_ball_nor_correlation(tmp_path: Path) -> None:
    (tmp_path / "learner-0").mkdir()
    run = read_run(tmp_path)
    assert epsilon_ball(run) is None
    assert correlation(run) is None


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = trace_of(run, 1)
    path.write_bytes(path.read_bytes()[:-9])
    assert [life.last_version for (life,) in read_traces(read_run(run)).values()] == [6, 5, 6]
    ball = epsilon_ball(read_run(run))
    assert ball is not None
    assert np.isnan(ball.bound).tolist() == [False] * 5 + [True]
    assert any("the traces end earlier" in note for note in ball.notes)


@pytest.mark.parametrize(
    ("line", "content", "words"),
    [
        (0, "{}", "not the header"),
        (0, "nonsense", "not the header"),
        (0, '{"format": 99}', "format 99"),
        (2, "[2, 0.1", "line 3 is damaged"),
        (2, "[2, 0.1, [[1]]]", "line 3 is damaged"),
        (2, "[3, 0.1, []]", "line 3 is version 3, expected 2"),
        (2, "[2, -1, []]", "cannot be -1.0 long"),
        (2, "[2, NaN, []]", "cannot be nan long"),
        (0, "[" * 100_000, "not the header"),
        (0, '{"format": FORMAT, "rank": 1e400}', "not the header"),
        (2, "[" * 100_000, "line 3 is damaged"),
        (2, "[2, 0.1, [[1e400, 0, 1, 1]]]", "line 3 is damaged"),
    ],
)
def test_a_damaged_trace_is_refused_with_its_line(tmp_path: Path, line: int, content: str, words: str) -> None:
    run = write_run(tmp_path / "run")
    lines = trace_of(run, 0).read_text().splitlines()
    lines[line] = content.replace("FORMAT", str(names.TRACE_FORMAT))
    trace_of(run, 0).write_text("\n".join(lines) + "\n")
    with pytest.raises(TraceError, match=words):
        epsilon_ball(read_run(run))


@pytest.mark.parametrize("damage", ["cut", "missing", "rubbish", "other", "deep"])
def test_a_damaged_snapshot_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    run = write_run(tmp_path / "run")
    path = run / "learner-0" / names.DIRECTORY / names.snapshot_file(5, 3)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-200])
        case "missing":
            write_tensors(path, something=[1.0])
        case "rubbish":
            path.write_bytes(b"\xff" * 100)
        case "deep":
            path.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
        case "other":
            path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(TraceError, match=path.name):
        correlation(read_run(run))


def experiment(folder: Path, figures: list[str], runs: dict[str, dict[str, Any]]) -> Path:
    entries = [
        {"name": name, "factors": factors, "environment": "CartPole-v1", "algorithm": factors["algorithm"],
         "topology": factors.get("topology", "Ring"), "learners": 4, "totalSimulators": 16, "totalSteps": 100,
         "seed": factors["seed"], "state": "finished"}
        for name, factors in runs.items()
    ]  # fmt: skip
    content = {"format": 1, "name": "e", "scale": "toy", "description": "", "figures": figures, "runs": entries}
    (folder / "experiment.json").write_text(json.dumps(content))
    return folder


def test_the_ball_has_a_panel_for_each_topology_and_says_how_many_points_are_below_the_bound(tmp_path: Path) -> None:
    runs = {}
    for topology in ("Ring", "Exponential"):
        for seed in (1, 2):
            name = f"{topology}-{seed}".lower()
            # The traces are a ring's: as an exponential graph they are not synchronous.
            write_run(tmp_path / name, learners=4, seed=seed, topology=topology)
            runs[name] = {"algorithm": "GALA-A2C", "topology": topology, "seed": seed}
    [section] = draw(read_experiment(experiment(tmp_path, ["epsilon-ball"], runs)))
    assert section.name == "epsilon-ball-cartpole-v1"
    assert section.plot.svg.count("logarithmic: ") == 2
    assert "2 seeds per panel" in section.plot.caption
    assert "below the bound at 24 of 24 points" in section.plot.caption
    assert "did not mix as the topology says" in section.plot.caption
    assert section.table is not None
    assert [row[-1] for row in section.table.rows] == ["12 of 12", "12 of 12"]
    ring, exponential = section.numbers["lines"]
    for run in ring["runs"]:
        assert all(r <= b <= s for r, b, s in zip(run["radius"], run["bound"], run["synchronousBound"], strict=True))
    assert np.isnan(exponential["runs"][0]["synchronousBound"]).all()


def test_a_radius_above_the_bound_is_said_aloud(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", learners=4)
    for rank in range(4):
        lines = trace_of(run, rank).read_text().splitlines()
        short = [[version, norm / 100, mixed] for version, norm, mixed in map(json.loads, lines[1:])]
        trace_of(run, rank).write_text("\n".join([lines[0], *map(json.dumps, short)]) + "\n")
    runs = {"run": {"algorithm": "GALA-A2C", "seed": 1}}
    [section] = draw(read_experiment(experiment(tmp_path, ["epsilon-ball"], runs)))
    assert "ABOVE the bound at 6 of 6 points" in section.plot.caption


def test_a_run_that_cannot_be_read_is_left_out_by_name(tmp_path: Path) -> None:
    trace_of(write_run(tmp_path / "broken", seed=1), 0).write_text("{}\n")
    write_run(tmp_path / "whole", seed=2)
    runs = {name: {"algorithm": "GALA-A2C", "seed": seed} for seed, name in enumerate(("broken", "whole"))}
    [ball, gradients] = draw(read_experiment(experiment(tmp_path, ["epsilon-ball", "gradient-correlation"], runs)))
    assert "Left out: broken" in ball.plot.caption
    assert "Left out: broken" in gradients.plot.caption


FIGURES = ["epsilon-ball", "gradient-correlation"]


def test_where_no_run_can_be_read_both_figures_say_which_and_why(tmp_path: Path) -> None:
    trace_of(write_run(tmp_path / "broken"), 0).write_text("{}\n")
    runs = {"broken": {"algorithm": "GALA-A2C", "seed": 1}}
    sections = draw(read_experiment(experiment(tmp_path, FIGURES, runs)))
    assert len(sections) == 2
    for section in sections:
        assert "can be computed." in section.plot.svg
        assert "Left out: broken: " in section.plot.caption
        assert "line 1 is not the header of a trace" in section.plot.caption


def test_a_run_of_a_topology_that_this_gala_does_not_know_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "torus", topology="Torus", seed=1)
    write_run(tmp_path / "whole", seed=2)
    runs = {name: {"algorithm": "GALA-A2C", "seed": seed} for seed, name in enumerate(("torus", "whole"))}
    sections = draw(read_experiment(experiment(tmp_path, FIGURES, runs)))
    assert len(sections) == 2
    for section in sections:
        assert re.search("Left out: torus: .*unknown topology type 'Torus'", section.plot.caption)


def test_runs_that_recorded_nothing_are_no_figure(tmp_path: Path) -> None:
    shutil.rmtree(trace_of(write_run(tmp_path / "run", learners=1, topology="Torus"), 0).parent)
    runs = {"run": {"algorithm": "GALA-A2C", "seed": 1}}
    assert draw(read_experiment(experiment(tmp_path, FIGURES, runs))) == []


def test_correlation_has_a_map_for_each_algorithm_with_the_neighbours_framed(tmp_path: Path) -> None:
    runs = {}
    for algorithm, shared in (("GALA-A2C", 0.2), ("A2C", 2.0)):
        name = algorithm.lower()
        write_run(tmp_path / name, learners=4, algorithm=algorithm, shared=shared, gossip=algorithm != "A2C")
        runs[name] = {"algorithm": algorithm, "seed": 1}
    [section] = draw(read_experiment(experiment(tmp_path, ["gradient-correlation"], runs)))
    gala, a2c = section.numbers["lines"]
    assert gala["mean"] < 0.3 < 0.6 < a2c["mean"]
    assert np.isfinite(gala["meanOfNeighbours"])
    assert np.isnan(a2c["meanOfNeighbours"])
    assert section.table is not None
    assert [row[0] for row in section.table.rows] == ["GALA-A2C", "A2C"]
    assert "One seed per map" in section.plot.caption


def test_correlation_has_an_interval_over_the_seeds(tmp_path: Path) -> None:
    runs = {}
    for seed, shared in enumerate((0.2, 1.0, 2.0)):
        write_run(tmp_path / f"run-{seed}", learners=3, shared=shared, seed=seed)
        runs[f"run-{seed}"] = {"algorithm": "GALA-A2C", "seed": seed}
    [section] = draw(read_experiment(experiment(tmp_path, ["gradient-correlation"], runs)))
    [line] = section.numbers["lines"]
    first, second, third = line["meanBySeed"]
    assert first < second < third
    assert line["mean"] == pytest.approx((first + second + third) / 3)
    assert section.table is not None
    [row] = section.table.rows
    interval = row[section.table.head.index("95 % interval")].replace("−", "-")
    low, high = map(float, interval.split(" to "))
    assert first - 1e-3 <= low < line["mean"] < high <= third + 1e-3
