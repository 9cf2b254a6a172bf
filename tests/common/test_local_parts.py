"""The launcher's parts, one by one: cores, ports, processes, files, and what is shown."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.server
import io
import json
import os
import re
import select
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gala import spec_schema
from gala.cores import available_cores, threads_per_learner
from gala.errors import RunError, UsageError
from gala.local.admission import admit
from gala.local.changes import IMMUTABLE, changed_fields, describe
from gala.local.console import Display
from gala.local.polling import fetch_status
from gala.local.ports import PortReservation
from gala.local.process import WorkerProcess, clear_leftovers
from gala.local.rundir import RunDirectory, RunRecord
from gala.local.table import LearnerRow, Snapshot, duration, plain_line, shape
from gala.spec import GalaRun, RunSpec, parse


def a_run(**spec: Any) -> GalaRun:
    return parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "pole"},
            "spec": {"environment": {"id": "CartPole-v1"}, "learners": 3, "runPolicy": {"backoffLimit": 2}, **spec},
        }
    )


class TestCores:
    @pytest.fixture
    def kernel(self, tmp_path: Path) -> Any:
        def build(cgroup: str, **files: str) -> tuple[Path, Path]:
            (tmp_path / "proc/self").mkdir(parents=True)
            (tmp_path / "proc/self/cgroup").write_text(cgroup)
            for name, content in files.items():
                path = tmp_path / "cgroup" / name.replace("__", "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
            return tmp_path / "proc", tmp_path / "cgroup"

        return build

    @pytest.fixture(autouse=True)
    def _eight_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    @pytest.mark.parametrize(
        ("cgroup", "files", "cores"),
        [
            pytest.param("", {}, 8, id="no cgroups"),
            pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="v2 without a quota"),
            pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="v2"),
            pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 2, id="v2, a core and a half"),
            pytest.param("0::/\n", {"cpu.max": "10000 100000\n"}, 1, id="v2, a tenth of a core"),
            pytest.param("0::/\n", {"cpu.max": "6400000 100000\n"}, 8, id="v2, more than there are"),
            pytest.param(
                "0::/a/b\n", {"a__cpu.max": "300000 100000", "a__b__cpu.max": "max 100000"}, 3, id="v2, parent's"
            ),
            pytest.param("0::/host/path\n", {"cpu.max": "200000 100000"}, 2, id="v2, the host's path in a container"),
            pytest.param(
                "4:cpu,cpuacct:/x\n1:name=systemd:/\n",
                {"cpu__x__cpu.cfs_quota_us": "400000\n", "cpu__x__cpu.cfs_period_us": "100000\n"},
                4,
                id="v1",
            ),
            pytest.param(
                "4:cpu,cpuacct:/\n",
                {"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"},
                8,
                id="v1, none",
            ),
        ],
    )
    def test_the_quota_counts_as_well_as_the_affinity(
        self, kernel: Any, cgroup: str, files: dict[str, str], cores: int
    ) -> None:
        assert available_cores(*kernel(cgroup, **files)) == cores

    @pytest.mark.parametrize(("learners", "cores", "threads"), [(2, 2, 1), (4, 2, 1), (3, 8, 2), (1, 6, 6)])
    def test_cores_are_shared_out_but_nobody_goes_without(self, learners: int, cores: int, threads: int) -> None:
        assert threads_per_learner(learners, cores) == threads


class TestPorts:
    @pytest.fixture
    def ports(self) -> Iterator[PortReservation]:
        reserved = PortReservation()
        yield reserved
        reserved.close()

    def test_a_reserved_port_is_closed_to_strangers_and_open_to_our_worker(self, ports: PortReservation) -> None:
        host, port = ports.address(0).gossip.split(":")
        where = (host, int(port))
        with socket.socket() as stranger, pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            stranger.bind(where)
        with socket.socket() as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(where)
        for _life in range(2):
            with socket.socket() as worker:
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                worker.bind(where)
                worker.listen()
                for _ in range(8):  # the reservation itself must not swallow any connection
                    with socket.create_connection(where, timeout=2), worker.accept()[0]:
                        pass

    def test_a_rank_keeps_its_address_and_no_two_share_one(self, ports: PortReservation) -> None:
        addresses = [ports.address(rank) for rank in (0, 1, 2, 0)]
        assert addresses[0] == addresses[3]
        assert len({port for address in addresses for port in (address.gossip, address.http)}) == 6


class TestProcesses:
    def run(self, tmp_path: Path, code: str, **environment: str) -> WorkerProcess:
        return WorkerProcess([sys.executable, "-c", code], environment, tmp_path / "learner-0" / "log.txt")

    def test_the_log_is_appended_and_the_last_line_is_of_this_life(self, tmp_path: Path) -> None:
        first = self.run(tmp_path, "import sys; sys.exit('first life')")
        assert (first.wait(), first.last_line()) == (1, "first life")
        second = self.run(tmp_path, "pass")
        assert (second.wait(), second.last_line()) == (0, "")
        assert (tmp_path / "learner-0/log.txt").read_text() == "first life\n"

    def test_a_worker_has_a_process_group_of_its_own_and_dies_with_its_children(self, tmp_path: Path) -> None:
        code = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
        worker = self.run(tmp_path, code)
        while not worker.last_line():
            assert worker.exit_code() is None
        assert os.getpgid(worker.pid) == worker.pid
        assert os.getsid(worker.pid) == os.getsid(0)  # the kernel shares the cores out among sessions first
        child = os.pidfd_open(int(worker.last_line()))
        worker.kill()
        assert worker.wait() == -9
        # Readable = ended. An orphan is reaped by init, which may take its time.
        assert select.select([child], [], [], 10)[0]
        os.close(child)

    def test_only_processes_of_this_run_are_cleared_away(self, tmp_path: Path) -> None:
        code = "import os, time; print(os.environ['GALA_OUTPUT_DIR'], flush=True); time.sleep(600)"
        ours = self.run(tmp_path / "ours", code, GALA_OUTPUT_DIR="/runs/ours")
        theirs = self.run(tmp_path / "theirs", code, GALA_OUTPUT_DIR="/runs/theirs")
        try:
            # Popen returns while the kernel is still setting up the new program: /proc has no environment yet.
            while not (ours.last_line() and theirs.last_line()):
                assert (ours.exit_code(), theirs.exit_code()) == (None, None)
            gone = 2**22 + 1  # above the kernel's largest pid
            assert clear_leftovers([ours.pid, theirs.pid, gone], {"GALA_OUTPUT_DIR": "/runs/ours"}, 0.1) == [ours.pid]
            assert ours.wait() == -9
            assert theirs.exit_code() is None
        finally:
            ours.kill()
            theirs.kill()
            theirs.wait()


class TestPolling:
    @pytest.fixture
    def serve(self) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:

            def serving(body: bytes, status: int = 200) -> str:
                class Handler(http.server.BaseHTTPRequestHandler):
                    def do_GET(self) -> None:
                        self.send_response(status)
                        self.end_headers()
                        self.wfile.write(body)

                    def log_message(self, *_: Any) -> None:
                        pass

                server = stack.enter_context(http.server.HTTPServer(("127.0.0.1", 0), Handler))
                thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
                thread.start()
                stack.callback(thread.join)
                stack.callback(server.shutdown)
                return f"127.0.0.1:{server.server_port}"

            yield serving

    def test_a_status_is_a_json_object(self, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not matter
        assert fetch_status(serve(b'{"steps": 5}')) == {"steps": 5}

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"[1]", 200),
            (b"oh", 200),
            (b"{}", 503),
            (b"\xff" * 9, 200),
            (b'{"a":' + b"1" * 2_000_000, 200),
            (b'{"a":' * 100_000, 200),
        ],
    )
    def test_anything_else_is_no_answer(self, serve: Any, body: bytes, status: int) -> None:
        assert fetch_status(serve(body, status)) is None

    def test_a_worker_that_accepts_and_says_nothing_is_no_answer(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert fetch_status(f"127.0.0.1:{server.getsockname()[1]}", timeout_seconds=0.05) is None


class Killed(BaseException):
    """The process is gone."""


def killed_after(steps: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Have `Killed` come once so many steps have changed what is in a folder. Returns the steps that were too many."""
    done, too_many = [], []

    def counted(name: str, change: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if len(done) == steps:
                too_many.append(name)
                raise Killed
            done.append(name)
            return change(*arguments, **options)

        return step

    for name in ("mkdir", "rename", "rmdir", "unlink"):
        patch.setattr(Path, name, counted(name, getattr(Path, name)))
    return too_many


class TestRunDirectory:
    def test_only_one_launcher_holds_a_run(self, tmp_path: Path) -> None:
        first, second = RunDirectory(tmp_path / "runs/pole"), RunDirectory(tmp_path / "runs/pole")
        assert first.acquire()
        assert not second.acquire()
        first.release()
        assert second.acquire()
        second.release()

    def test_the_record_survives_its_file(self, tmp_path: Path) -> None:
        record = RunRecord(
            uid="u", state="stopped", start_time=1.5, wall_seconds=2.25, updated_time=9.5, worker_pids=[3, 4]
        )
        directory = RunDirectory(tmp_path)
        directory.write_record(record)
        assert directory.record() == record
        assert set(json.loads((tmp_path / "run.json").read_text())) >= {"uid", "state", "startTime", "wallSeconds"}

    @pytest.mark.parametrize("pid", ["99999999999999999999", "1e400", "-1", "0", "null", '"x"', "[]"])
    def test_what_cannot_be_a_process_is_no_leftover(self, tmp_path: Path, pid: str) -> None:
        directory = RunDirectory(tmp_path)
        directory.write_record(RunRecord(uid="u", state="running", start_time=1.5, worker_pids=[4]))
        file = tmp_path / "run.json"
        file.write_text(re.sub(r"\[\s*4", f"[{pid}, 4", file.read_text()))
        record = directory.record()
        assert record is not None
        assert record.worker_pids == [4]
        assert clear_leftovers(record.worker_pids, {"GALA_OUTPUT_DIR": "/runs/ours"}, 0.0) == []

    @pytest.mark.parametrize(
        "content",
        [
            b"\xff\xfe",
            b"[" * 100_000,
            b"[]",
            b'{"uid": "u", "state": "running", "startTime": 1e400, "wallSeconds": 1, "updatedTime": 1}',
            b'{"uid": "u", "state": "running", "startTime": 1, "wallSeconds": 1' + b"0" * 400 + b', "updatedTime": 1}',
            b'{"uid": "u", "state": "running", "startTime": 1, "wallSeconds": null, "updatedTime": 1}',
        ],
    )
    def test_a_damaged_record_is_told_and_left_alone(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            RunDirectory(tmp_path).record()
        assert (tmp_path / "run.json").read_bytes() == content

    @pytest.mark.parametrize("content", ['{"epoch": 1e400}', "[" * 100_000])
    def test_a_damaged_plan_has_no_epoch(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "plan.json").write_text(content)
        assert RunDirectory(tmp_path).plan_epoch() == -1

    def test_the_document_survives_its_file(self, tmp_path: Path) -> None:
        directory = RunDirectory(tmp_path)
        run = a_run(
            hyperparameters={"learningRate": 1e-3}, policy={"hiddenSizes": [8, 8]}, evaluation={"everySteps": None}
        )
        directory.write_run(run)
        assert directory.run() == run

    def test_an_earlier_run_that_is_set_aside_stays_so_whatever_is_started_over_in_its_place(
        self, tmp_path: Path
    ) -> None:
        directory = RunDirectory(tmp_path / "pole")
        directory.acquire()
        for content in ("trained", "never trained", "nor this"):
            (directory.path / "model").write_text(content)
            directory.set_aside()
            assert directory.is_empty()
        assert directory.bring_back()
        assert (directory.path / "model").read_text() == "trained"
        assert not directory.bring_back()
        directory.release()

    @pytest.mark.parametrize("way", ["aside", "back"])
    def test_a_launcher_killed_while_it_moves_the_earlier_run_leaves_it_to_the_next_one_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        for steps in range(1, 20):
            directory = RunDirectory(tmp_path / str(steps) / "pole")
            directory.acquire()
            directory.write_record(RunRecord(uid="earlier", state="finished", start_time=1.0))
            directory.write_run(a_run())
            directory.learner(0).mkdir()
            (directory.path / "model").write_text("trained")
            if way == "back":
                directory.set_aside()
                directory.write_record(RunRecord(uid="later", state="running", start_time=2.0))
                directory.write_run(a_run())
            with monkeypatch.context() as patch:
                killed = killed_after(steps, patch)
                with contextlib.suppress(Killed):
                    directory.set_aside() if way == "aside" else directory.bring_back()
            directory.release()

            after = RunDirectory(directory.path)
            after.acquire()
            with pytest.raises(UsageError, match="run pole is finished"):
                admit(after, a_run(), force=False, grace_seconds=0.0)
            found = {entry.name for entry in after.path.iterdir()}
            assert found == {"galarun.yaml", "launcher.lock", "learner-0", "model", "run.json"}
            after.release()
            if not killed:
                return
        pytest.fail("it takes more steps than this test looks at")

    def test_checkpoints_whose_document_is_gone_are_not_taken_for_those_of_a_new_run(self, tmp_path: Path) -> None:
        directory = RunDirectory(tmp_path / "pole")
        directory.acquire()
        directory.write_record(RunRecord(uid="u", state="stopped", start_time=1.0))
        (directory.learner(0) / "checkpoints" / "step-000000000001").mkdir(parents=True)
        with pytest.raises(UsageError, match=r"galarun\.yaml is gone: .* put it back, use --name pole-2 .* --force"):
            admit(directory, a_run(), force=False, grace_seconds=0.0)
        shutil.rmtree(directory.learner(0) / "checkpoints")
        assert not admit(directory, a_run(), force=False, grace_seconds=0.0).resumed
        assert directory.is_empty()
        directory.release()

    def test_what_is_forgotten_is_brought_back_by_nobody_though_the_disk_keeps_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = RunDirectory(tmp_path / "pole")
        directory.acquire()
        (directory.path / "model").write_text("the earlier one")
        directory.set_aside()
        (directory.path / "model").write_text("the later one")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            directory.forget()
        assert not directory.bring_back()
        assert (directory.path / "model").read_text() == "the later one"
        directory.forget()
        assert {entry.name for entry in directory.path.iterdir()} == {"launcher.lock", "model"}
        directory.release()

    def test_a_record_says_that_the_run_is_being_evaluated_only_while_it_is(self) -> None:
        record = RunRecord(uid="u", state="running", start_time=1.0, is_ending=True)
        assert RunRecord.from_json(record.to_json()).is_ending
        record.state = "failed"
        assert not RunRecord.from_json(record.to_json()).is_ending

    def test_what_cannot_change_is_what_the_api_server_refuses_to_change(self) -> None:
        def fixed(schema: dict[str, Any], path: str) -> Iterator[str]:
            if any("oldSelf" in rule["rule"] for rule in schema.get("x-kubernetes-validations", ())):
                yield path
            else:
                for name, field in schema.get("properties", {}).items():
                    yield from fixed(field, f"{path}.{name}")

        assert set(fixed(spec_schema.plain(RunSpec), "spec")) == set(IMMUTABLE)

    def test_changes_are_told_by_their_path(self) -> None:
        old, new = a_run(policy={"hiddenSizes": [8, 8]}), a_run(policy={"hiddenSizes": [8]}, learners=5)
        assert changed_fields(old, new) == {"spec.learners": (3, 5), "spec.policy.hiddenSizes": ([8, 8], [8])}

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ({}, {"wind": None}, "wind unset -> null"),
            ({"wind": None}, {}, "wind null -> unset"),
            ({"wind": 1}, {"wind": True}, "wind 1 -> True"),
            ({"wind": [0]}, {"wind": [False]}, "wind [0] -> [False]"),
            ({"a.b": 1}, {"a": {"b": 1}}, "a.b 1 -> unset"),
            ({"a": {"x": 1, "y": 2}, "b": [{"x": 1, "y": 2}]}, {"b": [{"y": 2, "x": 1}], "a": {"y": 2, "x": 1}}, ""),
        ],
    )
    def test_what_an_environment_can_tell_apart_is_a_change(
        self, old: dict[str, Any], new: dict[str, Any], told: str
    ) -> None:
        before, after = (a_run(environment={"id": "CartPole-v1", "kwargs": kwargs}) for kwargs in (old, new))
        changes = describe(changed_fields(before, after))
        assert changes.startswith(f"spec.environment.kwargs.{told}") if told else not changes


SNAPSHOT = Snapshot(
    name="pong",
    environment="ALE/Pong-v5",
    topology="Ring of 2",
    learners=[
        LearnerRow(rank=0, state="training", steps=600_000, steps_per_second=1200.4, mean_return=-3.25, staleness=1),
        LearnerRow(rank=1, state="backing off", restarts=2),
    ],
    global_steps=1_000_000,
    total_steps=4_000_000,
    wall_seconds=600,
)


class TestDisplay:
    def test_only_of_a_run_whose_learners_gossip_the_topology_is_said(self) -> None:
        assert shape("GALA-PPO", "Complete", 3) == "Complete of 3"
        assert shape("A3C", "Ring", 3) == "A3C with 3"

    def test_the_line_says_how_far_how_fast_and_how_well(self) -> None:
        expected = "1,000,000 of 4,000,000 decisions (25.0%), 1,200/s, return -3.2, 1 of 2 learners, ETA 42 min"
        assert plain_line(SNAPSHOT) == expected

    def test_a_terminal_gets_a_table_in_place(self) -> None:
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=120, color_system=None)
        with Display(console) as display:
            display.show(SNAPSHOT, now=0)
            display.say("learner 1 has crashed [not markup]")
        text = screen.getvalue()
        for expected in (
            "pong: ALE/Pong-v5, Ring of 2",
            "600,000",
            "backing off",
            "25.0%",
            "ETA 42 min",
            "[not markup]",
        ):
            assert expected in text

    def test_a_ring_that_is_higher_than_the_terminal_shares_a_line(self) -> None:
        rows = [LearnerRow(rank=rank, state="training" if rank % 2 else "starting") for rank in range(100)]
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=120, height=20, color_system=None)
        with Display(console) as display:
            display.show(dataclasses.replace(SNAPSHOT, learners=rows), now=0)
        assert "45 of 89 more active" in screen.getvalue()
        assert "ETA" in screen.getvalue()

    def test_a_pipe_gets_a_line_now_and_then(self) -> None:
        pipe = io.StringIO()
        with Display(Console(file=pipe, width=40), line_seconds=10) as display:
            for now in (0, 5, 9.9, 10, 15):
                display.show(SNAPSHOT, now=now)
        assert pipe.getvalue().count("ETA") == 2
        assert len(pipe.getvalue().splitlines()) == 2

    def test_a_terminal_that_cannot_redraw_gets_the_lines_of_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        screen = io.StringIO()
        with Display(Console(file=screen, force_terminal=True, width=120)) as display:
            display.show(SNAPSHOT, now=0)
            assert "25.0%" in screen.getvalue()

    def test_nothing_is_known_at_the_start_and_that_is_shown(self) -> None:
        start = Snapshot(
            name="a", environment="b", topology="c", learners=[], global_steps=0, total_steps=5, wall_seconds=0
        )
        assert plain_line(start) == "0 of 5 decisions (0.0%), 0/s, return -, 0 of 0 learners, ETA -"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (None, "-"),
            (0, "0 s"),
            (119, "119 s"),
            (119.6, "2 min"),
            (3599, "60 min"),
            (7200, "2 h 00 min"),
            (11_100, "3 h 05 min"),
            (187_200, "2 d 04 h"),
        ],
    )
    def test_durations_read_well(self, seconds: float | None, text: str) -> None:
        assert duration(seconds) == text
