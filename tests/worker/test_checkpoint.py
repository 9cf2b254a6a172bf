"""Saving and loading checkpoints: what comes back, what is refused, and what a kill can cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gala.errors import CheckpointError
from gala_worker import checkpoint
from gala_worker.checkpoint import Checkpoint

SCHEMA = "a" * 64


def make(global_steps: int, *, value: float | None = None, schema: str = SCHEMA) -> Checkpoint:
    fill = float(global_steps) if value is None else value
    return Checkpoint(
        tensors={checkpoint.VECTOR: torch.full((1000,), fill), "optimizer.square_average": torch.arange(7.0)},
        counters={"updates": global_steps // 80, "epoch": 3, "progress": {"0": 10, "1": 20}},
        schema_hash=schema,
        global_steps=global_steps,
    )


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_saved_comes_back(tmp_path: Path) -> None:
    saved = make(80)
    path = checkpoint.save(tmp_path, saved)
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert path == tmp_path / "step-000000000080"
    assert loaded is not None
    assert loaded.counters == saved.counters
    assert loaded.global_steps == 80
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_views_of_one_vector_and_strided_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    vector = torch.arange(12.0)
    tensors = {"vector": vector, "same": vector, "part": vector[3:7], "transposed": vector.view(3, 4).T}
    checkpoint.save(tmp_path, Checkpoint(tensors=tensors, schema_hash=SCHEMA))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert torch.equal(loaded.tensors["same"], vector)
    assert torch.equal(loaded.tensors["part"], vector[3:7])
    assert torch.equal(loaded.tensors["transposed"], vector.view(3, 4).T)


def test_there_is_no_checkpoint_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path, SCHEMA) is None
    assert checkpoint.load_latest(tmp_path / "missing", SCHEMA) is None


def test_a_folder_whose_name_is_not_utf_8_keeps_checkpoints_as_any_other(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"q\xff")
    checkpoint.save(folder, make(80))
    loaded = checkpoint.load_latest(folder, SCHEMA)
    assert loaded is not None
    assert loaded.global_steps == 80


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for steps in (100, 200, 300, 400):
        checkpoint.save(tmp_path, make(steps), keep=2)
    assert names_in(tmp_path) == ["step-000000000300", "step-000000000400"]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_an_earlier_life_has_left_at_later_steps_costs_this_one_nothing(tmp_path: Path, keep: int) -> None:
    for steps in (9_000, 10_000):
        checkpoint.save(tmp_path, dataclasses.replace(make(steps), schema_hash="b" * 64), keep=2)
    for steps in (100, 200, 300):
        assert checkpoint.save(tmp_path, make(steps), keep=keep).is_dir()
        assert checkpoint.load_latest(tmp_path, SCHEMA).global_steps == steps  # type: ignore[union-attr]
    assert len(names_in(tmp_path)) == 2 + keep
    checkpoint.save(tmp_path, make(20_000), keep=keep)
    assert len(names_in(tmp_path)) == keep


def test_steps_beyond_twelve_digits_are_still_the_newest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(999_999_999_999))
    checkpoint.save(tmp_path, make(1_000_000_000_000))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert loaded.global_steps == 1_000_000_000_000


def test_a_second_save_of_the_same_step_replaces_the_first(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(80, value=1.0))
    checkpoint.save(tmp_path, make(80, value=2.0))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert loaded.tensors["vector"][0] == 2.0
    assert names_in(tmp_path) == ["step-000000000080"]


def test_a_checkpoint_moved_aside_by_a_killed_replacement_is_still_found(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, make(80))
    path.rename(path.with_name(path.name + ".replaced"))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert loaded.global_steps == 80


def test_what_a_killed_save_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".partial-step-000000000080-1").mkdir()
    (tmp_path / ".partial-step-000000000080-1" / "state.safetensors").write_bytes(b"half")
    checkpoint.save(tmp_path, make(160))
    assert names_in(tmp_path) == ["step-000000000160"]


def truncate_tensors(path: Path) -> None:
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    file = path / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def truncate_record(path: Path) -> None:
    file = path / "state.json"
    file.write_bytes(file.read_bytes()[:-9])


def swell_record(path: Path) -> None:
    with (path / "state.json").open("ab") as file:
        file.truncate(checkpoint.MAX_RECORD_BYTES + 1)


def remove_tensors(path: Path) -> None:
    (path / "state.safetensors").unlink()


def remove_record(path: Path) -> None:
    (path / "state.json").unlink()


def claim_other_format(path: Path) -> None:
    file = path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": "gala-checkpoint/99"}))


def put_a_pipe_for_the_record(path: Path) -> None:
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")


def put_a_device_for_the_record(path: Path) -> None:
    (path / "state.json").unlink()
    (path / "state.json").symlink_to("/dev/null")


def put_a_pipe_for_the_tensors(path: Path) -> None:
    """Of as many bytes as the record tells: none."""
    file = path / "state.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"tensors": record["tensors"] | {"size": 0}}))
    (path / "state.safetensors").unlink()
    os.mkfifo(path / "state.safetensors")


def nest_record(path: Path) -> None:
    (path / "state.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(truncate_tensors, "of .* bytes", id="truncated tensors"),
        pytest.param(flip_a_bit, "not what was written", id="one bit flipped"),
        pytest.param(truncate_record, "not JSON", id="truncated record"),
        pytest.param(nest_record, "not JSON", id="record nested too deeply"),
        pytest.param(swell_record, "no checkpoint record", id="oversized record"),
        pytest.param(remove_tensors, "no state.safetensors", id="tensors missing"),
        pytest.param(remove_record, "no state.json", id="record missing"),
        pytest.param(claim_other_format, "format", id="other format"),
        pytest.param(put_a_pipe_for_the_record, "state.json is no regular file", id="record a pipe"),
        pytest.param(put_a_device_for_the_record, "state.json is no regular file", id="record a device"),
        pytest.param(put_a_pipe_for_the_tensors, "state.safetensors is no regular file", id="tensors a pipe"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(
    tmp_path: Path, damage, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path, make(80))
    newest = checkpoint.save(tmp_path, make(160))
    damage(newest)
    with pytest.raises(CheckpointError, match=message) as refusal:
        checkpoint.load(newest)
    assert newest.name in str(refusal.value)
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert loaded.global_steps == 80
    assert newest.name in caplog.text


def test_a_checkpoint_of_another_network_is_refused_and_the_one_before_it_used(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(80))
    checkpoint.save(tmp_path, make(160, schema="b" * 64))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert loaded.global_steps == 80


def test_a_checkpoint_of_a_diverged_learner_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(80))
    checkpoint.save(tmp_path, make(160, value=float("nan")))
    loaded = checkpoint.load_latest(tmp_path, SCHEMA)
    assert loaded is not None
    assert loaded.global_steps == 80


def test_counters_that_are_not_json_are_refused_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(80))
    bad = Checkpoint(tensors={}, counters={"loss": float("inf")}, schema_hash=SCHEMA, global_steps=160)
    with pytest.raises(CheckpointError, match="must be JSON"):
        checkpoint.save(tmp_path, bad)
    assert checkpoint.load_latest(tmp_path, SCHEMA) is not None


def test_a_folder_that_cannot_be_written_is_a_checkpoint_error(tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.save(blocked, make(80))


@pytest.mark.processes
@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_costs_no_finished_checkpoint(tmp_path: Path, keep: int) -> None:
    moments = random.Random(keep)
    saver = tmp_path / "saver.py"
    saver.write_text(FORKING_SAVER)
    kills = 25
    process = subprocess.Popen(
        [sys.executable, "-P", str(saver), str(tmp_path / "run"), str(keep)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        for number in range(kills):
            process.stdin.write(f"{number} {moments.uniform(0.0, 0.02):.6f}\n")
            process.stdin.flush()
            assert select.select([process.stdout], [], [], 30)[0], "the saver hangs"
            finished, signal_number = (int(word) for word in process.stdout.readline().split())
            assert signal_number == signal.SIGKILL
            loaded = checkpoint.load_latest(tmp_path / "run" / str(number), "s")
            assert loaded is not None
            assert loaded.counters["step"] >= finished >= 1
            assert torch.equal(loaded.tensors["vector"], torch.full((20_000,), float(loaded.counters["step"])))
        process.stdin.close()


FORKING_SAVER = """
import os, sys, time
from pathlib import Path
import torch
from gala_worker import checkpoint

for line in sys.stdin:
    number, delay = line.split()
    reader, writer = os.pipe()
    child = os.fork()  # cheaper than importing torch again for every kill
    if child == 0:
        for step in range(1, 1_000_000):
            made = checkpoint.Checkpoint(tensors={"vector": torch.full((20_000,), float(step))},
                                         counters={"step": step}, schema_hash="s", global_steps=step // 2)
            checkpoint.save(Path(sys.argv[1], number), made, keep=int(sys.argv[2]))
            os.write(writer, step.to_bytes(4, "big"))
    os.close(writer)
    finished = os.read(reader, 4)
    time.sleep(float(delay))
    os.kill(child, 9)
    status = os.waitpid(child, 0)[1]
    while more := os.read(reader, 4):
        finished = more
    os.close(reader)
    print(int.from_bytes(finished, "big"), os.WTERMSIG(status), flush=True)
"""
"""Saves without end, in a child that it kills after the first save and a random delay; each step number is saved
twice, so that adding, replacing and removing are all hit. Answers with the last step that was finished."""


def test_a_state_travels_as_bytes() -> None:
    sent = make(80)
    received = checkpoint.loads(checkpoint.dumps(sent), SCHEMA)
    assert received.counters == sent.counters
    assert received.global_steps == 80
    assert torch.equal(received.tensors["vector"], sent.tensors["vector"])


def test_a_state_that_is_cut_anywhere_is_refused() -> None:
    blob = checkpoint.dumps(make(80))
    for length in [0, 1, 47, 48, 60, 200, len(blob) // 2, len(blob) - 1]:
        with pytest.raises(CheckpointError):
            checkpoint.loads(blob[:length], SCHEMA)


def test_random_bytes_are_refused() -> None:
    generator = random.Random(0)
    for _ in range(200):
        with pytest.raises(CheckpointError):
            checkpoint.loads(generator.randbytes(generator.randrange(0, 400)))


def test_a_state_with_any_byte_changed_is_refused() -> None:
    blob = bytearray(checkpoint.dumps(Checkpoint(tensors={"vector": torch.ones(3)}, schema_hash=SCHEMA)))
    for position in range(len(blob)):
        blob[position] ^= 0x55
        with pytest.raises(CheckpointError):
            checkpoint.loads(bytes(blob), SCHEMA)
        blob[position] ^= 0x55


def test_a_well_formed_state_with_hostile_content_is_refused() -> None:
    """Whoever can compute the digest can also lie inside it."""
    good = checkpoint.dumps(make(80))
    record_size = int.from_bytes(good[40:48], "little")
    record, tensors = good[48 : 48 + record_size], good[48 + record_size :]
    for hostile_record, hostile_tensors in [
        (b"{}", tensors),
        (b"[" * 100_000, tensors),
        (b'"text"', tensors),
        (record.replace(b'"counters": {', b'"counters": [], "x": {'), tensors),
        (record, b""),
        (record, b"\xff" * 8 + tensors),
        (record, (2**63).to_bytes(8, "little") + tensors[8:]),
        (record, tensors[:-4]),
        (record, tensors + b"tail"),
        (record, safetensors.torch.save({"eight": torch.ones(2, dtype=torch.float8_e4m3fn)})),
    ]:
        with pytest.raises(CheckpointError):
            checkpoint.loads(sealed(hostile_record, hostile_tensors), SCHEMA)
    assert checkpoint.loads(sealed(record, tensors), SCHEMA).global_steps == 80


def sealed(record: bytes, tensors: bytes) -> bytes:
    digest = hashlib.sha256(record + tensors).digest()
    return b"GALASTAT" + digest + len(record).to_bytes(8, "little") + record + tensors


def test_a_checkpoint_of_eight_bits_is_passed_over(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(80))
    odd = make(160)
    odd.tensors["x"] = torch.zeros(3).to(torch.float8_e4m3fn)
    checkpoint.save(tmp_path, odd)
    found = checkpoint.load_latest(tmp_path, SCHEMA)
    assert found is not None
    assert found.global_steps == 80


def test_a_state_of_another_network_too_large_or_not_finite_is_refused() -> None:
    with pytest.raises(CheckpointError, match="another network"):
        checkpoint.loads(checkpoint.dumps(make(80)), "b" * 64)
    with pytest.raises(CheckpointError, match="at most 1,000 are accepted"):
        checkpoint.loads(checkpoint.dumps(make(80)), SCHEMA, max_bytes=1000)
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.loads(checkpoint.dumps(make(80, value=float("inf"))), SCHEMA)
