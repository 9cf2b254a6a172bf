"""`gala status | logs` against a small API server, and the ways to the command."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from remote_cluster import SPEC, Gala
from waiting import eventually

pytestmark = pytest.mark.usefixtures("cluster")


def test_status_lists_runs_like_kubectl(gala: Gala, cluster: Any) -> None:
    assert gala("status")[1] == "no runs in namespace default\n"
    cluster.add_run(
        "pole", SPEC, cluster.status("Degraded", steps=12345, stepsPerSecond=99.6, meanReturn=7.25, ready="1/2")
    )
    cluster.add_run("away", SPEC, namespace="team")
    _, out, _ = gala("status")
    header, row = out.splitlines()
    assert header.split() == ["NAME", "STATE", "READY", "STEPS", "STEPS/S", "RETURN", "ENVIRONMENT", "AGE"]
    assert row.split()[:7] == ["pole", "Degraded", "1/2", "12,345", "100", "7.2", "CartPole-v1"]
    everywhere = gala("status", "-A")[1].splitlines()
    assert [line.split()[:3] for line in everywhere[1:]] == [
        ["default", "pole", "Degraded"],
        ["team", "away", "Pending"],
    ]


def test_status_of_a_run_says_why_it_is_stuck(gala: Gala, cluster: Any) -> None:
    stuck = cluster.condition("PodsReady", "False", "Unschedulable", "pole-1: 0/1 nodes: Insufficient nvidia.com/gpu.")
    learners = [
        {"rank": 1, "state": "pending", "failures": 0},
        {
            "rank": 0,
            "state": "training",
            "steps": 5,
            "failures": 2,
            "lastFailure": {"reason": "OOMKilled", "message": "killed"},
        },
    ]
    cluster.add_run(
        "pole", SPEC, cluster.status("Degraded", message="1 of 2", conditions=[stuck], learnerStatuses=learners)
    )
    code, out, _ = gala("status", "pole")
    assert code == 0
    assert out.startswith("pole: Degraded, 1 of 2\n")
    assert "Unschedulable  pole-1: 0/1 nodes: Insufficient nvidia.com/gpu." in out
    rows = out.splitlines()[-2:]
    assert rows[0].split() == ["0", "training", "5", "-", "-", "-", "2", "OOMKilled:", "killed"]
    assert rows[1].split()[:2] == ["1", "pending"]


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ("GALA-A2C", "CartPole-v1, GALA-A2C, Ring of 2"),
        ("IMPALA", "CartPole-v1, IMPALA with 2"),
        ("of the future", "CartPole-v1, of the future, Ring of 2"),
    ],
)
def test_status_of_a_run_says_who_works_together(gala: Gala, cluster: Any, algorithm: str, said: str) -> None:
    cluster.add_run("pole", {**SPEC, "algorithm": algorithm}, cluster.status("Running"))
    assert f"  environment  {said}\n" in gala("status", "pole")[1]


def test_status_of_a_run_that_has_succeeded_says_how_to_fetch_it_from_there(gala: Gala, cluster: Any) -> None:
    cluster.add_run("pole", SPEC, cluster.status("Succeeded", finalModel={"meanReturn": 500.0}))
    assert "; gala fetch pole\n" in gala("status", "pole")[1]
    assert "; gala fetch pole --context here\n" in gala("status", "pole", "--context", "here")[1]


def test_status_of_an_unknown_run_is_a_line(gala: Gala) -> None:
    assert gala("status", "nix") == (2, "", "error: there is no run nix in namespace default\n")


def test_status_can_follow_a_run_to_its_end(gala: Gala, cluster: Any) -> None:
    cluster.add_run("pole", SPEC, cluster.status("Running"), cluster.status("Failed", message="too bad"))
    code, _, err = gala("status", "pole", "--follow")
    assert code == 1
    assert "too bad" in err


def test_logs_of_all_learners_carry_their_rank(gala: Gala, cluster: Any) -> None:
    uid = cluster.add_run("pole", SPEC, cluster.status("Running"))
    cluster.add_pod("pole-1", "pole", uid, rank=1)
    cluster.add_pod("pole-0", "pole", uid, rank=0)
    cluster.add_pod("pole-results", "pole", uid, rank=None, waiting="ContainerCreating")
    cluster.add_pod("pole-7", "pole", "of-an-earlier-run", rank=7)
    cluster.logs = {"pole-0": [b"one\ntw", b"o\n"], "pole-1": [b"no newline"], "pole-7": [b"old\n"]}
    code, out, err = gala("logs", "pole")
    assert (code, out) == (0, "[0] one\n[0] two\n[1] no newline\n")
    assert err == "pole-results has no log yet: ContainerCreating\n"
    assert gala("logs", "pole", "0")[1] == "one\ntwo\n"


def test_logs_can_be_followed_to_the_end_of_a_run(gala: Gala, cluster: Any) -> None:
    uid = cluster.add_run(
        "pole", SPEC, cluster.status("Running"), cluster.status("Running"), cluster.status("Succeeded")
    )
    cluster.add_pod("pole-0", "pole", uid, rank=0)
    cluster.logs = {"pole-0": [b"one\n", b"two\n"]}
    assert gala("logs", "pole", "--follow")[:2] == (0, "[0] one\n[0] two\n")


def test_following_logs_goes_on_with_a_pod_s_successor(gala: Gala, cluster: Any) -> None:
    uid = cluster.add_run("pole", SPEC, cluster.status("Running"))
    cluster.add_pod("pole-0", "pole", uid, rank=0, running=False)
    cluster.logs = {"pole-0": [b"alive\n"]}

    def replace_and_end() -> None:
        eventually(lambda: cluster.logs_sent >= 1)
        cluster.pods.clear()
        cluster.logs = {"pole-0": [b"alive again\n"]}
        cluster.add_pod("pole-0", "pole", uid, rank=0)
        eventually(lambda: cluster.logs_sent >= 2)
        cluster.scripts["pole"] = [cluster.status("Succeeded")]

    life = threading.Thread(target=replace_and_end)
    life.start()
    _, out, _ = gala("logs", "pole", "0", "-f")
    life.join()
    assert out == "alive\nalive again\n"


@pytest.mark.parametrize("rank", ["9", "x", "results"])
def test_logs_that_are_not_there_are_a_line(gala: Gala, cluster: Any, rank: str) -> None:
    uid = cluster.add_run("pole", SPEC, cluster.status("Running"))
    cluster.add_pod("pole-0", "pole", uid, rank=0)
    code, out, err = gala("logs", "pole", rank)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
