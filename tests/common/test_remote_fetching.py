"""`gala fetch`: what a results pod sends becomes a run directory, and nothing that it sends can do harm."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gala import names
from gala.errors import ClusterError
from gala.local import ending
from gala.local.rundir import RunDirectory
from gala.remote.unpacking import unpack
from remote_cluster import SPEC, Gala

MODEL = b"a model's bytes" * 10_000


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
            else:
                archive.addfile(member, io.BytesIO(b"\0" * member.size))
    return buffer.getvalue()


def results(**more: bytes) -> bytes:
    card = {"run": "pole", "globalSteps": 1000, "evaluation": {"greedy": {"meanReturn": 500.0, "episodes": 10}}}
    files = {
        "galarun.yaml": b"apiVersion: gala.dev/v1alpha1\n",
        "plan.json": b"{}",
        "final/card.json": json.dumps(card).encode(),
        "final/model.safetensors": MODEL,
        "learner-0/metrics.jsonl": b'{"kind": "train"}\n',
        **more,
    }
    return tar(*files.items())


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "write_report", lambda directory: (None, "left out of this test"))


@pytest.fixture
def uid(cluster: Any) -> str:
    """Of a run that has succeeded and whose results pod serves."""
    model = {"sha256": hashlib.sha256(MODEL).hexdigest(), "meanReturn": 500.0}
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:02:00Z"}
    uid = cluster.add_run("pole", SPEC, cluster.status("Succeeded", finalModel=model, **times))
    cluster.add_pod("pole-results", "pole", uid, rank=None)
    cluster.archive = results()
    return str(uid)


def test_fetch_lays_out_a_run_directory(gala: Gala, uid: str, tmp_path: Path) -> None:
    code, out, err = gala("fetch", "pole")
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "pole"
    assert (run / "final" / "model.safetensors").read_bytes() == MODEL
    assert (run / "learner-0" / "metrics.jsonl").read_bytes() == b'{"kind": "train"}\n'
    record = RunDirectory(run).record()
    assert record is not None
    assert (record.uid, record.state, record.wall_seconds) == (uid, "finished", 120.0)
    assert "mean return 500.0 over 10 episodes" in out
    assert "final model     runs/pole/final/model.safetensors" in out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pole"]  # no scratch is left


def test_the_report_is_written_over_what_was_fetched(
    gala: Gala, uid: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ending, "write_report", lambda directory: (directory.path / names.REPORT_FILE, ""))
    assert "report          runs/pole/report.html" in gala("fetch", "pole")[1]


def test_a_second_fetch_renews_the_same_run_and_spares_another(
    gala: Gala, uid: str, cluster: Any, tmp_path: Path
) -> None:
    assert gala("fetch", "pole")[0] == 0
    (tmp_path / "runs" / "pole" / "old").touch()
    assert gala("fetch", "pole")[0] == 0
    assert not (tmp_path / "runs" / "pole" / "old").exists()
    run = cluster.runs[("default", "pole")]
    run["metadata"]["uid"] = cluster.pods[0]["metadata"]["labels"]["gala.dev/run-uid"] = "another"
    code, _, err = gala("fetch", "pole")
    assert code == 2
    assert "holds another run" in err
    assert gala("fetch", "pole", "--force")[0] == 0


def test_a_folder_that_is_no_run_is_not_touched(gala: Gala, uid: str, tmp_path: Path) -> None:
    thesis = tmp_path / "runs" / "pole" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine")
    for arguments in ([], ["--force"]):
        code, _, err = gala("fetch", "pole", *arguments)
        assert code == 2
        assert "is not a run directory" in err
        assert thesis.read_text() == "mine"


def test_a_run_that_is_going_on_here_is_not_overwritten(gala: Gala, uid: str, tmp_path: Path) -> None:
    local = RunDirectory(tmp_path / "runs" / "pole")
    assert local.acquire()
    code, _, err = gala("fetch", "pole", "--force")
    local.release()
    assert code == 2
    assert "going on here" in err


def test_a_connection_that_breaks_is_tried_again(gala: Gala, uid: str, cluster: Any, tmp_path: Path) -> None:
    cluster.cut_after = 50_000
    code, out, _ = gala("fetch", "pole")
    assert code == 0
    assert "trying again" in out
    assert (tmp_path / "runs" / "pole" / "final" / "model.safetensors").read_bytes() == MODEL


def test_a_model_that_is_not_the_one_of_the_status_is_refused(
    gala: Gala, uid: str, cluster: Any, tmp_path: Path
) -> None:
    cluster.archive = results(**{"final/model.safetensors": b"another"})
    code, _, err = gala("fetch", "pole")
    assert code == 1
    assert "is not the one that the run's status tells of" in err
    assert not (tmp_path / "runs" / "pole" / "final").exists()


def test_what_the_results_pod_says_instead_of_results_is_told(gala: Gala, uid: str, cluster: Any) -> None:
    cluster.archive_status, cluster.archive = 409, b"still evaluating"
    code, _, err = gala("fetch", "pole")
    assert code == 1
    assert err.splitlines()[-1] == "error: pod pole-results does not hand out its results (409): still evaluating"


@pytest.mark.parametrize(
    ("state", "fields", "text"),
    [
        pytest.param("Running", {}, "has not ended (Running)", id="running"),
        pytest.param("Failed", {"message": "too few learners"}, "has no final model: too few learners", id="failed"),
        pytest.param("Succeeded", {"finalModel": {"meanReturn": 1.0}}, "pole-results, which serves", id="pod gone"),
    ],
)
def test_without_results_one_line_says_why(
    gala: Gala, cluster: Any, state: str, fields: dict[str, Any], text: str
) -> None:
    cluster.add_run("pole", SPEC, cluster.status(state, **fields))
    code, out, err = gala("fetch", "pole")
    assert (code, out) == (2, "")
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("cluster")
def test_an_unknown_run_leaves_no_folder(gala: Gala, tmp_path: Path) -> None:
    assert gala("fetch", "nix") == (2, "", "error: there is no run nix in namespace default\n")
    assert not (tmp_path / "runs").exists()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("device")
    info.type = kind
    return info


def sparse() -> bytes:
    """A file of a terabyte, all of it a hole, in PAX's notation."""
    info = tarfile.TarInfo("hole")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(10**12),
        "GNU.sparse.map": "0,0",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return buffer.getvalue()


def huge_header() -> bytes:
    """An extended header that claims to have two gigabytes."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2 * 1024**3
    return info.tobuf() + b"\0" * 10_240


def header(kind: bytes, content: bytes) -> bytes:
    """One that says something of the member behind it."""
    info = tarfile.TarInfo("./@header")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % 512)


def sparse_map() -> bytes:
    """In GNU's notation 1.0 the list of a sparse file's parts is read from its content."""
    content = b"999999999999\n" + b"0\n" * 100_000
    notation = (b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n", b"21 GNU.sparse.name=a\n")
    record = b"".join((*notation, b"25 GNU.sparse.realsize=1\n"))
    return header(tarfile.XHDTYPE, record) + header(tarfile.REGTYPE, content) + b"\0" * 1024


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(header(tarfile.XHDTYPE, b"7 a=b\n\n") * 3000 + tar(("a", b"x")), id="extended headers"),
        pytest.param(header(tarfile.XHDTYPE, b"") * 3000 + tar(("a", b"x")), id="empty extended headers"),
        pytest.param(header(tarfile.GNUTYPE_LONGNAME, b"a\0") * 3000 + tar(("a", b"x")), id="long names"),
        pytest.param(tar(("a", b"x" * 10**6))[:-9216] + header(tarfile.XHDTYPE, b"") * 3000, id="behind a file"),
        pytest.param(sparse_map(), id="sparse map"),
    ],
)
def test_an_archive_of_headers_is_refused_before_they_are_read(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(archive)
    (tmp_path / "out").mkdir()
    with pytest.raises(ClusterError, match="the archive is damaged: a header is too large"):
        unpack(tmp_path / "archive.tar", tmp_path / "out")


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(tar(("../escape", b"x")), id="parent"),
        pytest.param(tar(("a/../../escape", b"x")), id="parent inside"),
        pytest.param(tar(("/tmp/escape", b"x")), id="absolute"),
        pytest.param(tar(("a\\..\\escape", b"x")), id="backslash"),
        pytest.param(tar(("/".join("a" * 40), b"x")), id="deep"),
        pytest.param(tar(link("a", "/etc/passwd")), id="symbolic link"),
        pytest.param(tar(link("a", ".."), ("a/escape", b"x")), id="through a link"),
        pytest.param(tar(("a", b"x"), link("b", "a", tarfile.LNKTYPE)), id="hard link"),
        pytest.param(tar(special(tarfile.CHRTYPE)), id="device"),
        pytest.param(tar(special(tarfile.FIFOTYPE)), id="pipe"),
        pytest.param(tar(("a", b"x"), ("./a", b"y")), id="twice"),
        pytest.param(tar(("a", b"x"), ("a/b", b"y")), id="file as folder"),
        pytest.param(tar(("a", b"x" * 2000), ("b", b"x" * 2000)), id="too many bytes"),
        pytest.param(tar(*((str(number), b"") for number in range(20))), id="too many files"),
        pytest.param(sparse(), id="sparse"),
        pytest.param(huge_header(), id="huge header"),
        pytest.param(tar(("a", b"x" * 2000))[:1500], id="cut off"),
        pytest.param(b"<html>not a tar</html>" * 100, id="no tar"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_hostile_archive_is_refused_and_nothing_gets_outside(archive: bytes, tmp_path: Path) -> None:
    path, target = tmp_path / "archive.tar", tmp_path / "in" / "side"
    path.write_bytes(archive)
    target.mkdir(parents=True)
    with pytest.raises(ClusterError):
        unpack(path, target, max_bytes=3000, max_files=10)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "in"]
    assert list((tmp_path / "in").iterdir()) == [target]
    assert not [found for found in target.rglob("*") if found.is_symlink()]


def test_an_honest_archive_comes_out_as_it_went_in(tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(tar(("./final/card.json", b"{}"), ("empty", b"")))
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "archive.tar", tmp_path / "out") == 2
    assert (tmp_path / "out" / "final" / "card.json").read_bytes() == b"{}"
    assert (tmp_path / "out" / "empty").read_bytes() == b""
