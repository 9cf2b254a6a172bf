"""The operator at scale: hundreds of runs on a real API server and etcd, without kubelets.

    tests/cluster/node/install.sh                  # the binaries, once
    python benchmarks/operator_scale.py [--runs 500] [--learners 4] [--delete 100] [--bursts 1] [--seconds 60] [--json]

1. the floor: as many Jobs with as many pods each, made with kubectl, carried out by Kubernetes' own Job controller;
2. the runs, made with kubectl at once: until all pods are there, until all runs say Running;
3. `--seconds` of learners whose numbers stand still: what is written; and again of learners that train;
4. `--delete` pods deleted at the same moment, `--bursts` times: how long until each has its successor;
5. the operator restarted: what it writes.

One program plays all kubelets (bare_cluster.py); its work and the API server's share the machine with the operator.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bare_cluster import BareCluster, Kubelets, bare_cluster, cpu_seconds, free_ports, settings, start_operator

NAMESPACE = "scale"
LIMIT_SECONDS = 600.0
WRITES = ("create", "patch", "update", "delete")
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--learners", type=int, default=4)
    parser.add_argument("--delete", type=int, default=100)
    parser.add_argument("--bursts", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of steady state, and of training")
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = Figures(quiet=options.json)
    figures["cores, load before"] = f"{os.cpu_count()}, {os.getloadavg()[0]:.1f}"
    if not options.no_floor:
        with bare_cluster() as cluster:
            asyncio.run(floor(cluster, options, figures))
    with bare_cluster() as cluster:
        try:
            asyncio.run(measure(cluster, options, figures))
        except BaseException:
            print((cluster.folder / "operator.log").read_text()[-4000:])
            raise
    figures["load after"] = f"{os.getloadavg()[0]:.1f}"
    if options.json:
        print(json.dumps(figures, indent=2))


class Figures(dict[str, Any]):
    """By name; printed as they come, unless `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__()
        self._quiet = quiet

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if not self._quiet:
            print(f"{name:50} {value:.3g}" if isinstance(value, float) else f"{name:50} {value}", flush=True)


async def floor(cluster: BareCluster, options: argparse.Namespace, figures: Figures) -> None:
    """Jobs in the place of runs."""
    async with Kubelets(cluster, learners=options.learners) as kubelets:
        await make_namespace(kubelets)
        cluster.start(
            "controller-manager", f"{settings()['GALA_K8S_BIN']}/kube-controller-manager", "--controllers=job",
            f"--kubeconfig={cluster.kubeconfig}", "--leader-elect=false", "--port=0", "--secure-port=0",
            "--kube-api-qps=10000", "--kube-api-burst=10000",
        )  # fmt: skip
        await create(cluster, kubelets, write(cluster, [job("first", 1)]), 1)  # it is at work once this has its pod
        before, usage_before = cluster.cpu_seconds("controller-manager"), usage(cluster)
        manifest = write(cluster, [job(f"job-{index:04}", options.learners) for index in range(options.runs)])
        made, pods = await create(cluster, kubelets, manifest, 1 + options.runs * options.learners)
        figures["floor: all Jobs created, s"] = made
        figures["floor: all pods created, s"] = pods
        figures["floor: CPU of the Job controller, s"] = cluster.cpu_seconds("controller-manager") - before
        for name, seconds in usage(cluster, usage_before).items():
            figures[f"floor: CPU of {name}, s"] = seconds


async def measure(cluster: BareCluster, options: argparse.Namespace, figures: Figures) -> None:
    """The operator."""
    num_pods = options.runs * options.learners
    (port,) = free_ports(1)
    async with Kubelets(cluster, learners=options.learners) as kubelets:
        await make_namespace(kubelets)
        operator = start_operator(cluster, port, NAMESPACE)
        await until_ready(port)
        manifest = write(cluster, [galarun(f"run-{index:04}", options.learners) for index in range(options.runs)])
        before = usage(cluster)
        started = time.monotonic()
        made, pods = await create(cluster, kubelets, manifest, num_pods)
        await kubelets.until("all runs say Running", lambda: all_running(kubelets, options.runs), LIMIT_SECONDS)
        figures["all runs created, s"] = made
        figures["all pods created, s"] = pods
        figures["all runs Running, s"] = time.monotonic() - started
        await settled(port)
        metrics = scrape(port)
        for name, seconds in usage(cluster, before).items():
            figures[f"CPU of {name}, s"] = seconds
        for quantile in (0.5, 0.99):
            figures[f"reconcile p{quantile * 100:.0f}, s"] = percentile(
                metrics, "galarun_operator_reconcile_duration_seconds", quantile
            )
        figures["reconciles per run"] = total(metrics, "galarun_operator_reconcile_total") / options.runs
        figures["reconciles that failed"] = total(metrics, "galarun_operator_reconcile_total", 'result="error"')
        figures["API calls per run"] = total(metrics, "galarun_operator_api_requests_total") / options.runs
        figures["API calls per run by kind"] = by_kind(metrics, per=options.runs)

        for what, steps in (("steady state", None), ("training", lambda: int(time.monotonic() * 1000))):
            if steps is not None:
                kubelets.steps = steps
            before, counted, asked = usage(cluster), writes(scrape(port)), kubelets.questions
            await asyncio.sleep(options.seconds)
            counted = writes(scrape(port)) - counted
            figures[f"{what}: writes in {options.seconds:g} s"] = dict(counted) or 0
            figures[f"{what}: questions to learners"] = kubelets.questions - asked
            figures[f"{what}: CPU of the operator, s"] = usage(cluster, before)["the operator"]

        for burst in range(1, options.bursts + 1):
            kubelets.steps = lambda: int(time.monotonic() * 1000)
            await asyncio.sleep(QUIET_SECONDS)
            kubelets.steps = standing_still(kubelets.steps())
            before = usage(cluster)
            waits = await delete_pods(kubelets, options.delete, seed=burst)
            for name, seconds in usage(cluster, before).items():
                figures[f"burst {burst}: CPU of {name}, s"] = seconds
            for percent in (50, 99, 100):
                figures[f"burst {burst}: pod replaced p{percent}, s"] = waits[math.ceil(percent / 100 * len(waits)) - 1]
            figures[f"burst {burst}: all runs Running again, s"] = await kubelets.until(
                "all runs say Running again", lambda: all_running(kubelets, options.runs), LIMIT_SECONDS
            )
            await settled(port)
        figures["peak memory of the operator, MiB"] = peak_mebibytes(operator.pid)

        cluster.stop("operator")
        started = time.monotonic()
        operator = start_operator(cluster, port, NAMESPACE)
        await until_ready(port)
        figures["restart: ready, s"] = time.monotonic() - started
        await settled(port)
        metrics = scrape(port)
        figures["restart: runs looked at, s"] = time.monotonic() - started - QUIET_SECONDS
        figures["restart: looks at runs"] = int(total(metrics, "galarun_operator_reconcile_total"))
        figures["restart: writes"] = dict(writes(metrics)) or 0
        figures["restart: CPU of the operator, s"] = cpu_seconds(operator.pid)
        figures["restart: peak memory of the operator, MiB"] = peak_mebibytes(operator.pid)


def standing_still(steps: int) -> Callable[[], int]:
    """Learners that report no more steps than these."""
    return lambda: steps


async def create(cluster: BareCluster, kubelets: Kubelets, manifest: Path, num_pods: int) -> tuple[float, float]:
    """Seconds until kubectl has made all that a file says, and until so many pods are there."""
    started = time.monotonic()
    made = asyncio.create_task(
        asyncio.to_thread(cluster.kubectl, "create", "--validate=false", "--filename", str(manifest))
    )
    seconds: list[float] = []
    made.add_done_callback(lambda _: seconds.append(time.monotonic() - started))
    await kubelets.until(f"{num_pods} pods", lambda: len(kubelets.pods) >= num_pods, LIMIT_SECONDS)
    pods = time.monotonic() - started
    await made
    return seconds[0], pods


async def delete_pods(kubelets: Kubelets, count: int, *, seed: int) -> list[float]:
    """Deletes that many at the same moment; seconds from each one's deletion to its successor, sorted."""
    victims = random.Random(seed).sample(sorted(kubelets.pods), count)
    before = {place: kubelets.pods[place].uid for place in victims}
    deleted: dict[tuple[str, str], float] = {}

    async def delete(place: tuple[str, str]) -> None:
        path = f"/api/v1/namespaces/{place[0]}/pods/{place[1]}"
        await kubelets.request("DELETE", path, {"gracePeriodSeconds": 0})
        deleted[place] = time.monotonic()

    def replaced() -> bool:
        return all(place in kubelets.pods and kubelets.pods[place].uid != before[place] for place in victims)

    await asyncio.gather(*(delete(place) for place in victims))
    await kubelets.until("deleted pods are replaced", replaced, LIMIT_SECONDS)
    return sorted(max(kubelets.pods[place].seen - deleted[place], 0.0) for place in victims)


async def make_namespace(kubelets: Kubelets) -> None:
    """With the service account that a controller would make."""
    await kubelets.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    await kubelets.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})


QUIET_SECONDS = 12.0
"""A cycle of questions to the learners (10 s) in which nothing is written is a steady state."""


async def settled(port: int) -> None:
    """Until nothing has been written for a while."""
    deadline = time.monotonic() + LIMIT_SECONDS
    last, since = None, time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        if (counted := writes(scrape(port))) != last:
            last, since = counted, time.monotonic()
        if time.monotonic() > deadline:
            raise SystemExit(f"no steady state within {LIMIT_SECONDS:g} s")
        await asyncio.sleep(1)


async def until_ready(port: int) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        try:
            await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/readyz", timeout=5)
            return
        except OSError:
            await asyncio.sleep(0.1)
    raise SystemExit("the operator is not ready")


def all_running(kubelets: Kubelets, num_runs: int) -> bool:
    return sum(state == "Running" for state in kubelets.states.values()) >= num_runs


def usage(cluster: BareCluster, since: dict[str, float] | None = None) -> dict[str, float]:
    """CPU seconds by whom."""
    now = {
        "API server and etcd": cluster.cpu_seconds("apiserver") + cluster.cpu_seconds("etcd"),
        "the kubelets' stand-in": time.process_time(),
    }
    if "operator" in cluster.processes:
        now["the operator"] = cluster.cpu_seconds("operator")
    return {name: seconds - (since or {}).get(name, 0.0) for name, seconds in now.items()}


def peak_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def scrape(port: int) -> list[tuple[str, str, float]]:
    """(name, labels, value) of every sample of the operator's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = [SAMPLE.fullmatch(line) for line in lines if not line.startswith("#")]
    return [(sample[1], sample[2] or "", float(sample[3])) for sample in found if sample]


def total(metrics: list[tuple[str, str, float]], name: str, label: str = "") -> float:
    return sum(value for each, labels, value in metrics if each == name and label in labels)


def by_kind(metrics: list[tuple[str, str, float]], per: int) -> dict[str, float]:
    counted: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in metrics:
        if name == "galarun_operator_api_requests_total":
            verb, resource, code = (re.search(f'{key}="([^"]*)"', labels)[1] for key in ("verb", "resource", "code"))  # type: ignore[index]
            counted[f"{verb} {resource} {code}"] += value
    return {what: round(count / per, 2) for what, count in sorted(counted.items(), key=lambda item: -item[1])}


def writes(metrics: list[tuple[str, str, float]]) -> Counter[str]:
    """How often what was written."""
    counted = {what: int(count) for what, count in by_kind(metrics, 1).items() if what.split()[0] in WRITES}
    return Counter(counted)


def percentile(metrics: list[tuple[str, str, float]], name: str, quantile: float) -> float:
    """As PromQL's histogram_quantile."""
    buckets = sorted(
        (float(re.search(r'le="([^"]*)"', labels)[1]), value)  # type: ignore[index]
        for each, labels, value in metrics
        if each == f"{name}_bucket"
    )
    rank = quantile * buckets[-1][1]
    below, counted = 0.0, 0.0
    for bound, value in buckets:
        if value >= rank:
            return below if bound == float("inf") else below + (bound - below) * (rank - counted) / (value - counted)
        below, counted = bound, value
    return below


def write(cluster: BareCluster, documents: list[dict[str, Any]]) -> Path:
    path = cluster.folder / "manifest.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
    return path


def galarun(name: str, learners: int) -> dict[str, Any]:
    return {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"environment": {"id": "CartPole-v1"}, "learners": learners, "totalSteps": 10**15},
    }


def job(name: str, pods: int) -> dict[str, Any]:
    container = {"name": "worker", "image": "none", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"parallelism": pods, "completions": pods, "template": template},
    }


if __name__ == "__main__":
    main()
