"""`gala report` on synthetic run directories: what is on the page, and that nothing it is given breaks or abuses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gala import report
from gala.errors import UsageError
from gala.report import clock, compare, facts, read, ring, series, tables
from gala.report.canvas import SERIES, style
from report_page import Page, assert_self_contained, write
from synthetic_run import FILES, STARTED, SyntheticRun


@pytest.fixture(scope="module")
def pong(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticRun, Page]:
    """A finished run in which learner 2 was away from second 200 to 290."""
    root = tmp_path_factory.mktemp("report")
    run = SyntheticRun(root, crash=(2, 200, 290))
    return run, write(root, run)


def test_one_run_has_every_plot_and_where_it_stands(pong: tuple[SyntheticRun, Page]) -> None:
    _, page = pong
    assert page.headings()[:12] == [
        "pong", "Return against decisions", "Return against wall-clock", "Evaluation", "Throughput",
        "Disagreement and the ε-ball", "The ring", "Staleness", "Losses", "Entropy and gradients", "Events", "Learners",
    ]  # fmt: skip
    for expected in (
        "GALA-A2C · ALE/Pong-v5 · 4 learners · Ring · paper preset", "finished started 2025-06-15 15:06 UTC",
        "Final score, greedy", "of human", "10 episodes", "1.44 M", "5.76 M frames", "2 399", "1 restart",
        "simulators: 16", "torch 2.13", "run uid-pong",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_every_plot_says_what_it_shows_and_over_how_many_learners(pong: tuple[SyntheticRun, Page]) -> None:
    captions = pong[1].captions()
    assert "last 100 training episodes" in captions["Return against decisions"]
    for title in ("Return against decisions", "Return against wall-clock", "Throughput", "Staleness", "Losses"):
        assert "4 learners" in captions[title], title
    for title in ("Return against decisions", "Evaluation", "Throughput", "Losses"):
        assert "1 decision = 4 frames" in captions[title], title
    assert "seed 1" in captions["Return against decisions"]
    assert "β = 0.707" in captions["Disagreement and the ε-ball"]
    assert "synchronous mixing" in captions["Disagreement and the ε-ball"]


def test_the_page_loads_nothing_and_repeats_no_id(pong: tuple[SyntheticRun, Page]) -> None:
    assert_self_contained(pong[1])


def test_figures_take_every_colour_from_the_page(pong: tuple[SyntheticRun, Page]) -> None:
    """Otherwise black lines on black in the dark."""
    page = pong[1]
    body = page.source[page.source.index("</style>") :]
    assert "var(--series-3)" in body
    for painted in body.replace("url(#", "url(").split("#")[1:]:
        assert not all(letter in "0123456789abcdef" for letter in painted[:6]), painted[:6]
    assert "font-family" not in body


def test_events_and_edges_are_listed(pong: tuple[SyntheticRun, Page]) -> None:
    _, page = pong
    assert "peer-gone 3" in page.text
    assert "resumed 2" in page.text
    assert "checkpoint 0" not in page.text  # too frequent for a list
    assert "Edges (4)" in page.text
    assert "3 → 0 done" in page.text  # the run has finished


def test_of_more_runs_than_colours_none_looks_like_another(tmp_path: Path) -> None:
    labels = [f"run-{i}" for i in range(2 * len(SERIES) + 1)]
    runs = [report.load(SyntheticRun(tmp_path, name, learners=1, seconds=60).directory) for name in labels]
    with style():
        plot = compare.throughput(runs, labels, "x")
    assert plot is not None
    assert len({swatch for swatch, _ in plot.legend}) == len(runs)
    assert len(set(re.findall(r'style="fill: none; ([^"]*stroke: var\(--series-0\)[^"]*)"', plot.svg))) == 3
    table = tables.comparison(runs, [facts.run_facts(run) for run in runs], labels)
    assert len(set(re.findall(r'<i class="swatch ([^"]*)">', table))) == len(runs)


def test_several_runs_are_compared_and_shown_each(tmp_path: Path) -> None:
    runs = [
        SyntheticRun(tmp_path, "first", learners=2, seconds=100),
        SyntheticRun(tmp_path, "other-seed", learners=2, seconds=100, seed=2),
        SyntheticRun(tmp_path, "third-seed", learners=2, seconds=100, seed=3, finished=False),
        SyntheticRun(tmp_path, "alone", learners=1, seconds=100),
    ]
    page = write(tmp_path, *runs)
    assert page.headings()[:2] == ["4 runs side by side", "Over seeds"]
    assert "Evaluation, greedy" in page.headings()
    assert "first, other-seed greedy 2" in page.text
    assert page.headings().count("Return against decisions") == 5  # once together and once for each run
    assert "third-seed running 2 3 120 k 100 s 1.2 k" in page.text
    assert "cannot be compared" not in page.text
    assert_self_contained(page)


def test_runs_of_the_same_name_are_told_apart_and_other_environments_are_pointed_out(tmp_path: Path) -> None:
    here = SyntheticRun(tmp_path / "a", "pong", learners=1, seconds=50)
    there = SyntheticRun(tmp_path / "b", "pong", learners=1, seconds=50, environment="CartPole-v1")
    page = write(tmp_path, here, there)
    assert f"pong ({here.directory})" in page.text
    assert f"pong ({there.directory})" in page.text
    assert "cannot be compared" in page.text


def test_frames_are_only_spoken_of_where_there_are_frames(tmp_path: Path) -> None:
    page = write(tmp_path, SyntheticRun(tmp_path, learners=1, seconds=50, environment="CartPole-v1"))
    assert "4 frames" not in page.text.split("Reading this page")[0]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=1, seconds=50, finished=False)
    before = read.read_run(run.directory)
    run.append(0, '{"kind": "train", "wallSeconds": 9999, "glob')
    assert read.read_run(run.directory) == before
    assert before.learners[0].unreadable_lines == 0


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=2, seconds=50, finished=False)
    run.append(1, "not json\n[1, 2]\n\x00\x00\n")
    page = write(tmp_path, run)
    assert "(3 unreadable lines)" in page.text


def test_nulls_nans_and_wrong_types_are_gaps(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=2, seconds=50)
    for value in ("NaN", "Infinity", "-Infinity", "null", '"text"', "[1]", "{}", "true", "1e999", str(10**400)):
        record = '{"kind": "train", "time": V, "wallSeconds": V, "globalSteps": V, "meanReturn": V, "gossip": V}'
        run.append(0, record.replace("V", value) + "\n")
        run.append(0, f'{{"kind": "evaluation", "mode": "greedy", "globalSteps": {value}, "meanReturn": {value}}}\n')
        run.append(
            0, f'{{"kind": "evaluation", "mode": "greedy", "globalSteps": 5, "meanReturn": 1, "returns": {value}}}\n'
        )
        run.append(0, f'{{"kind": "event", "event": {value}, "wallSeconds": {value}, "incarnation": {value}}}\n')
    for path in ("plan.json", "run.json", "final/card.json"):
        run.write(
            path, '{"learners": [1, {"rank": "x", "outPeers": 3}], "evaluation": [], "startTime": 1e300, "versions": 1}'
        )
    page = write(tmp_path, run)
    assert "Return against decisions" in page.headings()
    assert "nan" not in page.text.lower().split()
    assert_self_contained(page)


@pytest.mark.parametrize("size", ["1e308", "9e299", "1e150"])
def test_numbers_of_any_size_end_no_report(tmp_path: Path, size: str) -> None:
    """Every number of one learner swings between the largest there are: sums, squares and axes have to bear it."""
    runs = [SyntheticRun(tmp_path, f"seed-{seed}", learners=2, seconds=50, seed=seed) for seed in (1, 2)]
    path = runs[0].directory / "learner-0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        swung = float(size) * (-1) ** number
        line |= {key: swung for key, value in line.items() if isinstance(value, float) and key != "time"}
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert_self_contained(write(tmp_path, *runs))


def test_a_run_with_half_of_each_file_still_has_a_report(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=2, seconds=50)
    for path in FILES:
        content = (run.directory / path).read_text()
        run.write(path, content[: len(content) // 2] + "\n\t: [}")
    assert "Return against decisions" in write(tmp_path, run).headings()


@pytest.mark.parametrize("missing", FILES)
def test_a_run_without_one_of_its_files_is_still_known(tmp_path: Path, missing: str) -> None:
    run = SyntheticRun(tmp_path, learners=2, seconds=50)
    (run.directory / missing).unlink()
    found = read.read_run(run.directory)
    assert (found.name, found.environment, found.num_learners) == ("pong", "ALE/Pong-v5", 2)
    assert facts.run_state(found) == "finished"


def test_a_run_that_has_just_started_says_so(tmp_path: Path) -> None:
    (tmp_path / "fresh" / "learner-0").mkdir(parents=True)
    page = write(tmp_path, tmp_path / "fresh")
    assert "Nothing is recorded yet" in page.text
    assert "0 of 1" in page.text
    assert "The ring" not in page.headings()
    both = write(tmp_path, tmp_path / "fresh", SyntheticRun(tmp_path, learners=1, seconds=50))
    assert "Return against decisions" in both.headings()


def test_a_missing_learner_is_seen_as_silent(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, seconds=200, finished=False)
    (run.directory / "learner-3" / "metrics.jsonl").unlink()
    page = write(tmp_path, run)
    assert "3 of 4" in page.text
    assert "learner 3, silent" in page.text


def test_an_edge_around_a_gap_and_a_gone_one_are_drawn_as_such(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, seconds=50, finished=False)
    edges = [
        {"peer": 1, "direction": "out", "state": "connecting", "messages": 5, "bytes": 10},
        {"peer": 2, "direction": "out", "state": "open", "messages": 7, "bytes": 14},
        {"peer": 3, "direction": "in", "state": "gone", "messages": 3, "bytes": 6},
    ]
    run.append(
        0, json.dumps({"kind": "train", "wallSeconds": 51, "globalSteps": 10**6, "gossip": {"edges": edges}}) + "\n"
    )
    page = write(tmp_path, run)
    looks = [
        attributes["class"]
        for tag, attributes in page.tags
        if tag == "path" and "edge" in (attributes.get("class") or "")
    ]
    assert looks == ["edge live", "edge healed", "edge live", "edge live", "edge gone"]
    assert "0 → 2 live, not in the plan" in page.text
    assert "0 → 2: healed, 7 messages sent" in page.text


def test_a_neighbour_that_finished_is_not_a_gone_one(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=2, seconds=50)
    edges = [{"peer": 1, "direction": "in", "state": "gone", "messages": 3, "bytes": 6}]
    run.append(0, json.dumps({"kind": "train", "wallSeconds": 51, "gossip": {"edges": edges}}) + "\n")
    page = write(tmp_path, run)
    assert "1 → 0: done" in page.text


def test_long_runs_make_a_page_of_bounded_size(tmp_path: Path) -> None:
    """An hour and five: beyond what a plot has pixels for, more lines do not make it larger."""
    hour = len(write(tmp_path, SyntheticRun(tmp_path, "hour", learners=1, seconds=3600)).source)
    long = len(write(tmp_path, SyntheticRun(tmp_path, "long", learners=1, seconds=5 * 3600)).source)
    assert long < 1.3 * hour


def test_many_learners_are_all_in_the_mean_and_some_of_them_drawn(tmp_path: Path) -> None:
    page = write(tmp_path, SyntheticRun(tmp_path, learners=70, seconds=20))
    assert "each of 70 learners (24 of them drawn)" in page.captions()["Return against decisions"]
    assert "70 of 70" in page.text
    assert len(page.source) < 1_500_000


def test_hostile_strings_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>$\\frac{'
    run = SyntheticRun(tmp_path, seconds=50)
    for path in ("galarun.yaml", "plan.json"):
        (run.directory / path).unlink()
    spec = {**run.spec, "environment": {"id": f"ALE/{evil}", "preset": evil, "kwargs": {evil: evil}}, "algorithm": evil}
    spec["topology"] = {"type": evil}
    run.write("galarun.yaml", yaml.safe_dump({"metadata": {"name": evil}, "spec": spec}))
    run.write("run.json", json.dumps({"state": evil, "uid": evil}))
    run.write("final/card.json", json.dumps({"versions": {evil: evil}, "globalSteps": 5}))
    run.append(0, json.dumps({"kind": "event", "event": evil, "wallSeconds": 3, evil: {evil: evil}}) + "\n")
    edges = [{"peer": 1, "direction": evil, "state": evil, "messages": 3, "bytes": 6}]
    run.append(0, json.dumps({"kind": "train", "wallSeconds": 51, "gossip": {"edges": edges}}) + "\n")
    for page in (write(tmp_path, run), write(tmp_path, run, SyntheticRun(tmp_path, "tame", seconds=50))):
        assert_self_contained(page)
        assert evil in page.text


def test_values_of_environment_variables_stay_out_of_the_page(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=1, seconds=50)
    worker = {"env": [{"name": "TOKEN", "value": "s3cret-1"}], "podTemplate": {"spec": {"x": "s3cret-2"}}}
    run.write("galarun.yaml", yaml.safe_dump({"spec": {**run.spec, "worker": worker}}))
    page = write(tmp_path, run)
    assert "TOKEN" in page.text
    assert "s3cret" not in page.source


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=2, seconds=50)
    assert write(tmp_path, run).source == write(tmp_path, run).source


def test_a_work_that_was_lost_in_a_crash_does_not_make_curves_run_backwards(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, learners=1, seconds=50, finished=False)
    run.append(0, json.dumps({"kind": "train", "wallSeconds": 60, "globalSteps": 12_000, "meanReturn": 5.0}) + "\n")
    learner = read.read_run(run.directory).learners[0]
    curve = series.curve(learner, "globalSteps", "meanReturn")
    assert list(curve.x) == sorted(set(curve.x))
    assert curve.x[-1] == 12_000
    assert curve.last == 5.0


def test_what_is_not_a_run_is_refused_with_a_hint(tmp_path: Path) -> None:
    SyntheticRun(tmp_path / "runs", "pong", learners=1, seconds=20)
    with pytest.raises(UsageError, match=r"not a run directory: no galarun.yaml.*did you mean .*runs/pong\?"):
        report.write([tmp_path / "runs"], tmp_path / "report.html")
    with pytest.raises(UsageError, match="there is no such folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "report.html")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="it is a file"):
        report.write([tmp_path / "file"], tmp_path / "report.html")
    with pytest.raises(UsageError, match="at least one run directory"):
        report.write([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_the_system_does_not_show_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: File name too long|no such folder"):
        report.write([tmp_path / ("x" * 300)], tmp_path / "report.html")
    run = SyntheticRun(tmp_path, "pong", learners=1, seconds=20)
    (tmp_path / "locked").mkdir()
    is_file = Path.is_file

    def locked(path: Path, **options: Any) -> bool:
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path, **options)

    monkeypatch.setattr(Path, "is_file", locked)
    for look in (report.load, report.is_experiment):
        with pytest.raises(UsageError, match=r"/locked: cannot be read: Permission denied$"):
            look(tmp_path / "locked")
    with pytest.raises(UsageError, match=rf"did you mean {run.directory}\?$"):
        report.load(tmp_path)


def test_an_output_that_cannot_be_written_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "runs", learners=1, seconds=20)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="folder: the report cannot be written: it is a folder"):
        report.write([run.directory], tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        report.write([run.directory], tmp_path / "file" / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "runs"]


def test_an_output_that_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "runs", learners=1, seconds=20)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="it is a device or a pipe"):
        report.write([run.directory], tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("page.html")
    report.write([run.directory], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "page.html", "pipe", "runs"]


def test_the_output_is_readable_by_others_and_its_folder_is_made(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "runs", learners=1, seconds=20)
    path = report.write([run.directory], tmp_path / "new" / "folder" / "report.html")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SyntheticRun(tmp_path, learners=1, seconds=20)
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[report\]'"):
        report.write([run.directory], tmp_path / "report.html")


def test_importing_the_report_takes_no_matplotlib_along() -> None:
    code = "import sys, gala.report; sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_the_callers_matplotlib_settings_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its global state is the caller's, too
    write(tmp_path, SyntheticRun(tmp_path, learners=1, seconds=20))
    assert dict(matplotlib.rcParams) == before


def test_learners_share_a_clock_that_stands_still_while_the_whole_run_is_stopped() -> None:
    """Learner 1 crashes at second 100 and is back at 160; later all stop for an hour. Its own clock goes on from 90."""

    def records(*spans: tuple[int, int, int]) -> tuple[dict[str, Any], ...]:
        return tuple(
            {"time": STARTED + own + shift, "wallSeconds": float(own), "globalSteps": own + shift}
            for start, stop, shift in spans
            for own in range(start, stop + 1, 5)
        )

    steady = read.Learner(rank=0, train=records((0, 200, 0), (200, 300, 3600)))
    crashed = read.Learner(rank=1, train=records((0, 100, 0), (90, 130, 70), (130, 230, 3670)))
    first, second = clock.on_one_clock([steady, crashed])
    assert first.last["wallSeconds"] == pytest.approx(300)
    assert second.last["wallSeconds"] == pytest.approx(300)
    assert [record["wallSeconds"] for record in second.train[20:22]] == [100, 160]
    x = series.curve(second, "wallSeconds", "globalSteps")
    assert list(x.x) == sorted(x.x)
    assert int(np.isnan(x.y).sum()) == 1  # the crash is a gap; the stop, which nobody sat through, is none


def test_edges_of_an_earlier_plan_and_closed_gaps_are_the_past(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, seconds=50, finished=False)
    plan = json.loads((run.directory / "plan.json").read_text())
    plan["learners"] = [{"rank": 0, "outPeers": [1]}, {"rank": 1, "outPeers": [0]}]
    run.write("plan.json", json.dumps(plan))
    for rank in (2, 3):
        run.append(rank, json.dumps({"kind": "event", "event": "stopped", "wallSeconds": 51}) + "\n")
    found = read.read_run(run.directory)
    assert [(edge.source, edge.target) for edge in ring.edges(found)] == [(0, 1), (1, 0)]
    assert "2 of 2" in write(tmp_path, run).text
