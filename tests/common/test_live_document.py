"""The document of a run at work: what of it is followed, and that each change is told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gala.local.live_document import LiveDocument
from gala.local.rundir import RunDirectory
from gala.spec import GalaRun, parse


def run_of(**spec: object) -> GalaRun:
    return parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "pole"},
            "spec": {"environment": {"id": "CartPole-v1"}, **spec},
        }
    )


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_what_the_launcher_has_written_itself_is_no_news(directory: RunDirectory) -> None:
    said: list[str] = []
    document = LiveDocument(directory, said.append)
    document.write(run_of())
    assert document.news(run_of(learners=2)) is None
    assert said == []


def test_a_change_that_workers_can_follow_is_told_and_given_once(directory: RunDirectory) -> None:
    said: list[str] = []
    document = LiveDocument(directory, said.append)
    document.write(run_of(learners=4))
    directory.write_run(run_of(learners=3))
    assert document.news(run_of(learners=4)) == run_of(learners=3)
    assert document.news(run_of(learners=4)) is None
    assert said == ["spec.learners 4 -> 3"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("seed", "cannot change spec.seed 1 -> 7"), ("spec: {", "is not followed: "), (None, "is not followed: ")],
)
def test_a_document_that_cannot_be_followed_is_told_once(
    directory: RunDirectory, content: str | None, words: str
) -> None:
    said: list[str] = []
    document = LiveDocument(directory, said.append)
    document.write(run_of(seed=1))
    if content == "seed":
        directory.write_run(run_of(seed=7))
    elif content is None:
        directory.spec_file.unlink()
    else:
        directory.spec_file.write_text(content)
    assert document.news(run_of(seed=1)) is None
    assert document.news(run_of(seed=1)) is None
    assert len(said) == 1
    assert words in said[0]
