"""Where a learner computes."""

import logging

import pytest
import torch

from gala_worker import device
from gala_worker.device import choose_compute_type, choose_device, choose_threads


def test_a_learner_that_asked_for_a_gpu_and_finds_none_says_so_and_uses_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert choose_device(3, 1) == torch.device("cpu")
    assert "worker.gpus is 1, but PyTorch finds no CUDA device" in caplog.text


def test_a_learner_that_asked_for_none_uses_the_cpu_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_device(0, 0) == torch.device("cpu")
    assert not caplog.text


def test_learners_that_see_two_gpus_share_them_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(rank, 1).index for rank in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(("convolutional", "expected"), [(True, 6), (False, 1)])
def test_only_a_convolutional_network_is_computed_by_several_threads(convolutional: bool, expected: int) -> None:
    assert choose_threads(6, convolutional=convolutional) == expected


CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_chosen_for_convolutions_where_the_hardware_has_it_and_said_to_cost_time_where_not(
    native: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "has_bfloat16", lambda device: native)
    expected = torch.bfloat16 if native else torch.float32
    assert choose_compute_type("auto", convolutional=True, device=CPU) is expected
    assert choose_compute_type("auto", convolutional=False, device=CPU) is torch.float32
    assert choose_compute_type("float32", convolutional=True, device=CPU) is torch.float32
    assert not caplog.records
    assert choose_compute_type("bfloat16", convolutional=True, device=CPU) is torch.bfloat16, "asked for"
    assert len(caplog.records) == (0 if native else 1)
    assert native or "auto computes in float32 here" in caplog.text
