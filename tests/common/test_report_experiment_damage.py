"""`gala report` on experiments that are damaged, or made to do harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gala import report
from gala.errors import UsageError
from gala.report import experiment
from synthetic_experiment import SyntheticExperiment, summary, write


@pytest.mark.parametrize("value", ['"x"', "null", "[]", "1e999", "-1", "NaN", str(10**400), '{"a": [1]}'])
def test_wrong_types_anywhere_in_the_index_are_left_out(tmp_path: Path, value: str) -> None:
    made = SyntheticExperiment(
        tmp_path, algorithms=("GALA-A2C",), seeds=1, records=5, figures=("convergence", "scores")
    )
    good = made.index["runs"][0]
    runs = [{**good, key: "VALUE"} for key in good] + [{**good, "factors": {"algorithm": "VALUE"}}, "VALUE", good]
    for damaged in (
        {**made.index, "runs": runs},
        {key: one if key in ("runs", "figures") else "VALUE" for key, one in made.index.items()},
        {**made.index, "figures": ["VALUE"], "runs": "VALUE", "thresholds": {"CartPole-v1": "VALUE"}},
    ):
        made.write("experiment.json", json.dumps(damaged).replace('"VALUE"', value))
        write(made)


def test_damaged_runs_do_not_stop_the_others(tmp_path: Path) -> None:
    made = SyntheticExperiment(tmp_path, algorithms=("GALA-A2C",), seeds=5)
    base = made.directory
    (base / "run-0" / "learner-0" / "metrics.jsonl").write_bytes(b"\xff\xfe\x00 not json\n" * 5)
    (base / "run-1" / "final" / "card.json").write_text('{"evaluation": {"greedy": {"meanReturn": "much"}}')
    (base / "run-2" / "energy.jsonl").write_text('{"time": "x"}\n[]\n{"time": 3, "cpuJoules": -1}\n{')
    (base / "run-3" / "run.json").write_text('{"energy": [1], "startTime": "now"}')
    shutil.rmtree(base / "run-4")
    (base / "run-4").write_text("a file where a folder belongs")
    write(made)
    assert summary(made)["curves-cartpole-v1-decisions"]["lines"][0]["runs"] == 4
    assert len(summary(made)["scores-cartpole-v1"]["lines"][0]["greedy"]["runs"]) == 3


def test_names_of_runs_do_not_lead_out_of_the_experiment(tmp_path: Path) -> None:
    SyntheticExperiment(tmp_path, "other", seeds=1)
    made = SyntheticExperiment(tmp_path, seeds=1)
    for name in ("../other/run-0", str(tmp_path / "other" / "run-0"), "..", ".", "", "a/b"):
        made.index["runs"][0]["name"] = name
        made.save()
        assert len(experiment.read_experiment(made.directory).entries) == 1


def test_hostile_strings_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>|`*_[x](http://evil.example)\n\n# $\\frac{\x00\x1b\ud800 汉字'
    made = SyntheticExperiment(tmp_path, environments=(evil,), algorithms=(evil, "A2C"), seeds=2)
    made.index |= {"name": evil, "description": evil, "scale": evil}
    made.index["runs"][0]["state"] = "failed"  # notes below tables name its line
    (made.directory / "run-0" / "final" / "card.json").unlink()
    made.save()
    source = write(made).read_text()
    assert "<script" not in source
    assert "<script" not in (made.directory / "figures" / "tables.md").read_text().replace("\\<script", "")
    for file in (made.directory / "figures").glob("*.svg"):
        content = file.read_text()
        assert "<script" not in content
        ElementTree.fromstring(content)
    rows = [line for line in (made.directory / "figures" / "tables.md").read_text().splitlines() if "alert" in line]
    assert all(row.startswith(("|", "#", "Raw returns")) for row in rows)
    assert any(row.startswith("Raw returns") for row in rows)


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{ half")
    with pytest.raises(UsageError, match=r"not an experiment: experiment.json is missing, or cannot be read"):
        report.write([tmp_path], tmp_path / "report.html")
