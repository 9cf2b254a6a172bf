"""The operator is killed, stays away, comes back changed, and loses its API server: no learner takes notice."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest


def steps(namespace, pod: str) -> int:
    """Of this learner, by its own account; 0 while it does not answer."""
    return namespace.worker_status(pod).get("steps", 0)


def wait_rising(namespace, pod: str, wait: Callable[..., Any]) -> None:
    before = wait(f"{pod} answers", lambda: steps(namespace, pod))
    wait(f"{pod} makes steps", lambda: steps(namespace, pod) > before)


@pytest.mark.timeout(420, func_only=True)
def test_an_operator_that_was_killed_away_and_changed_finds_its_run_and_disturbs_nobody(
    namespace, slow_pole, operator, until
):
    namespace.apply(slow_pole("pole"))
    namespace.wait_state("pole", "Running")
    before = namespace.lives("pole")

    operator.kill()
    namespace.delete("pod", "pole-1", "--grace-period=1")
    wait_rising(namespace, "pole-0", until)
    assert namespace.lives("pole") == {"pole-0": before["pole-0"]}, "nobody is there to replace it"

    operator.start()
    namespace.wait_replaced("pole-1", before["pole-1"][0])
    status = namespace.wait_state("pole", "Running")
    assert [learner["failures"] for learner in status["learnerStatuses"]] == [0, 0]
    assert namespace.lives("pole")["pole-0"] == before["pole-0"]
    assert status["steps"] > 0

    # An upgrade: other learners from now on, and the present ones carry the stamp of an older operator.
    operator.stop()
    for pod in ("pole-0", "pole-1"):
        namespace.kubectl("annotate", "--overwrite", "pod", pod, "gala.dev/operator-version=0.0.1")
    before = namespace.lives("pole")
    operator.start(WORKER_IMAGE="localhost/gala-worker:of-tomorrow", POLL_SECONDS="2")
    seen = namespace.status("pole")["steps"]
    namespace.wait("galaruns", "pole", lambda run: run["status"]["steps"] > seen, what="the new operator writes steps")
    assert namespace.status("pole")["state"] == "Running"
    assert namespace.lives("pole") == before


def test_an_api_server_that_is_away_is_waited_for_and_then_caught_up_with(
    cluster, namespace, slow_pole, operator, until
):
    namespace.apply(slow_pole("pole"))
    namespace.wait_state("pole", "Running")
    before = namespace.lives("pole")
    process, address = operator.process, namespace.pods("pole")["pole-0"]["status"]["podIP"]

    def trained() -> int:
        answer = cluster.enter("curl", "-sf", "-m", "5", f"http://{address}:7071/status", check=False)
        return json.loads(answer)["steps"] if answer else 0

    cluster.service("stop", "apiserver")
    try:
        made = until("pole-0 answers", trained)
        until("it trains on while there is no API server", lambda: trained() > made + 100)
    finally:
        cluster.service("start", "apiserver")
    until("the API server is back", lambda: cluster.kubectl("get", "--raw", "/readyz", check=False) == "ok")

    seen = namespace.status("pole").get("steps", 0)
    namespace.wait(
        "galaruns", "pole", lambda run: run["status"].get("steps", 0) > seen, what="the steps rise in the status"
    )
    assert namespace.lives("pole") == before
    # Its watches work again, too.
    namespace.delete("pod", "pole-1", "--grace-period=1")
    namespace.wait_replaced("pole-1", before["pole-1"][0])
    namespace.wait_state("pole", "Running")
    assert namespace.lives("pole")["pole-0"] == before["pole-0"]
    assert operator.process is process
    assert process.poll() is None, "the operator itself was not restarted"


@pytest.mark.timeout(420, func_only=True)
def test_a_run_that_ends_while_the_operator_is_away_is_brought_to_its_end_afterwards(
    namespace, slow_pole, operator, until
):
    namespace.apply(slow_pole("pole", totalSteps=1_500))
    until("both learners have started", lambda: all(steps(namespace, f"pole-{rank}") for rank in range(2)), 180)
    operator.kill()
    before = namespace.lives("pole")

    def finished() -> bool:
        return all(namespace.worker_status(f"pole-{rank}").get("state") == "finished" for rank in range(2))

    until("both learners have finished", finished, 180)
    assert namespace.status("pole")["state"] not in ("Succeeded", "Failed")

    operator.start()
    namespace.wait("pods", "pole-results", lambda pod: pod["status"]["phase"] == "Running")
    operator.stop(signal.SIGKILL)  # and amid the making of the final model
    operator.start()
    status = namespace.wait_state("pole", "Succeeded", "Failed")
    assert status["state"] == "Succeeded", status["message"]
    assert status["finalModel"]["averaged"] == [0, 1]
    after = namespace.lives("pole")
    assert {name: after[name] for name in before} == before


def leads(operator) -> bool:
    return "galarun_operator_is_leader 1.0" in operator.get("/metrics")


def reconciles(operator) -> float:
    lines = operator.get("/metrics").splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("galarun_operator_reconcile_total{"))


@pytest.mark.timeout(420, func_only=True)
def test_of_two_operators_one_works_and_the_other_takes_over(namespace, slow_pole, make_operator, until):
    # With the lease of real installations: one that a crowded machine cannot renew in time ends its operator.
    first, second = [make_operator(LEADER_ELECTION="true") for _ in range(2)]
    first.start()
    until("the first leads", lambda: leads(first))
    second.start()
    namespace.apply(slow_pole("pole"))
    namespace.wait_state("pole", "Running")
    until("the first leads still", lambda: leads(first))
    until("the second answers", lambda: second.get("/metrics"))
    assert not leads(second)
    assert reconciles(first) > 0
    assert reconciles(second) == 0
    before = namespace.lives("pole")

    first.kill()
    until("the second has taken over", lambda: leads(second))
    namespace.delete("pod", "pole-1", "--grace-period=1")
    namespace.wait_replaced("pole-1", before["pole-1"][0])
    namespace.wait_state("pole", "Running")
    first.start()
    until("the first answers", lambda: first.get("/metrics"))
    assert not leads(first)

    assert second.stop() == 0
    until("the first leads again", lambda: leads(first))
    lease = namespace.get("leases", "gala-operator")
    assert lease["spec"]["holderIdentity"] == first.log.stem
    seen = namespace.status("pole")["steps"]
    namespace.wait("galaruns", "pole", lambda run: run["status"]["steps"] > seen, what="the steps rise in the status")
    assert namespace.lives("pole")["pole-0"] == before["pole-0"]
