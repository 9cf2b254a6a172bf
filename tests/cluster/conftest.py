"""A real Kubernetes for tests: the cluster, the project's images in it, a namespace per test, and the operator.

`cluster` is the session's: the cluster that GALA_TEST_KUBECONFIG names, or the node of `node/` (see node/README.md),
installed and started if it is not up, and then ended with the session. Where neither can be had, every test here is
skipped with one line that says why.

With pytest-xdist every worker is a lane of its own: a node beside the others' that nobody else's test can disturb, and
that always ends with the session. The tests that take longest come first, so that no lane is left with one at the end.

A test gets a `namespace` of its own and an `operator` that watches only that one: in the node as a process of this
checkout's code, elsewhere as the chart's pod. `deployed` is always the chart's.
"""

import contextlib
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from live_cluster import CRD, NODE, PROJECT, Cluster, Namespace, Object, Operator, api_port, wait_for

HERE = Path(__file__).parent
TEST_SECONDS = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                # of the test alone: the first one's fixtures may install a Kubernetes
                item.add_marker(pytest.mark.timeout(TEST_SECONDS, func_only=True))
    items.sort(key=longest_first)


def longest_first(item: pytest.Item) -> float:
    """By what each test is allowed; what needs no cluster afterwards, in its order."""
    timeout = item.get_closest_marker("timeout")
    return -timeout.args[0] if timeout and item.get_closest_marker("cluster") else 0.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    if report.skipped and LOUD in str(report.longrepr):
        report.longrepr = (str(HERE), 1, report.longrepr[2])  # one place: the summary then has one line for all
    return report


FAILED = pytest.StashKey[bool]()
LOUD = "NO TEST ON A REAL CLUSTER WAS RUN"


def why_not() -> str:
    """Why no cluster can be had here; empty if one can."""
    if os.environ.get("GALA_CLUSTER_TESTS", "") != "1":
        return "they run with `make test-cluster` (GALA_CLUSTER_TESTS=1)"
    if os.environ.get("GALA_TEST_KUBECONFIG"):
        return ""
    release = Path("/etc/os-release")
    if os.geteuid() != 0:
        return "without GALA_TEST_KUBECONFIG they start a Kubernetes of their own, which takes root"
    if not release.exists() or "VERSION_CODENAME=bookworm" not in release.read_text():
        return "without GALA_TEST_KUBECONFIG they build a Kubernetes from Debian bookworm's sources: not a bookworm"
    if not Path("/sys/fs/cgroup/memory/cgroup.procs").exists():
        return "without GALA_TEST_KUBECONFIG they need cgroup v1 (or hybrid)"
    namespaces = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True)
    if namespaces.returncode != 0 or not os.access("/sys/fs/cgroup/memory", os.W_OK):
        return "without GALA_TEST_KUBECONFIG they need namespaces and cgroups: a machine, or a privileged container"
    if platform.machine() != "x86_64":
        return "without GALA_TEST_KUBECONFIG they need an x86-64 machine"
    return ""


def bash(*command: str) -> str:
    """Runs one of node/'s scripts; what it logs goes to the terminal's capture."""
    environment = os.environ | {"GALA_PYTHON": sys.executable}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return done.stdout


def settings(*names: str) -> list[str]:
    """Of the node, as its env.sh has them."""
    return bash("bash", "-c", f'. {NODE}/env.sh; for name; do echo "${{!name}}"; done', "env", *names).splitlines()


@contextlib.contextmanager
def ended_with_this_process() -> Iterator[None]:
    """Whatever becomes of the process: another one ends the node as soon as nobody writes to it any more."""
    command = ["bash", "-c", 'cat && exec "$0"', str(NODE / "down.sh")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as ending:
        assert ending.stdin is not None
        try:
            yield
        finally:
            ending.stdin.close()
            status = ending.wait(300)
    assert status == 0, f"down.sh ended with {status}"


# Of what is installed, beside Debian's packages; they do not need each other.
PARTS = (("install.sh",), ("images/gala.sh", "--stock"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(f"{LOUD}: {reason}")
    if given := os.environ.get("GALA_TEST_KUBECONFIG"):
        images = [os.environ.get(f"GALA_TEST_{name}_IMAGE", "") for name in ("OPERATOR", "WORKER")]
        if not all(images):
            pytest.skip(
                f"{LOUD}: GALA_TEST_OPERATOR_IMAGE and GALA_TEST_WORKER_IMAGE must name images that it can pull"
            )
        cluster = Cluster(Path(given), dict(os.environ), False, *images)
        cluster.define_galaruns()
        yield cluster
        return
    bash(str(NODE / "install.sh"), "--packages")
    with ThreadPoolExecutor() as side_by_side:
        parts = [side_by_side.submit(bash, str(NODE / name), *options) for name, *options in PARTS]
    for part in parts:
        part.result()
    lane = os.environ.get("PYTEST_XDIST_WORKER", "")
    if lane:
        os.environ["GALA_STATE"] = f"{settings('GALA_STATE')[0]}-{lane}"
        os.environ["GALA_API_PORT"] = str(api_port(int(lane.removeprefix("gw")) + 1))
        os.environ["GALA_CPU_SHARES"] = "2048"  # so that pods that train leave their share to the tests of all lanes
    state, tools, kubeconfig = settings("GALA_STATE", "GALA_TOOLS", "GALA_KUBECONFIG")
    was_up = not lane and Path(state, "run/node-ready").exists()
    with contextlib.nullcontext() if was_up else ended_with_this_process():
        bash(str(NODE / "up.sh"))
        operator_image, worker_image = bash(str(NODE / "images/gala.sh"), "--load").split()
        environment = os.environ | {
            "GALA_STATE": state,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONSAFEPATH": "1",
            **{f"HELM_{kind}_HOME": f"{state}/helm" for kind in ("CACHE", "CONFIG", "DATA")},
        }
        cluster = Cluster(Path(kubeconfig), environment, True, operator_image, worker_image)
        other = cluster.kubectl("get", "deployments", "-n", "gala-system", "-o", "name")
        assert not other, f"{other.strip()} of `make deploy` would interfere: helm uninstall -n gala-system gala"
        cluster.define_galaruns()
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A fresh one; with a failed test its runs, pods, events and logs are printed before it goes."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))
    namespace = Namespace(cluster, f"{words[:40].strip('-')}-{secrets.token_hex(3)}")
    cluster.kubectl("create", "namespace", namespace.name)
    wait_for("the default service account", lambda: namespace.get("serviceaccounts", "default"))
    try:
        yield namespace
    finally:
        if request.node.stash.get(FAILED, True):
            print(namespace.report())  # noqa: T201 -- shown with the failure
        namespace.kubectl("delete", "galaruns", "--all", "--wait=false", check=False)
        namespace.kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false", check=False)
        cluster.kubectl("delete", "namespace", namespace.name, "--wait=false")


@pytest.fixture
def bare(cluster: Cluster) -> Iterator[None]:
    """The cluster without GALA: neither its resource definition nor any GalaRun. Restored afterwards."""
    if not cluster.node:
        pytest.skip("would delete the GalaRuns of a cluster that is not the tests' own")
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s")
    yield
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s")
    cluster.define_galaruns()


@pytest.fixture
def until() -> Callable[..., Any]:
    """`wait_for` above, for what no `Namespace.wait...` does."""
    return wait_for


@pytest.fixture
def slow_pole(namespace: Namespace) -> Callable[..., Object]:
    """Makes GalaRuns that learn SlowPole and never end by themselves, with what else a test wants."""
    module = (PROJECT / "tests/support/environments/slow_pole.py").read_text()
    files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "environments"}}
    namespace.apply({**files, "data": {"slow_pole.py": module}})

    def make(name: str, *, env: dict[str, str] | None = None, worker: Object | None = None, **spec: Any) -> Object:
        variables = {"PYTHONPATH": "/opt/environments", **(env or {})}
        pod = {
            "volumes": [
                {"name": "environments", "configMap": {"name": "environments"}},
                {"name": "scratch", "emptyDir": {"sizeLimit": "4Mi"}},
            ],
            "volumeMounts": [
                {"name": "environments", "mountPath": "/opt/environments"},
                {"name": "scratch", "mountPath": "/scratch"},
            ],
            "terminationGracePeriodSeconds": 20,
        }
        return {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": name},
            "spec": {
                "environment": {"id": "slow_pole:SlowPole-v0", "simulators": 2},
                "learners": 2,
                "totalSteps": 10**12,
                "gossip": {"peerTimeoutSeconds": 5},
                "evaluation": {"everySteps": None, "episodes": 1},
                "worker": {
                    "gpus": 0,
                    "env": [{"name": name, "value": value} for name, value in variables.items()],
                    "resources": {"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"memory": "1Gi"}},
                    "podTemplate": {"spec": pod},
                    **(worker or {}),
                },
                **spec,
            },
        }

    return make


@pytest.fixture
def make_operator(
    namespace: Namespace, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], Operator]]:
    """Operators of the namespace that are not started yet, for tests that need two or other settings."""
    if not namespace.cluster.node:
        pytest.skip("needs the inside of the node")
    made: list[Operator] = []

    def make(**settings: str) -> Operator:
        quick = {"POLL_SECONDS": "1", "STATUS_SECONDS": "1", "RESTART_SECONDS": "1"}
        operator = Operator(namespace, tmp_path / f"operator-{len(made)}.log", quick | settings)
        made.append(operator)
        return operator

    yield make
    for operator in made:
        if operator.process is not None:
            if request.node.stash.get(FAILED, True):
                print(f"--- {operator.log.name}\n{operator.tail(150)}")  # noqa: T201 -- shown with the failure
            with contextlib.suppress(subprocess.TimeoutExpired):
                operator.stop()
            if operator.process.poll() is None:
                operator.kill()


@pytest.fixture
def operator(make_operator: Callable[[], Operator]) -> Operator:
    """This checkout's operator, running in the node and watching the test's namespace."""
    operator = make_operator()
    operator.start()
    return operator


@pytest.fixture
def deployed(namespace: Namespace) -> Iterator[Callable[..., None]]:
    """Installs the operator by its chart into the test's namespace, for that one alone; called again, upgrades it.

    Takes values as `--set` does: `deployed("replicas=2", "leaderElection.enabled=true")`.
    """
    cluster = namespace.cluster
    images = [image.rsplit(":", 1) for image in (cluster.operator_image, cluster.worker_image)]
    values = [f"watchNamespaces={{{namespace.name}}}", "crds.enabled=false", "rbac.aggregate=false"]
    values += ["controller.pollSeconds=1", "controller.statusSeconds=1", "controller.restartSeconds=1"]
    for prefix, (repository, tag) in zip(("", "worker."), images, strict=True):
        values += [f"{prefix}image.repository={repository}", f"{prefix}image.tag={tag}"]

    def deploy(*more: str) -> None:
        sets = [part for value in (*values, *more) for part in ("--set", value)]
        chart = str(PROJECT / "charts/gala-operator")
        command = ["upgrade", "--install", "gala", chart, "-n", namespace.name, "--wait", "--timeout", "180s", *sets]
        cluster.helm(*command, seconds=200)

    yield deploy
    cluster.helm("uninstall", "gala", "-n", namespace.name, "--ignore-not-found", "--wait", check=False)
